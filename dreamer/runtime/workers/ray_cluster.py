"""Runs environments in actors on the machines of a Ray cluster, each at its own speed. Imports no jax.

Ray places the actors, transfers rows and actions, and reports when an actor or its machine is gone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from dreamer import plugins
from dreamer.errors import UserError
from dreamer.runtime.env.rows import empty_step
from dreamer.runtime.workers.actor import Actor
from dreamer.runtime.workers.faults import as_error, differs, envs_in_words
from dreamer.runtime.workers.interface import Incident, WorkerPlan
from dreamer.runtime.workers.remote import PATIENCE, SILENT, START, RemoteWorkers
from dreamer.runtime.workers.table import BUSY, READY, Table
from dreamer.spaces import Spec
from dreamer.steps import Step

CONNECT = 10.0  # seconds in which a cluster must answer


class ActorHome:
    """Owns one actor, which runs the environments with these `numbers`."""

    def __init__(self, ray: ModuleType, plan: WorkerPlan, numbers: tuple[int, ...], spec: Spec | None):
        self.numbers = numbers
        # One thread for each environment and one to close them, so that calls queue inside the actor. Ray needs one
        # CPU to place an actor but none to run it, so a cluster that has lost a machine still has room.
        options = {"max_concurrency": len(numbers) + 1, "scheduling_strategy": "SPREAD", "max_restarts": 0}
        self.actor = ray.remote(Actor).options(**options).remote(plan, numbers, spec, sys.path)


class RayWorkers(RemoteWorkers[ActorHome]):
    """E environments in actors of a Ray cluster. An actor that dies is replaced, on another machine if necessary.

    Uses the cluster to which this process is already connected. Otherwise, connects to the cluster at `address`. With
    address "", connects to the cluster at RAY_ADDRESS, else to a cluster that runs on this machine. If there is none,
    starts one, which `close` ends.
    """

    backend = "ray"

    def __init__(self, plan: WorkerPlan, actors: int, *, address: str = "", timeout: float = 60.0, restarts: int = 0):
        """Makes all environments in `actors` actors. Raises UserError if one cannot be made, or if Ray is missing.

        address, timeout, restarts: as in `Config`
        """
        super().__init__(plan, timeout, restarts)
        self._ray = _ray()
        self._calls: dict[Any, int] = {}  # number of the environment by the ObjectRef of the answer
        self._made = np.zeros(plan.envs, bool)
        self._known: Spec | None = None  # the Spec that every later environment must have
        plugins.add_folder_for(plan.env_name)
        self._ours = _connect(self._ray, address)
        try:
            for share in np.array_split(np.arange(plan.envs), actors):
                self._start(tuple(share.tolist()))
            self.spec = self._known = self._specs()
            self.streams = plan.envs * self.spec.agents
            self._table = Table(empty_step(self.spec, self.streams), self.spec.agents)
            self._dispatch(range(plan.envs))
        except BaseException:
            self.close()
            raise

    def describe(self) -> str:
        """Returns one line of text that says where the environments run."""
        actors = len({id(home) for home in self._homes.values()})
        nodes = sum(node["Alive"] for node in self._ray.nodes())
        envs = envs_in_words(self.envs, self.spec.agents)
        return f"workers: {envs} in {actors} actors of a Ray cluster, nodes alive: {nodes}"

    def close(self) -> None:
        """Ends the actors, and the cluster if this set started it."""
        ray, homes = self._ray, {id(home): home for home in self._homes.values()}
        self._homes, self._calls = {}, {}
        if not ray.is_initialized():
            return
        closing = [home.actor.close.remote() for home in homes.values()]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=PATIENCE)
        for home in homes.values():
            ray.kill(home.actor)
        if self._ours:
            self._ours = False
            ray.shutdown()

    # ---- rows and actions

    def _receive_answers(self, seconds: float, count: int) -> int:
        """Waits at most `seconds` for `count` answers, and handles them. Returns the number of ready environments."""
        calls, ray = self._calls, self._ray
        if calls:
            done, _ = ray.wait(list(calls), num_returns=min(count, len(calls)), timeout=seconds)
            lost: list[tuple[ActorHome, Exception]] = []
            for answer in done:
                number = calls.pop(answer)
                try:
                    self._take(number, ray.get(answer))
                except ray.exceptions.RayError as error:
                    lost.append((self._homes[number], error))
            for home, cause in lost:
                if self._homes[home.numbers[0]] is home:  # the previous answer has not replaced it
                    self._replace(home, _death(self._plan, home, cause, ray))
        self._look_for_hung()
        return int(np.count_nonzero(self._table.phase == READY))

    def _take(self, number: int, answer: tuple[Step, dict[int, dict[str, float]]] | Spec | Incident) -> None:
        """Handles an actor's answer: rows of environment `number`, the Spec after it was made, or an Incident."""
        if isinstance(answer, Incident):
            self._faults.count(answer)
            self._renew(number)
        elif isinstance(answer, Spec):
            self._made[number] = True
            if self._table.phase[number] == BUSY:
                self._dispatch([number])
        else:
            step, finished = answer
            self._table.write(number, step)
            self._table.note(number, finished, self._plan.named(number))

    def _dispatch(self, numbers: Sequence[int]) -> None:
        """Sends environments their actions. An environment that is still being made gets its actions later."""
        for number in numbers:
            if self._made[number]:
                actions = self._table.rows.action[self._table.rows_of(number)]
                self._call(number, self._homes[number].actor.step, actions, late=0.0)

    def _call(self, number: int, method: Any, argument: Any, late: float) -> None:
        self._calls[method.remote(number, argument)] = number
        self._since[number] = time.monotonic() + late

    # ---- other calls

    def _start(self, numbers: tuple[int, ...]) -> None:
        """Starts an actor and its environments. Returns at once; the environments become ready later."""
        home = ActorHome(self._ray, self._plan, numbers, self._known)
        for number in numbers:
            self._homes[number] = home
            self._renew(number)

    def _renew(self, number: int) -> None:
        self._made[number] = False
        self._call(number, self._homes[number].actor.make, self._faults.seed(number), late=self._making)

    def _replace(self, home: ActorHome, incident: Incident, forgiven: bool = False) -> None:
        """Starts a new actor for the environments of a lost actor. Rows that were already received stay valid."""
        self._ray.kill(home.actor)
        self._calls = {answer: number for answer, number in self._calls.items() if number not in home.numbers}
        self._blame(incident, forgiven)
        self._start(home.numbers)

    def _specs(self) -> Spec:
        """Waits until all environments are made and returns their Spec. Raises UserError if one fails.

        Also raises UserError if the environments have different Specs.
        """
        ray, limit = self._ray, START + self._timeout
        try:
            answers = ray.get(list(self._calls), timeout=limit)
        except ray.exceptions.GetTimeoutError:
            advice = "does it have free CPUs? See `ray status`"
            raise UserError(f"the Ray cluster has not made the environments in {limit:g} seconds; {advice}") from None
        except ray.exceptions.RayError as error:
            name = self._plan.env_name
            raise UserError(f"an actor with environments {name!r} failed: {_one_line(error)}") from None
        self._calls.clear()
        for answer in answers:
            if isinstance(answer, Incident):
                raise as_error(answer)
        for number, answer in enumerate(answers):
            if answer != answers[0]:
                raise UserError(differs(self._plan.named(number), answer, answers[0]))
        self._made[:] = True
        return answers[0]

    def _get_states(self) -> list[bytes | str]:
        answers = [self._homes[number].actor.get_state.remote(number) for number in range(self.envs)]
        return [self._answer(answer) for answer in answers]

    def _put_states(self, states: dict[int, bytes]) -> dict[int, str]:
        answers = [self._homes[number].actor.set_state.remote(number, state) for number, state in states.items()]
        given = {}
        for number, answer in zip(states, map(self._answer, answers), strict=True):
            given[number], finished = (answer, {}) if answer == SILENT else answer
            self._table.note(number, finished, self._plan.named(number))
        return given

    def _get_image(self, number: int) -> np.ndarray | str | None:
        return self._answer(self._homes[number].actor.render.remote(number))

    def _answer(self, answer: Any) -> Any:
        """Waits for an actor's answer and returns it. Returns SILENT if the actor is gone or hangs."""
        try:
            return self._ray.get(answer, timeout=self._timeout or None)
        except self._ray.exceptions.RayError:
            return SILENT


