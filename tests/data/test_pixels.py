"""Pixels in and out: every kind of file, and masks that do not leak."""

import base64
import io
import os

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from udd_jax.data import pixels

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # odd sizes: a swapped axis shows
SMOOTH = np.array(Image.fromarray(PIXELS).resize((70, 50), Image.Resampling.BICUBIC))
GREY = PIXELS[:, :, 0]


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey3(values) -> np.ndarray:
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2)


# Reading


def test_postscript_is_never_decoded_whatever_its_name(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(file_of(Image.fromarray(PIXELS), "EPS"))
    with pytest.raises(ValueError, match="is not an image of a format that is read"):
        pixels.read(path)
    assert not {"EPS", "WMF"} & set(pixels.formats())
    assert not {".eps", ".ps", ".wmf"} & pixels.suffixes()


@pytest.mark.parametrize("kind", ["AVIF", "TGA", "JPEG2000", "ICO", "QOI", "PCX", "SGI", "DDS"])
def test_formats_that_are_safely_decoded_are_read(kind):
    image = Image.new("RGB", (32, 32), (200, 40, 90))
    read = pixels.read(file_of(image, kind))
    assert read.shape == (32, 32, 3)
    assert np.abs(read.astype(int) - (200, 40, 90)).max() < 8


def test_a_picture_is_the_same_from_a_path_a_string_and_bytes(tmp_path):
    path = tmp_path / "a.png"
    pixels.write_png(path, PIXELS)
    for source in (path, str(path), path.read_bytes()):
        image = pixels.read(source)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, PIXELS)
    assert pixels.read(pixels.encode_png(PIXELS[:1, :1])).shape == (1, 1, 3)


