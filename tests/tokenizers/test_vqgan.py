"""Claims about the image tokenizer's network and its quantisers.

Comparisons with the published network's recorded numbers are in the converter's tests.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.tokenizers import vqgan

TINY = dict(n_embed=7, embed_dim=3, z_channels=5, ch=4, num_res_blocks=1, attn_resolutions=())


def tiny(**fields):
    fields = {"resolution": 8, "ch_mult": (1,), "quantiser": "ema", "patch": 2, **TINY, **fields}
    return vqgan.VQGAN(**fields)


def fill(module, *inputs, seed=0):
    """Random parameters of a module, without compiling its initialisers."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        noise = rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape).astype(np.float32)
        return 1 + 0.1 * noise if path[-1].key == "scale" else noise

    return jax.tree_util.tree_map_with_path(one, shapes)


def init(module, seed=0):
    return fill(module, jnp.zeros((1, module.resolution, module.resolution, 3)), seed=seed)


# The network


def test_space_to_depth_is_undone_and_keeps_a_patch_together():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    y = vqgan.space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[1, 1, 2], x[1, 2:4, 4:6].ravel())
    np.testing.assert_array_equal(vqgan.depth_to_space(y, 2), x)


@pytest.mark.parametrize("levels, patch, f", [(3, 1, 4), (3, 2, 8), (4, 2, 16), (1, 8, 8)])
def test_grid_is_the_image_over_f(levels, patch, f):
    module = tiny(resolution=32, ch_mult=(1,) * levels, patch=patch, num_res_blocks=0)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    out = jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x)[0], images)
    side = 32 // f
    assert module.grid == (side, side)
    assert out.z.shape == (2, side, side, 3)
    assert out.codes.shape == (2, side, side)
    assert out.images.shape == images.shape
    assert out.loss.shape == ()


def test_downsampling_pads_the_right_and_the_bottom_only():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 4, 4, 2)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 2, 2)).astype(np.float32)
    params = {"conv": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    y = jax.jit(vqgan.Downsample().apply)({"params": params}, x)
    padded = np.pad(x[0], ((0, 1), (0, 1), (0, 0)))
    for i in range(2):
        for j in range(2):
            window = padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            np.testing.assert_allclose(
                y[0, i, j], np.einsum("hwc,hwcd->d", window, kernel), rtol=1e-5, atol=1e-5
            )


def test_upsampling_repeats_each_position():
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1
    params = {"conv": {"kernel": centre, "bias": np.zeros(1, np.float32)}}
    x = np.array([1, 2], np.float32).reshape(1, 1, 2, 1)
    y = jax.jit(vqgan.Upsample().apply)({"params": params}, x)
    assert y[0, :, :, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_attention_reaches_everywhere_and_starts_from_the_residual():
    module, x = vqgan.AttnBlock(), np.random.default_rng(0).normal(size=(1, 2, 3, 4))
    x = x.astype(np.float32)
    params = fill(module, x)
    apply = jax.jit(lambda p, x: module.apply({"params": p}, x))
    other = x.copy()
    other[0, 0, 0] += [1, 0, -2, 3]
    moved = np.asarray(apply(params, other)) - np.asarray(apply(params, x))
    assert (np.abs(moved).sum(-1) > 0).all()
    silent = params | {"proj_out": jax.tree.map(np.zeros_like, params["proj_out"])}
    np.testing.assert_array_equal(apply(silent, x), x)


@pytest.mark.parametrize("local", [True, False])
def test_local_code_depends_on_its_own_pixels_only(local):
    module = tiny(ch_mult=(1, 2), local_encoder=local)
    params = init(module)
    encode = jax.jit(lambda p, x: module.apply({"params": p}, x, method="encode"))
    image = np.random.default_rng(2).normal(size=(1, 8, 8, 3)).astype(np.float32)
    other = image.copy()
    other[0, :4, :4] += 1  # the cell of code (0, 0)
    moved = np.asarray(encode(params, other)) - np.asarray(encode(params, image))
    changed = np.abs(moved[0]).sum(-1) > 0
    expected = [[True, False], [False, False]] if local else [[True, True], [True, True]]
    assert changed.tolist() == expected


def test_local_decoder_paints_within_the_cell():
    module = tiny(ch_mult=(1, 2), local_decoder=True)
    params = init(module)
    decode = jax.jit(lambda p, c: module.apply({"params": p}, c, method="decode_codes"))
    codes = np.array([[[3, 0], [0, 0]]], np.int32)
    moved = np.asarray(decode(params, codes)) - np.asarray(decode(params, 0 * codes))
    changed = np.abs(moved[0]).sum(-1) > 0
    assert changed[:4, :4].all()
    assert changed.sum() == 16


def test_discriminator_judges_patches_of_one_image():
    module = vqgan.Discriminator(ch=4, layers=2)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    apply = jax.jit(module.apply)
    params = {"params": fill(module, x)}
    logits = np.asarray(apply(params, x))
    assert logits.shape == (2, 2, 2, 1)
    x[1] += 1  # no statistics are shared by the batch
    np.testing.assert_array_equal(logits[0], np.asarray(apply(params, x))[0])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="resolution 30 is not a multiple of the cell 8"):
        init(tiny(resolution=30, patch=8))
    with pytest.raises(ValueError, match="quantiser is 'vq', expected one of ema"):
        init(tiny(quantiser="vq"))


# The quantisers


@functools.partial(jax.jit, static_argnums=0)
def _quantise(kind, z, rows):
    module = vqgan.Quantizer(kind, *rows.shape, beta=0.25)
    return module.apply({"params": {"embedding": rows}}, z)


def _vectors():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 3)).astype(np.float32)
    z = rng.normal(size=(2, 2, 2, 3)).astype(np.float32)
    nearest = ((z[..., None, :] - rows) ** 2).sum(-1).argmin(-1)
    return z, rows, nearest


