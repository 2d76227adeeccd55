"""Compares dreamed frames, and copies of the frame at the start, with the true future at each horizon. No jax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.errors import UserError

WINDOW = 11  # pixels of the window of SSIM
SIGMA = 1.5
PEAK = 255.0


class Score(NamedTuple):
    """Errors of the frames at one horizon, for the dreams and for copies of the frame at the start.

    horizon: steps after the start | dreams: how many have a true frame there | mse: of values from 0 to 255
    psnr: in decibels, of the mean squared error over all dreams; inf if it is 0 | ssim: mean over dreams; None: unknown
    """

    horizon: int
    dreams: int
    mse: float
    mse_copy: float
    psnr: float
    psnr_copy: float
    ssim: float | None
    ssim_copy: float | None


def by_horizon(
    start: np.ndarray, dreamed: np.ndarray, true: Sequence[np.ndarray], *, with_ssim: bool = True
) -> list[Score]:
    """Returns the scores of all horizons that a true future reaches.

    start [N, H, W, C]: the true frames in which the dreams begin | dreamed [N, S, H, W, C], both uint8
    true: N arrays [S', H, W, C] uint8 with S' <= S, the true frames that followed
    Raises UserError if SSIM is asked for, but scikit-image is not installed or the frames are too small.
    """
    if with_ssim:
        check_ssim(start.shape[1:3])
    found = []
    for step in range(max(map(len, true), default=0)):
        those = [n for n, frames in enumerate(true) if len(frames) > step]
        sides = [np.stack([true[n][step] for n in those]), dreamed[those, step], start[those]]
        errors = [mse(sides[0], side).mean() for side in sides[1:]]
        alike = [float(np.mean([ssim(*pair) for pair in zip(sides[0], side, strict=True)])) if with_ssim else None
                 for side in sides[1:]]  # fmt: skip
        found.append(Score(step + 1, len(those), *map(float, errors), *map(psnr, errors), *alike))
    return found


def mse(true: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the mean squared difference of each pair of images [.., H, W, C], as [..] float64."""
    return np.square(true.astype(np.float64) - other.astype(np.float64)).mean((-3, -2, -1))


def psnr(error: float) -> float:
    """Returns the peak signal-to-noise ratio in decibels, 10 log10(255^2 / MSE), of values from 0 to 255."""
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")


def ssim(true: np.ndarray, other: np.ndarray) -> float:
    """Returns the structural similarity of two images [H, W, C] uint8, the mean over pixels and channels.

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, section III.B, with their Gaussian window of 11 pixels.
    """
    return float(
        similarity()(
            true, other, data_range=PEAK, channel_axis=-1, gaussian_weights=True, sigma=SIGMA,
            use_sample_covariance=False,
        )
    )  # fmt: skip


def similarity() -> Callable[..., Any]:
    """Returns scikit-image's function for SSIM. Raises UserError if scikit-image is not installed."""
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise UserError(
            'SSIM needs scikit-image, which is not installed: pip install "dreamer-jax[video]", or leave it out with '
            "--ssim false"
        ) from error
    return structural_similarity


def check_ssim(size: tuple[int, ...]) -> None:
    """Raises UserError if scikit-image is not installed, or if images of `size` (H, W) are smaller than the window."""
    similarity()
    if min(size) < WINDOW:
        raise UserError(
            f"SSIM needs frames of at least {WINDOW} x {WINDOW} pixels, not {' x '.join(map(str, size))}: leave it out "
            "with --ssim false"
        )
