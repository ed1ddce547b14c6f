"""One token space: ids, positions and the way between local and global ids."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udd_jax.diffusion import vocab

LAYOUT = vocab.image_text((2, 3), image_classes=5, text_classes=4, text_length=3)


def test_the_image_comes_first_and_the_mask_is_the_last_id():
    assert (LAYOUT.size, LAYOUT.mask_id, LAYOUT.length) == (10, 9, 9)
    assert LAYOUT.offsets == (0, 5) and LAYOUT.starts == (0, 6)
    assert LAYOUT.slices == (slice(0, 6), slice(6, 9))
    np.testing.assert_array_equal(LAYOUT.modality_of, [0] * 6 + [1] * 3)


def test_published_layout():
    full = vocab.image_text((32, 32), image_classes=2887, text_classes=8192, text_length=128)
    assert (full.size, full.length, full.mask_id, full.offsets[1]) == (11080, 1152, 11079, 2887)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(2, 6)), min_size=1, max_size=3),
    st.integers(0, 2**31),
)
def test_split_undoes_fuse_and_keeps_each_modality_in_its_own_ids(sizes, seed):
    layout = vocab.Vocab(tuple(vocab.Modality(f"m{i}", n, k) for i, (n, k) in enumerate(sizes)))
    rng = np.random.default_rng(seed)
    tokens = {m.name: rng.integers(0, m.classes, (2, m.length)) for m in layout.modalities}
    x = np.asarray(layout.fuse(tokens))
    assert layout.size == sum(k for _, k in sizes) + 1
    for m, where, first in zip(layout.modalities, layout.slices, layout.offsets, strict=True):
        assert (first <= x[:, where]).all() and (x[:, where] < first + m.classes).all()
        np.testing.assert_array_equal(layout.split(x)[m.name], tokens[m.name])


@pytest.mark.parametrize(
    ("m", "x", "local"), [(0, [0, 4, 9], [0, 4, 5]), (1, [5, 8, 9], [0, 3, 4])]
)
def test_a_mask_is_the_local_id_behind_the_classes_and_comes_back(m, x, local):
    np.testing.assert_array_equal(LAYOUT.local(m, jnp.array(x)), local)
    np.testing.assert_array_equal(LAYOUT.globalise(m, jnp.array(local)), x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: vocab.Modality("image", 6, 5, (2, 2)), "grid .2, 2. has 4 cells.*length 6"),
        (lambda: vocab.Modality("image", 6, 5, (3, 3)), "grid .3, 3. has 9 cells.*length 6"),
        (lambda: vocab.Modality("text", 0, 5), "'text': length 0 and classes 5"),
        (lambda: LAYOUT.index("sound"), "'sound' is not one of image, text"),
        (lambda: LAYOUT.fuse({"image": np.zeros((1, 6), int)}), "'text' are missing"),
        (
            lambda: LAYOUT.fuse({"image": np.zeros((1, 6), int), "text": np.zeros((1, 4), int)}),
            "'text' has 4 positions, expected 3",
        ),
        (
            lambda: LAYOUT.fuse({"image": np.zeros((1, 6), int), "text": np.zeros((1, 2), int)}),
            "'text' has 2 positions, expected 3",
        ),
    ],
)
def test_a_wrong_layout_is_an_error_that_names_the_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_fuse_undoes_split_where_there_are_masks():
    x = np.array([[0, 6, 2, 3, 6], [6, 6, 6, 5, 4]])
    ours = vocab.image_text((1, 3), 3, 3, 2)
    assert ours.mask_id == 6 and np.array_equal(ours.fuse(ours.split(jnp.asarray(x))), x)
