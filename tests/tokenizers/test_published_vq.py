"""The image tokenizer against recorded arrays, and against a PyTorch build of the same blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import recorded
from udd_jax.convert import names
from udd_jax.tokenizers import codebook, image_tokenizer, vqgan

TOLERANCE = {"f32": 1e-5, "f64": 1e-10}


def nhwc(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def gumbel_vq():
    c = recorded.PUBLISHED.config["vq"]
    return vqgan.VQGAN(
        resolution=c["resolution"],
        n_embed=c["n_embed"],
        embed_dim=c["z"],
        z_channels=c["z"],
        ch=c["ch"],
        ch_mult=tuple(c["ch_mult"]),
        num_res_blocks=c["num_res_blocks"],
        attn_resolutions=tuple(c["attn_resolutions"]),
        quantiser="gumbel",
    )


def read(module, state, dtype=np.float32):
    """Published tensors as parameters of the module."""
    size = module.resolution
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    init = functools.partial(module.init, jax.random.key(0))
    shapes = jax.eval_shape(lambda x: init(x, key=jax.random.key(1)), image)["params"]
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, np.dtype(dtype)), shapes)
    return names.read(state, shapes, names.vq_name, names.VQ_DEAD)


@functools.cache
def weights(precision):
    state = recorded.PUBLISHED.under("vqgan_f32", "param/")
    return read(gumbel_vq(), state, recorded.dtype(precision))


@functools.cache
def both_ways(precision):
    """For the recorded images: enc, logits and codes, without and with the recorded noise. And the
    pixels decoded from the recorded codes, and from the codes without noise."""
    stored = recorded.PUBLISHED.arrays(f"vqgan_{precision}")
    module = gumbel_vq()
    full = stored["quantize_to_full"]
    again = full[stored["full_to_quantize"][stored["full_idx_argmax"]]]

    def encode(self, images, noise):
        z = self.encode(images)
        return z, self.quantize.proj(z), self.quantize.codes(z), self.quantize.codes(z, noise)

    @recorded.jit
    def run(weights, images, noise, codes):
        return (
            *module.apply({"params": weights}, images, noise, method=encode),
            module.apply({"params": weights}, codes, method="decode_codes"),
        )

    with jax.enable_x64(precision == "f64"):
        images = 2 * jnp.asarray(stored["image"], recorded.dtype(precision)) / 255 - 1
        codes = np.concatenate([full[stored["dec_idx"]], again]).reshape(-1, *module.grid)
        noise = jnp.asarray(nhwc(stored["gumbel"]), recorded.dtype(precision))
        return jax.tree.map(np.asarray, run(weights(precision), images, noise, codes))


@recorded.precision
def test_gumbel_encoder_equals_the_recorded_one(precision):
    stored = recorded.PUBLISHED.arrays(f"vqgan_{precision}")
    z, logits, codes, drawn, _ = both_ways(precision)
    recorded.assert_close(z, nhwc(stored["enc"]), TOLERANCE[precision], "enc")
    recorded.assert_close(logits, nhwc(stored["logits"]), TOLERANCE[precision], "logits")
    codes, drawn = (c.reshape(len(c), -1) for c in (codes, drawn))
    np.testing.assert_array_equal(codes, stored["full_idx_argmax"])
    # The published encoder always adds noise to the logits: its codes are draws.
    np.testing.assert_array_equal(drawn, stored["full_idx_gumbel"])
    np.testing.assert_array_equal(stored["full_to_quantize"][drawn], stored["idx_official"])


@recorded.precision
def test_gumbel_decoder_equals_the_recorded_one(precision):
    stored = recorded.PUBLISHED.arrays(f"vqgan_{precision}")
    pixels = (np.clip(both_ways(precision)[-1], -1, 1) + 1) / 2
    theirs = np.concatenate([nhwc(stored["dec_image"]), nhwc(stored["rec_image"])])
    recorded.assert_close(pixels, theirs, TOLERANCE[precision])


@pytest.fixture
def fast_to_compile(monkeypatch):
    """The tokenizer's functions without XLA's optimisations."""
    for name, module in (("_encode", 0), ("_draw", 1), ("_decode", 0)):
        plain = getattr(image_tokenizer, name).__wrapped__
        monkeypatch.setattr(image_tokenizer, name, recorded.jit(plain, static_argnums=module))


def test_the_tokenizer_around_it_keeps_the_used_codes_only(fast_to_compile):
    stored = recorded.PUBLISHED.arrays("vqgan_f32")
    full_to_used = stored["full_to_quantize"].astype(np.int32)
    tokenizer = image_tokenizer.ImageTokenizer(gumbel_vq(), weights("f32"), full_to_used, chunk=3)
    assert tokenizer.codes == recorded.PUBLISHED.config["vq"]["n_used"]
    np.testing.assert_array_equal(tokenizer.used_to_full, stored["quantize_to_full"])
    codes = tokenizer.encode(stored["image"])
    np.testing.assert_array_equal(codes, full_to_used[stored["full_idx_argmax"]])
    pixels = tokenizer.decode(stored["dec_idx"].astype(np.int32))
    assert np.abs(pixels - 255 * nhwc(stored["dec_image"])).max() < 0.51


def test_codes_are_draws_from_the_softmax_only_if_a_key_is_given(fast_to_compile):
    """One cell a picture: 300 draws of one code, whatever the size of the chunks."""
    shape = {"resolution": 4, "patch": 4, "ch_mult": (1,), "num_res_blocks": 0}
    shape |= {"n_embed": 5, "embed_dim": 3, "z_channels": 3, "ch": 4, "attn_resolutions": ()}
    module, rng = vqgan.VQGAN(**shape, quantiser="gumbel"), np.random.default_rng(0)
    key, picture = jax.random.key(1), jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(key, x, key)["params"], picture)
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), shapes)
    images = np.tile(rng.integers(0, 256, (1, 4, 4, 3), np.uint8), (300, 1, 1, 1))
    tokenizer = image_tokenizer.ImageTokenizer(module, params, chunk=64)
    logits = recorded.jit(
        lambda x: module.apply(
            {"params": params}, x, method=lambda m, x: m.quantize.proj(m.encode(x))
        )
    )(image_tokenizer.to_unit(images[:1]))
    p = np.asarray(jax.nn.softmax(logits[0, 0, 0]), np.float64)
    assert (tokenizer.encode(images) == p.argmax()).all()
    drawn = tokenizer.encode(images, key)[:, 0]
    share = np.bincount(drawn, minlength=5) / 300
    assert (np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / 300)).all() and (share > 0).sum() > 2
    np.testing.assert_array_equal(tokenizer.encode(images[:70], key)[:, 0], drawn[:70])
    assert (tokenizer.encode(images, jax.random.key(2))[:, 0] != drawn).any()
    nearest = image_tokenizer.ImageTokenizer(vqgan.VQGAN(**shape, quantiser="ema"), params)
    with pytest.raises(ValueError, match="'ema' quantiser are the nearest and not drawn"):
        nearest.encode(images[:1], key)


@recorded.precision
def test_nearest_neighbour_quantiser_equals_the_recorded_one(precision):
    stored = recorded.PUBLISHED.arrays(f"vqgan_{precision}")
    rows, z = stored["vq2_codebook"], nhwc(stored["vq2_z"])
    with jax.enable_x64(precision == "f64"):
        rows, z = (jnp.asarray(x, recorded.dtype(precision)) for x in (rows, z))
        quantizer = vqgan.Quantizer("straight_through", *rows.shape, beta=0.25)

        @recorded.jit
        def run(rows, z):
            return codebook.nearest(z, rows), *quantizer.apply({"params": {"embedding": rows}}, z)

        nearest, out, loss, codes = run(rows, z)
    np.testing.assert_array_equal(np.ravel(nearest), stored["vq2_idx"])
    np.testing.assert_array_equal(np.ravel(codes), stored["vq2_idx"])
    recorded.assert_close(out, nhwc(stored["vq2_zq"]), TOLERANCE[precision])
    # The published "legacy" loss has beta on the other term: another gradient, the same value.
    recorded.assert_close(loss, stored["vq2_loss"].reshape(()), TOLERANCE[precision])


def test_published_parameters_come_back_bit_for_bit():
    state = recorded.PUBLISHED.under("vqgan_f32", "param/")
    again = names.write(weights("f32"), names.vq_name)
    assert state.keys() == again.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name], strict=True)


@pytest.mark.parametrize(
    ("f", "ch_mult"),
    [
        (4, (1, 2, 1)),
        pytest.param(8, (1, 1, 2, 2), marks=pytest.mark.slow),
        pytest.param(16, (1, 1, 1, 2, 2), marks=pytest.mark.slow),
    ],
)
def test_encoder_and_decoder_equal_a_pytorch_build(f, ch_mult):
    torch = pytest.importorskip("torch", reason="the twin needs PyTorch: pip install torch")
    from tests.helpers import torch_twin

    size = {"ch": 32, "ch_mult": ch_mult, "num_res_blocks": 1}
    shape = {"attn_resolutions": (2,), "resolution": 2 * f, "z_channels": 6}
    torch.manual_seed(f)
    twin = torch_twin.VQ("nearest", 11, 5, size | shape).double().eval()
    for parameter in twin.parameters():
        if parameter.ndim == 1:  # norms and biases start at 1 and 0: make them seen
            parameter.data += 0.3 * torch.randn_like(parameter)
    module = vqgan.VQGAN(n_embed=11, embed_dim=5, quantiser="straight_through", **size, **shape)
    state = {k: v.detach().numpy() for k, v in twin.state_dict().items()}
    images = np.random.default_rng(f).uniform(-1, 1, (2, 2 * f, 2 * f, 3))

    @recorded.jit
    def run(params, images, codes):
        z = module.apply({"params": params}, images, method="encode")
        return z, module.apply({"params": params}, codes, method="decode_codes")

    with jax.enable_x64(True):
        codes = np.arange(8).reshape(2, 2, 2)
        z, pixels = run(read(module, state, np.float64), images, codes)
        with torch.no_grad():
            theirs = twin.encode(torch.from_numpy(np.moveaxis(images, -1, 1).copy()))
            rows = twin.quantize.embedding(torch.from_numpy(codes)).permute(0, 3, 1, 2)
            back = twin.decode(rows)
        recorded.assert_close(z, nhwc(theirs), 1e-10, "encoder")
        recorded.assert_close(pixels, nhwc(back), 1e-10, "decoder")
