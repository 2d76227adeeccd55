"""Compares four train steps with the reference: losses, gradients, metrics, latents, and resulting parameters."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import agent as agents
from dreamer.behaviors import actor_critic
from dreamer.dreaming.actor_critic import Norms
from dreamer.interfaces import Agent, Batch, Behavior, TrainState, WorldModel
from dreamer.losses import make_losses, total_loss
from dreamer.ops import distributions as dist
from dreamer.ops import optimizers
from dreamer.ops.normalize import Percentiles
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models import rssm
from tests import golden

FILE = "vec_cont"
SPEC = Spec({"position": Space((3,), "float32"), "velocity": Space((2,), "float32")}, Action(continuous=2))
WORLD = ("enc", "dyn", "dec", "rew", "con")
METRICS = {
    "adv": "dream/adv", "adv_mag": "dream/adv_mag", "adv_std": "dream/adv_std", "con": "dream/cont",
    "dyn_ent": "latent/prior_entropy", "rep_ent": "latent/post_entropy", "ent/action": "dream/action_entropy",
    "ret": "dream/return_normed", "ret_max": "dream/return_normed_max", "ret_min": "dream/return_normed_min",
    "ret_rate": "dream/return_rate", "rew": "dream/reward", "slowval": "dream/slow_value", "tar": "dream/target",
    "val": "dream/value", "weight": "dream/weight", "opt/grad_norm": "train/grad_norm",
    "opt/grad_rms": "train/grad_rms", "opt/loss": "train/loss", "opt/param_rms": "train/param_rms",
    "opt/update_rms": "train/update_rms",
    "loss/position": "loss/rec/position", "loss/velocity": "loss/rec/velocity",
}  # fmt: skip


@functools.cache
def data() -> dict[str, np.ndarray]:
    return golden.load_flat(FILE)


def argmax_onehot(key: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.one_hot(jnp.argmax(logits, -1), logits.shape[-1])


def fixed_noise(key: jax.Array, outs: dict[str, jax.Array], allowed: None) -> jax.Array:
    mean, std = dist.bounded_normal(outs["mean"], outs["stddev"], 0.1, 1.0)
    return mean + std * jnp.broadcast_to(jnp.asarray(data()["meta/eps"]), mean.shape)


def parts() -> tuple[WorldModel, Behavior]:
    world_model = rssm.make(
        rssm.Config(deter=32, hidden=8, stoch=4, classes=4, units=8, depth=2), SPEC, sample=argmax_onehot
    )
    behavior = actor_critic.make(
        actor_critic.Config(units=8, imagine_length=4), SPEC, feat_width=48, sample=fixed_noise
    )
    return world_model, behavior


def make_agent() -> Agent:
    return agents.assemble(*parts(), optimizers.Config(learning_rate=4e-4, warmup=2), SPEC)


def to_params(flat: dict[str, np.ndarray]) -> dict:
    tree = jax.tree.map(jnp.asarray, golden.nest(flat))
    return {
        "world_model": {k: tree[k] for k in WORLD},
        "behavior": {k: tree[k] for k in ("pol", "val")},
    }


def from_params(params: dict) -> dict[str, np.ndarray]:
    return golden.flatten({**params["world_model"], **params["behavior"]})


def part(prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): v for k, v in data().items() if k.startswith(prefix)}


def first_state(agent: Agent) -> TrainState:
    state, init = agent.init(jax.random.key(0)), part("init/")
    slow = jax.tree.map(jnp.asarray, golden.nest(init)["slowval"])
    norms = Norms(
        Percentiles(jnp.asarray(init["retnorm/lo/value"]), jnp.asarray(init["retnorm/hi/value"])), (), ()
    )
    extra = {**state.extra, "behavior": {**state.extra["behavior"], "slow": slow, "norms": norms}}
    params = to_params(init)
    assert jax.tree.structure(params) == jax.tree.structure(state.params)
    return state._replace(params=params, extra=extra)


def batch() -> Batch:
    b = part("batch/")
    latent = rssm.Latent(jnp.asarray(b["dyn/deter"][:, :1]), jnp.asarray(b["dyn/stoch"][:, :1]))
    packed = {"deter": latent.deter, "stoch": jnp.argmax(latent.stoch, -1).astype(jnp.uint8)}
    obs = {k: b[k] for k in SPEC.obs}
    return Batch(obs, b["action"], b["reward"], b["is_first"], b["is_last"], b["is_terminal"], packed)


@functools.cache
def run() -> tuple[TrainState, tuple]:
    agent = make_agent()
    state, outs = first_state(agent), []
    update = jax.jit(agent.update)
    for _ in range(4):
        state, out = update(state, batch())
        outs.append((state, out.latent, out.metrics))
    return state, tuple(outs)


def check(group: str, actual: dict, expected: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(expected)
    for name in expected:
        golden.assert_close(FILE, group, name, actual[name], expected[name])


def losses_of(params: dict, state: TrainState) -> dict[str, jax.Array]:
    return make_losses(*parts(), SPEC)(params, state.extra, state.hyper, state.key, batch())[0]


def test_losses_of_step_0_match_per_element():
    state = first_state(make_agent())
    losses = jax.jit(losses_of)(state.params, state)
    for name, expected in part("step0/loss/").items():
        actual = losses[f"rec/{name}" if name in SPEC.obs else name]
        if name in ("policy", "value"):
            actual = actual.mean(1).reshape(expected.shape)
        golden.assert_close(FILE, "step0", f"loss/{name}", actual, expected)


@pytest.mark.parametrize("n", range(4))
def test_metrics_match(n: int):
    metrics = run()[1][n][2]
    for name, expected in part(f"metrics/{n}/").items():
        if name not in ("opt/param_count", "opt/updates"):
            golden.assert_close(FILE, f"metrics/{n}", name, metrics[METRICS.get(name, name)], expected)


@pytest.mark.parametrize("n", range(4))
def test_refreshed_latents_match(n: int):
    latent, expected = run()[1][n][1], part(f"replay/{n}/")
    golden.assert_close(FILE, f"replay/{n}", "deter", latent["deter"], expected["dyn/deter"])
    np.testing.assert_array_equal(np.eye(4)[latent["stoch"]], expected["dyn/stoch"])


@pytest.mark.parametrize("n", range(4))
def test_return_normaliser_matches(n: int):
    state = run()[1][n][0].extra["behavior"]["norms"].ret
    check(f"norm/{n}", {"retnorm/lo/value": state.lo, "retnorm/hi/value": state.hi}, part(f"norm/{n}/"))


def test_gradient_of_every_parameter_matches():
    state, loss = first_state(make_agent()), total_loss(*parts(), SPEC)
    grads, _ = jax.jit(jax.grad(loss, has_aux=True))(state.params, state.extra, state.hyper, state.key, batch())
    check("grad", from_params(grads), part("grad/"))


def test_parameters_and_slow_critic_after_four_steps_match():
    state, expected = run()[0], part("final/")
    actual = from_params(state.params) | golden.flatten({"slowval": state.extra["behavior"]["slow"]})
    for name, value in actual.items():
        golden.assert_close(FILE, "final_params", name, value, expected[name])


def test_optimizer_moments_after_four_steps_match():
    state, expected = run()[0], part("final/opt/state/")
    _, rms, momentum = state.opt_state
    check("final_opt", from_params(rms.nu), {k[4:]: v for k, v in expected.items() if k.startswith("1/1/")})
    check("final_opt", from_params(momentum.ema), {k[4:]: v for k, v in expected.items() if k.startswith("2/1/")})


def test_each_loss_reaches_just_the_parameters_that_it_reaches_in_the_reference():
    state = first_state(make_agent())
    expected = json.loads((golden.FOLDER / "vec_cont_gradnorm_per_term.json").read_text())
    jac = jax.jit(jax.jacrev(lambda p: {k: v.mean() for k, v in losses_of(p, state).items()}))(state.params)
    for name, reached in expected.items():
        grads = from_params(jac[f"rec/{name}" if name in SPEC.obs else name])
        for param, grad in grads.items():
            norm = float(np.linalg.norm(grad))
            assert norm == pytest.approx(reached.get(param, 0.0), rel=1e-3, abs=1e-7), (name, param)
