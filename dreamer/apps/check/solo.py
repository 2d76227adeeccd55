"""Checks a parallel environment: first all agents for some steps, then one agent as a single environment.

This module imports no jax.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from dreamer.apps.check.verdicts import Settings, Verdict, counted, ok, wrong
from dreamer.apps.check.watch import Watch
from dreamer.errors import UserError
from dreamer.runtime.env.actions import action_reader, flat_mask, random_actions
from dreamer.runtime.env.parallel import ParallelRows, begun, sides_of
from dreamer.runtime.env.rows import empty_step
from dreamer.spaces import MASK

STEPS = 1000  # most steps in which all agents act


class Solo(gymnasium.Env):
    """One agent of a parallel environment, as a single environment: the first agent that is in the game at a reset.

    The other agents act at random; the seed of the reset seeds their actions, too. An episode ends when the agent's
    episode ends. Owns the parallel environment. Raises UserError as `sides_of` does.
    """

    def __init__(self, team: Any, name: str):
        self.team, self.name = team, name
        self.render_mode = getattr(team, "render_mode", None)
        self.sides = sides_of(team, name)
        self.observation_space, self.action_space = self.sides[0].observation_space, self.sides[0].action_space
        self._actions = action_reader(self.sides[0], name)
        self._rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, Any]:
        """Begins a new game."""
        super().reset(seed=seed)
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._last = begun(self.team, seed, self.name)
        self._side = next(side for side in self.sides if side.agent in self._last[0])
        self._over: set = set()
        return self._side.shown(self._last[0][self._side.agent]), self._last[1].get(self._side.agent, {})

    def step(self, action: Any) -> Any:
        """Takes a step with all agents, and returns the result for the one agent."""
        own = self._side.agent
        others = [agent for agent in self._last[0] if agent != own and agent not in self._over]
        answer = self.team.step({own: action, **{agent: self._chosen(agent) for agent in others}})
        observations, rewards, terminations, truncations, infos = answer
        self._last = observations, infos
        self._over |= {agent for agent in others if terminations.get(agent) or truncations.get(agent)}
        results = (part[own] for part in (rewards, terminations, truncations))
        return self._side.shown(observations[own]), *results, infos.get(own, {})

    def render(self) -> Any:
        """Returns what the parallel environment renders."""
        return self.team.render()

    def close(self) -> None:
        """Closes the parallel environment."""
        self.team.close()

    def _chosen(self, agent: Any) -> Any:
        obs, info = self._last[0][agent], self._last[1].get(agent, {})
        mask = obs[MASK] if isinstance(obs, dict) and MASK in obs else info.get(MASK)
        allowed = None if mask is None else flat_mask(self.action_space, mask)
        return self._actions.to_env(random_actions(self._actions.action, self._rng, 1, allowed)[0])


def check_team(team: Any, name: str, settings: Settings, watch: Watch) -> Verdict:
    """Lets all agents take random steps, reads their rows as training does, and returns a verdict. Raises EnvFailed."""
    watch.place = "the random steps of all agents"
    rng, rows_made, ends = np.random.default_rng(settings.seed), 0, 0
    try:
        rows = ParallelRows(team, name=name, seed=settings.seed, action_repeat=settings.action_repeat)
        agents, masked = rows.spec.agents, rows.spec.masked
        out = empty_step(rows.spec, agents)
        for _ in range(min(settings.steps, STEPS)):
            rows.turn(out, 0)
            there = ~np.isnan(out.reward)
            rows_made, ends = rows_made + int(there.sum()), ends + int((out.is_last & there).sum())
            for place in range(agents):
                allowed = out.obs[MASK][place] if masked else None
                out.action[place] = random_actions(rows.spec.action, rng, 1, allowed)[0]
    except UserError as error:
        return wrong("agents", str(error))
    first = next(iter(team.possible_agents))
    return ok(
        "agents",
        f"a parallel environment of {counted(agents, 'agent')}: {counted(rows_made, 'row')} fit their spaces, "
        f"{counted(ends, 'episode')} ended. The other checks look at agent {first!r} while the others act at random; "
        "each step of the environment makes a row for every agent in the game",
        agents=agents, rows=rows_made,
    )  # fmt: skip
