"""The flags of `dreamer imagine`. Imports no jax."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from dreamer.fields import at_least, between

HELP = """Dream a film with the newest world model of the run directory RUN, and compare it with the true future.
- Writes the film --video, scores by horizon (.json, .csv, _scores.png), and a strip of frames (_strip.png).
- The true future is known after a reset, where the environment takes the same actions, and under recorded actions.
- PSNR and SSIM compare it with the dream, and with copies of the last true frame before it."""


@dataclasses.dataclass(frozen=True)
class ImagineFlags:
    """The flags of `dreamer imagine`."""

    steps: Annotated[int, at_least(1)] = 50
    """Steps to dream."""
    video: str = "imagined.mp4"
    """File for the film; the other files get its name with other endings."""
    start: str = ""
    """reset, rows (random recorded rows), row:N, or a .npy, .npz or .png file; empty: reset, or rows with --data and
    for a run without an environment."""
    actions: str = ""
    """recorded, policy, random, or a .npy or .npz file; empty: recorded for recorded rows, and else policy."""
    dreams: Annotated[int, between(1, 256)] = 4
    """Number of dreams to score; the film shows the first 4. A single row or a file begins all of them."""
    average: Annotated[int, between(1, 64)] = 1
    """Dreams from each start, under the same actions, whose mean the scores compare; the film shows a single dream."""
    data: str = ""
    """Dataset for --start rows or row:N, as for dreamer data; empty: the run's own rows."""
    context: Annotated[int, at_least(1)] = 10
    """Recorded rows that the model observes before it dreams; the last one is the start."""
    image: str = ""
    """Key of the image to show; empty: the first one that the model decodes."""
    ssim: bool = True
    """Also compute SSIM, which needs the extra video."""
    fps: Annotated[float, between(0.1, 240)] = 10.0
    """Frames per second of the film."""
    seed: int = 0
    """Seed of environments, rows, actions and latents."""
    env: str = ""
    """Environment to reset, for a run that has none; empty: the run's own."""
    env_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options of the environment, which override the run's own; a single one: --env-options.KEY VALUE."""
    trust: bool = False
    """The run may name code that is not dreamer's although you did not make it on this machine."""
