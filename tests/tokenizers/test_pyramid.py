"""Claims about the tokenizer of two levels: tiny networks, 12 x 20 pixels, cells of 2 and 4."""

import types

import jax
import numpy as np
import pytest

from udd_jax.tokenizers import image_tokenizer, pyramid, vqgan
from udd_jax.training import codebooks, finish

SIZES = {"resolution": (12, 20), "n_embed": 7, "coarse_embed": 5, "embed_dim": 3, "z_channels": 4}
SIZES |= {"ch": 4, "ch_mult": (1,), "num_res_blocks": 0, "attn_resolutions": (), "patch": 2}
SIZES |= {"quantiser": "ema", "local_encoder": True, "local_decoder": True}
COARSE, FINE = (3, 5), (6, 10)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 12, 20, 3), np.uint8)


@pytest.fixture(scope="module")
def module():
    return pyramid.Pyramid(**SIZES)


@pytest.fixture(scope="module")
def params(module, images):
    x = image_tokenizer.to_unit(images)
    fresh = jax.device_get(jax.jit(module.init)(jax.random.key(0), x)["params"])
    return codebooks.found(module, fresh, images, len(images), jax.random.key(1))[0]


@pytest.fixture(scope="module")
def tokenizer(module, params):
    return image_tokenizer.ImageTokenizer(module, params, chunk=4)


def test_the_codes_of_a_picture_are_the_coarse_ones_and_then_the_fine_ones(tokenizer, images):
    codes = tokenizer.encode(images)
    assert tokenizer.lengths == [15, 60] and codes.shape == (4, 75)
    assert tokenizer.grid == FINE and tokenizer.codes == 7
    coarse = image_tokenizer.coarse(tokenizer, "a")
    assert coarse.grid == COARSE and coarse.codes == 5
    np.testing.assert_array_equal(coarse.encode(images), codes[:, :15])
    np.testing.assert_array_equal(tokenizer.finest(codes), codes[:, 15:])
    assert len(np.unique(codes[:, :15])) > 2 and len(np.unique(codes[:, 15:])) > 2
    assert tokenizer.decode(codes).shape == images.shape


def test_codes_with_local_cells_see_their_own_coarse_cell_and_the_coarse_code_above(
    tokenizer, images
):
    changed = images.copy()
    changed[:, 4:8, 8:12] = 255 - changed[:, 4:8, 8:12]  # the coarse cell (1, 2)
    before, after = tokenizer.encode(images), tokenizer.encode(changed)
    fine = (before != after)[:, 15:].reshape(4, *FINE)
    coarse = (before != after)[:, :15].reshape(4, *COARSE)
    assert fine[:, 2:4, 4:6].any() and coarse[:, 1, 2].any()
    fine[:, 2:4, 4:6], coarse[:, 1, 2] = False, False
    assert not fine.any() and not coarse.any()


def test_a_fine_vector_knows_the_coarse_code_above_it(module, params, images):
    shown = np.pad(images, [(0, 60), (0, 0), (0, 0), (0, 0)])  # as `pool_vectors` compiles it
    rows = params["coarse_quantize"]["embedding"]
    other = params | {"coarse_quantize": {"embedding": rows[::-1] + 1}}
    (z1, z2), (same, new) = (finish._vectors(module, p, shown) for p in (params, other))
    np.testing.assert_array_equal(z1, same)
    assert (np.asarray(z2[:4] != new[:4]).any(-1)).mean() > 0.9


def test_each_codebook_begins_with_its_vectors_and_follows_them(module, params, images):
    shown = np.pad(images, [(0, 60), (0, 0), (0, 0), (0, 0)])
    z = [np.asarray(part)[:4] for part in finish._vectors(module, params, shown)]
    for name, vectors in zip(module.codebooks, z, strict=True):
        rows = np.asarray(vqgan.rows(params, name))
        apart = np.linalg.norm(vectors[..., None, :] - rows, axis=-1).min(-1)
        assert apart.mean() < 0.7 * vectors.std() * 3**0.5  # k-means of them
    books = [np.asarray(vqgan.rows(params, name)) for name in module.codebooks]
    codes = [
        np.linalg.norm(v[..., None, :] - e, axis=-1).argmin(-1)
        for v, e in zip(z, books, strict=True)
    ]
    z = [vectors + 1 for vectors in z]  # means of all would stay as they are
    out = vqgan.Output(None, tuple(z), tuple(codes), None)
    before = codebooks.begin(module, params, 4)
    c = types.SimpleNamespace(decay=0.9, restart=types.SimpleNamespace(threshold=0.0, factor=0.0))
    step = jax.jit(lambda *args: codebooks.follow(c, module, *args, jax.random.key(0), np.bool_(0)))
    after, new, _ = step(before, params, out)
    for level, name in enumerate(module.codebooks):  # a slow twin of the averages
        sums = 0.9 * np.asarray(before[level].sums)
        np.add.at(sums, codes[level], 0.1 * z[level])
        np.testing.assert_allclose(after[level].sums, sums, atol=1e-5)
        rows = sums / np.asarray(after[level].counts)[:, None]
        np.testing.assert_allclose(vqgan.rows(new, name), rows, rtol=1e-3, atol=1e-4)
        assert np.abs(rows - books[level]).max() > 1e-3


