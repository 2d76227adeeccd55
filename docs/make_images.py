"""Makes the pictures of README and documentation from runs. What made the runs stands beside each picture below.

    dreamer train docs/dream.yaml --env docs.cartpole:make --run-dir runs/dream
    python docs/make_images.py runs/dream --seed 5            all pictures into docs/images
    python docs/make_images.py runs/dream --only dream

dream.gif      an episode of the agent beside the world model's open-loop dream under the same actions
return.png     the return of the training episodes
report.png     the page of `dreamer report`, as the browser Chromium shows it
terminal.svg   the panel of a run, with the newest values of this one
population.png the evaluations of a population, only with --only population: RUN is then the population's directory,
               dreamer train experiments/quickstart_device.yaml --run-dir RUN
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import dreamer
from dreamer.apps.report.runs import find_runs
from dreamer.errors import UserError
from dreamer.runtime.log.images import rgb
from dreamer.runtime.log.open_loop import DREAMED, OBSERVED

SEEN = 10  # rows of the episode that the model sees before it dreams
SHOWN = 80  # rows of the animation at most
SCALE = 6  # pixels of the animation for a pixel of the observation
BORDER, GAP, CAPTION = 6, 14, 30
BACKGROUND, TEXT, NEUTRAL = (22, 27, 34), (230, 237, 243), (110, 118, 129)
FPS = 15
SINGLED = 8  # members of a population that are drawn by name; of more, the median is
COLORS = 64
LARGEST = 2_000_000  # bytes of the animation


def dream_pair(agent: Any, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The images of an episode and of the dream beside it, each uint8 [T, H, W, 3].

    The first SEEN of the dream are the world model's reconstructions of images that it saw; for all later ones it was
    given the actions of the episode only. Raises UserError when there is no image or the episode is too short.
    """
    model = agent.world_model
    keys = [key for key, space in model.spec.obs.items() if space.image]
    if not keys:
        raise UserError("the environment of this run shows no image")
    episode = agent.play(seed=seed, max_steps=SHOWN)
    truth, rows = episode.obs[keys[0]][0], episode.reward.shape[1]
    if rows <= SEEN + 1:
        raise UserError(f"the episode with seed {seed} ends after {rows} rows; choose another with --seed")
    start = SEEN - 1
    seen = model.decode(model.encode(episode))[keys[0]][0, :start]
    dream = model.dream(episode, row=start, steps=rows - SEEN, actions=episode.action[0, start : rows - 1])
    dreamed = np.concatenate([seen, dream.obs[keys[0]][0]])
    return rgb(truth), rgb(np.clip(np.round(dreamed), 0, 255).astype(np.uint8))


