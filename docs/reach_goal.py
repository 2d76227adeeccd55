"""Reaches pictures of goals in the 2D shapes, with a run of the preset cswm whose behavior is `reach`.

    python docs/reach_goal.py runs/NAME

Each goal is a picture of the five objects in other places. The agent knows nothing of it but the picture.
"""

from __future__ import annotations

import sys

import numpy as np

import dreamer
from dreamer import plugins
from dreamer.apps.acting import LoadedAgent


def reached(run: str, goals: int = 20, steps: int = 50, seed: int = 0) -> list[int | None]:
    """Returns, for each of `goals` goals, after how many steps all objects are where they should be, or None."""
    agent = dreamer.load(run, mode="mode")
    if not isinstance(agent, LoadedAgent):
        raise SystemExit(f"{run} has several agents")
    env = plugins.make_env(agent.config.env, {**agent.config.env_options, "steps": steps})
    found: list[int | None] = []
    for number in range(goals):
        picture, info = env.reset(seed=seed + 2 * number)
        goal, wanted = {"goal": agent.encode(picture)}, info["position"]
        obs, info = env.reset(seed=seed + 2 * number + 1)
        state, taken, over = None, 0, False
        while not over and not np.array_equal(info["position"], wanted):
            action, state = agent.act(obs, state, command=goal)
            obs, _, _, over, info = env.step(action)
            taken += 1
        found.append(taken if np.array_equal(info["position"], wanted) else None)
    env.close()
    return found


if __name__ == "__main__":
    times = reached(*sys.argv[1:2])
    done = [time for time in times if time is not None]
    print(f"{len(done)} of {len(times)} goals reached, after {np.mean(done) if done else 0:.1f} steps on average")