@pytest.mark.parametrize("kind", ["ema", "straight_through"])
def test_gradient_passes_the_quantiser_unchanged(kind):
    z, rows, nearest = _vectors()
    weight = np.arange(24, dtype=np.float32).reshape(z.shape)
    quantised, _, codes = _quantise(kind, z, rows)
    np.testing.assert_array_equal(codes, nearest)
    np.testing.assert_allclose(quantised, rows[nearest], atol=1e-6)
    grad = jax.jit(jax.grad(lambda z: (weight * _quantise(kind, z, rows)[0]).sum()))(z)
    np.testing.assert_array_equal(grad, weight)


def test_only_straight_through_pulls_rows_to_vectors():
    z, rows, nearest = _vectors()
    gap = z - rows[nearest]
    for kind, weight in (("ema", 0.25), ("straight_through", 1.25)):
        loss_fn = functools.partial(lambda kind, z, e: _quantise(kind, z, e)[1], kind)
        loss, grads = jax.jit(jax.value_and_grad(loss_fn, (0, 1)))(z, rows)
        np.testing.assert_allclose(loss, weight * np.mean(gap**2), rtol=1e-5)
        assert bool(np.asarray(grads[1]).any()) is (kind == "straight_through")
        np.testing.assert_allclose(grads[0], 0.25 * 2 * gap / z.size, rtol=1e-5)


@jax.jit
def _gumbel(temperature, params, z):
    module = vqgan.Quantizer("gumbel", 5, 3, beta=0.25)
    return module.apply({"params": params}, z, jax.random.key(3), temperature)


def _gumbel_inputs():
    rng = np.random.default_rng(0)
    rows, kernel = rng.normal(size=(5, 3)), rng.normal(size=(1, 1, 2, 5))
    z = rng.normal(size=(40, 1, 1, 2))
    params = {"embed": rows, "proj": {"kernel": kernel, "bias": np.zeros(5)}}
    params, z = jax.tree.map(np.float32, (params, z))
    return params, z, (z @ kernel[0, 0])[:, 0, 0]


def test_cold_gumbel_sample_is_one_row_and_a_hot_one_the_mean_of_all():
    params, z, logits = _gumbel_inputs()
    rows = params["embed"]
    cold, _, codes = jax.device_get(_gumbel(1e-6, params, z))
    gaps = ((cold[:, 0, 0, None] - rows[None]) ** 2).sum(-1)
    np.testing.assert_allclose(gaps.min(1), 0, atol=1e-10)
    assert (gaps.argmin(1) != codes[:, 0, 0]).any()  # it is a draw, not the largest logit
    np.testing.assert_array_equal(codes[:, 0, 0], logits.argmax(1))
    hot = jax.device_get(_gumbel(1e6, params, z))[0]
    np.testing.assert_allclose(hot[:, 0, 0], np.tile(rows.mean(0), (40, 1)), atol=1e-4)


def test_gumbel_loss_is_the_divergence_from_uniform():
    params, z, logits = _gumbel_inputs()
    _, loss, _ = _gumbel(1.0, params, z)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(loss, (p * np.log(p * 5)).sum(1).mean(), rtol=1e-5)


def test_plain_pass_leaves_the_codebook_out():
    module = tiny()
    params = init(module)
    image = np.random.default_rng(2).normal(size=(1, 8, 8, 3)).astype(np.float32)

    @jax.jit
    def plain(rows, on):
        tree = params | {"quantize": {"embedding": rows}}
        return module.apply({"params": tree}, image, plain=on)

    rows = params["quantize"]["embedding"]
    np.testing.assert_array_equal(plain(rows, True).images, plain(rows + 1, True).images)
    assert plain(rows, True).loss == 0
    assert (np.asarray(plain(rows, False).images) != plain(rows + 1, False).images).any()
