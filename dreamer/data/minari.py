"""Datasets of Minari on this machine, named as minari:NAME or by their folder. Imports no jax; minari when used.

The dataset describes its spaces. Its observations include the true last one. Nothing is downloaded, and an environment
that a dataset names is never made, because its name may lead to any code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamer.data.checks import Recorded, checked, length_faults
from dreamer.data.d4rl import DAMAGED, check_link, opened_hdf5, refuse_unwritable
from dreamer.data.episodes import Data, Episode, Fault, Found, Reading
from dreamer.data.extra import extra, reason
from dreamer.data.forms import Form, form_of, gym_action, gym_spaces, nested
from dreamer.data.npz import missing_numbers
from dreamer.data.vectors import to_vectors
from dreamer.errors import UserError, nearest
from dreamer.runtime.files.safe_files import read_text
from dreamer.spaces import Spec

PREFIX = "minari:"
METADATA = "metadata.json"
MAIN = "main_data.hdf5"
_LARGEST_METADATA = 1 << 26  # bytes: spaces of images list a bound for each pixel
_EPISODE = re.compile(r"episode_(\d{1,9})")
_FOLDER = re.compile(r"\d{1,9}")
_UNREADABLE = (*DAMAGED, AssertionError, IndexError)


class _Plan(NamedTuple):
    """How to read the episodes of a dataset: its storage, the numbers of its episodes, and the form of its spaces."""

    storage: Any
    numbers: list[int]
    form: Form


def open_minari(named: str, reading: Reading) -> Data:
    """Opens a dataset of Minari. named: "minari:NAME" or its folder. Raises UserError if it is not one."""
    folder = _data_folder(named)
    metadata = _metadata(folder)
    storage = _storage(folder, metadata)
    form = form_of(storage.observation_space, storage.action_space, named)
    numbers = _numbers(folder, metadata["data_format"])
    total, steps = metadata["total_episodes"], metadata["total_steps"]
    if not numbers:
        raise UserError(f"{named} has no episodes")
    faults = missing_numbers(numbers, folder.parent.name, max(total, numbers[-1] + 1))
    if total < numbers[-1] + 1:
        what = f"says {total} episodes, but the data has an episode {numbers[-1]}"
        faults.append(Fault(METADATA, what, None, "total_episodes"))
    notes = []
    if metadata["jpeg_encoding"] and any(reader.space.image for reader in form.keys):
        notes.append("images are stored as JPEG, so they are not exactly what the environment gave")
    plan = _Plan(storage, numbers, form)
    return Data("minari", named, form.spec, len(numbers), steps + len(numbers), tuple(faults), tuple(notes),
                lambda: _scan(plan))  # fmt: skip


def dataset_path(name: str) -> Path:
    """Returns the folder of the dataset NAME on this machine; it need not exist. Raises UserError for a wrong name."""
    with extra():
        from minari.dataset.minari_dataset import parse_dataset_id
        from minari.storage.datasets_root_dir import get_dataset_path
    try:
        parse_dataset_id(name)
    except ValueError:
        raise UserError(f"minari:{name}: a dataset is named [folder/]name-vN, such as minari:cart/mine-v0") from None
    return get_dataset_path(name)


def write_minari(folder: Path, name: str, spec: Spec, episodes: Iterable[Episode]) -> int:
    """Writes whole episodes into the new folder of a dataset, one at a time. Returns their number.

    Images are stored without loss. Raises UserError if Minari cannot hold the spaces or an episode.
    """
    with extra():
        import minari
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
        from minari.namespace import create_namespace, list_local_namespaces
    observation, action = gym_spaces(spec)
    data = folder / "data"
    data.mkdir()
    storage = MinariStorage.new(
        data, observation_space=observation, action_space=action, data_format="hdf5", jpeg_encoding=False
    )
    storage.update_metadata({"dataset_id": name, "minari_version": minari.__version__})
    written = 0
    for episode in episodes:
        refuse_unwritable(episode, "Minari")
        last = np.zeros(episode.rows - 1, bool)
        last[-1] = True
        buffer = EpisodeBuffer(
            observations=nested(spec, dict(episode.obs)), actions=gym_action(spec.action, episode.action[:-1]),
            rewards=episode.reward[1:], terminations=last & episode.is_terminal[-1],
            truncations=last & ~episode.is_terminal[-1], infos={},
        )  # fmt: skip
        storage.update_episodes([buffer])
        written += 1
    namespace = name.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return written


def _data_folder(named: str) -> Path:
    if not named.startswith(PREFIX):
        path = Path(named).expanduser()
        return path / "data" if (path / "data" / METADATA).is_file() else path
    name = named[len(PREFIX) :]
    folder = dataset_path(name) / "data"
    if folder.is_dir():
        return folder
    import minari

    here = minari.list_local_datasets()
    raise UserError(f"{named}: there is no such dataset in {dataset_path('x-v0').parent}{nearest(name, here)}; "
                    "dreamer downloads none: minari download does")  # fmt: skip


def _metadata(folder: Path) -> dict[str, Any]:
    """Reads and checks the metadata of a dataset."""
    path = folder / METADATA
    try:
        values = json.loads(read_text(path, _LARGEST_METADATA))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is cut short or damaged: {str(error)[:100]}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not contain metadata of Minari")
    for key in ("observation_space", "action_space", "data_format"):
        if not isinstance(values.get(key), str):
            why = "; its environment is not made, because the dataset may name any code" if "space" in key else ""
            raise UserError(f"{path} does not describe its {key}{why}")
    for key in ("total_episodes", "total_steps"):
        if type(values.get(key)) is not int or values[key] < 0:
            raise UserError(f"{path}: {key} is not a count")
    return {**values, "jpeg_encoding": values.get("jpeg_encoding", True)}


def _storage(folder: Path, metadata: Mapping[str, Any]) -> Any:
    with extra():
        from minari.dataset._storages import get_storage_keys
        from minari.dataset.minari_storage import MinariStorage
    if metadata["data_format"] not in get_storage_keys():
        raise UserError(f"{folder / METADATA}: data_format {metadata['data_format']!r} is unknown"
                        f"{nearest(metadata['data_format'], get_storage_keys())}")  # fmt: skip
    try:
        return MinariStorage.read(folder)
    except ImportError as error:
        raise UserError(f"{folder} is stored as {metadata['data_format']}: that needs {error.name or error}") from error
    except Exception as error:  # of deserialization: a foreign or damaged description of a space
        raise UserError(f"{folder / METADATA} cannot be understood by Minari: {reason(error)}") from None


def _numbers(folder: Path, data_format: str) -> list[int]:
    """Returns the numbers of the episodes that are there, in order."""
    if data_format != "hdf5":
        return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and _FOLDER.fullmatch(path.name))
    with opened_hdf5(folder / MAIN) as file:
        names = [name for name in file if _EPISODE.fullmatch(name)]
        for name in names:
            check_link(file, name, folder / MAIN)
        return sorted(int(name.rpartition("_")[2]) for name in names)


def _scan(plan: _Plan) -> Iterator[Found]:
    # Arrow reads a list of episodes all or none.
    left = [plan.numbers] if plan.storage.FORMAT == "hdf5" else [[number] for number in plan.numbers]
    while left:
        numbers = left.pop(0)
        records: Iterator[Any] = iter(())
        for place, number in enumerate(numbers):
            try:
                records = records if place else iter(plan.storage.get_episodes(numbers))
                record = next(records)
            except (*_UNREADABLE, StopIteration) as error:
                what = f"cannot be read, it is damaged or incomplete: {reason(error)}"
                yield Found(None, (Fault(f"episode {number}", what),))
                left[:0] = [numbers[place + 1 :]] if numbers[place + 1 :] else []
                break
            yield _found(plan.form, record, f"episode {number}")


def _found(form: Form, record: Mapping[str, Any], name: str) -> Found:
    """Checks one episode. Step t of it is the action of row t, and the reward and the ends of row t + 1."""
    rewards, ends = np.asarray(record["rewards"]), [np.asarray(record[key]) for key in ("terminations", "truncations")]
    steps = len(rewards)
    lengths = {"terminations": len(ends[0]), "truncations": len(ends[1])}
    faults = length_faults(name, lengths, steps)
    if not steps:
        faults.append(Fault(name, "has no steps"))
    faults += [
        Fault(name, f"is {array.dtype} {list(array.shape)}, it must be 0 or 1 in each step", None, key)
        for key, array in zip(lengths, ends, strict=True)
        if array.ndim != 1 or array.dtype.kind not in "biuf" or not ((array == 0) | (array == 1)).all()
    ]
    if rewards.ndim != 1 or rewards.dtype.kind not in "fiu":
        faults.append(Fault(name, f"is {rewards.dtype} {list(rewards.shape)}, it must be one number in each step",
                            None, "reward"))  # fmt: skip
    vectors = to_vectors(form.action, record["actions"], steps, name)
    faults += vectors.faults
    if faults:
        return Found(None, tuple(faults))
    terminal, cut = (array.astype(bool) for array in ends)
    rows = steps + 1
    action = np.zeros((rows, vectors.array.shape[1]), np.float32)
    action[:-1] = vectors.array
    is_first, is_last, is_terminal = np.zeros((3, rows), bool)
    is_first[0], is_terminal[1:], is_last[1:] = True, terminal, terminal | cut
    reward = np.concatenate([np.zeros(1, rewards.dtype), rewards])
    return checked(
        form.keys, Recorded(name, _tree(record["observations"]), action, reward, is_first, is_last, is_terminal)
    )


def _tree(observations: Any) -> Any:
    """Returns nested observations whose lists, which are of texts, are kept as they are."""
    if isinstance(observations, Mapping):
        return {key: _tree(value) for key, value in observations.items()}
    if isinstance(observations, Sequence) and not isinstance(observations, str):
        return tuple(map(_tree, observations))
    return observations
