"""Claims about the image tokenizer: a trained network, uint8 images in and out."""

import jax
import numpy as np
import pytest

from tests.tokenizers.test_vqgan import init, tiny
from udd_jax.tokenizers import image_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    module = tiny(local_encoder=True, local_decoder=True)
    params = init(module)
    return image_tokenizer.ImageTokenizer(module, params, chunk=4)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)


def test_encoding_is_deterministic_and_independent_of_the_chunk(tokenizer, pictures):
    codes = tokenizer.encode(pictures)
    assert codes.shape == (6, 16) and codes.dtype == np.int32
    assert len(np.unique(codes)) > 1
    np.testing.assert_array_equal(codes, tokenizer.encode(pictures))
    one_by_one = np.concatenate([tokenizer.encode(p[None]) for p in pictures])
    np.testing.assert_array_equal(codes, one_by_one)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == pictures.shape and decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded[5:], tokenizer.decode(codes[5:]))


def test_no_images_are_no_codes(tokenizer, pictures):
    assert tokenizer.encode(pictures[:0]).shape == (0, 16)
    assert tokenizer.decode(np.zeros((0, 16), np.int32)).shape == (0, 8, 8, 3)


def test_a_code_of_a_local_decoder_paints_its_patch_everywhere(tokenizer, pictures):
    codes = tokenizer.encode(pictures)
    patches = tokenizer.patches
    assert patches.shape == (tokenizer.codes, 2, 2, 3)
    tiled = patches[codes].reshape(6, 4, 4, 2, 2, 3).swapaxes(2, 3).reshape(6, 8, 8, 3)
    np.testing.assert_array_equal(tiled, tokenizer.decode(codes))


def test_pixels_survive_the_trip_to_floats_and_back():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(image_tokenizer.to_uint8(image_tokenizer.to_unit(every)), every)


def test_joined_codes_decode_to_the_one_that_stands_for_them(tokenizer, pictures, tmp_path):
    maps, back = np.int32([0, 1, 0, 0, 2, 0, 3]), np.int32([5, 1, 4, 6])
    parts = (tokenizer.module, tokenizer.params, maps, 4)
    small = image_tokenizer.ImageTokenizer(*parts, decoded_to=back)
    assert small.used_to_full.tolist() == back.tolist() and small.codes == 4
    row = np.arange(small.encode(pictures).shape[1])[None] % 4
    np.testing.assert_array_equal(small.decode(row), tokenizer.decode(back[row]))
    np.testing.assert_array_equal(small.vectors, tokenizer.vectors[back])
    image_tokenizer.save(tmp_path / "small", small)
    again = image_tokenizer.load(tmp_path / "small")
    assert again.hash == small.hash and again.used_to_full.tolist() == back.tolist()
    other = np.int32([0, 1, 0, 1, 2, 0, 3])  # encodes a code in another way
    hashes = {
        image_tokenizer.ImageTokenizer(*parts[:2], m, 4, decoded_to=b).hash
        for m, b in ((maps, back), (other, back), (maps, np.int32([0, 1, 4, 6])), (maps, None))
    }
    assert len(hashes) == 4


def test_tokenizer_with_used_codes_decodes_to_the_first_of_those_that_share(tokenizer, pictures):
    full_to_used = np.array([0, 1, 0, 0, 2, 0, 3], np.int32)  # as published: the unused share 0
    small = image_tokenizer.ImageTokenizer(
        tokenizer.module, tokenizer.params, full_to_used, chunk=4
    )
    assert small.codes == 4
    assert small.used_to_full.tolist() == [0, 1, 4, 6]
    np.testing.assert_array_equal(small.encode(pictures), full_to_used[tokenizer.encode(pictures)])
    row = np.array([[0, 1, 2, 3] * 4])
    np.testing.assert_array_equal(small.decode(row), tokenizer.decode(small.used_to_full[row]))
    assert small.hash != tokenizer.hash


def test_tokenizer_survives_saving_to_the_bit(tokenizer, pictures, tmp_path):
    used = np.array([0, 1, 0, 0, 2, 0, 3], np.int32)
    for full_to_used in (None, used):
        before = image_tokenizer.ImageTokenizer(
            tokenizer.module, tokenizer.params, full_to_used, chunk=4
        )
        image_tokenizer.save(tmp_path / "tokenizer", before, {"psnr": 30.5})
        after = image_tokenizer.load(tmp_path / "tokenizer")
        assert after.module == before.module and after.hash == before.hash and after.chunk == 4
        jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
        np.testing.assert_array_equal(after.encode(pictures), before.encode(pictures))


def test_hash_tells_any_change_of_weights_or_settings(tokenizer):
    rows = tokenizer.params["quantize"]["embedding"]
    params = tokenizer.params | {"quantize": {"embedding": np.nextafter(rows, 9)}}
    assert image_tokenizer.ImageTokenizer(tokenizer.module, params).hash != tokenizer.hash
    other = tokenizer.module.clone(num_res_blocks=2)
    assert image_tokenizer.ImageTokenizer(other, tokenizer.params).hash != tokenizer.hash


def test_wrong_images_and_codes_are_named(tokenizer, pictures):
    with pytest.raises(ValueError, match=r"uint8\[6, 4, 8, 3\], the image tokenizer expects"):
        tokenizer.encode(pictures[:, :4])
    with pytest.raises(ValueError, match=r"float32\[6, 8, 8, 3\]"):
        tokenizer.encode(pictures.astype(np.float32))
    with pytest.raises(ValueError, match=r"codes have shape \[1, 15\]"):
        tokenizer.decode(np.zeros((1, 15), np.int32))
    with pytest.raises(ValueError, match="codes run from 0 to 7, the image tokenizer has 0 to 6"):
        tokenizer.decode(np.arange(16, dtype=np.int32)[None] % 8)
