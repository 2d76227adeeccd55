"""Rows a second read from each format of dataset, with all checks, beside a plain copy of the same bytes.

    python -m benchmarks.read_data --rows 20000

Makes episodes of random rows, once with vectors and once with images, writes them in every format, and reads them back
through `open_data`. Prints the median of a few passes; the files are in the page cache. The films of LeRobot are H.264
without loss, which takes longer to decode than those of cameras.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import robots
from dreamer.data.converting import convert
from dreamer.data.episodes import Data, Episode, Found, Reading
from dreamer.data.forms import to_json
from dreamer.data.opening import open_data
from dreamer.runtime.files import checkpoint_files, manifest, sealed
from dreamer.runtime.files.manifest import Files, Manifest
from dreamer.spaces import Action, Space, Spec

KINDS = {
    "vector": Spec({"vector": Space((24,), "float32")}, Action((), 6)),
    "image": Spec({"image": Space((64, 64, 3), "uint8")}, Action((18,))),
}
LENGTH = 500  # rows of an episode
PASSES = 3
RUN = "a" * 32


def main() -> None:
    """Prints one line for each kind of observation and format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--folder", help="folder for the files; a temporary one by default")
    args = parser.parse_args()
    print(f"{args.rows:,} rows in episodes of {LENGTH}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'kind':8} {'format':8} {'rows/s':>10} {'MB/s':>8} {'opened ms':>10} {'MB on disk':>11}", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        os.environ["MINARI_DATASETS_PATH"] = f"{folder}/minari"
        for kind, spec in KINDS.items():
            count = args.rows // LENGTH // (1 if kind == "vector" else 10)
            measure(kind, spec, max(1, count), Path(folder) / kind)


def measure(kind: str, spec: Spec, episodes: int, folder: Path) -> None:
    """Writes the episodes in every format, and prints how fast each is read."""
    made = [episode(spec, seed) for seed in range(episodes)]
    nbytes = sum(array.nbytes for one in made for array in (*one.obs.values(), *one[2:]))
    data = Data("made", kind, spec, episodes, episodes * LENGTH, (), (), lambda: map(Found, made))
    names = {form: f"{form}:{folder}/{form}" for form in ("npz", "hdf5")}
    names = {"minari": f"minari:{kind}/bench-v0", "npz": names["npz"], "hdf5": f"{names['hdf5']}.hdf5"}
    places = {form: str(convert(data, target).path) for form, target in names.items()}
    places["run"] = str(as_run(spec, made, folder / "run"))
    places["lerobot"] = str(as_lerobot(spec, made, folder / "lerobot"))
    for form, place in places.items():
        opened, seconds = [], []
        for _ in range(PASSES):
            start = time.perf_counter()
            found = open_data(place, Reading(missing_last="drop"))
            opened.append(time.perf_counter() - start)
            start = time.perf_counter()
            rows = sum(one.rows for one in found.read())
            seconds.append(time.perf_counter() - start)
            assert rows == episodes * LENGTH
        took = statistics.median(seconds)
        disk = sum(file.stat().st_size for file in (Path(place).rglob("*") if Path(place).is_dir() else [Path(place)]))
        line(kind, form, rows / took, nbytes / took, f"{statistics.median(opened) * 1e3:.1f}", f"{disk / 1e6:.1f}")
    start = time.perf_counter()
    for one in made:
        for array in (*one.obs.values(), *one[2:]):
            array.copy()
    took = time.perf_counter() - start
    line(kind, "copy", episodes * LENGTH / took, nbytes / took, "", "")


def line(kind: str, form: str, rows: float, nbytes: float, opened: str, disk: str) -> None:
    """Prints one line of the table."""
    print(f"{kind:8} {form:8} {rows:10,.0f} {nbytes / 1e6:8,.0f} {opened:>10} {disk:>11}", flush=True)


def episode(spec: Spec, seed: int) -> Episode:
    """Returns an episode of LENGTH random rows; images have areas of one color, so that they can be compressed."""
    rng = np.random.default_rng(seed)
    obs = {}
    for key, space in spec.obs.items():
        if space.image:
            small = rng.integers(256, size=(LENGTH, 8, 8, 3)).astype(np.uint8)
            obs[key] = small.repeat(8, 1).repeat(8, 2)
        else:
            obs[key] = rng.normal(size=(LENGTH, *space.shape)).astype(np.float32)
    parts = [np.eye(n, dtype=np.float32)[rng.integers(n, size=LENGTH)] for n in spec.action.classes]
    parts.append(rng.uniform(-1, 1, (LENGTH, spec.action.continuous)).astype(np.float32))
    action, reward = np.concatenate(parts, 1), rng.normal(size=LENGTH).astype(np.float32)
    action[-1], reward[0] = 0, 0
    is_first, is_last, is_terminal = np.zeros((3, LENGTH), bool)
    is_first[0], is_last[-1] = True, True
    return Episode(f"episode {seed}", obs, action, reward, is_first, is_last, is_terminal)


def as_run(spec: Spec, episodes: list[Episode], run_dir: Path) -> Path:
    """Writes the episodes as the rows of a run, a file for each, and returns the run directory."""
    (run_dir / "rows").mkdir(parents=True)
    (run_dir / "config.yaml").write_text("env: made\n")
    seals = []
    for number, one in enumerate(episodes):
        columns = {f"obs/{key}": array for key, array in one.obs.items()}
        columns |= dict(zip(Episode._fields[2:], one[2:], strict=True))
        head = {"run": RUN, "spans": [[0, number * LENGTH, (number + 1) * LENGTH]]}
        seals.append(sealed.write(run_dir / "rows" / f"rows-{number:09d}.dreamer", head, columns))
    files = Files(RUN, tuple(seals), (), sealed.Seal("state-1.dreamer", 1, 1), (0,), 1)
    meta = Manifest(1, 1, manifest.FORMAT, files, (0, 0), json.loads(to_json(spec))).to_json()
    folder = run_dir / "checkpoints" / "1" / "meta"
    folder.mkdir(parents=True)
    (folder / "metadata").write_text(json.dumps(checkpoint_files.seal({"meta": meta, "leaf_crc32": {}})))
    return run_dir


def as_lerobot(spec: Spec, episodes: list[Episode], folder: Path) -> Path:
    """Writes the episodes as a dataset of LeRobot v3.0, one file of rows and one of frames, and returns its folder."""
    rows = []
    for one in episodes:
        action = one.action.argmax(1) if spec.action.classes else one.action
        obs = {f"observation.{key}": array for key, array in one.obs.items()}
        rows.append({**obs, "action": action, "next.reward": one.reward})
    return robots.write(folder, "v3.0", rows)


if __name__ == "__main__":
    main()
