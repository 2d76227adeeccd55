"""Scores a trained run: plays episodes with its newest checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dreamer import plugins
from dreamer.apps import ranking
from dreamer.apps.acting import MakeEnv, Trained, env_of, restore
from dreamer.apps.statistics import Summary, summary
from dreamer.coerce import show
from dreamer.errors import UserError
from dreamer.runtime.devices import programs
from dreamer.runtime.files.atomic import disk_error, write_whole
from dreamer.runtime.log import images
from dreamer.runtime.log.episodes import mean_of
from dreamer.runtime.run import evaluation

FPS = 30
RESAMPLES = 10_000


def evaluate(
    run: str | os.PathLike, *, episodes: int = 20, video: str | None = None, video_episodes: int = 1,
    mode: Literal["sample", "mode"] | None = None, seed: int = 0, make_env: MakeEnv = None,
    env_options: Mapping[str, Any] | None = None, trust: bool = False,
) -> evaluation.Result:  # fmt: skip
    """Plays episodes with the newest checkpoint of a run, in new environments.

    mode: how to choose actions; None: as in the evaluations of the run. seed: of the environments and the actions.
    video: the file for a video, which shows the first episode of each of the first `video_episodes` environments (at
    most 16) side by side. make_env, env_options, trust: as in `load`.
    Raises UserError, for example when the environment cannot be recorded.
    """
    trained = restore(run, make_env=make_env, env_options=env_options, trust=trust)
    return _play(trained, episodes, video, video_episodes, mode, seed, env_of(trained.config, make_env))


def evaluate_run(
    run: str, *, episodes: int, video: str | None, video_episodes: int, json_file: str | None, mode: Any, seed: int,
    env_options: Mapping[str, Any] | None = None, trust: bool = False, env: str = "",
) -> None:  # fmt: skip
    """Runs `dreamer eval`: plays episodes, prints one line for each and a summary, and writes both to `json_file`.

    json_file: None: no file is written. env: the environment of a run that has none.
    The other arguments are those of `evaluate`.
    """
    if json_file:
        check_writable(Path(json_file).expanduser())
    trained = restore(run, env_options=env_options, trust=trust, env_name=env)
    if env_options:
        print(f"env options: {show(trained.config.env_options)}, changed from the run: {show(env_options)}")
    mode = mode or trained.config.eval.mode
    result = _play(trained, episodes, video, video_episodes, mode, seed, trained.config.env)
    for incident in result.incidents:
        print(incident.line)
    for line in result.lines:
        print(line)
    for i, episode in enumerate(result.episodes):
        agent = f", agent {episode.env % result.agents}" if result.agents > 1 else ""
        print(f"episode {i + 1:3d}: return {episode.episode_return:10.3f}, length {episode.length}{agent}")
    of_returns = summary(result.returns, resamples=RESAMPLES)
    for line in _lines(of_returns):
        print(line)
    for name, value in _own(result).items():
        print(f"{name}: mean {value:.3f}")
    if video and not result.videos:
        print("no video: no frame was drawn")
    elif video:
        envs = [episode.env // result.agents for episode in result.episodes]
        shown = ", ".join(str(envs.index(env) + 1) for env in range(len(result.videos)))
        print(f"video: {video} (episode{'s' if len(result.videos) > 1 else ''} {shown})")
    if json_file:
        head: dict[str, Any] = {"run": str(run), "env": trained.config.env, "env_options": trained.config.env_options}
        head |= {"env_steps": trained.env_steps, "mode": mode, "seed": seed}
        _write_json(json_file, {**head, **_as_json(result, of_returns)})
        print(f"episodes and summary: {json_file}")


def rank_run(
    run: str, *, episodes: int, json_file: str | None, seed: int, env_options: Mapping[str, Any] | None = None,
    trust: bool = False, env: str = "",
) -> None:  # fmt: skip
    """Runs `dreamer eval --ranking`: prints Hits@k and MRR of the world model, and writes them to `json_file`.

    episodes, seed, errors: as in `ranking.rank`; the other arguments are those of `evaluate_run`
    """
    if json_file:
        check_writable(Path(json_file).expanduser())
    trained = restore(run, env_options=env_options, trust=trust, env_name=env)
    found = ranking.rank(trained, trained.config.env, episodes, seed=seed)
    for line in ranking.lines(found, episodes):
        print(line)
    if json_file:
        head: dict[str, Any] = {"run": str(run), "env": trained.config.env, "env_options": trained.config.env_options}
        head |= {"env_steps": trained.env_steps, "seed": seed, "episodes": ranking.used(episodes), "ranking": found}
        _write_json(json_file, head)
        print(f"ranking: {json_file}")


def _write_json(file: str, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_whole(Path(file).expanduser(), lambda half: half.write_text(text))


def _play(
    trained: Trained, episodes: int, video: str | None, video_episodes: int, mode: Any, seed: int, env: plugins.EnvName
) -> evaluation.Result:
    config = trained.config
    workers = evaluation.like_training(config.workers, config.workers.backend)
    if video:
        evaluation.can_record(env, config.env_options, "on", workers)
    asked = dataclasses.replace(config.eval, episodes=episodes, mode=mode or config.eval.mode)
    result = evaluation.evaluate(
        trained.agent, programs.jit_act(trained.agent), trained.variables, asked, env, config.env_options, workers,
        action_repeat=config.action_repeat, seed=seed, record=video_episodes if video else 0, report=print,
    )  # fmt: skip
    if video and result.videos:
        images.write_video(video, images.tiled(result.videos), FPS)
    return result


def _lines(of_returns: Summary) -> list[str]:
    """Returns the lines of the summary that `dreamer eval` prints."""
    spread = f"standard error {of_returns.stderr:.3f}, std {of_returns.std:.3f}" if of_returns.n > 1 else "one episode"
    lines = [
        f"{of_returns.n} episodes: return mean {of_returns.mean:.3f}, {spread}, "
        f"min {of_returns.min:.3f}, max {of_returns.max:.3f}"
    ]
    if of_returns.interval:
        low, high = of_returns.interval
        lines.append(
            f"IQM {of_returns.iqm:.3f}, 95 % interval {low:.3f} to {high:.3f} "
            f"(bootstrap over the episodes of this one agent: it says nothing about other seeds)"
        )
    return lines


def _own(result: evaluation.Result) -> dict[str, float]:
    """Returns the metrics that the environments report, each averaged over the episodes that have it."""
    return mean_of([episode.metrics for episode in result.episodes])


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Converts numbers to JSON values; a number that is not finite becomes None, which is null in JSON."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _as_json(result: evaluation.Result, of_returns: Summary) -> dict[str, Any]:
    """Returns the episodes, the failures of environments, and the summary as JSON values.

    null stands for a number that is not finite, or that does not exist, such as the standard error of one episode.
    An environment plays several episodes in sequence. "seed" of an episode is the seed of its environment, and "of_env"
    is the episode's position, from 1, among the episodes of that environment.
    """
    counts: dict[int, int] = {}
    episodes = []
    for episode, seed in zip(result.episodes, result.seeds, strict=True):
        counts[episode.env] = counts.get(episode.env, 0) + 1
        env, agent = divmod(episode.env, result.agents)
        episodes.append(
            {
                "return": episode.episode_return, "length": episode.length, "env": env, "seed": seed,
                "of_env": counts[episode.env], **({"agent": agent} if result.agents > 1 else {}),
                **({"metrics": _finite(episode.metrics)} if episode.metrics else {}),
            }
        )  # fmt: skip
    numbers = of_returns._asdict() | {"interval": list(of_returns.interval) if of_returns.interval else None}
    numbers |= {name: None for name in ("stderr", "std") if of_returns.n < 2}
    if own := _own(result):
        numbers["metrics"] = _finite(own)
    return {"episodes": episodes, "incidents": [one.text for one in result.incidents], "summary": numbers}


def check_writable(path: Path) -> None:
    """Raises UserError if the file cannot be written. Makes its folder if necessary."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path) from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path}: it is a folder, or its folder is not writable by this user")
