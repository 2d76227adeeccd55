"""A run that starts with the weights of another loads the arrays that fit and reports the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_checkpoint import arrays

from dreamer.errors import UserError
from dreamer.interfaces import TrainState
from dreamer.runtime.files.checkpoint import Checkpoints
from dreamer.runtime.files.leaves import named_leaves
from dreamer.runtime.run.init_from import begin_with


def state(seed: int) -> TrainState:
    params = {"world_model": arrays(seed), "behavior": {"actor": arrays(seed + 1)}}
    extra = {"world_model": {}, "behavior": {"slow": arrays(seed + 3)}}
    hyper = {"behavior": {"entropy": jnp.float32(seed)}, "learning_rate": {"": jnp.float32(seed)}}
    return TrainState(jnp.int32(seed), jax.random.key(seed), params, extra, hyper, arrays(seed + 9))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(100))
    return str(tmp_path)


def changed(ours: TrainState, taken: TrainState) -> set[str]:
    """Returns the first two parts of the names of leaves that differ."""

    def bits(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    before, after = named_leaves(ours), named_leaves(taken)
    return {"/".join(n.split("/")[:2]) for n in before if bits(before[n]).tobytes() != bits(after[n]).tobytes()}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ("all", {"params/world_model", "params/behavior", "extra/behavior"}),
        ("world_model", {"params/world_model"}),
        ("behavior", {"params/behavior", "extra/behavior"}),
    ],
)
def test_only_the_parts_asked_for_are_taken(run, parts, expected):
    ours = state(0)
    taken, lines = begin_with(ours, run, parts)
    assert changed(ours, taken) == expected
    assert taken.hyper["behavior"]["entropy"] == 0 and taken.step == 0
    assert f"of {parts}" in lines[0]


def test_arrays_are_loaded_bit_for_bit(run):
    taken, _ = begin_with(state(0), run, "all")
    theirs = state(100)
    for ours, other in zip(jax.tree.leaves(taken.params), jax.tree.leaves(theirs.params), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(other).tobytes()


@pytest.fixture
def wide():
    """A state with one array of another shape, and one that is missing in the run."""
    ours = state(0)
    model = {**ours.params["world_model"], "dyn": {"kernel": jnp.zeros((4, 4))}, "head": {"w": jnp.ones(3)}}
    return ours._replace(params={**ours.params, "world_model": model})


def test_arrays_that_do_not_fit_are_refused_with_shapes_and_the_flag_that_allows_it(run, wide):
    with pytest.raises(UserError) as caught:
        begin_with(wide, run, "world_model")
    text = str(caught.value)
    share = float(text.rpartition("--init-missing ")[2])
    assert "params/world_model/dyn/kernel ([3, 5] there, [4, 4] here)" in text and "\n" not in text
    with pytest.raises(UserError, match="do not fit"):
        begin_with(wide, run, "world_model", share - 0.01)
    begin_with(wide, run, "world_model", share)


def test_arrays_of_the_run_that_this_one_lacks_do_not_fit_either(run):
    ours = state(0)
    fewer = {name: value for name, value in ours.params["world_model"].items() if name != "dyn"}
    with pytest.raises(UserError, match=r"params/world_model/dyn/kernel \(not in this run\)"):
        begin_with(ours._replace(params={**ours.params, "world_model": fewer}), run, "world_model")


def test_arrays_that_need_not_fit_stay_new_and_are_reported(run, wide):
    taken, lines = begin_with(wide, run, "world_model", missing=0.9)
    assert not taken.params["world_model"]["dyn"]["kernel"].any() and taken.params["world_model"]["head"]["w"].all()
    assert "params/world_model/dyn/kernel ([3, 5] there, [4, 4] here)" in lines[1]
    assert "params/world_model/head/w (not in that run)" in lines[1]


def test_it_is_an_error_if_nothing_fits(run):
    ours = state(0)._replace(params={"world_model": {"other": jnp.ones(2)}, "behavior": {}}, extra={})
    with pytest.raises(UserError, match="nothing of its world model has a name and shape"):
        begin_with(ours, run, "world_model")


def test_a_directory_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        begin_with(state(0), str(tmp_path / "none"), "all")
