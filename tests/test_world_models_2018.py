"""World Models (2018): the phases of its agent, its dreams, its controller, and a run with all phases.

The numbers of its networks are in test_golden_world_models_2018.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import pickle
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from PIL import Image

import dreamer
from benchmarks import reconstructions
from dreamer import agent as agents
from dreamer.behaviors import controller
from dreamer.data import npz
from dreamer.data.episodes import Episode
from dreamer.dreaming import evolution, linear_policy
from dreamer.errors import UserError
from dreamer.ops import optimizers
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.run.init_from import begin_with
from dreamer.runtime.run.listening import Line
from dreamer.spaces import Action, Space, Spec
from dreamer.world_models import vae_mdn_rnn

SPEC = Spec({"image": Space((64, 64, 1), "uint8")}, Action((2,), 1))
MODEL = vae_mdn_rnn.Config(
    vae_updates=2, rnn_updates=2, size=3, channels=(1, 2, 2, 2), hidden=4, components=2, bins=5
)
MIND = controller.Config(population=4, rollouts=2, dream_length=3)
CONFIG = agents.Config("float32", 333.0, True, MODEL, MIND, optimizers.Config(learning_rate=1e-3, warmup=0))
KEY = jax.random.key(0)
PHASES = 6  # updates: two of each phase
TRACES: list[str] = []


def make_batch(seed: int = 0):
    made = tiny.make_batch(SPEC, batch_size=4, length=5, seed=seed)
    rng = np.random.default_rng(seed)
    latent = {name: rng.normal(size=(4, 1, n)).astype(np.float32) for name, n in (("z", 3), ("hidden", 4), ("cell", 4))}
    codes = {name: np.zeros((*made.reward.shape, 3), np.float32) for name in ("mean", "log_var")}
    return made._replace(latent={**latent, **codes, "encoder": np.zeros((*made.reward.shape, 1), np.int32)})


@functools.cache
def agent(dtype: str = "float32"):
    return agents.make(dataclasses.replace(CONFIG, compute_dtype=dtype), SPEC)


@functools.cache
def update():
    def counted(state, batch):
        TRACES.append("update")
        return agent().update(state, batch)

    return tiny.jit(counted)


@functools.cache
def learned():
    """Returns the states before and after each of the updates, and the metrics of each."""
    states, metrics = [tiny.jit(agent().init)(KEY)], []
    for number in range(PHASES):
        after, out = update()(states[-1], make_batch(number))
        states.append(after)
        metrics.append({name: float(value) for name, value in out.metrics.items()})
    return states, metrics


def bits(tree) -> list[bytes]:
    return [tiny_runs.bits(leaf) for leaf in jax.tree.leaves(tree)]


# --- phases -----------------------------------------------------------------------------------------


def test_v_then_m_then_c_learn_and_the_others_rest():
    states, metrics = learned()
    found = []
    for before, after in zip(states, states[1:], strict=False):
        parts = {**before.params["world_model"], "search": before.extra["behavior"]["search"]}
        now = {**after.params["world_model"], "search": after.extra["behavior"]["search"]}
        found.append([name for name in parts if bits(parts[name]) != bits(now[name])])
    assert found == [["vae"], ["vae"], ["rnn"], ["rnn"], ["search"], ["search"]]
    assert [line["train/phase"] for line in metrics] == [1, 1, 2, 2, 3, 3]
    assert [line["evolution/generation"] for line in metrics] == [0, 0, 0, 0, 1, 2]


def test_each_phase_shows_its_own_losses():
    shown = [{name for name, value in line.items() if name.startswith("loss/") and value} for line in learned()[1]]
    assert shown[0] == shown[1] == {"loss/rec/image", "loss/kl"}
    assert shown[2] == shown[3] == {"loss/mdn", "loss/done", "loss/rew"}
    assert shown[4] == shown[5] == set()


def with_codes(batch, state):
    """Returns the batch with the codes of its rows, as V stores them after it has learned."""
    model, v = agent().world_model, agent().variables(state)["world_model"]
    rows = batch.reward.shape
    zeros = jnp.zeros((*rows, SPEC.action_width))
    _, latents = model.observe(v, KEY, model.initial(rows[0]), batch.obs, zeros, jnp.zeros(rows, bool))
    return batch._replace(latent={**batch.latent, **latents.code._asdict()})


@pytest.mark.parametrize("updates", [2, 4], ids=["M", "C"])
def test_stored_codes_take_the_place_of_images(updates):
    """An update from stored codes is the same as one from images, and does not look at the images."""
    state, batch = learned()[0][updates], make_batch(9)
    seen, out = update()(state, batch)
    coded = with_codes(batch, state)
    other = coded._replace(obs={"image": 255 - coded.obs["image"]})
    recalled, again = update()(state, other)
    chex.assert_trees_all_close((seen.params, out.latent), (recalled.params, again.latent), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("other", [0, 1], ids=["no encoder", "an encoder before"])
def test_one_row_without_a_code_of_this_encoder_makes_v_look_at_all_images(other):
    state, batch = learned()[0][2], make_batch(9)
    coded = with_codes(batch, state)
    before = with_codes(batch, learned()[0][1]).latent["encoder"] * other
    assert (before != coded.latent["encoder"]).all()
    row = np.zeros(batch.reward.shape, bool)
    row[1, 3] = True
    stale = jnp.where(row[..., None], before, coded.latent["encoder"])
    partly = coded._replace(latent={**coded.latent, "encoder": stale})
    wrong = partly._replace(latent={**partly.latent, "mean": partly.latent["mean"] + 5})
    np.testing.assert_allclose(
        update()(state, wrong)[1].latent["mean"], update()(state, batch)[1].latent["mean"], rtol=1e-5, atol=1e-6
    )


def test_updates_and_acting_store_codes_under_the_same_encoder_once_v_has_learned():
    states, _ = learned()
    for number, batch in enumerate(map(make_batch, range(PHASES))):
        stored = update()(states[number], batch)[1].latent["encoder"]
        obs = {name: x[:, 0] for name, x in batch.obs.items()}
        carry, _ = agent().act(agent().variables(states[number]), KEY, agent().initial_carry(4), obs, np.ones(4, bool))
        acted = np.unique(agent().pack(carry.state)["encoder"])
        assert len(acted) == 1 and acted[0] != 0
        assert (stored == (acted[0] if number >= MODEL.vae_updates else 0)).all()


def test_without_updates_of_v_and_m_only_c_learns():
    given = {"world_model/vae": {"learning_rate": 0.1}}  # as a preset has it
    model = dataclasses.replace(MODEL, vae_updates=0, rnn_updates=0)
    made = agents.make(dataclasses.replace(CONFIG, world_model=model, optimizers=given), SPEC)
    before = made.init(KEY)
    after, _ = tiny.jit(made.update)(before, make_batch())
    assert bits(before.params) == bits(after.params)
    assert bits(before.extra["behavior"]["search"]) != bits(after.extra["behavior"]["search"])


def test_without_updates_of_v_m_begins_at_once():
    done = vae_mdn_rnn.complete(dataclasses.replace(CONFIG, world_model=dataclasses.replace(MODEL, vae_updates=0)))
    assert done.optimizers == {"world_model/vae": {"learning_rate": 0.0}, "world_model/rnn": {"start": 0, "stop": 2}}
    assert done.behavior.start == 2


def test_v_and_m_of_another_run_begin_with_the_first_phase(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, learned()[0][-1])
    taken, _ = begin_with(agent().init(KEY), str(tmp_path), "world_model")
    assert bits(taken.params["world_model"]) == bits(learned()[0][-1].params["world_model"])
    _, found = update()(taken, make_batch())
    assert found.metrics["train/phase"] == 1


def test_all_phases_share_one_program():
    learned()
    assert len(TRACES) == 1


def test_an_update_gives_the_same_bits_again_and_leaves_its_inputs_alone():
    states, _ = learned()
    for number in (1, 3, 5):
        before = bits(states[number])
        again, _ = update()(states[number], make_batch(number))
        assert bits(again) == bits(states[number + 1]) and bits(states[number]) == before


def test_the_windows_of_the_optimizers_follow_from_the_updates_of_the_model():
    done = vae_mdn_rnn.complete(dataclasses.replace(CONFIG, optimizers={"world_model/rnn": {"learning_rate": 0.1}}))
    assert done.optimizers == {
        "world_model/vae": {"stop": 2}, "world_model/rnn": {"learning_rate": 0.1, "start": 2, "stop": 4}
    }
    assert done.behavior.start == 4


def test_a_behavior_may_start_at_an_update_of_its_own():
    own = dataclasses.replace(CONFIG, behavior=dataclasses.replace(MIND, start=9))
    assert vae_mdn_rnn.complete(own).behavior.start == 9


def test_a_window_given_by_hand_is_refused():
    config = dataclasses.replace(CONFIG, optimizers={"world_model/vae": {"stop": 5}})
    with pytest.raises(UserError, match="world_model/vae.stop follows from world_model.vae_updates and rnn_updates"):
        agents.make(config, SPEC)


# --- contracts --------------------------------------------------------------------------------------


def test_bfloat16_keeps_the_form_of_the_state():
    small = agent("bfloat16")
    state = jax.eval_shape(small.init, KEY)
    after, out = jax.eval_shape(small.update, state, make_batch())
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert {x.dtype for x in out.metrics.values()} == {jnp.dtype("float32")}


def stirred(params):
    """Adds noise, so that dreamed rewards differ between individuals by more than rounding, and so do their ranks."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + np.float32(0.3) * rng.normal(size=x.shape).astype(np.float32), params)


