"""The evaluations during a run: episodes, their video, and open-loop images of the world model."""

from __future__ import annotations

import numpy as np

from dreamer.config import NO_ENV
from dreamer.errors import UserError
from dreamer.runtime.log import images, open_loop
from dreamer.runtime.run import evaluation
from dreamer.runtime.run.evaluation import Result
from dreamer.runtime.run.parts import Parts

FPS = 30
MOST_DREAMS = 6  # sequences in open-loop images


def evaluate(parts: Parts, env_steps: int) -> None:
    """Plays episodes and draws open-loop images with the newest parameters. Prints, logs and writes the results.

    env_steps: the step of this evaluation. Meanwhile another thread may collect, but no thread may train.
    Raises UserError if a device fails, or if an environment fails too often.
    """
    if parts.config.eval.episodes and parts.env != NO_ENV:
        result = play(parts)
        report(parts, env_steps, result)
        if result.frames:
            write_video(parts, env_steps, result)
    if len(parts.replay):
        draw_open_loop(parts, env_steps)


def play(parts: Parts) -> Result:
    """Plays the episodes in new environments. A signal to stop shortens the timeouts of these environments too."""
    config, workers = parts.config, parts.workers
    with parts.learner.as_user_errors("evaluating"):
        return evaluation.evaluate(
            parts.agent, parts.policy, parts.learner.variables(), config.eval, parts.env,
            config.env_options, evaluation.like_training(config.workers, workers.backend),
            action_repeat=config.action_repeat, seed=config.seed, record=int(parts.record), folder=workers.folder,
            check=parts.stopping.check, report=parts.display.message, begun=parts.environments.evaluating,
        )  # fmt: skip


def report(parts: Parts, env_steps: int, result: Result) -> None:
    """Prints and logs the returns of an evaluation. Prints the failures of its environments."""
    parts.environments.report(result.incidents)
    for line in result.lines:
        parts.display.message(line)
    parts.logger.add(evaluation.metrics(result), latest=True)
    returns = result.returns
    steps = f"{env_steps:,} {parts.config.counted.removeprefix('env_')}"
    parts.display.message(
        f"evaluation at {steps}: return {np.mean(returns):.1f} +- {np.std(returns):.1f} over {len(returns)} episodes"
    )


def write_video(parts: Parts, env_steps: int, result: Result) -> None:
    """Writes the video of the first episode into run_dir/pictures, and a smaller one to the sinks.

    Prints the reason if a video cannot be written.
    """
    path = parts.run_dir / "pictures" / f"episode_{env_steps:09d}.mp4"
    try:
        images.write_episode_video(path, result.frames, FPS)
    except UserError as error:
        parts.display.message(f"no video of this evaluation: {error}")
        return
    parts.display.message(f"video of the agent: {path}")
    parts.logger.video(env_steps, "eval/video", *images.shortened(result.frames, FPS))


def draw_open_loop(parts: Parts, env_steps: int) -> None:
    """Draws open-loop predictions of the world model next to the true observations, and writes the images.

    The sequences come from the replay. env_steps: the step of this evaluation, for the file names.
    """
    batch, _ = parts.replay.sample(min(MOST_DREAMS, parts.config.replay.batch_size), online=False)
    report = parts.learner.report(batch)
    if report:
        paths = open_loop.write_report(
            parts.run_dir, env_steps, images.in_bytes(parts.workers.spec.obs, report), show=parts.logger
        )
        parts.display.message(f"open-loop images of the world model: {', '.join(map(str, paths))}")
