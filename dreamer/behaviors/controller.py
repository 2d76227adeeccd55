"""The controller of World Models (Ha and Schmidhuber 2018): a linear policy that evolves in dreams, without gradients.

Until it starts to evolve, it acts at random, which collects the data for the world model. After that, an update is one
generation of CMA-ES: a population of candidates is tried in dreams, and the search distribution moves towards the best
ones. Candidates can also be tried in an environment, where the world model only observes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from dreamer import plugins
from dreamer.dreaming import evolution, linear_policy
from dreamer.errors import UserError
from dreamer.fields import at_least, check_bounds
from dreamer.interfaces import (
    Array,
    Ask,
    Behavior,
    Dream,
    Extra,
    JaxEnv,
    Key,
    Losses,
    Metrics,
    Mode,
    Replayed,
    State,
    Variables,
)  # fmt: skip
from dreamer.ops.keys import named_keys
from dreamer.spaces import Action, Spec

sg = jax.lax.stop_gradient


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the controller of Ha and Schmidhuber 2018. The defaults are those of its CarRacing."""

    name: str = "controller"
    "module in dreamer.behaviors, or a dotted module of your own"
    start: Annotated[int, at_least(0)] = 0
    "update from which the controller evolves; 0 = when the world model has learned, if it has phases"
    population: Annotated[int, at_least(4)] = 64
    "P, candidates of a generation"
    rollouts: Annotated[int, at_least(1)] = 16
    "R, dreams in which each candidate is tried"
    environment: str = ""
    "try candidates in this environment and not in dreams: the env of the run, written in JAX, such as jax_probes:pixel"
    environment_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    "keyword arguments of that environment"
    dream_length: Annotated[int, at_least(1)] = 1000
    "longest dream, or episode of `environment`, in steps"
    dream_start: Literal["first", "any"] = "first"
    "replayed rows from which dreams start: first rows of episodes, or any"
    std: Annotated[float, at_least(0)] = 0.1
    "deviation of the first population"
    decay: float = 0.01
    "weight of the mean square of the parameters in the cost; the source has -0.01, which rewards large ones"
    bias: bool = True
    "whether the linear map has a bias"
    discrete: Literal["argmax", "threshold"] = "argmax"
    "how classes are chosen: argmax of one output for each; threshold: none or one of two buttons from one output"
    one_sided: tuple[int, ...] = ()
    "numbers of the action, random or not, whose range begins where the output is 0, such as a brake"
    hold: Annotated[int, at_least(1)] = 1
    "largest number of steps for which a random action is held; the number is drawn for each random action"
    collect: Literal["mean", "random"] = "mean"
    "actions in training episodes once the controller evolves: those of the mean of the search, or random ones"

    def __post_init__(self) -> None:
        check_bounds(self)


class Held(NamedTuple):
    """The carry of `act`. action [E, A]: the random action that is held | left [E] int32: for how many more steps"""

    action: Array
    left: Array


