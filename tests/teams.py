"""Parallel environments for tests, with observations that identify themselves. No dreamer and no PettingZoo."""

from __future__ import annotations

import os
import signal
import time

import gymnasium
import numpy as np

AGENTS = ("red", "green", "blue")
NEVER = 10_000


class Team:
    """Shows seed, game, step, the last action and the agent; rewards are 100 * agent + step.

    ends: steps after which each agent ends | truncated: agents that end by truncation | enters: step at which each
    agent enters the game | fault: kind of failure, in game 1 at step `at`, if the seed is `only`
    """

    metadata: dict = {"render_modes": ["rgb_array"]}

    def __init__(
        self, ends=(5, 2, 3), truncated=("blue",), enters=(0, 0, 0), fault="", at=2, only=-1, render_mode=None, mask="",
    ):  # fmt: skip
        self.possible_agents = list(AGENTS[: len(ends)])
        self.ends, self.truncated = dict(zip(AGENTS, ends, strict=False)), truncated
        self.enters = dict(zip(AGENTS, enters, strict=False))
        self.fault, self.at, self.only, self.mask = fault, at, only, mask
        self.render_mode = render_mode
        self.game, self.seed, self.agents = 0, 0, []
        self.seeds: list[int] = []

    def observation_space(self, agent):
        return gymnasium.spaces.Dict(
            {
                "seed": gymnasium.spaces.Box(-1, 2**31, (1,), np.float64),
                "vector": gymnasium.spaces.Box(0, 1e6, (3,), np.float32),
                "who": gymnasium.spaces.Discrete(3),
            }
        )

    def action_space(self, agent):
        return gymnasium.spaces.Discrete(4)

    def reset(self, seed=None, options=None):
        self.seeds.append(seed)
        self.seed = self.seed if seed is None else seed
        self.game, self.time = self.game + 1, 0
        self.agents = [agent for agent in self.possible_agents if not self.enters[agent]]
        self.actions = dict.fromkeys(self.possible_agents, -1)
        return self.seen(), self.infos()

    def step(self, actions):
        assert sorted(actions) == sorted(self.agents), f"actions of {sorted(actions)}, playing are {self.agents}"
        self.time += 1
        if self.fault and (self.game, self.time) == (1, self.at) and self.only in (-1, self.seed):
            self.fail()
        self.actions |= {agent: int(action) for agent, action in actions.items()}
        self.agents += [agent for agent in self.possible_agents if self.enters[agent] == self.time]
        over = {agent: self.time == self.ends[agent] for agent in self.agents}
        cut = {agent: over[agent] and agent in self.truncated for agent in self.agents}
        dead = {agent: over[agent] and not cut[agent] for agent in self.agents}
        answer = self.seen(), self.rewards(), dead, cut, self.infos()
        self.agents = [agent for agent in self.agents if not over[agent]]
        return answer

    def seen(self):
        return {agent: self.view(agent) for agent in self.agents}

    def view(self, agent):
        clock = np.array([self.game, self.time, self.actions[agent] + 1], np.float32)
        who = self.possible_agents.index(agent)
        return {"seed": np.full(1, self.seed, np.float64), "vector": clock, "who": who}

    def rewards(self):
        return {agent: 100.0 * self.possible_agents.index(agent) + self.time for agent in self.agents}

    def infos(self):
        if not self.mask:
            return {agent: {} for agent in self.agents}
        allowed = {agent: np.eye(4, dtype=np.int8)[self.possible_agents.index(agent)] for agent in self.agents}
        return {agent: {"action_mask": own} for agent, own in allowed.items()}

    def render(self):
        return np.full((8, 8, 3), self.time, np.uint8)

    def fail(self):
        if self.fault == "raise":
            raise KeyError("lost")
        if self.fault == "exit":
            os._exit(7)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(60)

    def close(self):
        pass


class Kept(Team):
    """A Team with get_state and set_state."""

    def get_state(self):
        return self.seed, self.game, self.time, list(self.agents), dict(self.actions)

    def set_state(self, state):
        self.seed, self.game, self.time, self.agents, self.actions = state
        self.agents, self.actions = list(self.agents), dict(self.actions)


class Signals(Team):
    """Rewards each agent for the action equal to its index, so that the policy must know the agent."""

    def __init__(self, steps=4, **options):
        super().__init__(ends=(steps,) * 3, truncated=AGENTS, **options)

    def rewards(self):
        return {agent: float(self.actions[agent] == self.possible_agents.index(agent)) for agent in self.agents}

    def observation_space(self, agent):
        return gymnasium.spaces.Box(0, 1, (2,), np.float32)

    def view(self, agent):
        return np.zeros(2, np.float32)


def team(render_mode=None, **options):
    return Team(render_mode=render_mode, **options)


def kept(**options):
    return Kept(**options)


def signals(**options):
    return Signals(**options)
