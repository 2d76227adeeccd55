"""A loaded agent that acts for all agents of a parallel environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dreamer.apps.acting import LoadedAgent, State
from dreamer.errors import UserError
from dreamer.runtime.env.api_errors import whole_answer
from dreamer.runtime.env.parallel import Side


class TeamState(NamedTuple):
    """What a team remembers between calls of `act`.

    state: the State of the LoadedAgent, a row per agent | seen: the agents that have been in the game at least once
    """

    state: State
    seen: frozenset


class LoadedTeam:
    """Acts for all agents of a parallel environment: takes {agent: observation}, returns {agent: action}.

    observations, infos = env.reset()
    actions, state = team.act(observations)            a new game
    actions, state = team.act(observations, state)     its next step
    """

    def __init__(self, agent: LoadedAgent, sides: list[Side]):
        """agent: the LoadedAgent that acts for all agents | sides: a Side for each agent of the environment in order"""
        self.config, self.env_steps = agent.config, agent.env_steps
        self.possible_agents = [side.agent for side in sides]
        self._agent, self._sides = agent, sides

    def act(
        self, obs: Mapping[Any, Any], state: TeamState | None = None, info: Mapping[Any, Any] | None = None
    ) -> tuple[dict[Any, Any], TeamState]:
        """Chooses an action for each agent that is in the game. Returns {agent: action} and the next state.

        obs: {agent: observation} as returned by reset and step.
        state: the state from the previous call; None: a game begins.
        info: {agent: info} as returned by reset and step; needed only if the infos hold action masks.
        Raises UserError when an observation does not fit its space, or when `obs` names an unknown agent or none.
        """
        if hint := whole_answer(obs):
            raise UserError(f"act, env {self.config.env!r}: {hint}")
        strangers = [name for name in obs if name not in self.possible_agents] if isinstance(obs, Mapping) else [obs]
        if strangers or not obs:
            raise UserError(
                f"act, env {self.config.env!r}: observations of {strangers or 'no agent'}; pass a dict by agent, "
                f"its agents are {self.possible_agents}"
            )
        seen: frozenset = frozenset() if state is None else state.seen
        here = [side if side.agent in obs else None for side in self._sides]
        some = next(side for side in here if side)
        # Agents that are out of the game get an arbitrary row, so that the policy is compiled for one batch size only.
        rows = [self._row(side or some, obs, info) for side in here]
        batch = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
        first = [side.agent not in seen for side in self._sides]
        actions, after = self._agent.choose(batch, state.state if state else None, first)
        own = {side.agent: action for side, action in zip(here, actions, strict=True) if side}
        return own, TeamState(after, seen | set(obs))

    def _row(self, side: Side, obs: Mapping[Any, Any], info: Mapping[Any, Any] | None) -> dict[str, np.ndarray]:
        return self._agent.rows(side.shown(obs[side.agent]), None if info is None else info.get(side.agent))[0]