def make(
    config: Config, spec: Spec, *, feat_width: int, dtype: Any = jnp.float32, horizon: float = 333.0,
    contdisc: bool = True,
) -> Behavior:  # fmt: skip
    """Makes the controller for features [.., feat_width].

    contdisc: whether the world model's `cont` contains the discount 1 - 1 / horizon; dreams are not discounted
    Raises UserError without the package evosax, or when the settings do not suit the environment's actions.
    """
    if spec.masked:
        raise UserError("behavior 'controller' cannot use action masks, and the environment has one")
    policy = linear_policy.make(
        feat_width, spec.action, bias=config.bias, discrete=config.discrete, one_sided=config.one_sided
    )
    strategy = evolution.cma_es(policy.size, config.population, config.std)
    end = 0.5 * (1 - 1 / horizon if contdisc else 1.0)
    env = the_environment(config, spec) if config.environment else None

    def init(key: Key) -> Variables:
        extra = {"updates": jnp.int32(0), "search": strategy.init(key)}
        return Variables({}, extra, {"decay": jnp.float32(config.decay)})

    def draw(key: Key, count: int) -> Array:
        return random_action(key, spec.action, count, config.one_sided)

    def initial(envs: int) -> Held:
        return Held(jnp.zeros((envs, spec.action_width)), jnp.zeros(envs, jnp.int32))

    def act(
        v: Variables, key: Key, dream: Dream, state: State, carry: Held, ask: Ask, mode: Mode
    ) -> tuple[Array, Held]:
        chosen = policy.act(v.extra["search"]["mean"], dream.feat(state))
        if mode != "collect":
            return chosen, carry
        held = hold(key, carry, ask.is_first, config.hold, draw)
        at_random = v.extra["updates"] <= config.start if config.collect == "mean" else True
        return jnp.where(at_random, held.action, chosen), held

    def loss(
        v: Variables, key: Key, dream: Dream, start: State, replayed: Replayed
    ) -> tuple[Losses, tuple[Extra, Metrics]]:
        is_first = replayed.rows.is_first.reshape(-1)

        def evolve(search: evolution.Search) -> tuple[evolution.Search, Metrics]:
            keys = named_keys(key, "starts", "ask", "dreams", "tell")
            begin = evolution.choose_starts(
                keys["starts"], start, is_first, config.rollouts, config.dream_start == "first"
            )
            candidates, search = strategy.ask(keys["ask"], search)
            given = (dream, policy.act, candidates, begin, keys["dreams"])
            if env:
                tried = evolution.in_environments(env, *given, horizon=config.dream_length)
            else:
                tried = evolution.in_dreams(*given, horizon=config.dream_length, end=end)
            cost = evolution.cost_of(tried.fitness.mean(1), candidates, v.hyper["decay"])
            return strategy.tell(keys["tell"], candidates, cost, search), measured(tried)

        def wait(search: evolution.Search) -> tuple[evolution.Search, Metrics]:
            return search, {name: jnp.zeros(()) for name in jax.eval_shape(evolve, search)[1]}

        updates = v.extra["updates"]
        search, metrics = jax.lax.cond(updates >= config.start, evolve, wait, v.extra["search"])
        metrics |= {
            "evolution/generation": search["generation_counter"].astype(jnp.float32), "evolution/std": search["std"],
        }
        return {}, (sg({"updates": updates + 1, "search": search}), sg(metrics))

    needs = frozenset({"reward", "cont"})
    return Behavior(init, initial, act, loss, lambda v: v.extra, {}, needs)


def the_environment(config: Config, spec: Spec) -> JaxEnv:
    """Makes the environment in which candidates are tried.

    Raises UserError unless it is written in JAX, with the observations and actions of the environment of the run.
    """
    made = plugins.make_jax_env(config.environment, config.environment_options)
    if made is None:
        raise UserError(f"environment {config.environment!r} of behavior 'controller' is not written in JAX")
    if made.spec != spec:
        raise UserError(f"environment {config.environment!r} of behavior 'controller' is not that of the run: its "
                        f"observations or actions differ")  # fmt: skip
    return made


def measured(tried: evolution.Tried) -> Metrics:
    """Returns metrics of a generation. The fitness of a candidate is the mean over its dreams."""
    fitness = tried.fitness.mean(1)
    return {
        "evolution/fitness": fitness.mean(), "evolution/fitness_best": fitness.max(),
        "evolution/fitness_worst": fitness.min(), "evolution/fitness_std": fitness.std(),
        "evolution/length": tried.length.mean(),
    }  # fmt: skip


def hold(key: Key, held: Held, is_first: Array, most: int, draw: Callable[[Key, int], Array]) -> Held:
    """Holds each random action for 1 to `most` steps. After them, and in first rows, draws a new one and its steps.

    draw(key, E) -> actions [E, A]
    """
    action_key, length_key = jax.random.split(key)
    renew = is_first | (held.left == 0)
    left = jax.random.randint(length_key, renew.shape, 1, most + 1)
    drawn = draw(action_key, len(renew))
    return Held(jnp.where(renew[:, None], drawn, held.action), jnp.where(renew, left, held.left) - 1)


def random_action(key: Key, action: Action, count: int, one_sided: Sequence[int] = ()) -> Array:
    """Draws actions [count, A]: one-hots of equally likely classes, and numbers from -1 to 1.

    one_sided: the numbers whose range begins where they are 0, as it does for the controller
    """
    *keys, last = jax.random.split(key, len(action.classes) + 1)
    parts = [
        jax.nn.one_hot(jax.random.randint(one, (count,), 0, classes), classes)
        for one, classes in zip(keys, action.classes, strict=True)
    ]
    numbers = jax.random.uniform(last, (count, action.continuous), minval=-1.0)
    return jnp.concatenate([*parts, linear_policy.one_side(numbers, one_sided)], -1)
