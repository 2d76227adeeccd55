"""Opens a dataset of any format: `open_data`. Imports no jax."""

from __future__ import annotations

from pathlib import Path

from dreamer.data.d4rl import open_hdf5
from dreamer.data.episodes import Data, Reading
from dreamer.data.lerobot import open_lerobot
from dreamer.data.lerobot_meta import INFO
from dreamer.data.minari import METADATA, PREFIX, open_minari
from dreamer.data.npz import open_npz
from dreamer.data.runs import open_run
from dreamer.errors import UserError
from dreamer.runtime.files.run_dir import CONFIG, POPULATION

HDF5 = (".hdf5", ".h5", ".hdf")
AS_IS = Reading()
KNOWN = (
    "a dataset is minari:NAME or its folder, a .hdf5 file as in D4RL, a folder of .npz files, the folder of a LeRobot "
    "dataset, or a run directory"
)


def open_data(path: str | Path, reading: Reading = AS_IS) -> Data:
    """Opens a dataset on this machine. Nothing is downloaded, unpickled or run.

    path: minari:NAME, the folder of a dataset of Minari or LeRobot, an HDF5 file, an npz file or a folder of them, or a
    run directory. reading: how to read what a file does not say itself.
    Raises UserError if there is no dataset, or if a file or field cannot be read, and names it. `Data.scan` yields
    the faults of single episodes.
    """
    if str(path).startswith(PREFIX):
        return open_minari(str(path), reading)
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{path}: there is no such file or folder; {KNOWN}")
    if place.is_file():
        if place.suffix in HDF5:
            return open_hdf5(place, reading)
        if place.suffix == ".npz":
            return open_npz(place, reading)
        raise UserError(f"{path} is not a dataset: {KNOWN}")
    if (place / CONFIG).is_file() or (place / POPULATION).is_file():
        return open_run(place, reading)
    if (place / METADATA).is_file() or (place / "data" / METADATA).is_file():
        return open_minari(str(place), reading)
    if any(place.glob("*.npz")):
        return open_npz(place, reading)
    if (place / INFO).is_file():
        return open_lerobot(place, reading)
    raise UserError(f"{path} is not a dataset: {KNOWN}")