def test_updates_scanned_and_vmapped_over_seeds_are_those_of_each():
    """Up to the first generation: later ones draw along eigenvectors, which need not be unique."""
    count = vae_mdn_rnn.complete(CONFIG).behavior.start + 1
    batches = jax.tree.map(lambda *xs: np.stack(xs), *(make_batch(number) for number in range(count)))
    states = jax.vmap(agent().init)(jax.random.split(KEY, 2))
    states = states._replace(params=stirred(states.params))
    both, _ = tiny.jit(lambda states: jax.vmap(lambda s: jax.lax.scan(agent().update, s, batches))(states))(states)
    for seed in range(2):
        state = jax.tree.map(lambda x, seed=seed: x[seed], states)
        for number in range(count):
            state, _ = update()(state, make_batch(number))
        ours, theirs = (jax.tree.leaves(x.params) for x in (both, state))
        for together, alone in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(together[seed], alone, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(
            both.extra["behavior"]["search"]["mean"][seed], state.extra["behavior"]["search"]["mean"], atol=1e-3
        )


DEVICES = """
import pickle, sys
import jax, numpy as np
import test_world_models_2018 as ours
from dreamer.runtime.devices import mesh as meshes
from dreamer.runtime.learning.learner import Learner

found = []
for count in (1, 4):
    config = meshes.Config(count=count)
    learner = Learner(ours.agent(), ours.SPEC, seed=0, batch_size=4, lockstep=True, config=config)
    learner.compile(ours.make_batch())
    for number in range(ours.PHASES):
        learner.step(learner.place(ours.make_batch(number)), None)
    learner.sync()
    search = learner.state.extra["behavior"]["search"]
    found.append(jax.tree.map(np.asarray, (learner.state.params, search["mean"], search["std"])))
sys.stdout.buffer.write(pickle.dumps(found))
"""


@pytest.mark.slow
def test_four_devices_learn_what_one_learns():
    folder = pathlib.Path(__file__).parent
    flags = {"xla_force_host_platform_device_count": 4, **tiny.QUICK}
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(folder.parent), str(folder)]),
        "XLA_FLAGS": " ".join(f"--{name}={str(value).lower()}" for name, value in flags.items()),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, cwd=folder.parent, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    one, four = map(jax.tree.leaves, pickle.loads(done.stdout))
    for ours, theirs in zip(one, four, strict=True):
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)