def frame(truth: np.ndarray, dreamed: np.ndarray, row: int) -> Image.Image:
    """One frame of the animation: both images [H, W, 3] enlarged, with their captions."""
    height, width = truth.shape[0] * SCALE, truth.shape[1] * SCALE
    panel = width + 2 * BORDER
    canvas = Image.new("RGB", (2 * panel + 3 * GAP, height + 2 * BORDER + 2 * CAPTION), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    title, note = ImageFont.load_default(18), ImageFont.load_default(15)
    color = OBSERVED if row < SEEN else DREAMED
    status = "sees the environment" if row < SEEN else f"only dreams: step {row - SEEN + 1}"
    panels = (("environment", truth, NEUTRAL, ""), ("dream", dreamed, color, status))
    for number, (name, image, border, below) in enumerate(panels):
        left = GAP + number * (panel + GAP)
        middle, bottom = left + panel // 2, CAPTION + height + 2 * BORDER
        draw.text((middle, CAPTION // 2), name, fill=TEXT, font=title, anchor="mm")
        draw.rectangle((left, CAPTION, left + panel - 1, bottom - 1), fill=border)
        large = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(large, (left + BORDER, CAPTION + BORDER))
        draw.text((middle, bottom + CAPTION // 2), below, fill=border, font=note, anchor="mm")
    return canvas


def make_dream(run: Path, folder: Path, seed: int) -> Path:
    """Writes dream.gif: left the episode, right the dream. Raises UserError when it is larger than 2 MB."""
    truth, dreamed = dream_pair(dreamer.load(run, trust=True, mode="mode"), seed)
    frames = [frame(*images, row) for row, images in enumerate(zip(truth, dreamed, strict=True))]
    strip = np.concatenate([np.asarray(one) for one in frames[:: max(1, len(frames) // 12)]])
    palette = Image.fromarray(strip).quantize(COLORS, method=Image.Quantize.MEDIANCUT)
    images = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in frames]
    times = [round(1000 / FPS)] * (len(images) - 1) + [1200]
    path = folder / "dream.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=times, loop=0, optimize=True)
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has {path.stat().st_size} bytes, more than {LARGEST}")
    return path


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def make_return(run: Path, folder: Path, seed: int) -> Path:
    """Writes return.png: the return of the training episodes over the steps of the environment."""
    from matplotlib.figure import Figure

    name = "episode/return"
    points = [(line["env_steps"], line[name]) for line in metrics_of(run) if line.get(name) is not None]
    if not points:
        raise UserError(f"{run} has no episode/return")
    figure = Figure(figsize=(6, 3), dpi=130, layout="constrained")
    axis = figure.subplots()
    axis.plot(*zip(*points, strict=True), color="#1f6feb")
    axis.set(xlabel="environment steps", ylabel="return of an episode", xlim=(0, None), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    path = folder / "return.png"
    figure.savefig(path)
    return path


def make_population(run: Path, folder: Path, seed: int) -> Path:
    """Writes population.png: the evaluated return of each member of a population, and the median of many members.

    run: the directory of the population
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), dpi=130, layout="constrained")
    axis = figure.subplots()
    members = find_runs(run)
    returns: dict[int, list[float]] = {}
    for member in members:
        lines = [line for line in metrics_of(member) if line.get("eval/return") is not None]
        style = {"label": member.name} if len(members) <= SINGLED else {"color": "0.75", "linewidth": 1}
        axis.plot([x["env_steps"] for x in lines], [x["eval/return"] for x in lines], marker=".", **style)
        for line in lines:
            returns.setdefault(line["env_steps"], []).append(line["eval/return"])
    if len(members) > SINGLED:
        medians = [statistics.median(returns[step]) for step in sorted(returns)]
        axis.plot(sorted(returns), medians, linewidth=2.5, label=f"median of {len(members)} members")
    if not axis.lines:
        raise UserError(f"{run} has no members with evaluations")
    axis.set(xlabel="environment steps of each member", ylabel="return of an evaluation")
    axis.set(xlim=(0, None), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    path = folder / "population.png"
    figure.savefig(path)
    return path


def make_report(run: Path, folder: Path, seed: int) -> Path:
    """Writes report.png: the first screen of the report on the run."""
    path = folder / "report.png"
    with tempfile.TemporaryDirectory() as temporary:
        page = Path(temporary) / "report"
        subprocess.run([sys.executable, "-m", "dreamer", "report", str(run), "--out", str(page)], check=True)
        browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        options = [f"--user-data-dir={temporary}/profile", "--window-size=1000,800", f"--screenshot={path.resolve()}"]
        subprocess.run([*browser, *options, (page / "index.html").resolve().as_uri()], check=True)
    return path


def make_terminal(run: Path, folder: Path, seed: int) -> Path:
    """Writes terminal.svg: the panel that `dreamer train` shows, with the newest value of each metric of the run."""
    from rich.console import Console

    from dreamer.runtime.log import terminal

    values: dict[str, Any] = {}
    for line in metrics_of(run):
        values |= {name: value for name, value in line.items() if value is not None}
    config = dreamer.load_config(run / "config.yaml", trust=True)
    losses = tuple(dict.fromkeys(name.split("/")[1] for name in values if name.startswith("loss/")))
    steps, updates, seconds = values["env_steps"], values["updates"], values["time"]
    state = terminal.State("training", steps, updates, steps / seconds, updates / seconds, values, losses)
    console = Console(record=True, width=110, file=tempfile.TemporaryFile("w"), force_terminal=True)
    console.print(terminal.panel(state, config.env_steps, seconds, 110))
    path = folder / "terminal.svg"
    console.save_svg(str(path), title="dreamer train")
    return path


PICTURES: dict[str, Callable[[Path, Path, int], Path]] = {
    "dream": make_dream, "return": make_return, "report": make_report, "terminal": make_terminal,
    "population": make_population,
}  # fmt: skip


def main() -> None:
    """Makes the pictures that the command line asks for, and prints the path and size of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    usual = [name for name in PICTURES if name != "population"]
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=usual)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images")
    parser.add_argument("--seed", type=int, default=0, help="of the episode of dream.gif")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        path = PICTURES[name](asked.run, asked.out, asked.seed)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
