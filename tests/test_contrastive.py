"""The contrastive world model (C-SWM) against the golden numbers of its source, and by hand."""

from __future__ import annotations

import dataclasses
import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.interfaces import Variables
from dreamer.nets.objects import (
    Extractor,
    ObjectEncoder,
    ObjectMLP,
    Transition,
    action_of_objects,
    initial_running,
    map_shape,
    pairs,
)
from dreamer.world_models import contrastive

MLP = {"fc1": "linear0", "fc2": "linear1", "fc3": "linear2", "ln": "norm1"}  # layers of the encoder


def renamed(params: golden.Tree, back: bool = False) -> golden.Tree:
    """Returns the parameters of a file under the names of the modules; back: the reverse."""
    out: golden.Tree = {}
    for name, value in golden.flatten(params).items():
        part, *path = name.split("/")
        if part == "encoder" and back:
            layer = {to: of for of, to in MLP.items()}[path[1]]
            path = [layer, *path[2:]]
        elif part == "encoder":
            path = ["mlp", MLP[path[0]], *path[1:]]
        elif part == "extractor" and back:
            path[0] = path[0].replace("conv", "cnn").replace("norm", "ln")
        elif part == "extractor":
            path[0] = path[0].replace("cnn", "conv").replace("ln", "norm")
        out["/".join([part, *path])] = value
    return golden.nest(out)


def split(params: golden.Tree) -> tuple[golden.Tree, golden.Tree]:
    """Separates the running statistics of the extractor from what has gradients."""
    flat = golden.flatten(renamed(params))
    running = {name.removeprefix("extractor/"): x for name, x in flat.items() if "/running_" in name}
    return golden.nest({name: x for name, x in flat.items() if "/running_" not in name}), golden.nest(running)


def check(file: str, forward) -> None:
    """Compares forward(params, running, inputs) -> outputs, and the gradients of it, with the file cswm/`file`."""
    file = f"cswm/{file}"
    made = golden.load(file)
    params, running = split(made.params)
    cot = golden.flatten(made.cot)

    def objective(params, varied):
        out = forward(params, running, {**made.inputs, **varied})
        return sum(jnp.sum(cot[name] * golden.flatten(out)[name]) for name in cot), out

    varied = {name: made.inputs[name] for name in made.gin}
    grad = jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))
    (_, out), (gparam, gin) = grad(params, varied)
    golden.assert_tree_close(file, "out", out, made.out)
    golden.assert_tree_close(file, "gin", gin, made.gin)
    # A bias before a batch norm has no gradient: its rounding errors are those of the kernel next to it.
    flat = golden.flatten(made.gparam)
    sizes = {name: np.abs(flat[name.replace("/bias", "/kernel")]).max() for name in flat if "cnn" in name}
    golden.assert_tree_close(file, "gparam", renamed(gparam, back=True), made.gparam, sizes)


def statistics(running) -> golden.Tree:
    return renamed({"extractor": running}, back=True)


# --- the networks of the source -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_feature_maps_of_the_source(size):
    made = golden.load(f"cswm/extractor_{size}")
    extractor = Extractor(size, 3, made.params["extractor"]["cnn1"]["kernel"].shape[-1])

    def forward(params, running, inputs):
        apply = functools.partial(extractor.apply, {"params": params["extractor"]}, inputs["obs"], running)
        maps, after = apply(True)
        still, same = apply(False)
        assert same == running
        return {"maps": maps, "maps_eval": still, "aux_after": statistics(after)}

    check(f"extractor_{size}", forward)
    assert map_shape(size, *made.inputs["obs"].shape[1:3]) == made.out["maps"].shape[2:]


def test_object_states_of_the_source():
    def forward(params, running, inputs):
        return {"state": ObjectEncoder(16, 2).apply({"params": params["encoder"]}, inputs["maps"])}

    check("object_encoder", forward)


@pytest.mark.parametrize("file, how", [("action", "split"), ("copy_action", "copy"), ("ignore_action", "ignore")])
def test_transitions_of_the_source(file, how):
    def forward(params, running, inputs):
        params, state = params["transition"], inputs["state"]
        edge = ObjectMLP(16, 16).apply({"params": params["edge"]}, pairs(state))
        delta = Transition(16).apply({"params": params}, state, actions(params, inputs["action"], how))
        return {"delta": delta, "aux_edge": edge, "aux_aggregate": edge.sum(2)}

    check(f"transition_{file}", forward)


def actions(params: golden.Tree, index, how: str, objects: int = 3):
    """Returns the action of each object for the indices of a file. The width of `params` tells how many there are."""
    hidden, inputs = (params[name]["linear0"]["kernel"].shape for name in ("edge", "node"))
    each = inputs[0] - hidden[1] - hidden[0] // 2
    return action_of_objects(jax.nn.one_hot(index, max(1, each) * (objects if how == "split" else 1)), objects, how)


def test_energies_of_the_source():
    def forward(params, running, inputs):
        params, state = params["transition"], inputs["state"]
        moved = state + Transition(16).apply({"params": params}, state, actions(params, inputs["action"], "split"))
        return {
            "energy": contrastive.energy(moved - inputs["next_state"], 0.5),
            "energy_no_trans": contrastive.energy(state - inputs["negative"], 0.5),
        }

    check("energy", forward)


LOSSES = {
    "small": contrastive.Config(extractor="small"),
    "small_ignore_action": contrastive.Config(extractor="small", action="ignore"),
    "medium_copy_action": contrastive.Config(extractor="medium", action="copy", width=4),
    "large": contrastive.Config(extractor="large"),
    "option_sigma_hinge": contrastive.Config(extractor="small", sigma=0.8, hinge=2.0),
}


@pytest.mark.parametrize("file", LOSSES)
def test_the_loss_of_the_source(file):
    nets = contrastive.make_nets(dataclasses.replace(LOSSES[file], objects=3, hidden=32))

    def forward(params, running, inputs):
        hyper = {"sigma": LOSSES[file].sigma, "hinge": LOSSES[file].hinge}
        action = actions(params["transition"], inputs["action"], LOSSES[file].action)
        v = Variables(params, {"running": running}, hyper)
        out = contrastive.transition_energies(nets, v, inputs["obs"], action, inputs["next_obs"], inputs["perm"])
        positive, negative = out.positive.mean(), out.negative.mean()
        apart = contrastive.energy(out.objects - out.objects[inputs["perm"]], hyper["sigma"])
        return {
            "loss": positive + negative, "aux_pos": positive, "aux_neg": negative, "aux_energy_pos": out.positive,
            "aux_energy_neg": apart, "aux_state": out.objects, "aux_next_state": out.next_objects, "aux_after": statistics(out.running),
        }  # fmt: skip

    check(f"contrastive_loss_{file}", forward)
