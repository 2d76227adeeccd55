"""dreamer/runtime/log/glossary.py explains every metric that a run logs, and no other."""

from __future__ import annotations

import dataclasses

import jax
import pytest
import tiny
import tiny_runs

import dreamer
from dreamer import agent as agents
from dreamer.behaviors import cloning, controller, random
from dreamer.errors import UserError
from dreamer.ops import action_dist
from dreamer.runtime.log.glossary import METRICS, entry_of, explain
from dreamer.spaces import MASK, Action, Space, Spec
from dreamer.world_models import contrastive, vae_mdn_rnn

MASKED = Spec({"vector": Space((3,), "float32"), MASK: Space((4,), "int8", classes=2)}, Action((4,)))
SPECS = {**tiny.SPECS, "masked": MASKED}
CATCH_ALL = "loss/*"  # of models outside dreamer


def names_of_an_update(spec: Spec, context: int = 1, **options) -> set[str]:
    """The metrics of one update of an agent of dreamer's own parts; traced, not compiled."""
    agent = agents.make(dataclasses.replace(tiny.CONFIG, **options), spec)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    _, out = jax.eval_shape(agent.update, state, tiny.make_batch(spec, context=context))
    return set(out.metrics)


@pytest.fixture(scope="module")
def names_of_updates() -> set[str]:
    found = set().union(*map(names_of_an_update, SPECS.values()))
    found |= names_of_an_update(
        Spec({"image": Space((64, 64, 3), "uint8")}, Action((4,))), world_model=vae_mdn_rnn.Config(),
        behavior=controller.Config(population=4, rollouts=1), context=0,
    )  # fmt: skip
    objects = dict(world_model=contrastive.Config(objects=4, hidden=16), behavior=random.Config())
    found |= names_of_an_update(tiny.SPECS["image"], **objects)
    for behavior in (cloning.Config(units=8), dataclasses.replace(tiny.BEHAVIOR, penalty=1.0)):
        both = Spec({"vector": Space((3,), "float32")}, Action((4,), 1))
        found |= names_of_an_update(both, behavior=behavior)
    return found | names_of_an_update(tiny.SPECS["vector"], optimizers={"behavior": {"learning_rate": 1e-4}})


@pytest.fixture(scope="module")
def names_of_a_run(tmp_path_factory) -> set[str]:
    """The metrics of the loop, of two threads, an evaluation, an environment with numbers of its own, and of data."""
    patch, run = pytest.MonkeyPatch(), tmp_path_factory.mktemp("glossary") / "run"
    with patch.context() as patched:
        patched.setattr("dreamer.agent.make", lambda config, spec, **_: tiny_runs.plain_agent(spec))
        dreamer.train(tiny_runs.tiny(run, env="reporting_envs:Logged", env_steps=48, lockstep=False))
        dreamer.train(tiny_runs.tiny(run.with_name("data"), env="none", data=[str(run)], updates=2))
    lines = tiny_runs.lines(run) + tiny_runs.lines(run.with_name("data"))
    return {name for line in lines for name in line} - {"nonfinite"}


def test_every_metric_of_an_update_of_dreamers_own_agent_has_an_entry_of_its_own(names_of_updates):
    assert {"loss/rec/camera", "loss/mask", "train/learning_rate/behavior"} < names_of_updates
    assert [name for name in names_of_updates if (entry_of(name) or METRICS[0]).name in (CATCH_ALL, "env_steps")] == []


def test_every_metric_of_a_run_has_an_entry(names_of_a_run):
    assert {"episode/is_success", "eval/return", "wait/learner_for_rows", "replay/rows"} < names_of_a_run
    assert [name for name in names_of_a_run if not entry_of(name)] == []


def test_no_entry_is_dead(names_of_updates, names_of_a_run):
    used = {entry.name for name in names_of_updates | names_of_a_run if (entry := entry_of(name))}
    assert [metric.name for metric in METRICS if metric.name not in used] == []


def test_no_metric_has_two_entries_and_none_is_without_words():
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(field.strip().endswith(".") for metric in METRICS for field in (metric.meaning, metric.healthy))


@pytest.mark.parametrize(
    "name, found",
    [
        ("loss/dyn", ["loss/dyn"]),
        ("loss/rec/image", ["loss/rec/*"]),
        ("loss/of/mine", ["loss/*"]),
        ("episode/is_success", ["episode/*"]),
        ("dyn", ["loss/dyn"]),
        ("return", ["episode/return", "eval/return", "dream/return"]),
        ("train/learning_rate*", ["train/learning_rate", "train/learning_rate/*"]),
        ("eval", ["eval/return", "eval/return_std", "eval/length", "eval/*"]),
    ],
)
def test_a_name_a_pattern_a_folder_and_a_short_name_are_explained(name, found):
    assert [metric.name for metric in explain(name)] == found


@pytest.mark.parametrize(
    "name, hint", [("latent/kI", "did you mean 'latent/kl'?"), ("entropie", "entropy'?"), ("q9x", "dreamer metrics")]
)
def test_an_unknown_metric_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError, match=f"there is no metric '{name}'") as error:
        explain(name)
    assert hint in str(error.value)


def test_the_largest_entropy_bounds_that_of_the_policy_at_any_outputs():
    key = jax.random.key(0)
    outs = {name: 9 * jax.random.normal(key, (50, 5)) for name in ("logits", "mean", "stddev")}
    allowed = jax.random.bernoulli(key, 0.5, (50, 5))
    actions = action_dist.make((2, 3), 5)
    largest = actions.entropy(action_dist.widest(outs), allowed)
    assert (actions.entropy(outs, allowed) <= largest + 1e-4).all()
    assert float(largest.max() - largest.min()) > 0.1  # depends on what is allowed