def test_acting_row_by_row_sees_the_memories_of_training():
    world, state = agent().world_model, learned()[0][-1]
    v, batch = agents.variables(state)["world_model"], make_batch()
    z = jax.random.normal(KEY, (4, 6, 3))
    nets = vae_mdn_rnn.make_nets(MODEL, SPEC.obs["image"], jnp.float32)
    prev = np.concatenate([np.zeros_like(batch.action[:, :1]), batch.action[:, :-1]], 1)
    code = vae_mdn_rnn.no_code(z)
    whole = vae_mdn_rnn.remember(nets, v.params, world.initial(4), z, code, prev, batch.is_first)
    latent = world.initial(4)
    for t in range(6):
        row = slice(t, t + 1)
        one = jax.tree.map(lambda x, row=row: x[:, row], (z, code, prev, batch.is_first))
        rows = vae_mdn_rnn.remember(nets, v.params, latent, *one)
        latent = jax.tree.map(lambda x: x[:, 0], rows)
        np.testing.assert_allclose(latent.memory.hidden, whole.memory.hidden[:, t], atol=1e-6)
    assert batch.is_first[:, 1:].any() and not np.any(whole.memory.hidden[batch.is_first])


def test_stored_latents_come_back():
    world = agent().world_model
    latent = world.unpack(jax.tree.map(lambda x: x[:, 0], make_batch().latent))
    again = world.unpack(world.pack(latent))
    assert bits(again) == bits(latent)


