"""The files of the processes that train a run: each has a folder with its rows and its state at a checkpoint.

A checkpoint names the files of all processes. The same number of processes continues from them exactly. With another
number of processes, the streams are divided among them: rows, latents, running episodes, the states of the environments
and of acting move with their streams. Random numbers of sampling and priorities belong to no stream, and start again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamer.errors import UserError
from dreamer.runtime.files import manifest
from dreamer.runtime.files.atomic import disk_error
from dreamer.runtime.files.manifest import Files, Manifest
from dreamer.runtime.files.run_dir import ROWS, folder_of
from dreamer.runtime.log.sinks import Tail
from dreamer.runtime.replay import spans as replay_state
from dreamer.runtime.replay.replay import Replay
from dreamer.runtime.replay.spans import Span
from dreamer.runtime.replay.store import RowStore
from dreamer.runtime.run import resume, start
from dreamer.runtime.run.process import Place
from dreamer.runtime.run.resume import Found, Restored

Piece = tuple[dict[str, Any], dict[str, np.ndarray]]  # JSON values and arrays, as in the state file of a process


def own_part(found: Found, place: Place) -> Found:
    """Returns `found` with the files of this process.

    If the checkpoint is of another number of processes, with files whose rings are the longest of all.
    """
    hosts = found.manifest.hosts
    if len(hosts) == place.count:
        return found._replace(files=hosts[place.index])
    longest = max(files.rows_per_stream for files in hosts)
    oldest = tuple(number for files in hosts for number in files.oldest)
    return found._replace(files=hosts[0]._replace(rows_per_stream=longest, oldest=oldest))


def moves(found: Found, place: Place) -> bool:
    """Whether streams have to move, because the checkpoint is of another number of processes."""
    return len(found.manifest.hosts) != place.count


def load_moved(
    found: Found, run_dir: Path, place: Place, store: RowStore, replay: Replay, agents: int, trust: bool
) -> Restored:
    """Fills the replay with the share of this process, from the files of all processes of the checkpoint.

    agents: per environment. trust: as in `resume.load_rows`. Only reads the disk.
    Raises UserError if a file is damaged or missing, or if the environments cannot be shared.
    """
    pieces, at = [], 0
    total = sum(len(files.oldest) for files in found.manifest.hosts)
    streams = range(total * place.index // place.count, total * (place.index + 1) // place.count)
    for process, files in enumerate(found.manifest.hosts):
        theirs = RowStore(folder_of(run_dir, process) / ROWS, files.run)
        pieces.append(read_piece(theirs, files, trust))
        wanted = {stream - at: stream - streams.start for stream in streams if at <= stream < at + len(files.oldest)}
        if wanted:
            load_streams(theirs, replay, files, wanted)
        at += len(files.oldest)
    store.begin_anew()
    head, arrays = regroup(pieces, range(streams.start // agents, streams.stop // agents), agents)
    values, _ = replay_state.state(replay)
    rng = np.random.default_rng((found.step, place.count, place.index)).bit_generator.state
    # No ring has the length 0, so the sampler treats every row as new.
    head["replay"] = {**values, "queue": head["replay"]["queue"], "rng": rng, "rows_per_stream": 0}
    replay_state.load(replay, head["replay"], arrays)
    return Restored(head, arrays, where=store.path(found.files.state.name))


def load_streams(store: RowStore, replay: Replay, files: Files, streams: Mapping[int, int]) -> None:
    """Fills streams of a replay with rows and latents that another process has written.

    store: for the folder of that process | files: those of that process, in a checkpoint
    streams: {its number of a stream: the number in `replay`}
    Raises UserError if a file is damaged, missing or of another run, or if the replay lacks rows of the latents.
    """
    for seals, put in ((files.rows, _put_rows), (files.latents, replay_state.put_latents)):
        for seal in seals:
            head, columns = store.read(seal.name, seal)
            spans = manifest.spans(head.get("spans"), len(files.oldest), store.path(seal.name))
            kept, columns = replay_state.taken([Span(*span) for span in spans], columns, streams)
            if kept:
                put(replay, kept, columns)


def _put_rows(replay: Replay, spans: Sequence[Span], columns: replay_state.Columns) -> None:
    replay_state.put_rows(replay, spans, columns, fresh=False)


def read_piece(store: RowStore, files: Files, trust: bool) -> Piece:
    """Returns the state that a process saved. Raises UserError if its file is damaged or invalid."""
    where = store.path(files.state.name)
    head, arrays = store.load_state(files.state)
    manifest.head(head, where)
    head["envs"] = [why or resume.untrusted(i, head, arrays, trust) for i, why in enumerate(head["envs"])]
    if len(head["replay"]["counts"]) != len(files.oldest):
        raise UserError(f"{where} was not written by this program: it has other streams than its checkpoint")
    return head, arrays


def regroup(pieces: Sequence[Piece], envs: range, agents: int) -> Piece:
    """Returns the state of a process with the environments `envs`, from the states of processes with all of them.

    agents: per environment. The environments and streams are numbered through all pieces; the result counts from 0.
    """
    heads, saved = [head for head, _ in pieces], [arrays for _, arrays in pieces]
    streams = range(envs.start * agents, envs.stop * agents)
    own, own_streams = slice(envs.start, envs.stop), slice(streams.start, streams.stop)
    before = np.cumsum([0, *(len(head["envs"]) for head in heads)])
    queue = [
        [agents * int(first) + stream, start]
        for first, head in zip(before, heads, strict=False) for stream, start in head["replay"]["queue"]
    ]  # fmt: skip
    head = {
        **heads[0], "envs": [why for one in heads for why in one["envs"]][own],
        "macs": [mac for one in heads for mac in one.get("macs") or [""] * len(one["envs"])][own],
        "replay": {"queue": [[s - streams.start, start] for s, start in queue if s in streams]},
    }  # fmt: skip
    ready = np.concatenate([one["envs/ready"] + agents * first for first, one in zip(before, saved, strict=False)])
    kept = (ready >= streams.start) & (ready < streams.stop)
    arrays = {"envs/ready": ready[kept] - streams.start, "collector/count": saved[0]["collector/count"]}
    for name in saved[0]:
        part = name.partition("/")[0]
        if name == "envs/resets":
            arrays[name] = np.concatenate([one[name] for one in saved])[own]
        elif name.startswith("envs/row/"):
            arrays[name] = np.concatenate([one[name] for one in saved])[kept]
        elif part in ("collector", "tracker") and name not in arrays:
            arrays[name] = np.concatenate([one[name] for one in saved])[own_streams]
        elif part == "sampler":
            arrays[name] = saved[0][name]
    for first, one in zip(before, saved, strict=False):
        for name, state in one.items():
            if name.startswith("envs/state/") and (env := int(first) + int(name.rpartition("/")[2])) in envs:
                arrays[f"envs/state/{env - envs.start:05d}"] = state
    return head, arrays


def join(parts: Sequence[Mapping[str, Any]], where: Path) -> Manifest:
    """Returns the manifest of a checkpoint from those of all processes, JSON values. where: to name in errors."""
    first, *others = (Manifest.from_json(dict(part), where) for part in parts)
    return first._replace(others=tuple(one.files for one in others if one.files))


def change(found: Found | None, run_dir: Path, place: Place, store: RowStore) -> None:
    """Moves aside the files of this process that it will write again, and opens its `store`; not for process 0.

    found: the checkpoint to resume from; None: there is none. Call it after process 0 has moved its files.
    Raises UserError on a disk error.
    """
    folder = folder_of(run_dir, place.index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if found:
            newer = [path for step in found.newer for path in store.beside(step)]
            start.set_aside(folder, [*newer, *store.later()], Tail(0, 0.0, ""))
    except OSError as error:
        raise disk_error(error, folder) from error
    store.open()
    store.remove_unfinished()
