"""Writes datasets of LeRobot with pyarrow and ffmpeg, for read_data.py and for tests/test_lerobot.py: `write`."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

FPS = 10
COUNTS = ("frame_index", "episode_index", "index", "task_index")
OWN = {"timestamp": "float32", **dict.fromkeys(COUNTS, "int64")}
PATHS = {
    "v2": ("data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
           "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"),
    "v3": ("data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
           "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"),
}  # fmt: skip
LOSSLESS = ("-c:v", "libx264rgb", "-crf", "0", "-preset", "ultrafast")

Episodes = Sequence[Mapping[str, np.ndarray]]  # {feature: [T, ..]} of each; uint8 with four axes: a film


def write(
    root: Path, version: str, episodes: Episodes, *, codec: Sequence[str] = LOSSLESS, embedded: bool = False
) -> Path:
    """Writes a dataset: a file for each episode in v2.0 and v2.1, one file for all in v3.0. Returns `root`.

    codec: arguments of ffmpeg | embedded: pictures are inside of the tables, not films
    """
    many = version.startswith("v3")
    films = [key for key, values in episodes[0].items() if values.dtype == np.uint8 and values.ndim == 4]
    lengths = [len(one["action"]) for one in episodes]
    starts = np.cumsum([0, *lengths])
    tables = []
    for number, one in enumerate(episodes):
        count = lengths[number]
        own = {"timestamp": np.arange(count, dtype=np.float32) / FPS, "frame_index": np.arange(count),
               "episode_index": np.full(count, number), "index": starts[number] + np.arange(count),
               "task_index": np.zeros(count, np.int64)}  # fmt: skip
        columns = {key: column(values) for key, values in {**one, **own}.items() if embedded or key not in films}
        tables.append(pa.table(columns))
    info = {
        "codebase_version": version, "robot_type": None, "total_episodes": len(episodes), "total_frames": sum(lengths),
        "total_tasks": 1, "chunks_size": 1000, "fps": FPS, "data_path": PATHS[version[:2]][0],
        "video_path": PATHS[version[:2]][1] if films and not embedded else None,
        "features": {
            **{key: feature(values, key in films, embedded) for key, values in episodes[0].items()},
            **{key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in OWN.items()},
        },
    }  # fmt: skip
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    if many:
        _write_v3(root, tables, lengths, starts, [] if embedded else films)
        for key in [] if embedded else films:
            film(root / f"videos/{key}/chunk-000/file-000.mp4", np.concatenate([one[key] for one in episodes]), codec)
        return root
    lines = [json.dumps({"episode_index": n, "tasks": ["lift"], "length": count}) for n, count in enumerate(lengths)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    (root / "data/chunk-000").mkdir(parents=True)
    for number, (table, one) in enumerate(zip(tables, episodes, strict=True)):
        pq.write_table(table, root / f"data/chunk-000/episode_{number:06d}.parquet")
        for key in [] if embedded else films:
            film(root / f"videos/chunk-000/{key}/episode_{number:06d}.mp4", one[key], codec)
    return root


def _write_v3(root: Path, tables: list, lengths: list[int], starts: np.ndarray, films: list[str]) -> None:
    (root / "data/chunk-000").mkdir(parents=True)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    with pq.ParquetWriter(root / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    zeros = [0] * len(lengths)
    columns: dict[str, Any] = {
        "episode_index": list(range(len(lengths))), "tasks": [["lift"]] * len(lengths), "length": lengths,
        "data/chunk_index": zeros, "data/file_index": zeros, "dataset_from_index": starts[:-1].tolist(),
        "dataset_to_index": starts[1:].tolist(),
    }  # fmt: skip
    for key in films:
        columns |= {f"videos/{key}/{what}": zeros for what in ("chunk_index", "file_index")}
        columns |= {f"videos/{key}/from_timestamp": (starts[:-1] / FPS).tolist(),
                    f"videos/{key}/to_timestamp": (starts[1:] / FPS).tolist()}  # fmt: skip
    pq.write_table(pa.table(columns), root / "meta/episodes/chunk-000/file-000.parquet")


def feature(values: np.ndarray, picture: bool, embedded: bool) -> dict[str, Any]:
    """Returns what info.json says of a feature with these rows."""
    dtype = ("image" if embedded else "video") if picture else values.dtype.name
    return {"dtype": dtype, "shape": list(values.shape[1:]) or [1], "names": None}


def column(values: np.ndarray) -> pa.Array:
    """Returns rows [T, ..] as LeRobot stores them: numbers, lists of a fixed size, lists of lists, or pictures."""
    if values.dtype == np.uint8 and values.ndim == 4:
        return pa.array([{"bytes": png(frame), "path": None} for frame in values],
                        pa.struct([("bytes", pa.binary()), ("path", pa.string())]))  # fmt: skip
    if values.ndim == 2 and values.shape[1] > 1:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values[:, 0] if values.ndim == 2 else values.tolist() if values.ndim > 2 else values)


def png(frame: np.ndarray) -> bytes:
    """Returns a frame [H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def film(path: Path, frames: np.ndarray, codec: Sequence[str] = LOSSLESS) -> None:
    """Writes frames [T, H, W, 3] as an mp4 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(FPS), "-i", "-"]
    command = [get_ffmpeg_exe(), "-y", "-v", "error", *source, *codec, "-f", "mp4", str(path)]
    subprocess.run(command, input=np.ascontiguousarray(frames).data, check=True, capture_output=True)
