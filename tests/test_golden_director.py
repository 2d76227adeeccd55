"""Director: its two time scales, rewards, goal autoencoder, adaptive weights and losses against its source."""

from __future__ import annotations

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.dreaming import director, hierarchy, judged
from dreamer.dreaming.director import Nets
from dreamer.interfaces import Network, Variables
from dreamer.nets import predictors
from dreamer.ops import action_dist
from dreamer.ops import distributions as dist
from dreamer.ops.adaptive import Range, adapt
from dreamer.ops.normalize import Moments

K, UNIMIX = 4, 0.01
LIMITS = dict(low=1e-5, rate=0.1)


def mlp(params, x):
    """The network of the source: dense layers without bias, layer norm with eps 1e-3, ELU; then a linear output."""
    for name in sorted(name for name in params if name.startswith("dense")):
        x, norm = x @ params[name]["linear"]["kernel"], params[name]["norm"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
        x = jax.nn.elu(x * lifted(norm["scale"], x) + lifted(norm["offset"], x))
    out = params["dist_out"]["out"]
    x = x @ out["kernel"]
    return x + lifted(out["bias"], x)


def lifted(vector, x):
    return jnp.reshape(vector, (1,) * (x.ndim - 1) + (-1,))


def codes(params, x):
    return mlp(params, x).reshape(*x.shape[:-1], 2, 3)


def decoder(params, code):
    return mlp(params, code.reshape(*code.shape[:-2], -1))


def network(apply):
    return Network(lambda key, *inputs: {}, apply)


def nets():
    critic = predictors.symlog_of(network(mlp))
    worker = network(lambda params, x: {"logits": mlp(params, x)})
    critics = dict.fromkeys(("extrinsic", "exploration", "worker"), critic)
    return Nets(network(codes), network(decoder), network(codes), worker, critics, K, 3, UNIMIX)


def batch_major(tree):
    return jax.tree.map(lambda x: np.swapaxes(x, 0, 1) if np.ndim(x) > 1 else x, tree)


def block_major(x):
    """Joins blocks as the source does: [N, b, K, ..] -> [K, b * N, ..]."""
    x = np.moveaxis(np.asarray(x), (2, 1), (0, 1))
    return x.reshape(len(x), -1, *x.shape[3:])


# --- two time scales --------------------------------------------------------------------------------


def test_the_worker_sees_blocks_that_share_their_border_states():
    data = golden.load("director/split_traj")
    rows, found = batch_major(data.inputs), {}
    for name, x in rows.items():
        split = hierarchy.split_steps if name.startswith("reward") else hierarchy.split_states
        found[name] = split(jnp.asarray(x), K)
    # Goals belong to blocks, so the source corrects that of each border state; codes and deltas are not used there.
    found["goal"] = jnp.broadcast_to(found["goal"][:, :, :1], found["goal"].shape).at[:, :, 1:-1].set(
        found["goal"][:, :, 1:-1]
    )
    found["weight"] = hierarchy.state_weights(found["cont"], 0.99)
    expected = {name: x for name, x in data.out.items() if name != "aux_weight_before"}
    golden.assert_tree_close(
        "director/split_traj", "out", {name: block_major(x) for name, x in found.items()}, expected
    )
    before = hierarchy.state_weights(jnp.asarray(rows["cont"]), 0.99).T
    golden.assert_close("director/split_traj", "out", "weight", before, data.out["aux_weight_before"])


def test_the_manager_sees_the_states_between_blocks():
    data = golden.load("director/abstract_traj")
    rows, found = batch_major(data.inputs), {}
    cont = jnp.asarray(rows["cont"])
    for name, x in rows.items():
        if name.startswith("reward"):
            found[name] = hierarchy.block_rewards(jnp.asarray(x), cont, K)
        elif name != "action":
            found["action" if name == "skill" else name] = x[:, ::K]
    found["cont"] = hierarchy.block_conts(cont, K)
    found["weight"] = hierarchy.state_weights(found["cont"], 0.99)
    golden.assert_tree_close("director/abstract_traj", "out", batch_major(found), data.out)


def test_the_reward_of_the_worker():
    golden.check("director/goal_reward", lambda params, inputs: {
        "reward": hierarchy.goal_reward(inputs["goal"], inputs["deter"])[1:]
    })  # fmt: skip


def test_the_reward_for_exploration():
    data = golden.load("director/expl_reward")
    decoded = decoder(data.params["dec"], data.inputs["forced_skill"])
    reward = hierarchy.novelty(decoded, data.inputs["deter"])[1:]
    golden.assert_close("director/expl_reward", "out", "reward", reward, data.out["reward"])


# --- adaptive weights and normalisers ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name, target, limits, shape",
    [
        ("kl", 3.5, Range(high=1.0, **LIMITS), ()), ("ent", 0.5, Range(high=100.0, inverse=True, **LIMITS), ()),
        ("perdim", 2.0, Range(high=100.0, inverse=True, **LIMITS), (5,)),
    ],
)  # fmt: skip
def test_a_weight_adapts(name, target, limits, shape):
    data = golden.load("director/autoadapt")
    weight, found, losses = jnp.ones(shape), [jnp.ones(shape)], []
    for value in jnp.asarray(data.inputs["x"]):
        weight = adapt(weight, value, target, limits)
        found.append(weight)
        losses.append((-1 if limits.inverse else 1) * lifted(weight, value) * value)
    golden.assert_close("director/autoadapt", "out", name, jnp.stack(found), data.out[f"scale_{name}"])
    golden.assert_close("director/autoadapt", "out", name, jnp.stack(losses), data.out[f"loss_{name}"])


