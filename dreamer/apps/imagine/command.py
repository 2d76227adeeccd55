"""`dreamer imagine RUN`: writes a film that a world model dreams, and scores that compare it with the true future."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamer.apps.acting import Trained, env_of, restore, run_config
from dreamer.apps.evaluate import check_writable
from dreamer.apps.imagine import files, generating, pictures, starts
from dreamer.apps.imagine.flags import ImagineFlags
from dreamer.apps.imagine.scores import Score, by_horizon, check_ssim
from dreamer.apps.imagine.starts import Starts
from dreamer.config import NO_ENV
from dreamer.data.matching import check_spec
from dreamer.data.opening import open_data
from dreamer.errors import UserError, nearest
from dreamer.runtime.files.atomic import write_whole
from dreamer.runtime.log.images import as_bytes, to_bytes
from dreamer.spaces import Spec

STARTS = ("reset", "rows")
ACTIONS = ("recorded", "policy", "random")
ROW = "row:"
FILES = (".npy", ".npz", ".png")
TOLD = (1, 5, 10, 20, 30)  # horizons that are printed, and the last one


def imagine_run(run: str, flags: ImagineFlags) -> None:
    """Runs `dreamer imagine`: writes the film and the files beside it, and prints the scores.

    Raises UserError, for example if the start does not exist, or if the run has no images.
    """
    config = run_config(run, trust=flags.trust, env=flags.env)
    start, actions = _chosen(flags, "rows" if flags.data or config.env == NO_ENV else "reset")
    if start == "reset":
        env_of(config, None)
    check_writable(Path(flags.video).expanduser())
    trained = restore(run, env_options=flags.env_options, trust=flags.trust, env_name=flags.env, plays=False)
    spec = trained.spec
    if spec.agents > 1:
        raise UserError(f"{run} has several agents, which imagine does not support")
    image = generating.image_of(spec, trained.agent, flags.image, run)
    with _starts(run, trained, start, image, flags) as begun:
        known = start == "reset" or actions == "recorded"
        if known and flags.ssim:
            check_ssim(spec.obs[image].shape[:2])
        dreamed, scored, taken = _dream(trained, spec, begun, actions, image, flags)
        true = begun.future(taken) if known else None
    _write(run, trained, start, actions, image, flags, begun, dreamed, scored, true)


def _chosen(flags: ImagineFlags, usual: str) -> tuple[str, str]:
    """Returns what --start and --actions mean. Raises UserError if they mean nothing, or do not fit together.

    usual: the start if none is given
    """
    if not flags.video.endswith(".mp4"):
        raise UserError(f"--video {flags.video!r} must end in .mp4")
    start = flags.start or usual
    number = start.removeprefix(ROW)
    if start.startswith(ROW) and not number.isdecimal():
        raise UserError(f"--start {start}: a row is a number from 0 on, such as row:120")
    recorded = start == "rows" or start.startswith(ROW)
    if not recorded and start not in STARTS and not start.endswith(FILES):
        raise UserError(f"--start {start!r} must be reset, rows, row:N or a file in {', '.join(FILES)}"
                        f"{nearest(start, (*STARTS, ROW + 'N'))}")  # fmt: skip
    actions = flags.actions or ("recorded" if recorded else "policy")
    if actions not in ACTIONS and not actions.endswith(FILES[:2]):
        raise UserError(f"--actions {actions!r} must be {', '.join(ACTIONS)} or a file in .npy, .npz"
                        f"{nearest(actions, ACTIONS)}")  # fmt: skip
    if actions == "recorded" and not recorded:
        raise UserError(f"--actions recorded needs recorded rows, --start rows or row:N, not {start}")
    if flags.data and not recorded:
        raise UserError(f"--data is read for --start rows and row:N only, not for {start}")
    return start, actions


@contextlib.contextmanager
def _starts(run: str, trained: Trained, start: str, image: str, flags: ImagineFlags) -> Iterator[Starts]:
    """Makes the starts; those of resets hold environments open until the end."""
    if start == "reset":
        with starts.from_resets(trained.config, image, flags.dreams, flags.seed) as begun:
            yield begun
    elif start.endswith(FILES):
        yield starts.from_file(start, trained.spec, flags.dreams)
    else:
        data = open_data(flags.data or run, trained.config.reading)
        check_spec(data, trained.spec, f"the run {run}")
        if start == "rows":
            rows = starts.random_rows(data, flags.dreams, flags.steps, flags.seed)
        else:
            rows = [int(start.removeprefix(ROW))] * flags.dreams
        yield starts.from_rows(data, rows, flags.context, flags.steps, image, flags.seed)


def _dream(
    trained: Trained, spec: Spec, begun: Starts, actions: str, image: str, flags: ImagineFlags
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the frames of `generating.generate`, the frames to score, and the actions.

    actions: as returned by `_chosen`
    """
    agent, variables, given = trained.agent, trained.variables, None
    if actions == "recorded":
        given = begun.recorded
    elif actions == "random":
        agent, variables = generating.with_random_actions(agent, variables, spec)
    elif actions != "policy":
        given = files.read_actions(actions, spec.action, flags.dreams, flags.steps)
    key = jax.random.key(flags.seed)
    mode = trained.config.eval.mode
    make = functools.partial(generating.generate, agent, variables, spec)
    dreamed, taken = make(key, begun, given, flags.steps, image, mode)
    if flags.average == 1:
        return dreamed, dreamed, taken
    many, given = starts.repeated(begun, flags.average), np.repeat(taken, flags.average, 0)
    frames, _ = make(jax.random.fold_in(key, 1), many, given, flags.steps, image, mode)
    return dreamed, generating.mean_of(frames, flags.average), taken