def test_report_shows_reconstructions_and_a_dream():
    report = jax.jit(agent().report)(learned()[0][-1], make_batch())
    assert report["dream/image"].shape == (4, 5, 64, 64, 1) and report["dream/image"].dtype == np.uint8


@pytest.mark.parametrize(
    "obs",
    [
        {"image": Space((32, 32, 3), "uint8")},
        {"vector": Space((3,), "float32")},
        {"image": Space((64, 64, 3), "uint8"), "vector": Space((3,), "float32")},
    ],
    ids=["small", "no image", "more"],
)
def test_only_one_image_of_64_pixels_can_be_seen(obs):
    with pytest.raises(UserError, match="'vae_mdn_rnn' sees one image of 64 x 64 pixels, not "):
        vae_mdn_rnn.make(MODEL, Spec(obs, Action((2,))))


def test_the_reward_of_survival_is_one_and_needs_no_head():
    world = vae_mdn_rnn.make(dataclasses.replace(MODEL, reward="alive", cell=True), SPEC)
    v = world.init(KEY)
    feat = world.feat(world.initial(2))
    assert feat.shape == (2, 3 + 4 + 4) and "rew" not in v.params["rnn"] and "rew" not in world.scales
    np.testing.assert_array_equal(world.predict(v, feat)["reward"], 1)


def test_temperature_spreads_dreams():
    world = agent().world_model
    v = agents.variables(learned()[0][-1])["world_model"]
    start, action = world.initial(500), jnp.zeros((500, SPEC.action_width))

    def spread(temperature):
        return float(world.imagine(v._replace(hyper={"temperature": temperature}), KEY, start, action).z.std())

    assert spread(0.01) < spread(1.0) < spread(4.0)


# --- the controller ---------------------------------------------------------------------------------


def test_candidates_that_are_alike_reach_the_same():
    state = learned()[0][-1]
    v = agents.variables(state)["world_model"]
    dream = agents.make_dream(agent().world_model, v)
    policy = linear_policy.make(7, SPEC.action)
    alike = jnp.broadcast_to(jnp.linspace(-1, 1, policy.size), (2, policy.size))
    tried = evolution.in_dreams(dream, policy.act, alike, agent().world_model.initial(3), KEY, horizon=4)
    np.testing.assert_allclose(tried.fitness[0], tried.fitness[1], atol=1e-6)


def test_the_controller_acts_at_random_until_it_has_evolved():
    act = tiny.jit(agent().act, static_argnames="mode")
    states, _ = learned()
    obs = {"image": np.zeros((50, 64, 64, 1), np.uint8)}
    carry, first = agent().initial_carry(50), np.ones(50, bool)
    early, late = (agents.variables(states[number]) for number in (2, -1))
    _, collected = act(early, KEY, carry, obs, first, mode="collect")
    assert len(np.unique(collected[:, 2])) == 50 and set(np.asarray(collected[:, 0])) == {0.0, 1.0}
    _, evaluated = act(early, KEY, carry, obs, first, mode="sample")
    np.testing.assert_array_equal(evaluated, np.tile(np.float32([1, 0, 0]), (50, 1)))
    for mode in ("sample", "mode"):  # z is drawn, so the key matters; the controller itself is deterministic
        ours, others = (act(late, KEY, carry, obs, first, mode=one)[1] for one in ("collect", mode))
        np.testing.assert_allclose(ours, others, atol=1e-6)  # two programs, which may round differently


# --- runs -------------------------------------------------------------------------------------------

PIXELS = Spec({"image": Space((64, 64, 3), "uint8")}, Action((2,)))
RUN = {
    "env": "probes:pixel", "env_steps": 104, "replay_ratio": 4, "lockstep": True, "workers.backend": "inline",
    "workers.envs": 2, "replay.batch_size": 2, "replay.batch_length": 8, "replay.prefill": 64, "log.every": 0,
    "eval.every": 0, "eval.episodes": 1, "eval.video": "off", "checkpoint.every": 1,
    "agent.compute_dtype": "float32",
    "agent.world_model.name": "vae_mdn_rnn", "agent.behavior.name": "controller",
    **{f"agent.world_model.{name}": value for name, value in dataclasses.asdict(MODEL).items() if name != "name"},
    **{f"agent.behavior.{name}": value for name, value in dataclasses.asdict(MIND).items() if name != "name"},
}  # fmt: skip


