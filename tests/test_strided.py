"""Convolutions with strides as matrix products equal those of flax: initial parameters, outputs and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nets.strided import StridedConv, StridedConvTranspose


def transposed(kernel, stride):
    return nn.ConvTranspose(4, (kernel, kernel), (stride, stride), "VALID", transpose_kernel=True)


PAIRS = {
    "conv 4 stride 2, odd side": (StridedConv(7, 4, 2), nn.Conv(7, (4, 4), 2, "VALID"), (2, 15, 9, 3)),
    "conv 4 stride 2, even side": (StridedConv(7, 4, 2), nn.Conv(7, (4, 4), 2, "VALID"), (2, 8, 14, 3)),
    "conv 5 stride 5": (StridedConv(3, 5, 5), nn.Conv(3, (5, 5), 5, "VALID"), (2, 12, 20, 2)),
    "conv 6 stride 2": (StridedConv(3, 6, 2), nn.Conv(3, (6, 6), 2, "VALID"), (1, 11, 10, 2)),
    "transposed 5 stride 2": (StridedConvTranspose(4, 5, 2), transposed(5, 2), (2, 3, 5, 6)),
    "transposed 6 stride 2": (StridedConvTranspose(4, 6, 2), transposed(6, 2), (2, 1, 4, 6)),
    "transposed 3 stride 3": (StridedConvTranspose(4, 3, 3), transposed(3, 3), (2, 2, 4, 6)),
}


@pytest.mark.parametrize("ours, flax, shape", PAIRS.values(), ids=PAIRS)
def test_strided_convolution_equals_that_of_flax(ours, flax, shape):
    x = jax.random.normal(jax.random.key(0), shape)
    params, expected = ours.init(jax.random.key(1), x), flax.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    params = jax.tree.map(lambda p: p + 0.1, params)

    def loss(net, params, x):
        return jnp.sin(net.apply(params, x)).sum()

    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)
    found, wanted = (jax.grad(loss, (1, 2))(net, params, x) for net in (ours, flax))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), found, wanted)


def test_strided_convolution_computes_in_its_dtype():
    net = StridedConv(3, 4, 2, jnp.bfloat16)
    y, params = net.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 2)))
    assert y.dtype == jnp.bfloat16 and params["params"]["kernel"].dtype == jnp.float32
