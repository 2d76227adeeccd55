"""Networks of objects: images to feature maps, maps to object states, a graph network between them. Source: C-SWM.

Kipf, van der Pol, Welling 2020, section 2 and appendix D. K objects, D numbers in the state of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Size = Literal["small", "medium", "large"]
Running = Mapping[str, Mapping[str, Array]]  # {layer: {"running_mean", "running_var": [channels]}}
EPS = 1e-5  # of all norms
KEPT = 0.9  # share of the running statistics that a batch leaves unchanged
xavier = nn.initializers.xavier_uniform()


class Layer(NamedTuple):
    """A convolution. kernel: its side | stride | padding: pixels on each side"""

    kernel: int
    stride: int = 1
    padding: int = 0


LAYERS: Mapping[Size, tuple[Layer, ...]] = {
    "small": (Layer(10, 10), Layer(1)),
    "medium": (Layer(9, 1, 4), Layer(5, 5)),
    "large": (Layer(3, 1, 1), Layer(3, 1, 1), Layer(3, 1, 1), Layer(3, 1, 1)),
}
SLOPE = {"small": 0.0, "medium": 0.01, "large": 0.0}  # of the activation below 0


def map_shape(size: Size, height: int, width: int) -> tuple[int, int]:
    """Returns the height and width of the feature maps of images of this height and width."""
    for layer in LAYERS[size]:
        height, width = ((side + 2 * layer.padding - layer.kernel) // layer.stride + 1 for side in (height, width))
    return height, width


def initial_running(size: Size, channels: int) -> dict[str, dict[str, Array]]:
    """Returns the running statistics of a new extractor: mean 0 and variance 1 in each of its batch norms."""
    one = {"running_mean": jnp.zeros(channels), "running_var": jnp.ones(channels)}
    return {f"norm{i}": jax.tree.map(jnp.copy, one) for i in range(1, len(LAYERS[size]))}


class BatchNorm(nn.Module):
    """Normalises each channel of x [N, H, W, C], in float32. Returns y and the next running statistics.

    With `train`, mean and variance are those of the batch, and the running statistics move a tenth towards them, their
    variance towards the unbiased one. Without, they are the running ones, which do not change.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, running: Mapping[str, Array], train: bool) -> tuple[Array, Mapping[str, Array]]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        mean, var = running["running_mean"], running["running_var"]
        if train:
            axes, count = tuple(range(x.ndim - 1)), x.size // channels
            mean = x.mean(axes)
            var = jnp.square(x - _row(mean, x)).mean(axes)
            now = {"running_mean": mean, "running_var": var * count / max(1, count - 1)}
            running = {k: KEPT * running[k] + (1 - KEPT) * jax.lax.stop_gradient(now[k]) for k in now}
        y = (x - _row(mean, x)) * _row(jax.lax.rsqrt(var + EPS) * scale, x) + _row(bias, x)
        return y.astype(self.dtype), running


def _row(vector: Array, x: Array) -> Array:
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


class Extractor(nn.Module):
    """Images from 0 to 1 [N, H, W, C] -> feature maps from 0 to 1 [N, K, h, w] float32, and running statistics.

    objects: K | hidden: channels of the hidden convolutions
    """

    size: Size
    objects: int
    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, running: Running, train: bool) -> tuple[Array, Running]:
        layers, after = LAYERS[self.size], dict(running)
        x = x.astype(self.dtype)
        for i, (kernel, stride, padding) in enumerate(layers, start=1):
            last = i == len(layers)
            conv = nn.Conv(
                self.objects if last else self.hidden, (kernel, kernel), stride, [(padding, padding)] * 2,
                dtype=self.dtype, kernel_init=xavier, name=f"conv{i}",
            )  # fmt: skip
            x = conv(x)
            if not last:
                x, after[f"norm{i}"] = BatchNorm(self.dtype, name=f"norm{i}")(x, running[f"norm{i}"], train)
                x = nn.leaky_relu(x, SLOPE[self.size])
        return jnp.moveaxis(nn.sigmoid(x.astype(jnp.float32)), -1, 1), after


class ObjectMLP(nn.Module):
    """Linear, ReLU, Linear, LayerNorm, ReLU, Linear: [.., n] -> [.., features] in the compute dtype.

    pooled: average the hidden units over axis -2 before the last layer. The layer is linear, so this is the average of
    its outputs, but the layer is applied only once: [.., m, n] -> [.., features].
    """

    hidden: int
    features: int
    dtype: Any = jnp.float32
    pooled: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(self._linear(0, self.hidden)(x))
        x = self._linear(1, self.hidden)(x)
        x = nn.relu(nn.LayerNorm(EPS, dtype=self.dtype, use_fast_variance=False, name="norm1")(x))
        return self._linear(2, self.features)(x.mean(-2) if self.pooled else x)

    def _linear(self, i: int, features: int) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, kernel_init=xavier, name=f"linear{i}")


class ObjectEncoder(nn.Module):
    """Feature maps [.., K, h, w] -> object states [.., K, D] float32, with the same weights for every object."""

    hidden: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Array) -> Array:
        flat = maps.reshape(*maps.shape[:-2], -1)
        mlp = ObjectMLP(self.hidden, self.width, self.dtype, name="mlp")
        return mlp(flat).astype(jnp.float32)


class Transition(nn.Module):
    """The change of object states [N, K, D] float32, given the action of each object [N, K, a] (a may be 0).

    delta_i = node([z_i, a_i, sum over j != i of edge([z_i, z_j])]). With one object the sum is 0.
    """

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, state: Array, action: Array) -> Array:
        count, objects, width = state.shape
        total = jnp.zeros((count, objects, self.hidden), self.dtype)
        if objects > 1:
            edge = ObjectMLP(self.hidden, self.hidden, self.dtype, pooled=True, name="edge")
            total = (objects - 1) * edge(pairs(state))
        node = ObjectMLP(self.hidden, width, self.dtype, name="node")
        inputs = (state.astype(self.dtype), action.astype(self.dtype), total)
        return node(jnp.concatenate(inputs, -1)).astype(jnp.float32)


def pairs(state: Array) -> Array:
    """Returns [z_i, z_j] for each i and each j != i, in rising order: [N, K, D] -> [N, K, K - 1, 2 D]."""
    objects = state.shape[1]
    own, other = np.nonzero(~np.eye(objects, dtype=bool))
    joined = jnp.concatenate([state[:, own], state[:, other]], -1)
    return joined.reshape(len(state), objects, objects - 1, -1)


def action_of_objects(action: Array, objects: int, how: Literal["split", "copy", "ignore"]) -> Array:
    """Returns the part of an action [N, A] that each object receives, [N, K, a].

    split: each object receives its A / K entries | copy: each receives all entries | ignore: none receives any
    """
    if how == "split":
        return action.reshape(len(action), objects, -1)
    if how == "copy":
        return jnp.broadcast_to(action[:, None], (len(action), objects, action.shape[-1]))
    return jnp.zeros((len(action), objects, 0), action.dtype)
