"""The fused attention of TPUs: interpreted, it is the plain one; and where it is lowered to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu

from udd_jax.networks import fused_attention, layers
from udd_jax.runtime import costs, sharding

SHAPES = (8, 256, 2, 32), (8, 128, 2, 32), (8, 128, 2, 32)


def arrays(batch=8):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(batch, *shape[1:])), jnp.float32) for shape in SHAPES]


@pytest.mark.parametrize("with_bias", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_kernel_is_the_plain_attention_forwards_and_backwards(with_bias):
    q, k, v = arrays(batch=1)
    bias = jnp.where(jnp.arange(128) < 100, 0.0, -1e9)[None, None, None] if with_bias else None
    weight = jnp.cos(jnp.arange(q.size)).reshape(q.shape)

    def value(attend, *inputs):
        y = attend(*inputs, bias)
        return (y * weight).sum(), y

    def everything(attend):
        grad = jax.grad(lambda *inputs: value(attend, *inputs), (0, 1, 2), has_aux=True)
        return jax.tree.leaves(jax.jit(grad)(q, k, v))

    with tpu.force_tpu_interpret_mode():
        interpreted = everything(fused_attention._on_mesh)
    expected = everything(layers.dot_product_attention)
    elsewhere = everything(fused_attention.attention)
    for one, two, three in zip(interpreted, elsewhere, expected, strict=True):
        np.testing.assert_allclose(one, three, atol=2e-5)
        np.testing.assert_allclose(two, three, atol=2e-5)


def lowered(platform: str, shapes=SHAPES, mesh=None) -> str:
    places = None if mesh is None else jax.NamedSharding(mesh, jax.P("data"))
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=places) for shape in shapes]
    attend = jax.jit(lambda q, k, v: fused_attention.attention(q, k, v, None))
    with sharding.use(mesh):
        return jax.export.export(attend, platforms=[platform])(*inputs).mlir_module()


def test_it_is_one_kernel_on_a_tpu_alone_and_for_lengths_of_whole_lanes():
    assert lowered("tpu").count("tpu_custom_call") == 1
    assert "custom_call" not in lowered("cpu") and "tpu_custom_call" not in lowered("cuda")
    short = [(8, 29, 2, 32)] * 3
    assert "tpu_custom_call" not in lowered("tpu", short)


def test_on_a_mesh_each_device_takes_its_rows():
    mesh = sharding.make_mesh(data=8, model=1)
    text = lowered("tpu", mesh=mesh)
    assert text.count("tpu_custom_call") == 1 and "tensor<1x2x256x32xbf16>" in text


def test_its_products_are_counted_for_all_blocks_and_devices():
    q, k, v = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in SHAPES)
    expected = 2 * 2 * 8 * 2 * 256 * 128 * 32
    for mesh in (None, sharding.make_mesh(data=8, model=1)):
        with sharding.use(mesh):
            traced = jax.jit(lambda q, k, v: fused_attention.attention(q, k, v, None)).trace(
                q, k, v
            )
        assert costs.flops(traced.jaxpr.jaxpr, 1) == expected
