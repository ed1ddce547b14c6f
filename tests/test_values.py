"""Values as users pass them: strings, lists, arrays, images of Pillow; the rest is a line."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from udd_jax import values
from udd_jax.data import pixels

SIZE = 8
ONE = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)


def test_a_string_is_one_prompt_and_any_sequence_of_strings_is_many():
    assert values.texts("a circle") == ["a circle"]
    for many in (["a", "b"], ("a", "b"), np.array(["a", "b"]), (c for c in "ab")):
        assert values.texts(many) == ["a", "b"]


def test_every_kind_of_picture_is_the_same_picture(tmp_path):
    pixels.write_png(tmp_path / "a.png", ONE)
    image, path = Image.fromarray(ONE), tmp_path / "a.png"
    for one in (ONE, image, path, str(path), [ONE], [image], ONE[None]):
        np.testing.assert_array_equal(values.pictures(one, SIZE), ONE[None])
    many = values.pictures([ONE, image, path], SIZE)
    np.testing.assert_array_equal(many, np.stack([ONE] * 3))
    assert values.pictures([], SIZE).shape == (0, SIZE, SIZE, 3)


def test_an_image_of_pillow_is_cut_to_the_size_and_made_rgb():
    wide = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    assert (values.pictures(wide, SIZE) == [255, 0, 0]).all()
    grey = Image.new("L", (SIZE, SIZE), 7)
    assert (values.pictures(grey, SIZE) == 7).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "image: int '5', expected uint8"),
        (b"png", "image: bytes"),
        ([5], "image: int '5', expected an array"),
        (
            ONE[None].astype(np.float32) / 255,
            r"image: float32\[8, 8, 3\], expected uint8\[8, 8, 3\]",
        ),
        (ONE[:4], r"uint8\[4, 8, 3\], expected uint8\[8, 8, 3\]"),
        (pathlib.Path("nowhere.png"), "there is no file nowhere.png"),
    ],
)
def test_what_is_no_picture_is_one_line(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        values.pictures(value, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [(5, "prompt: int '5'"), (["a", 5], "prompt 1: int '5'"), (b"a", "bytes"), ({"a": 1}, "dict")],
)
def test_what_is_no_prompt_is_one_line(value, message):
    with pytest.raises(ValueError, match=message):
        values.texts(value)


@pytest.mark.parametrize("value", ["5", 2.5, True, None, 0])
def test_a_number_that_is_none_is_one_line(value):
    with pytest.raises(ValueError, match=r"num = .*, expected a whole number, at least 1"):
        values.whole("num", value, 1)


def test_some_rows_of_a_result_keep_all_else_that_it_says():
    tokens = np.arange(6).reshape(3, 2)
    whole = values.Result({"text": list("abc")}, tokens, np.array([4, 5, 6]), tokens[None], 3)
    part = whole.rows(1, 3)
    assert part.captions == ["b", "c"] and part.branches == 3
    assert part.tokens.tolist() == part.states[0].tolist() == [[2, 3], [4, 5]]
    assert part.calls.tolist() == [5, 6]
