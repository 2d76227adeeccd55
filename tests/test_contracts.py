"""dreamer/contracts.py: a plug-in's mistake is one line that names the plug-in, the function and the shapes."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import pytest
from tiny import echo_world, random_behavior

from dreamer import agent as agents
from dreamer import contracts
from dreamer.errors import UserError
from dreamer.interfaces import Ask, Batch, Dream, Variables
from dreamer.spaces import Action, Space, Spec

SPEC = Spec({"vector": Space((3,), "float32")}, Action((2,)))
KEY = jax.random.key(0)


def model(**changes):
    """Returns the checked echo world with some fields changed."""
    module = types.SimpleNamespace(make=lambda config, spec, **shared: echo_world(spec)._replace(**changes))
    return contracts.make_world_model(module, "lab.model", None, SPEC, dtype=None)[0]


def behavior(**changes):
    base = random_behavior(SPEC)
    quiet = base._replace(loss=lambda v, *rest: ({"given": jnp.zeros(())}, (v.extra, {})))
    module = types.SimpleNamespace(make=lambda config, spec, **shared: quiet._replace(**changes))
    return contracts.make_behavior(module, "lab.mind", None, SPEC, feat_width=2)


def batch() -> Batch:
    obs = {"vector": jnp.zeros((2, 4, 3))}
    flags = {name: jnp.zeros((2, 4), bool) for name in Batch._fields if name.startswith("is_")}
    fields = {"obs": obs, "action": jnp.zeros((2, 4, 2)), "reward": jnp.zeros((2, 4)), "latent": {}} | flags
    return Batch(**{name: value for name, value in fields.items() if name in Batch._fields})


V = Variables({"w": jnp.zeros((1, 1))}, {}, {})


def model_loss(world):
    return world.loss(V, KEY, world.initial(2), jnp.zeros((2, 4, 2)), batch())


def changed_loss(change):
    def loss(*args):
        return change(*echo_world(SPEC).loss(*args))

    return loss


def observed(world):
    return world.observe(V, KEY, world.initial(2), batch().obs, jnp.zeros((2, 4, 2)), jnp.zeros((2, 4), bool))


def mind_loss(mind):
    return mind.loss(V._replace(extra={"slow": jnp.zeros(3)}), KEY, None, {}, None)


def acted(mind):
    dream = Dream(None, lambda state: state["prev"], None, None)
    return mind.act(V, KEY, dream, {"prev": jnp.zeros((5, 2))}, (), Ask(jnp.zeros(5, bool)), "sample")


def started(world):
    return world.starts(V, {"prev": jnp.zeros((2, 4, 2))}, jnp.zeros((2, 4, 2)), jnp.zeros((2, 4), bool))


def test_the_contracts_hold_for_a_sound_pair():
    losses, _ = model_loss(model())
    assert losses["echo"].shape == (2, 4)
    state, latent = observed(model())
    assert state["prev"].shape == (2, 2) and latent["prev"].shape == (2, 4, 2)
    assert started(model())["prev"].shape == (8, 2)
    assert mind_loss(behavior())[0]["given"].shape == () and acted(behavior())[0].shape == (5, 2)


@pytest.mark.parametrize(
    ("fields", "call", "parts"),
    [
        (
            {"loss": changed_loss(lambda losses, out: ({"echo": losses["echo"].mean(1)}, out))}, model_loss,
            ["loss returns loss 'echo' of shape [2], not [2, 4]"],
        ),
        (
            {"loss": changed_loss(lambda losses, out: (losses, out._replace(surprise=losses["echo"][:, 1:])))},
            model_loss, ["loss returns a surprise of shape [2, 3], not [2, 4]"],
        ),
        (
            {"loss": changed_loss(lambda losses, out: ({**losses, "more": losses["echo"]}, out))}, model_loss,
            ["losses ['echo', 'more'] for scales ['echo']", "'more' has no scale"],
        ),
        ({"scales": {"echo": 1.0, "dyn": 0.5}}, model_loss, ["'dyn' has a scale and is not among its losses"]),
        ({"loss": changed_loss(lambda losses, out: losses)}, model_loss, ["a dict, not a pair"]),
        (
            {"loss": changed_loss(lambda losses, out: (losses, out._replace(metrics={"m": jnp.ones(3)})))}, model_loss,
            ["metric 'm' of shape [3], not one number"],
        ),
        (
            {"loss": changed_loss(lambda losses, out: (losses, out._replace(extra={"n": 1.0})))}, model_loss,
            ["extra with ['n'], which it was not given"],
        ),
        ({"feat": lambda latent: latent["stohc"]}, None, ["feat failed: KeyError: 'stohc'", "test_contracts.py, line"]),
        ({"feat": lambda latent: latent["prev"][0]}, None, ["feat(latent(initial(1))) has shape [2], not [1, F]"]),
        (
            {"predict": lambda v, feat: {"reward": feat}}, lambda world: world.predict(V, jnp.zeros((4, 2))),
            ["predict returns reward of shape [4, 2], not [4]"],
        ),
        (
            {"predict": lambda v, feat: (feat, feat)}, lambda world: world.predict(V, jnp.zeros((4, 2))),
            ["predict returns a tuple, not a mapping by name"],
        ),
        (
            {"imagine": lambda v, key, state, action: {"prev": action[:, :1]}},
            lambda world: world.imagine(V, KEY, world.initial(4), jnp.zeros((4, 2))),
            ["imagine returns state['prev'] of shape [4, 1], not [4, 2]"],
        ),
        (
            {"starts": lambda v, latent, *rest: latent}, started,
            ["starts returns state['prev'] of shape [2, 4, 2], not [8, 2]"],
        ),
        (
            {"observe": lambda v, key, state, *rest: (state, {"post": state["prev"]})}, observed,
            ["observe returns latent with ['post'], which it was not given"],
        ),
        ({"observe": lambda v, key, state, *rest: state}, observed, ["observe returns a dict, not a pair"]),
        (
            {"pack": lambda latent: {"other": latent["prev"]}}, lambda world: world.pack(world.initial(1)),
            ["pack returns ['other'], but storage describes ['prev']"],
        ),
        (
            {"decode": lambda v, latent: {"image": latent["prev"]}},
            lambda world: world.decode(V, world.initial(1)),
            ["decode returns 'image', which is no observation; there are ['vector']"],
        ),
        ({"init": lambda key: {}}, lambda world: world.init(KEY), ["init returns a dict, not Variables"]),
        ({"imagine": None}, None, ["imagine is a NoneType, not a function"]),
        ({"scales": {"echo": "1"}}, None, ["the scale of loss 'echo' is a str"]),
        ({"storage": 3}, None, ["storage is a int, not a mapping"]),
        ({"reads": "deter"}, None, ["reads is a str, not a set of names"]),
        ({"reads": {"code"}}, None, ["reads names 'code', which is not in storage"]),
        ({"deter_width": 3}, None, ["deter_width is 3, not from 0 to F, 2"]),
        (
            {"deter_width": 1, "from_deter": lambda v, deter: {"prev": deter}},
            lambda world: world.from_deter(V, jnp.zeros((4, 1))),
            ["from_deter returns latent['prev'] of shape [4, 1], not [4, 2]"],
        ),
    ],
)  # fmt: skip
def test_a_world_model_that_breaks_its_contract_is_named(fields, call, parts):
    with pytest.raises(UserError) as caught:
        made = model(**fields)
        jax.eval_shape(lambda: call(made))
    text = str(caught.value)
    assert text.startswith("world model 'lab.model': ") and "\n" not in text
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("fields", "call", "part"),
    [
        ({"act": lambda *rest: (jnp.zeros((5, 3)), ())}, acted, "act returns an action of shape [5, 3], not [5, 2]"),
        ({"act": lambda *rest: jnp.zeros((5, 2))}, acted, "not a pair (action, carry)"),
        ({"act": lambda *rest: (jnp.zeros((5, 2)), {"n": 1})}, acted, "carry with ['n'], which it was not given"),
        ({"needs": "reward"}, acted, "needs is a str, not a set of names"),
        ({"loss": lambda *rest: {}}, mind_loss, "loss returns a dict, not losses, (extra, metrics)"),
        ({"scales": {}}, mind_loss, "'given' has no scale"),
        ({"loss": lambda v, *rest: ({"given": 1}, (v.extra, {}))}, mind_loss, "loss 'given' as int, not an"),
        (
            {"refresh": lambda v: {"slow": v.extra["slow"][:1]}},
            lambda mind: mind.refresh(V._replace(extra={"slow": jnp.zeros(3)})), "extra['slow'] of shape [1], not [3]",
        ),
        ({"loss": lambda *rest: jnp.zeros(2) @ jnp.zeros(3)}, mind_loss, "loss failed: TypeError: dot_general"),
        (
            {"pictures": lambda *rest: {"goal": jnp.zeros((2, 4, 8, 8))}},
            lambda mind: mind.pictures(V, KEY, None, jnp.zeros((2, 4, 2)), batch().obs),
            "pictures returns 'goal' of shape [2, 4, 8, 8], not [2, 4, h, w, 1 or 3]",
        ),
    ],
)  # fmt: skip
def test_a_behavior_that_breaks_its_contract_is_named(fields, call, part):
    with pytest.raises(UserError) as caught:
        call(behavior(**fields))
    assert str(caught.value).startswith("behavior 'lab.mind': ") and part in str(caught.value)


def test_a_behavior_learns_the_width_of_the_deterministic_part_if_it_asks():
    given = {}

    def asking(config, spec, *, feat_width, deter_width):
        given["asking"] = (feat_width, deter_width)
        return random_behavior(spec)

    def plain(config, spec, *, feat_width):
        given["plain"] = feat_width
        return random_behavior(spec)

    for make in (asking, plain):
        contracts.make_behavior(types.SimpleNamespace(make=make), "lab.mind", None, SPEC, feat_width=5, deter_width=3)
    assert given == {"asking": (5, 3), "plain": 5}


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (types.SimpleNamespace(), "has no function make(config, spec, *, dtype, horizon, contdisc) -> WorldModel"),
        (types.SimpleNamespace(make=lambda *args, **shared: {}), "make returns a dict, not a WorldModel: no 'init'"),
        (types.SimpleNamespace(make=lambda *args, **shared: 1 / 0), "make failed: ZeroDivisionError"),
        (types.SimpleNamespace(make=lambda config: None), "make failed: TypeError"),
    ],
)
def test_a_make_that_fails_or_gives_something_else_is_named(module, part):
    with pytest.raises(UserError) as caught:
        contracts.make_world_model(module, "lab.model", None, SPEC, dtype=None)
    assert "world model 'lab.model'" in str(caught.value) and part in str(caught.value)


def test_an_agent_of_named_parts_is_checked(monkeypatch):
    broken = types.SimpleNamespace(make=lambda config, spec, **shared: echo_world(spec)._replace(feat=lambda latent: 3))
    monkeypatch.setattr(agents.plugins, "load", lambda name, package: broken)
    config = types.SimpleNamespace(
        compute_dtype="float32", horizon=9, contdisc=True, world_model=types.SimpleNamespace(name="lab.model")
    )
    with pytest.raises(UserError, match="world model 'lab.model': feat returns a int, not an array"):
        agents.make(config, SPEC)
