"""Makes a Minari dataset of mixed quality: episodes of a trained agent, and episodes of random actions.

    python -m benchmarks.mixed_data runs/cartpole --env CartPole-v1 --name cartpole/mixed-v0 --agent 20 --random 80

Needs the extra `data`. The agent takes its most likely actions. Minari keeps the dataset in its own folder, which
MINARI_DATASETS_PATH names.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium
import minari
import numpy as np

import dreamer

Act = Callable[[Any, Any], tuple[Any, Any]]  # observation, state or None at a reset -> action, state


def play(env: gymnasium.Env, act: Act, seed: int) -> float:
    """Plays one episode to its end and returns its return."""
    (obs, _), state, total = env.reset(seed=seed), None, 0.0
    while True:
        action, state = act(obs, state)
        obs, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return total


def main() -> None:
    """Records both kinds of episodes, and prints the returns of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run of the trained agent")
    parser.add_argument("--env", required=True)
    parser.add_argument("--name", required=True, help="such as cartpole/mixed-v0")
    parser.add_argument("--agent", type=int, default=20, help="episodes of the agent")
    parser.add_argument("--random", type=int, default=80, help="episodes of random actions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    agent = dreamer.load(args.run, mode="mode")
    env = minari.DataCollector(gymnasium.make(args.env))
    env.action_space.seed(args.seed)
    ways: dict[str, tuple[int, Act]] = {
        "agent": (args.agent, agent.act),
        "random": (args.random, lambda obs, state: (env.action_space.sample(), None)),
    }
    seed = args.seed
    for name, (episodes, act) in ways.items():
        returns = [play(env, act, seed + number) for number in range(episodes)]
        seed += episodes
        mean, deviation = np.mean(returns), np.std(returns)
        print(f"{name}: {episodes} episodes, return {mean:.1f} ({deviation:.1f}), best {max(returns):.1f}")
    env.create_dataset(args.name, algorithm_name="a trained agent and random actions")


if __name__ == "__main__":
    main()