@pytest.mark.parametrize("name, norm", [("ret", judged.return_norm()), ("adv", judged.advantage_norm())])
def test_a_normaliser(name, norm):
    data = golden.load("director/normalize")
    state, found = norm.init(), []
    for x in jnp.asarray(data.inputs["x"]):
        state = norm.update(state, x)
        offset, scale = norm.stats(state)
        found.append((x - (offset if name == "adv" else 0.0)) / scale)
    golden.assert_close("director/normalize", "out", name, jnp.stack(found), data.out[f"norm_{name}"])
    for ours, theirs in ((state.mean, "mean"), (state.sqrs, "sqrs")):
        magnitude = float(np.abs(data.inputs["x"]).max())
        expected = data.out[f"aux_{theirs}_{name}"]
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7 * magnitude)


# --- what is learned --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["low", "high"])
def test_the_goal_autoencoder(name):
    file = f"director/goal_autoencoder_{name}_kl"
    data = golden.load(file)
    before = {"kl_scale": data.params.pop("kl_scale")}

    def forward(params, inputs):
        logits = dist.mix_uniform(codes(params["enc"], inputs["deter"]), 0.0)
        goal = decoder(params["dec"], dist.straight_through(inputs["forced_skill"], logits))
        rec, kl = judged.code_losses(goal, inputs["deter"], logits)
        weight = adapt(jnp.asarray(before["kl_scale"]), kl, inputs["target_kl"], director.KL)
        loss = (rec + weight * kl).mean()
        return {"loss": loss, "aux_rec": rec, "aux_kl": kl, "aux_scale_after": weight, "aux_goal": goal}

    (_, out), grads = jax.jit(
        jax.value_and_grad(lambda params: (lambda out: (out["loss"], out))(forward(params, data.inputs)), has_aux=True)
    )(data.params)
    expected = {key: value for key, value in data.out.items() if key != "aux_logits"}
    golden.assert_tree_close(file, "out", out, expected)
    golden.assert_tree_close(file, "gparam", grads, data.gparam)