def _write(
    run: str, trained: Trained, start: str, actions: str, image: str, flags: ImagineFlags, begun: Starts,
    dreamed: np.ndarray, scored: np.ndarray, true: list[np.ndarray] | None,
) -> None:  # fmt: skip
    space, video = trained.spec.obs[image], Path(flags.video).expanduser()
    first = as_bytes(to_bytes(space, begun.obs[image][:, -1]))
    known = None if true is None else [as_bytes(to_bytes(space, frames)) for frames in true]
    rows = pictures.rows_of(dreamed, first, known)
    pictures.write_film(video, rows, flags.fps)
    pictures.write_strip(_beside(video, "_strip.png"), rows)
    found = by_horizon(first, scored[:, 1:], known, with_ssim=flags.ssim) if known else []
    for line in lines(found, flags.dreams):
        print(line)
    if found:
        pictures.write_curves(_beside(video, "_scores.png"), found)
        write_whole(_beside(video, ".csv"), lambda half: half.write_text(as_csv(found)))
    head: dict[str, Any] = {"run": str(run), "env": trained.config.env, "env_options": trained.config.env_options}
    head |= {"env_steps": trained.env_steps, "data": flags.data, "start": start, "actions": actions, "image": image}
    head |= {"steps": flags.steps, "dreams": flags.dreams, "average": flags.average, "seed": flags.seed}
    head |= {"context": begun.is_first.shape[1]}
    text = json.dumps({**head, "scores": [_finite(score) for score in found]}, indent=1, allow_nan=False) + "\n"
    write_whole(_beside(video, ".json"), lambda half: half.write_text(text))
    print(f"film: {video}, and beside it {', '.join(_written(video, bool(found)))}")


def _beside(video: Path, ending: str) -> Path:
    return video.with_name(video.stem + ending)


def _written(video: Path, scored: bool) -> list[str]:
    endings = ["_strip.png", *(["_scores.png", ".csv"] if scored else []), ".json"]
    return [_beside(video, ending).name for ending in endings]


def lines(found: Sequence[Score], dreams: int) -> list[str]:
    """Returns the scores at some horizons as a table to print, or one line if no true future is known."""
    if not found:
        return ["no scores: the true future under these actions is unknown"]
    told = [score for score in found if score.horizon in TOLD or score is found[-1]]
    head = f"{'steps':>5}  {'dreams':>6}  {'PSNR':>7}  {'copying':>7}  {'SSIM':>7}  {'copying':>7}"
    table = [
        f"{s.horizon:5d}  {s.dreams:6d}  {s.psnr:7.2f}  {s.psnr_copy:7.2f}  {_number(s.ssim)}  {_number(s.ssim_copy)}"
        for s in told
    ]
    above = sum(score.psnr > score.psnr_copy for score in found)
    last = f"PSNR above that of copying the last true frame at {above} of {len(found)} horizons, {dreams} dreams"
    return [head, *table, last]


def _number(value: float | None) -> str:
    return "      -" if value is None else f"{value:7.4f}"


def as_csv(found: Sequence[Score]) -> str:
    """Returns the scores as CSV, with a head line; an unknown value is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Score._fields)
    writer.writerows(found)
    return text.getvalue()


def _finite(score: Score) -> dict[str, Any]:
    """Returns a score as JSON values; null stands for what is unknown, and for the PSNR of frames without error."""
    values = score._asdict()
    return {name: value if value is None or math.isfinite(value) else None for name, value in values.items()}
