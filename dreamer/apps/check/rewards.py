"""Checks the scale and the sparsity of the rewards of a random policy, and its returns. Imports no jax."""

from __future__ import annotations

import numpy as np

from dreamer.apps.check.verdicts import Verdict, counted, note, ok, warning, wrong
from dreamer.apps.check.walk import Walk

# Rewards and returns are predicted on bins from -symexp(20) to symexp(20) (dreamer/ops/distributions.py). The critic's
# returns are up to `horizon` (agent.horizon, 333 steps) times as large as a reward that is received at every step.
LARGEST = float(np.expm1(20.0))
HORIZON = 333.0
LARGE = 1e4  # neighbouring bins near this reward differ by a sixth: 1,700
SMALL = 1e-3  # the bins next to 0 are 0.17 apart: smaller rewards all lie between two bins


def check(walk: Walk) -> list[Verdict]:
    """Checks the scale and the sparsity of rewards, and the returns of a random policy."""
    rewards = np.array([row.reward for row in walk.rows if row.step and row.reward is not None])
    if not rewards.size:
        return []
    return [*_scale(rewards), *_returns(walk)]


def _scale(rewards: np.ndarray) -> list[Verdict]:
    size, steps = np.abs(rewards), counted(rewards.size, "random step")
    largest, share = float(size.max()), float((size > 0).mean())
    facts = {
        "min": float(rewards.min()), "max": float(rewards.max()), "mean": float(rewards.mean()), "nonzero": share,
    }  # fmt: skip
    if largest == 0:
        text = (
            f"always 0 in {steps}: a random policy does not find it; more exploration, a shaped reward or an "
            "easier start may be needed"
        )
        return [note("reward", text, **facts)]
    spread = "always" if rewards.min() == rewards.max() else f"{rewards.min():.4g} to"
    often = "at every step" if share == 1 else f"not 0 in {100 * share:.3g} % of the steps"
    verdicts = [ok("reward", f"{spread} {rewards.max():.4g}, mean {rewards.mean():.4g}, {often}", **facts)]
    if largest > LARGE:
        beyond = largest * HORIZON * share > LARGEST
        text = f"rewards reach {rewards[size.argmax()]:.4g}: scale them, so that a good episode adds up to 1 to 1,000"
        end = (
            f"; returns of {HORIZON:.0f} steps pass {LARGEST:.2g}, where the bins of the critic end"
            if beyond
            else "; the bins of reward head and critic are coarse there, small rewards get lost beside such values"
        )
        verdicts.append((wrong if beyond else warning)("reward-scale", text + end))
    elif largest < SMALL:
        text = f"no reward was above {largest:.3g}, close to 0 for the agent: scale them if no policy gets more"
        verdicts.append(note("reward-scale", text))
    return verdicts


def _returns(walk: Walk) -> list[Verdict]:
    episodes = walk.episodes()
    sums = np.array([sum(row.reward or 0.0 for row in rows) for rows in episodes])
    if not sums.size and not walk.whole:
        return []
    if not sums.size:
        total = sum(row.reward or 0.0 for row in walk.rows)
        return [note("return", f"no episode ended; {counted(walk.steps, 'random step')} pay {total:.4g} in all")]
    spread = f" +- {sums.std(ddof=1) / np.sqrt(sums.size):.2g} (standard error)" if sums.size > 1 else ""
    text = (
        f"a random policy gets {sums.mean():.4g}{spread} an episode, {sums.min():.4g} to {sums.max():.4g} in "
        f"{counted(sums.size, 'episode')}; an agent that gets no more has learned nothing"
    )
    facts = {"mean": float(sums.mean()), "min": float(sums.min()), "max": float(sums.max()), "episodes": sums.size}
    return [ok("return", text, **facts)]