def run(folder: pathlib.Path, kill_at: int = 0, resume: str = "no") -> list[dict]:
    """Trains in `folder`, and returns the metrics. kill_at: the update from which the process kills itself; 0: never"""

    def kill(line: Line):
        if kill_at and line.updates >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    dreamer.train(dreamer.load_config(overrides={**RUN, "run_dir": str(folder)}), callbacks=[kill], resume=resume)
    return tiny_runs.lines(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wm2018") / "whole"
    return folder, run(folder)


def test_one_command_makes_all_phases_after_the_random_data(whole):
    folder, lines = whole
    phases = [line["train/phase"] for line in lines if "train/phase" in line]
    assert {1, 2, 3} <= set(phases) and phases == sorted(phases)
    assert max(line["env_steps"] for line in lines if line["updates"] == 0) >= 62
    generations = [line["evolution/generation"] for line in lines if "evolution/generation" in line]
    assert generations[-1] == lines[-1]["updates"] - 4 >= 3
    assert list((folder / "pictures").glob("openloop_*.mp4"))


def test_the_ends_of_episodes_are_drawn_above_what_the_model_sees(whole, tmp_path, monkeypatch, capsys):
    rows, ends = 20, np.arange(20) == 19
    images = np.random.default_rng(0).integers(0, 255, (rows, 64, 64, 3), "uint8")
    episode = Episode("one", {"image": images}, np.eye(2, dtype="float32")[np.zeros(rows, int)],
                      np.zeros(rows, "float32"), np.arange(rows) == 0, ends, ends)  # fmt: skip
    (tmp_path / "data").mkdir()
    npz.write_npz(tmp_path / "data", PIXELS, [episode])
    monkeypatch.setattr("sys.argv", ["reconstructions", str(whole[0]), "--data", str(tmp_path / "data"), "--rows", "4",
                                     "--out", str(tmp_path / "ends.png")])  # fmt: skip
    reconstructions.main()
    assert capsys.readouterr().out.startswith("20 rows, squared error ")
    with Image.open(tmp_path / "ends.png") as picture:
        assert picture.size == (4 * 64 * 3 // 2, 2 * 64 * 3 // 2)
        drawn = np.asarray(picture.resize((4 * 64, 2 * 64), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(drawn[:64, -64:], images[-1])


@pytest.mark.parametrize(
    "kill_at",
    [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(5, marks=pytest.mark.slow)], ids=["in V", "in M", "in C"],
)
def test_a_killed_run_goes_on_in_its_phase_to_the_same_bits(whole, tmp_path, kill_at):
    tests = pathlib.Path(__file__).parent
    code = f"import test_world_models_2018 as ours; ours.run(ours.pathlib.Path({str(tmp_path / 'run')!r}), {kill_at})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tests.parent, env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    lines = run(tmp_path / "run", resume="yes")
    assert sum(line["updates"] == kill_at for line in lines) >= 1
    form = jax.eval_shape(agents.make(dreamer.load_config(overrides=RUN).agent, PIXELS).init, KEY)
    assert saved(tmp_path / "run", form) == saved(whole[0], form)


def saved(folder: pathlib.Path, form) -> dict[str, bytes]:
    with Checkpoints(folder) as checkpoints:
        state, _ = checkpoints.restore(form)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): tiny_runs.bits(leaf) for path, leaf in leaves}


@pytest.mark.parametrize(("env", "doing"), [("probes:pixel", "compiling the update"), ("jax_probes:pixel", "the loop")])
def test_a_population_larger_than_the_memory_is_refused_before_an_update(tmp_path, monkeypatch, env, doing):
    monkeypatch.setattr("dreamer.runtime.devices.errors.free_memory", lambda device: 10_000)
    changes = {"env": env, "run_dir": str(tmp_path / "run"), "lockstep": False}
    refused = rf"no device memory left for .*{doing}.*behavior.population \(4\).*0.0 MB are free"
    with pytest.raises(UserError, match=refused):
        dreamer.train(dreamer.load_config(overrides={**RUN, **changes}))
