"""Turns a multi-agent environment into rows: each agent has its own stream. Imports no jax.

An environment is parallel if it has the methods of PettingZoo's ParallelEnv, which need not be installed:

    possible_agents                                    the names of all agents that can ever act
    observation_space(agent), action_space(agent)      the same for all of them
    reset(seed=..)  -> {agent: obs}, {agent: info}     for the agents that start
    step({agent: action}) -> {agent: obs}, {agent: reward}, {agent: terminated}, {agent: truncated}, {agent: info}
    render_mode, render(), get_state(), set_state(state), close()      as in gymnasium; optional

All agents share one world model and one policy; the observation key "agent" holds the index of a row's agent. An agent
that ends gets its last row. It gets no more rows until the game is over, that is, until all agents have ended. The
environment is then reset with a new seed, and each agent that starts gets a first row. Agents may also enter during a
game.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.errors import UserError
from dreamer.runtime.env import state as env_state
from dreamer.runtime.env.adapter import EnvAdapter, adapt, checked_reset, described, spec_of
from dreamer.runtime.env.observations import readers
from dreamer.runtime.env.rows import EnvRows, drawn
from dreamer.spaces import Spec
from dreamer.steps import Step

AGENT = "agent"
ABSENT = np.float32(np.nan)  # marks the slot of an agent that is not in the game and so has no row
_ANSWERS = ("observations", "rewards", "terminations", "truncations", "infos")


def is_parallel(env: Any) -> bool:
    """Whether `env` has several agents that step together. Raises UserError if its agents take turns."""
    if not hasattr(env, "possible_agents") or not callable(getattr(env, "observation_space", None)):
        return False
    if hasattr(env, "agent_selection") or hasattr(env, "agent_iter"):
        advice = "use its parallel form, parallel_env() or pettingzoo.utils.aec_to_parallel"
        raise UserError(f"the agents of {type(env).__name__} take turns; {advice}")
    return True


class Side(gymnasium.Env):
    """One agent's view of a parallel environment, as a gymnasium environment that returns `answer` at each step.

    index: the index of the agent, which is also the value of its observation key AGENT
    answer: the (obs, reward, terminated, truncated, info) to return next, which the caller sets
    """

    def __init__(self, team: Any, agents: list, index: int, name: str):
        """team: the parallel environment | agents: the names of all its agents | name: its name in errors

        Raises UserError if the observation already has a key AGENT.
        """
        self.index, self.agent = index, agents[index]
        self.answer: Any = None
        own = team.observation_space(self.agent)
        if isinstance(own, spaces.Dict) and AGENT in own.spaces:
            raise UserError(f"env {name!r}: the observation key {AGENT!r} is reserved for the agent's index; rename it")
        self.action_space = team.action_space(self.agent)
        self.lone = "" if isinstance(own, spaces.Dict) else "obs"
        if self.lone and not isinstance(own, spaces.Tuple):
            self.observation_space = own
            self.lone = readers(self, name)[0].key
        parts = {self.lone: own} if self.lone else dict(own.spaces)
        self.observation_space = spaces.Dict({**parts, AGENT: spaces.Discrete(len(agents), dtype=np.int32)})

    def shown(self, obs: Any) -> Any:
        """Returns `obs`, this agent's observation from the environment, with the agent's index added."""
        if not self.lone and not isinstance(obs, Mapping):
            return obs  # reading it raises the error
        return {**({self.lone: obs} if self.lone else obs), AGENT: self.index}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        """Returns the observation and info of `answer`."""
        return self.answer[0], self.answer[4]

    def step(self, action: Any) -> Any:
        """Returns `answer`."""
        return self.answer

    def get_state(self) -> None:
        """Returns None, because the state belongs to the whole environment."""

    def set_state(self, state: None) -> None:
        """Does nothing, because the state belongs to the whole environment."""


def sides_of(team: Any, name: str) -> list[Side]:
    """Returns a Side for each agent of a parallel environment, in order.

    Raises UserError if the environment has no agents, or if their spaces differ. name: the environment's name in errors
    """
    agents = list(team.possible_agents)
    if not agents:
        raise UserError(f"env {name!r}: possible_agents is empty")
    first, *others = sides = [Side(team, agents, index, name) for index in range(len(agents))]
    for side in others:
        _check_alike(side, first, name)
    return sides


def adapt_agents(team: Any, sides: list[Side], name: str, seed: int | None = None) -> tuple[EnvAdapter, Any]:
    """Returns the EnvAdapter that all agents share, and (observations, infos) of the reset that was needed to find it.

    Raises UserError for spaces that are not supported, or if the environment's reset does not work.
    """
    answer = begun(team, seed, name)
    side = next((side for side in sides if side.agent in answer[0]), sides[0])
    side.answer = first_answer(side, answer)
    found = adapt(side, name)
    return found._replace(spec=dataclasses.replace(found.spec, agents=len(sides)), first=None), answer


def any_spec(env: Any, name: str = "") -> Spec:
    """Returns the Spec of an environment, parallel or not. Raises UserError as `adapt` does.

    This may reset the environment, so reset it again before you step it.
    """
    return adapt_agents(env, sides_of(env, name), name)[0].spec if is_parallel(env) else spec_of(env, name)


def begun(team: Any, seed: int | None, name: str) -> tuple[Mapping, Mapping]:
    """Resets a parallel environment and returns its observations and infos by agent.

    name: its name in errors. Raises UserError if these are not two dicts, or if no agent has an observation.
    """
    observations, infos = checked_reset(team, seed, name)
    if not (isinstance(observations, Mapping) and isinstance(infos, Mapping)):
        raise UserError(f"env {name!r}: reset() must return two dicts by agent, it returned {described(observations)}")
    if not observations:
        raise UserError(f"env {name!r}: reset() returned an observation for no agent")
    return observations, infos


def first_answer(side: Side, answer: tuple[Mapping, Mapping]) -> tuple:
    """Returns (obs, 0.0, False, False, info) for an agent that enters a game, in the form that `step` returns.

    answer: the observations and infos of all agents.
    """
    observations, infos = answer
    return side.shown(observations[side.agent]), 0.0, False, False, infos.get(side.agent, {})


class ParallelRows:
    """Owns one parallel environment and makes one row per agent at each step.

    Its arguments and methods mean the same as in EnvRows, but `turn` writes the rows of all agents. spec: the Spec of
    each agent. Raises UserError if the environment violates its spaces, or the interface that this module describes.
    """

    def __init__(self, env: Any, *, name: str = "", seed: int | None = None, action_repeat: int = 1):
        self.env, self.name = env, name or type(env).__name__
        self._seed, self._repeat = seed, action_repeat
        self._sides = sides_of(env, self.name)
        read, self._fresh = adapt_agents(env, self._sides, self.name, seed)
        self.spec = read.spec
        self._rows = [
            EnvRows(side, name=f"{self.name} {side.agent}", action_repeat=1, known=read) for side in self._sides
        ]
        if action_repeat < 1:
            raise UserError(f"action_repeat is {action_repeat}; it must be 1 or more")
        self._playing = [False] * len(self._sides)
        self._ended = [False] * len(self._sides)  # in the current game
        self._games = 0

    def turn(self, out: Step, index: int) -> None:
        """Steps the environment with the actions in its rows of `out`, and writes the answers into the same rows.

        out: a Step [E * agents, ..] | index: the number of this environment among the E
        Leaves the actions unchanged. Ignores them in the first call, in the first call after a game, and for agents
        that are not in the game. An agent without a new row gets the reward NaN.
        """
        first = index * len(self._sides)
        for rows in self._rows:
            rows.forget_finished()
        if any(self._playing):
            answers = self._step(out.action[first : first + len(self._sides)])
        else:
            answers = self._begin()
        for number, (side, rows) in enumerate(zip(self._sides, self._rows, strict=True)):
            place = first + number
            if number not in answers:
                out.reward[place] = ABSENT
                continue
            side.answer = answers[number]
            rows.accept(rows.ask(None), out, place)
            self._playing[number] = not out.is_last[place]
            self._ended[number] = bool(out.is_last[place])
        if not any(self._playing):
            self._ended = [False] * len(self._sides)

    def finished(self) -> dict[int, dict[str, float]]:
        """Returns {agent index: the environment's own metrics} for the episodes that end in the last written rows."""
        return {number: own for number, rows in enumerate(self._rows) for own in rows.finished().values()}

    def render(self) -> np.ndarray | None:
        """Returns an image uint8 [H, W, 3] of the game, or None if the environment was not made to render."""
        return drawn(self.env)

    def get_state(self) -> bytes | str:
        """Returns the environment's state after the last written rows, or the reason (str) why it cannot be saved."""
        own = self._seed, self._games, self._playing, self._ended
        return env_state.get_state(self.env, (own, [rows.position() for rows in self._rows]))

    def set_state(self, state: bytes) -> str:
        """Restores a state. Returns "" on success, else the reason; after a failure do not use the environment."""
        try:
            own, positions = env_state.set_state(self.env, state)
            for rows, position in zip(self._rows, positions, strict=True):
                rows.load_position(position)
            self._seed, self._games, self._playing, self._ended = own
            if not len(self._playing) == len(self._ended) == len(self._sides):
                raise ValueError("it has another number of agents")
            self._fresh = None
        except Exception as error:
            return f"it refused its saved state, {type(error).__name__}: {error}"
        return ""

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def _begin(self) -> dict[int, Any]:
        """Starts a new game and returns the answers of the agents that start, by index."""
        self._games += 1
        answer, self._fresh = self._fresh, None
        if answer is None:
            answer = begun(self.env, seed_of(self._seed, self._games), self.name)
        return {side.index: first_answer(side, answer) for side in self._sides if side.agent in answer[0]}

    def _step(self, actions: np.ndarray) -> dict[int, Any]:
        """Steps the game with the agents' actions and returns the answers of the agents in the game, by index.

        Repeats the actions until the action repeat is reached, an agent enters, or no agent is left.
        """
        natives = {n: self._rows[n].natives(actions[n : n + 1])[0] for n, plays in enumerate(self._playing) if plays}
        answers: dict[int, Any] = {}
        for _ in range(self._repeat):
            results = self._results(self.env.step({self._sides[n].agent: native for n, native in natives.items()}))
            for number in list(natives):
                obs, reward, terminated, truncated, info = self._answer(self._sides[number], results)
                reward = answers[number][1] + reward if number in answers else reward
                answers[number] = obs, reward, terminated, truncated, info
                if terminated or truncated:
                    del natives[number]
            entering = [side for side in self._waiting() if side.agent in results[0]]
            answers |= {side.index: first_answer(side, (results[0], results[4])) for side in entering}
            if entering or not natives:  # an agent that has just entered must act
                break
        return answers

    def _waiting(self) -> list[Side]:
        """Returns the agents that have not entered this game yet."""
        in_it = zip(self._sides, self._playing, self._ended, strict=True)
        return [side for side, playing, ended in in_it if not (playing or ended)]

    def _results(self, answer: Any) -> tuple:
        if isinstance(answer, tuple) and len(answer) == 5 and all(isinstance(part, Mapping) for part in answer):
            return answer
        parts = ", ".join(_ANSWERS)
        raise self._error(f"step() must return five dicts by agent ({parts}), it returned {described(answer)}")

    def _answer(self, side: Side, results: tuple) -> tuple:
        """Returns (obs, reward, terminated, truncated, info) of one agent from the five dicts of a step."""
        observations, rewards, terminations, truncations, infos = results
        try:
            obs, reward = observations[side.agent], rewards[side.agent]
            terminated, truncated = terminations[side.agent], truncations[side.agent]
        except KeyError:
            missing = next(name for name, part in zip(_ANSWERS, results, strict=True) if side.agent not in part)
            raise self._error(f"step() returned no {missing} for agent {side.agent!r}, which has not ended") from None
        left = getattr(self.env, "agents", None)
        if left is not None and side.agent not in left and not (terminated or truncated):
            raise self._error(f"agent {side.agent!r} is no longer in `agents`, but neither terminated nor truncated")
        return side.shown(obs), reward, terminated, truncated, infos.get(side.agent, {})

    def _error(self, text: str) -> UserError:
        return UserError(f"env {self.name!r}, episode {self._games}: {text}")


def seed_of(seed: int | None, game: int) -> int | None:
    """Returns the seed of game number `game`: `seed` for game 1, and a seed derived from `seed` for each later game."""
    if seed is None or game == 1:
        return seed
    return int(np.random.SeedSequence((seed, game)).generate_state(1)[0] >> 1)  # 31 bits, the limit of some games


def _check_alike(side: Side, first: Side, name: str) -> None:
    """Raises UserError if an agent's spaces differ from the first agent's; names the agent and the key."""
    for kind in ("observation_space", "action_space"):
        own, other = getattr(side, kind), getattr(first, kind)
        if own == other:
            continue
        path, own, other = _difference(own, other, ())
        verb = "takes" if kind == "action_space" else "shows"
        key = f" {'/'.join(path)!r} as" if path else ""
        raise UserError(
            f"env {name!r}: agent {side.agent!r} {verb}{key} {own}, agent {first.agent!r} {other}: all agents share "
            "one policy, so their spaces must be equal; pad them, or train each role alone"
        )


def _difference(own: Any, other: Any, path: tuple[str, ...]) -> tuple[tuple[str, ...], Any, Any]:
    """Returns the deepest path in two nested Dicts at which they differ, and the two spaces at that path."""
    if isinstance(own, spaces.Dict) and isinstance(other, spaces.Dict):
        for key in sorted({*own.spaces, *other.spaces}, key=str):
            mine, theirs = own.spaces.get(key), other.spaces.get(key)
            if mine != theirs:
                return _difference(mine, theirs, (*path, str(key)))
    return path, own, other