def test_grey_palette_and_one_bit_pictures_become_rgb():
    np.testing.assert_array_equal(pixels.read(file_of(Image.fromarray(GREY))), grey3(GREY))
    bits = GREY > 127
    np.testing.assert_array_equal(
        pixels.read(file_of(Image.fromarray(bits))), grey3(bits * np.uint8(255))
    )
    palette = Image.fromarray(PIXELS).quantize(256)
    np.testing.assert_array_equal(pixels.read(file_of(palette)), PIXELS)
    np.testing.assert_array_equal(pixels.read(file_of(palette, "GIF")), PIXELS)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_over_white(mode):
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    alpha[0, :2] = 0, 255
    opaque = Image.fromarray(PIXELS if mode == "RGBA" else GREY)
    image = opaque.convert("RGBA")
    image.putalpha(Image.fromarray(alpha))
    content = file_of(image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    share = alpha[:, :, None] / 255
    wanted = np.array(opaque.convert("RGB")) * share + 255 * (1 - share)
    assert abs(pixels.read(content) - wanted).max() <= 1
    assert (pixels.read(content)[0, 0] == 255).all()


def test_a_transparent_palette_entry_or_colour_is_white():
    palette = Image.fromarray(PIXELS).quantize(256)
    first = palette.getpixel((0, 0))
    cases = [
        (palette, {"transparency": first}),
        (palette, {"transparency": bytes(0 if i == first else 255 for i in range(256))}),
        (Image.fromarray(PIXELS), {"transparency": tuple(PIXELS[0, 0].tolist())}),
    ]
    for image, options in cases:
        read = pixels.read(file_of(image, **options))
        assert (read[0, 0] == 255).all()
        np.testing.assert_array_equal(read[1:], PIXELS[1:])


def test_sixteen_bits_are_scaled_and_not_cut():
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65406, 65535]], np.uint16)
    wanted = np.array([[0, 0, 1, 1], [128, 156, 254, 255]])
    for kind in ("PNG", "TIFF"):
        read = pixels.read(file_of(Image.fromarray(values), kind))
        np.testing.assert_array_equal(read, grey3(wanted))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 100, 255]], np.int32), [[0, 100, 255]]),
        (np.array([[0, 257, 65535]], np.int32), [[0, 1, 255]]),
        (np.array([[-1000, 0, 1000]], np.int32), [[0, 128, 255]]),
        (np.array([[0, 0.2, 1]], np.float32), [[0, 51, 255]]),
        (np.array([[0, 51.4, 200]], np.float32), [[0, 51, 200]]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [[0, 0, 255]]),
        (np.array([[1e30, 0, 2e30]], np.float32), [[128, 0, 255]]),
        (np.array([[7e5, 7e5]], np.float32), [[0, 0]]),
    ],
)
def test_integers_and_floats_are_scaled_by_the_white_that_fits_them(values, wanted):
    read = pixels.read(file_of(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(read, grey3(wanted))


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF")]
)
def test_other_colour_spaces_come_back_as_the_colours_they_were(mode, kind):
    image = Image.fromarray(SMOOTH)
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    else:
        image = image.convert(mode)
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    read = pixels.read(file_of(image, kind, **options)).astype(int)
    assert read.shape == SMOOTH.shape
    assert np.abs(read - SMOOTH).mean() < 3


STORED = {  # by the EXIF standard: where the first row and the first column of the file belong
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_photograph_is_turned_upright(orientation, kind):
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](PIXELS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels.read(file_of(stored, kind, exif=exif, **options)), PIXELS)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF"])
def test_the_size_of_a_photograph_is_that_of_the_upright_one(orientation, kind):
    upright = np.zeros((24, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    content = file_of(stored, kind, exif=exif)
    assert pixels.size(content) == (10, 24) == pixels.read(content).shape[1::-1]


def test_a_damaged_exif_block_does_not_cost_the_picture():
    content = file_of(Image.fromarray(SMOOTH), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert pixels.read(content).shape == SMOOTH.shape


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind):
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(pixels.read(content), np.full((6, 9, 3), [255, 0, 0]))


def bad_files() -> dict[str, bytes]:
    jpeg, png = file_of(Image.fromarray(SMOOTH), "JPEG"), file_of(Image.fromarray(SMOOTH))
    middle = len(png) // 2
    huge = bytearray(png)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    return {
        "empty.png": b"",
        "text.png": b"a small red circle",
        "page.html": b"<html></html>",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[:middle],
        "header.png": png[:20],
        "flipped.png": png[:middle] + bytes(255 - b for b in png[middle:]),
        "cut.gif": file_of(Image.fromarray(SMOOTH), "GIF")[:900],
        "cut.webp": file_of(Image.fromarray(SMOOTH), "WEBP")[:200],
        "cut.tiff": file_of(Image.fromarray(SMOOTH), "TIFF")[:200],
        "bomb.png": bytes(huge),
    }


@pytest.mark.parametrize("name", bad_files())
def test_a_file_that_is_no_whole_image_is_one_line_that_names_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bad_files()[name])
    for source in (path, path.read_bytes()):
        with pytest.raises(ValueError, match=r"^image: ") as error:
            pixels.read(source)
        assert "\n" not in str(error.value)
        assert source is not path or str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        pixels.read(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="is a folder"):
        pixels.read(tmp_path)


@pytest.mark.parametrize("side", [9000, 12_000])
def test_more_pixels_than_the_limit_are_refused_unread(side):
    content = file_of(Image.new("1", (side, side)))
    with pytest.raises(ValueError, match="has more than 80000000 pixels"):
        pixels.read(content)


@hypothesis.given(strategies.data())
@hypothesis.settings(max_examples=150, deadline=None)
def test_damage_anywhere_gives_a_picture_or_a_value_error(data):
    kind = data.draw(strategies.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
    content = bytearray(file_of(Image.fromarray(PIXELS), kind))
    for _ in range(data.draw(strategies.integers(1, 4))):
        place = data.draw(strategies.integers(0, len(content) - 1))
        content[place] = data.draw(strategies.integers(0, 255))
    try:
        assert pixels.read(bytes(content)).dtype == np.uint8
    except ValueError as error:
        assert str(error).startswith("image: ") and "\n" not in str(error)


# Fitting


@pytest.mark.parametrize("shape", [(8, 12, 3), (12, 8, 3), (9, 8, 3), (8, 8, 3)])
def test_fit_cuts_the_centre_and_leaves_its_pixels_alone(shape):
    image = RNG.integers(0, 256, shape, dtype=np.uint8)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    for filter in ("lanczos", "nearest", "box"):
        np.testing.assert_array_equal(
            pixels.fit(image, 8, filter), image[top : top + 8, left : left + 8]
        )


def test_fit_shrinks_by_means_and_enlarges():
    image = RNG.integers(0, 256, (8, 14, 3), dtype=np.uint8)
    means = image[:, 3:11].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    assert np.abs(pixels.fit(image, 4, "box") - means).max() <= 1  # rounded twice
    big = pixels.fit(image, 24, "nearest")
    np.testing.assert_array_equal(big[::3, ::3], image[:, 3:11])
    assert pixels.fit(image[:1, :1], 5).shape == (5, 5, 3)


def test_an_unknown_filter_or_a_wrong_array_is_one_line():
    with pytest.raises(ValueError, match="filter: 'area' is not one of nearest, box, "):
        pixels.fit(PIXELS, 4, "area")
    for wrong in (GREY, PIXELS.astype(np.float32), PIXELS[:0], PIXELS[:, :, :2]):
        with pytest.raises(ValueError, match=r"expected (uint8|at least one pixel)"):
            pixels.fit(wrong, 4)


# Writing


def test_writing_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    pixels.write_png(path, PIXELS)
    with pytest.raises(ValueError, match="expected uint8"):
        pixels.write_png(path, PIXELS / 255)

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        pixels.write_png(path, 255 - PIXELS)
    assert os.listdir(tmp_path) == ["a.png"]
    np.testing.assert_array_equal(pixels.read(path), PIXELS)


def test_a_data_address_holds_the_picture():
    head, body = pixels.data_uri(PIXELS).split(",")
    assert head == "data:image/png;base64"
    np.testing.assert_array_equal(pixels.read(base64.b64decode(body)), PIXELS)


# Masks


def test_a_mask_is_white_where_it_says_and_has_the_size_of_its_image(tmp_path):
    mask = RNG.random((5, 7)) < 0.5
    path = tmp_path / "m.png"
    Image.fromarray(mask).save(path)
    np.testing.assert_array_equal(pixels.read_mask(path, (5, 7)), mask)
    pixels.write_png(path, np.full((4, 4, 3), 127, np.uint8))
    assert not pixels.read_mask(path, 4).any()
    pixels.write_png(path, np.full((4, 4, 3), 128, np.uint8))
    assert pixels.read_mask(path, 4).all()
    with pytest.raises(ValueError, match=r"m.png is 4 x 4 pixels, the image is 7 x 5;"):
        pixels.read_mask(path, (5, 7))


def test_one_white_pixel_frees_its_code_and_no_other():
    for y, x in np.ndindex(6, 8):
        mask = np.zeros((6, 8), bool)
        mask[y, x] = True
        codes = pixels.code_mask(mask, (3, 2))
        assert codes.shape == (3, 2) and codes.sum() == 1 and codes[y // 2, x // 4]
    with pytest.raises(ValueError, match="6 x 8 pixels do not divide into 4 x 4 codes"):
        pixels.code_mask(np.zeros((6, 8), bool), (4, 4))


def test_a_mask_fitted_keeps_every_white_pixel_that_the_image_keeps():
    for y, x in np.ndindex(10, 15):
        mask = np.zeros((10, 15), bool)
        mask[y, x] = True
        fitted = pixels.fit_mask(mask, 4)
        assert fitted.any() == (2 <= x < 12)
        if fitted.any():
            assert fitted[int(y * 0.4), int((x - 2) * 0.4)] and fitted.sum() <= 4
    mask = RNG.random((6, 6)) < 0.5
    np.testing.assert_array_equal(pixels.fit_mask(mask, 6), mask)
    np.testing.assert_array_equal(pixels.fit_mask(mask, 12), mask.repeat(2, 0).repeat(2, 1))


def test_hidden_pixels_leave_no_trace_and_given_ones_stay():
    mask = RNG.random((5, 7)) < 0.5
    other = np.where(mask[:, :, None], 255 - PIXELS, PIXELS)
    hidden = pixels.hide(PIXELS, mask)
    assert hidden.dtype == np.uint8
    np.testing.assert_array_equal(hidden, pixels.hide(other, mask))
    np.testing.assert_array_equal(hidden[~mask], PIXELS[~mask])
    assert len(np.unique(hidden[mask], axis=0)) == 1
    assert (pixels.hide(PIXELS, np.ones((5, 7), bool)) == 128).all()
    np.testing.assert_array_equal(pixels.hide(PIXELS, np.zeros((5, 7), bool)), PIXELS)
    with pytest.raises(ValueError, match=r"mask: bool\[7, 5\], expected bool\[5, 7\]"):
        pixels.hide(PIXELS, mask.T)


def test_the_composite_shows_given_pixels_outside_the_mask():
    mask = RNG.random((5, 7)) < 0.5
    made = pixels.composite(255 - PIXELS, PIXELS, mask)
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(made[~mask], PIXELS[~mask])
    np.testing.assert_array_equal(made[mask], 255 - PIXELS[mask])
    both = pixels.composite(np.stack([made, made]), np.stack([PIXELS] * 2), np.stack([~mask] * 2))
    np.testing.assert_array_equal(both, [made * 0 + PIXELS] * 2)


def photograph(width, height) -> np.ndarray:
    """uint8[height, width, 3] with detail at every scale, as in a photograph."""
    rng, sum_ = np.random.default_rng(0), np.zeros((height, width, 3))
    for power in range(2, 9):
        some = Image.fromarray(rng.integers(0, 256, (2**power, 2**power, 3), np.uint8))
        sum_ += np.asarray(some.resize((width, height), Image.Resampling.BICUBIC)) * 2.0**-power
    return ((sum_ - sum_.min()) / np.ptp(sum_) * 255).astype(np.uint8)


def rms(a, b) -> float:
    return float(np.sqrt(np.square(a.astype(float) - b).mean()))


@pytest.mark.parametrize(
    ("shape", "size", "decoded", "most"),
    [
        ((1304, 904), 32, (163, 113), 0.6),  # an eighth; the nearest pixels are 2.0 away
        ((1304, 904), 128, (652, 452), 0.67),  # a half; the nearest pixels are .69 away
        ((1300, 900), 32, (163, 113), 1.7),  # half a block beyond the edge is seen
    ],
)
def test_a_large_jpeg_is_decoded_smaller_and_fits_as_before(shape, size, decoded, most):
    image = photograph(*shape)
    file = file_of(Image.fromarray(image), "JPEG", quality=90)
    small, found = pixels.read_for(file, size)
    assert small.shape[1::-1] == decoded and found == shape
    assert rms(pixels.fit(small, size), pixels.fit(image, size)) < most  # grey levels


def test_what_is_not_a_large_jpeg_is_read_as_it_is():
    image = Image.fromarray(photograph(200, 130))
    for kind in ("JPEG", "PNG", "WEBP"):
        file = file_of(image, kind)
        read, found = pixels.read_for(file, 32)
        np.testing.assert_array_equal(read, pixels.read(file))
        assert found == (200, 130)


def test_a_jpeg_on_its_side_is_turned_and_its_size_too():
    image, exif = Image.fromarray(photograph(1300, 900)), Image.Exif()
    exif[0x0112] = 6
    read, found = pixels.read_for(file_of(image, "JPEG", exif=exif), 32)
    assert read.shape == (163, 113, 3) and found == (900, 1300)