def variables(data, critics, weight):
    """Variables with the parameters of a golden file. critics {our name: that of the source}"""
    params = {f"value_{ours}": data.params[f"critic_{theirs}"] for ours, theirs in critics.items()}
    count = 1 - 0.999 ** float(data.params["norm_step"]), 1 - 0.99 ** float(data.params["norm_step"])
    moments = [
        Moments(*(jnp.float32(data.params[f"{kind}_{name}"]) for name in ("mean", "sqrs")), jnp.float32(corr))
        for kind, corr in zip(("retnorm", "advnorm"), count, strict=True)
    ]
    norms = dict.fromkeys(critics, moments[0]) | {f"{weight}_advantage": moments[1]}
    extra = {
        "slow": {ours: data.params[f"slow_{theirs}"] for ours, theirs in critics.items()},
        "norms": norms,
        "weights": {weight: jnp.asarray(data.params["actent_scale"])},
    }
    hyper = {
        "discount": 0.99, "lam": 0.95, "extrinsic_scale": 1.0, "exploration_scale": 0.1, "minstd": 0.1,
        "manager_entropy": 0.5, "worker_entropy": 0.5,
    }  # fmt: skip
    return Variables({weight: data.params["actor"], **params}, extra, hyper)


def check_update(file, data, v, part, critics, weight):
    """Compares losses, gradients and next states with those of the source. part(v) -> Part"""
    mine = {"actor_loss": weight, **{f"critic_{theirs}_loss": f"value/{ours}" for ours, theirs in critics.items()}}
    nets_of = {"actor": weight, **{f"critic_{theirs}": f"value_{ours}" for ours, theirs in critics.items()}}
    found = jax.jit(part)(v)
    for theirs, ours in mine.items():
        golden.assert_close(file, "out", theirs, found.losses[ours].mean(), data.out[theirs])
    after = found.extra["weights"][weight]
    golden.assert_close(file, "out", "weight", after, np.asarray(data.out["aux_actent_scale_after"]))
    moments = found.extra["norms"][f"{weight}_advantage"]
    golden.assert_close(file, "out", "norm", jnp.stack(moments[:2]), data.out["aux_advnorm_after"])

    def total(params):
        return sum((loss.mean() for loss in part(v._replace(params=params)).losses.values()), jnp.zeros(()))

    grads = jax.jit(jax.grad(total))(v.params)
    golden.assert_tree_close(
        file, "gparam", {theirs: grads[ours] for theirs, ours in nets_of.items()}, data.gparam
    )


def features(rows):
    return jnp.concatenate([rows["deter"], rows["stoch"].reshape(*rows["deter"].shape[:2], -1)], -1)


def test_the_worker_and_its_critic():
    file, critics = "director/worker_update", {"worker": "goal"}
    data = golden.load(file)
    rows = batch_major(data.inputs)
    v, actions = variables(data, critics, "worker"), action_dist.discrete_actions([3], UNIMIX)
    seen = director.beside(features(rows), rows["goal"])
    part = functools.partial(
        director.worker_losses, nets(), actions, seen=seen, action=rows["action"][:, :-1],
        cont=jnp.asarray(rows["cont"]), reward=jnp.asarray(rows["reward_goal"]), allowed=None,
    )  # fmt: skip
    check_update(file, data, v, lambda v: part(v=v), critics, "worker")


def test_the_manager_and_its_critics():
    file, critics = "director/manager_update", {"extrinsic": "extr", "exploration": "expl"}
    data = golden.load(file)
    rows = batch_major(data.inputs)
    rewards = {ours: jnp.asarray(rows[f"reward_{theirs}"]) for ours, theirs in critics.items()}
    part = functools.partial(
        director.manager_losses, nets(), feat=features(rows), code=rows["action"][:, :-1],
        cont=jnp.asarray(rows["cont"]), rewards=rewards,
    )  # fmt: skip
    check_update(file, data, variables(data, critics, "manager"), lambda v: part(v=v), critics, "manager")