def _ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as error:
        advice = 'pip install "dreamer-jax[distributed]", in the checkout pip install ".[distributed]"'
        raise UserError(f"workers.backend ray needs the package {error.name!r}: {advice}") from None
    return ray


def _connect(ray: ModuleType, address: str) -> bool:
    """Connects this process to a Ray cluster, see `RayWorkers`. Returns False if it was connected already, else True.

    Raises UserError if no cluster answers.
    """
    if ray.is_initialized():
        return False
    check_reachable(address)
    try:
        ray.init(address=address or None, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"workers.address {address!r}: no Ray cluster answers there: {_one_line(error)}") from error
    return True


def check_reachable(address: str, key: str = "workers.address") -> None:
    """Raises UserError if nothing listens at `address`, or at RAY_ADDRESS if `address` is "".

    key: the setting that the error names. Without this check, Ray would retry for many minutes.
    """
    where, _, port = (address or os.environ.get("RAY_ADDRESS", "")).removeprefix("ray://").rpartition(":")
    if not where:
        return  # Ray responds at once to "", "auto" and "local"
    if not port.isdigit():
        raise UserError(f"{key} {address!r} is not 'auto', 'local', HOST:PORT or ray://HOST:PORT")
    try:
        socket.create_connection((where, int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"{key}: no Ray cluster answers at {where}:{port}: {error}") from None


def _death(plan: WorkerPlan, home: ActorHome, error: Exception, ray: ModuleType) -> Incident:
    """Returns an Incident that says how an actor died. error: the exception that Ray raised for a pending answer."""
    first, last = plan.named(home.numbers[0]), home.numbers[-1]
    name = f"env {first!r}" + (f" to #{last}" if len(home.numbers) > 1 else "")
    if isinstance(error, ray.exceptions.RayTaskError):
        return Incident(home.numbers, "raised", f"the Ray actor of {name} failed: {_one_line(error)}", str(error))
    return Incident(home.numbers, "killed", f"the Ray actor of {name} is gone: {_one_line(error)}", "")


def _one_line(error: Exception) -> str:
    """Returns the message of a Ray exception as one line."""
    return " ".join(str(error).split())
