"""Draws the ends of episodes above what a world model sees in them, with its probability that the episode ends there.

    python -m benchmarks.reconstructions RUN --data OTHER_RUN --out ends.png

The world model observes each episode from its first row on. In the picture, each episode has two lines: the images, and
below them what is decoded from the posteriors. The script prints the largest probability of an end in the last rows of
an episode and in all rows before, as the world model knows it one row ahead.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from dreamer.apps.acting import Trained, restore
from dreamer.apps.imagine.generating import image_of
from dreamer.data.episodes import Episode
from dreamer.data.opening import open_data
from dreamer.errors import UserError
from dreamer.spaces import for_device

LAST = 12  # rows counted as the end of an episode


class Seen(NamedTuple):
    """What a world model sees in an episode of T rows.

    true, decoded [T, H, W, C], from 0 to 1 | ends [T]: the probability, before the row, that the episode ends there
    """

    true: np.ndarray
    decoded: np.ndarray
    ends: np.ndarray


def see(trained: Trained, image: str, episode: Episode) -> Seen:
    """Observes an episode from its first row on."""
    model, v = trained.agent.world_model, trained.variables["world_model"]
    before = np.pad(episode.action, ((1, 0), (0, 0)))[:-1]
    first = episode.is_first.copy()
    first[0] = True

    def observe(obs, prev_action, is_first):
        obs = for_device(trained.spec.obs, obs)
        _, latents = model.observe(v, jax.random.key(0), model.initial(1), obs, prev_action, is_first)
        predicted = model.predict(v, model.feat(latents))
        return model.decode(v, latents)[image][0], predicted["cont"][0]

    rows = jax.tree.map(lambda x: jnp.asarray(x)[None], (dict(episode.obs), before, first))
    decoded, cont = jax.jit(observe)(*rows)
    live = 1 - 1 / trained.config.agent.horizon if trained.config.agent.contdisc else 1.0
    true = episode.obs[image].astype(np.float32) / 255
    return Seen(true, np.asarray(decoded, np.float32) / 255, 1 - np.asarray(cont) / live)


def picture(episodes: list[Seen], rows: int) -> np.ndarray:
    """Returns an image [H, W, C] uint8: for each episode a line of its last rows and a line of reconstructions."""
    lines = []
    for seen in episodes:
        chosen = np.unique(np.r_[np.arange(-3 * rows, -rows // 2, 5), np.arange(-rows // 2, 0)] + len(seen.true))
        lines += [np.concatenate(list(images[chosen[-rows:]]), 1) for images in (seen.true, seen.decoded)]
    return (np.concatenate(lines).clip(0, 1) * 255).astype(np.uint8)


def main() -> None:
    """Reads run and data, prints the probabilities and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--rows", type=int, default=14, help="frames of each episode in the picture")
    parser.add_argument("--out", type=Path, default=Path("ends.png"))
    args = parser.parse_args()
    trained = restore(args.run, plays=False)
    image = image_of(trained.spec, trained.agent, "", args.run)
    least = max(3 * args.rows, LAST + 2)
    whole = (one for one in open_data(args.data).read() if one.is_terminal[-1] and one.rows >= least)
    episodes = [see(trained, image, one) for one in itertools.islice(whole, args.episodes)]
    if not episodes:
        raise UserError(f"{args.data} has no episode of at least {least} rows that ends by itself")
    for seen in episodes:
        error = np.square(seen.true - seen.decoded).sum((1, 2, 3)).mean()
        print(
            f"{len(seen.true)} rows, squared error {error:.1f} an image, P(end) at most "
            f"{seen.ends[-LAST:].max():.3f} in the last {LAST}, {seen.ends[1:-LAST].max():.3f} before, "
            f"{(seen.ends[1:-LAST] > 0.5).mean():.1%} of those above 0.5"
        )
    drawn = picture(episodes, args.rows)
    Image.fromarray(drawn).resize((drawn.shape[1] * 3 // 2, drawn.shape[0] * 3 // 2), Image.Resampling.NEAREST).save(
        args.out
    )


if __name__ == "__main__":
    main()
