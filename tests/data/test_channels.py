"""Pictures of one, three and four channels: grey, colours, colours and opacity."""

import numpy as np
import pytest
from PIL import Image

from udd_jax.data import pixels

RNG = np.random.default_rng(7)
COLOURS = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
OPACITY = RNG.integers(1, 256, (20, 24), dtype=np.uint8)
OPACITY[:5], OPACITY[5:10] = 0, 255
DRAWING = np.dstack([COLOURS, OPACITY])
SEEN = np.where(OPACITY[..., None] == 0, np.uint8((255, 255, 255, 0)), DRAWING)
GREY = COLOURS[:, :, :1]
FILES = {
    "rgb": Image.fromarray(COLOURS),
    "grey": Image.fromarray(GREY[..., 0]),
    "drawing": Image.fromarray(DRAWING),
    "grey_drawing": Image.fromarray(np.dstack([GREY, OPACITY])),
    "sixteen": Image.fromarray(GREY[..., 0].astype(np.uint16) * 257),
    "bits": Image.fromarray(GREY[..., 0] > 127),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("drawings")
    for name, image in FILES.items():
        image.save(here / f"{name}.png")
        (here / f"{name}.txt").write_text(name)
    return here


def over_white(image: np.ndarray) -> np.ndarray:
    """By Pillow, as a slow and obvious twin."""
    ground = Image.new("RGBA", image.shape[1::-1], "white")
    return np.array(Image.alpha_composite(ground, Image.fromarray(image)).convert("RGB"))


@pytest.mark.parametrize("ground", [0, 38, 255])
def test_every_colour_of_every_opacity_over_a_ground_is_rounded_as_pillow_does(ground):
    colour, opacity = np.meshgrid(np.arange(256), np.arange(256))
    image = np.stack([colour, 255 - colour, colour // 2, opacity], -1).astype(np.uint8)
    below = Image.new("RGBA", (256, 256), (ground,) * 3)
    wanted = Image.alpha_composite(below, Image.fromarray(image)).convert("RGB")
    for same in (ground, np.full((256, 256, 1), ground, np.uint8)):
        np.testing.assert_array_equal(pixels.as_rgb(image, same), np.array(wanted))


@pytest.mark.parametrize(("image", "channels"), [(GREY, 1), (COLOURS, 3), (SEEN, 4)])
def test_a_picture_comes_back_from_its_file_bit_for_bit(image, channels):
    np.testing.assert_array_equal(pixels.read(pixels.encode_png(image), channels), image)
    np.testing.assert_array_equal(pixels.in_channels(image, channels), image)
    np.testing.assert_array_equal(pixels.fit(image, (20, 24)), image)


def test_every_file_has_the_channels_that_are_asked_for(folder):
    opaque = lambda image: np.dstack([image, np.full((20, 24), 255, np.uint8)])  # noqa: E731
    luminance = np.array(Image.fromarray(COLOURS).convert("L"))[..., None]
    faint = over_white(np.dstack([GREY, GREY, GREY, OPACITY]))
    bits = (GREY > 127) * np.uint8(255)
    wanted = {
        ("rgb", 1): luminance,
        ("rgb", 4): opaque(COLOURS),
        ("grey", 1): GREY,
        ("grey", 4): opaque(np.repeat(GREY, 3, axis=2)),
        ("drawing", 1): np.array(Image.fromarray(over_white(DRAWING)).convert("L"))[..., None],
        ("drawing", 3): over_white(DRAWING),
        ("drawing", 4): SEEN,
        ("grey_drawing", 1): faint[..., :1],
        ("grey_drawing", 3): faint,
        ("sixteen", 1): GREY,
        ("sixteen", 4): opaque(np.repeat(GREY, 3, axis=2)),
        ("bits", 1): bits,
    }
    for (name, channels), image in wanted.items():
        found = pixels.read(folder / f"{name}.png", channels)
        np.testing.assert_array_equal(found, image, err_msg=f"{name} {channels}")


def test_colours_that_nobody_sees_are_white_and_do_not_reach_what_is_seen():
    assert (pixels.read(pixels.encode_png(DRAWING), 4)[:5] == (255, 255, 255, 0)).all()
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, :4], half[:, 4:] = (200, 0, 0, 0), (0, 0, 200, 255)  # a clear red, and blue
    small = pixels.fit(half, 3, "box")
    assert (small[:, 0] == (255, 255, 255, 0)).all() and 0 < small[0, 1, 3] < 255
    assert (abs(small[:, 1:, :3].astype(int) - (0, 0, 200)) <= 1).all()


def test_hidden_pixels_of_any_channels_leave_no_trace():
    mask = RNG.random((20, 24)) < 0.5
    for image in (GREY, SEEN):
        other = np.where(mask[..., None], 255 - image, image)
        np.testing.assert_array_equal(pixels.hide(image, mask), pixels.hide(other, mask))
        assert (pixels.hide(image, mask)[~mask] == image[~mask]).all()
    assert (pixels.hide(SEEN, mask | True) == (128, 128, 128, 255)).all()


def test_other_numbers_of_channels_are_one_line():
    with pytest.raises(ValueError, match=r"uint8\[20, 24, 2\], expected .* 1, 3 or 4 channels"):
        pixels.in_channels(DRAWING[..., :2], 4)