def test_a_picture_is_painted_from_both_levels_and_a_preview_from_the_coarse_one(
    module, params, tokenizer, images
):
    codes = tokenizer.encode(images)
    rows = [np.asarray(vqgan.rows(params, name)) for name in module.codebooks]
    coarse = rows[0][codes[:, :15]].reshape(4, *COARSE, 3)
    fine = rows[1][codes[:, 15:]].reshape(4, *FINE, 3)
    kernel, bias = (np.asarray(params["up"][name]) for name in ("kernel", "bias"))
    up = (coarse @ kernel + bias).reshape(4, *COARSE, 2, 2, 3)  # a slow twin of Up
    up = up.transpose(0, 1, 3, 2, 4, 5).reshape(4, *FINE, 3)
    for below, made in (
        (fine, tokenizer.decode(codes)),
        (0 * fine, tokenizer.preview(codes[:, :15])),
    ):
        z = np.concatenate([up, below], axis=-1)

        def paint(model, z=z):
            return model.decoder(model.post_quant_conv(z))

        shown = image_tokenizer.to_uint8(module.apply({"params": params}, method=paint))
        assert np.abs(np.int32(shown) - np.int32(made)).max() <= 1
    assert (tokenizer.decode(codes) != tokenizer.preview(codes[:, :15])).any()


def test_a_share_of_the_rows_of_a_training_has_no_fine_level(module, params, tokenizer, images):
    codes = tokenizer.encode(images)
    whole, preview = tokenizer.decode(codes), tokenizer.preview(codes[:, :15])
    rows = np.arange(64) % 4  # 16 of each picture

    @jax.jit
    def train(x):
        out = module.clone(preview=0.5).apply({"params": params}, x, jax.random.key(3))
        return image_tokenizer.to_uint8(out.images)

    shown = np.int32(train(image_tokenizer.to_unit(images[rows])))
    is_whole, is_preview = (
        (np.abs(shown - made[rows]).max(axis=(1, 2, 3)) <= 1) for made in (whole, preview)
    )
    assert (is_whole ^ is_preview).all() and 16 < is_preview.sum() < 48


def test_codes_that_are_not_in_use_have_a_map_for_each_level(module, params, images, tmp_path):
    used = np.int32([0, 1, 1, 0, 2, *(0, 0, 1, 2, 3, 3, 3)])  # of 5 coarse, then of 7 fine codes
    whole = image_tokenizer.ImageTokenizer(module, params, chunk=4)
    small = image_tokenizer.ImageTokenizer(module, params, used, chunk=4)
    codes, full = small.encode(images), whole.encode(images)
    np.testing.assert_array_equal(codes[:, :15], used[:5][full[:, :15]])
    np.testing.assert_array_equal(codes[:, 15:], used[5:][full[:, 15:]])
    assert (small.codes, image_tokenizer.coarse(small, "a").codes) == (4, 3)
    first = np.concatenate(
        [np.int32([0, 1, 4])[codes[:, :15]], np.int32([0, 2, 3, 4])[codes[:, 15:]]], 1
    )
    np.testing.assert_array_equal(small.decode(codes), whole.decode(first))
    image_tokenizer.save(tmp_path / "t", small)
    again = image_tokenizer.load(tmp_path / "t")
    assert again.hash == small.hash != whole.hash and type(again.module) is pyramid.Pyramid
    np.testing.assert_array_equal(again.encode(images), codes)


@pytest.mark.parametrize(
    "ids, message",
    [
        (
            np.zeros((1, 60), int),
            r"codes have shape \[1, 60\], the image tokenizer expects \[B, 75\]",
        ),
        (np.full((1, 75), 5), "codes run from 5 to 5, the image tokenizer has 0 to 4"),
    ],
)
def test_codes_that_are_not_those_of_both_levels_are_one_line(tokenizer, ids, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.decode(ids)


@pytest.mark.parametrize("change", [{"factor": 3}, {"quantiser": "gumbel"}, {"factor": 4}])
def test_levels_that_do_not_fit_are_one_line(images, change):
    with pytest.raises(ValueError, match="modalities of kind coarse: "):
        jax.eval_shape(
            pyramid.Pyramid(**SIZES | change).init, jax.random.key(0), np.zeros((1, 12, 20, 3))
        )


def test_a_coarse_cell_may_have_four_fine_ones_along_its_side():
    module = pyramid.Pyramid(**SIZES | {"resolution": (16, 24), "factor": 4})
    assert (module.coarse_grid, module.grid) == ((2, 3), (8, 12))

    def codes(key, x):
        return module.apply(module.init(key, x), x, method="encode_codes")

    made = jax.eval_shape(codes, jax.random.key(0), np.zeros((2, 16, 24, 3)))
    assert made.shape == (2, 6 + 96)


def test_a_tokenizer_of_one_level_has_no_coarse_one():
    plain = vqgan.VQGAN(**{n: v for n, v in SIZES.items() if n != "coarse_embed"})
    with pytest.raises(ValueError, match="runs/a has one level, expected a coarse and a fine one"):
        image_tokenizer.coarse(image_tokenizer.ImageTokenizer(plain, {}), "runs/a")
