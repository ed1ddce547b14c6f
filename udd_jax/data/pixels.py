"""Reading, cutting and writing pixels, with NumPy and Pillow only.

An image is uint8[H, W, C]: grey (C = 1), colours (3), or colours and opacity (4). Where the opacity
is 0 the colour is white, so that nothing unseen is kept. A run has one C (`image_channels`), and
`in_channels` gives any picture that many.

A mask is bool[H, W], True (white) where pixels are generated. Infilling uses a mask in three ways.
A code is generated if its cell has any white pixel (`code_mask`). The content under the white
pixels must not reach the model, not even through the receptive field of the image tokenizer, so it
is painted over before encoding (`hide`). The given pixels are shown as they were, not as the
tokenizer would return them (`composite`).

    codes = tokenizer.encode(pixels.hide(image, mask)[None])
    free = pixels.code_mask(mask, tokenizer.grid)
    ...
    shown = pixels.composite(tokenizer.decode(new_codes)[0], image, mask)
"""

import base64
import contextlib
import functools
import importlib.util
import io
import math
import os
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps

from udd_jax.errors import UserError, first_line
from udd_jax.runtime import files

CROP, FILTER = "centre square", "lanczos"  # of `fit`
# Both sides of a JPEG decoded at a reduced scale, in sides of the result: also the smallest random
# crop (.77 of a side) is then reduced to less than a half, by `fit`, with a better filter.
DETAIL = 3
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}  # of an image, and the mode of Pillow
SAID = {1: " in grey", 3: "", 4: " with opacity"}  # after "32 x 32 pixels"
_CLEAR = np.array((255, 255, 255, 0), np.uint8)
_MOST_PIXELS = 80_000_000  # a file that claims more counts as a decompression bomb

# Of EXIF: from 5 on rows become columns. These formats have it in the head and show it in no size.
ORIENTATION, TURNED = 0x0112, ("JPEG", "MPO", "WEBP")

# Formats whose decoders run no program and start no other one: PostScript and metafiles are not
# among them. HEIF and JXL need a plugin (pillow-heif, pillow-jxl-plugin), used where installed.
FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA"),
    *("ICO", "ICNS", "QOI", "DDS", "PCX", "PSD", "SGI", "XBM", "HEIF", "JXL"),
)
_PLUGINS = ("pillow_heif", "pillow_jxl")


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow and its plugins can open."""
    Image.init()
    for plugin in filter(importlib.util.find_spec, _PLUGINS):
        with contextlib.suppress(ImportError):
            module = importlib.import_module(plugin)
            getattr(module, "register_heif_opener", lambda: None)()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@functools.cache
def suffixes() -> frozenset[str]:
    """The file endings of `formats()`, in lower case, with their dot: ".png", ".jpe", ".avif"."""
    known = formats()
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def read(source: str | os.PathLike | bytes, channels: int = 3) -> np.ndarray:
    """Decode an image file, or its bytes, to uint8[H, W, channels]; see `read_for`."""
    return read_for(source, None, channels)[0]


def read_for(
    source: str | os.PathLike | bytes,
    size: int | tuple[int, int] | None = None,
    channels: int = 3,
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode an image file, or its bytes: (uint8[H, W, channels], (width, height) of the file).

    A large JPEG that `fit` will reduce to `size` is decoded at 1/2, 1/4 or 1/8 of its scale, with
    both sides at least DETAIL times `size` (its longer side). None decodes at full scale.

    Reads any of FORMATS, found by its content and not by its name, and any mode: palettes, grey,
    CMYK and YCCK, 16 bit and float (scaled to 8 bit). The result has `channels` (`in_channels`),
    the EXIF orientation is applied, and the first frame of an animation is taken. Raises a one-line
    ValueError for anything else: no such file, a folder, a file that is not an image, a truncated
    or damaged file, more than 80 million pixels.
    """
    if isinstance(source, bytes):
        name, file = f"the {len(source)} bytes given", io.BytesIO(source)
    else:
        name, file = str(source), source
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # oddities that Pillow can ignore
            with Image.open(file, formats=formats()) as image:
                if math.prod(image.size) > _MOST_PIXELS:
                    raise Image.DecompressionBombError
                full = image.size
                if size and image.format in ("JPEG", "MPO"):
                    side = DETAIL * max(both(size))
                    image.draft(None, (side, side))
                scaled = image.size
                image.load()
                with contextlib.suppress(Exception):  # a damaged EXIF block alone is fine
                    ImageOps.exif_transpose(image, in_place=True)
                turned = image.size != scaled
                return from_pillow(image, channels), full[::-1] if turned else full
    except Image.DecompressionBombError:
        raise UserError(f"image: {name} has more than {_MOST_PIXELS} pixels") from None
    except IsADirectoryError:
        raise UserError(f"image: {name} is a folder; give an image file") from None
    except FileNotFoundError:
        raise UserError(f"image: there is no file {name}") from None
    except PermissionError:
        raise UserError(f"image: no permission to read {name}") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"image: {name} is not an image of a format that is read") from None
    except Exception as error:  # the decoders of Pillow raise errors of any type
        cause = first_line(error)
        raise UserError(f"image: {name} is damaged: {cause}") from None


def size(source: bytes) -> tuple[int, int]:
    """(width, height) of an encoded image as it is read, without decoding it.

    ValueError if it is not an image.
    """
    try:
        with _header(source) as image:
            turned = False
            with contextlib.suppress(Exception):  # as in `read`
                turned = image.format in TURNED and image.getexif().get(ORIENTATION, 1) >= 5
            return image.size[::-1] if turned else image.size
    except Exception as error:  # the decoders of Pillow raise errors of any type
        raise UserError(f"image: the {len(source)} bytes given are damaged: {error}") from None


def ending(source: bytes | np.ndarray) -> str:
    """The ending of a file with these bytes, such as ".jpeg", found by its content.

    "" for pixels, and for a format without an ending of its name.
    """
    if not isinstance(source, bytes):
        return ""
    try:
        with _header(source) as image:
            end = f".{image.format.lower()}"
    except Exception:  # the decoders of Pillow raise errors of any type
        return ""
    return end if end in suffixes() else ""


def may_be_clear(source: bytes) -> bool:
    """Whether an encoded image has an opacity, without decoding it. False if it is not an image."""
    with contextlib.suppress(Exception), _header(source) as image:
        return image.has_transparency_data
    return False


@contextlib.contextmanager
def _header(source: bytes):
    """The image of Pillow of an encoded image, of which only the header was read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        with Image.open(io.BytesIO(source), formats=formats()) as image:
            yield image


def both(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a size, which is the side of a square or both."""
    return (size, size) if isinstance(size, int | np.integer) else tuple(size)


def shown(size: int | tuple[int, int]) -> str:
    """A size in words, width first as usual: "48 x 32"."""
    height, width = both(size)
    return f"{width} x {height}"


def fit(image: np.ndarray, size: int | tuple[int, int], filter: str = FILTER) -> np.ndarray:
    """The centre square of uint8[H, W, C], resized to uint8[size, size, C].

    The short side becomes `size`. For a size (height, width) it is the largest middle part of these
    proportions. A colour counts as much as it is opaque. `filter` names a filter of Pillow:
    nearest, box, bilinear, hamming, bicubic, lanczos. Raises ValueError for any other name.
    """
    resampling = Image.Resampling.__members__.get(filter.upper())
    if resampling is None:
        names = ", ".join(name.lower() for name in Image.Resampling.__members__)
        raise UserError(f"filter: {filter!r} is not one of {names}")
    check(image)
    height, width = both(size)
    top, left, bottom, right = middle(image.shape[:2], (height, width))
    if image.shape[:2] == (height, width):
        return image
    box = left, top, right, bottom
    small = np.array(to_pillow(image).resize((width, height), resampling, box=box))
    return in_channels(small.reshape(height, width, -1), image.shape[2])


def encode_png(image: np.ndarray) -> bytes:
    """uint8[H, W, C] as a PNG file's bytes."""
    check(image)
    file = io.BytesIO()
    to_pillow(image).save(file, "PNG")
    return file.getvalue()


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8[H, W, C] as a PNG file, all of it or nothing."""
    files.write_bytes(path, encode_png(image))


def data_uri(image: np.ndarray) -> str:
    """uint8[H, W, C] as a `data:` address, for a page without other files."""
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def read_mask(path: str | os.PathLike, size: int | tuple[int, int]) -> np.ndarray:
    """A black and white image file as bool[H, W], `white`.

    `size` is the side, or (height, width), of its image. ValueError for a mask of another size.
    """
    height, width = both(size)
    image = read(path, 4)
    if image.shape[:2] != (height, width):
        raise UserError(
            f"mask: {path} is {image.shape[1]} x {image.shape[0]} pixels, the image is "
            f"{width} x {height}; give a mask of the image's size"
        )
    return white(image)


def white(image: np.ndarray) -> np.ndarray:
    """uint8[H, W, C] as bool[H, W]: True where it is nearer to white, and not where it is clear."""
    return as_rgb(image, ground=0).mean(axis=-1) > 127.5


def fit_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """bool[H, W] to bool[size, size], cut like `fit`; True if any of its pixels is True."""
    height, width = both(size)
    top, left, bottom, right = middle(mask.shape, (height, width))
    grey = Image.fromarray(mask.astype(np.float32))
    box = left, top, right, bottom
    return np.array(grey.resize((width, height), Image.Resampling.BOX, box=box)) > 0


def code_mask(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """bool[H, W] to bool[h, w]: a code is free if any pixel of its cell is white."""
    (height, width), (rows, columns) = mask.shape, grid
    if height % rows or width % columns:
        raise UserError(
            f"mask: {height} x {width} pixels do not divide into {rows} x {columns} codes; "
            "resize it to the image size of the run"
        )
    return mask.reshape(rows, height // rows, columns, width // columns).any(axis=(1, 3))


def hide(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8[H, W, C] with the white pixels of bool[H, W] painted over.

    The new colour is the median of the given pixels, so that it does not depend on the hidden ones;
    mid-grey if no pixel is given.
    """
    check(image, mask)
    given = image[~mask]
    colour = np.median(given, axis=0) if given.size else grey(128, image.shape[2])
    return np.where(mask[:, :, None], colour.astype(np.uint8), image)


def composite(generated: np.ndarray, given: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`generated` where bool[..., H, W] is white, the pixels of `given` elsewhere."""
    return np.where(mask[..., None], generated, given)


def as_read(image: Image.Image, channels: int = 3) -> np.ndarray:
    """A Pillow image as `read` reads its file: `from_pillow`, turned by its EXIF orientation."""
    with contextlib.suppress(Exception):  # a damaged EXIF block alone is fine
        image = ImageOps.exif_transpose(image)
    return from_pillow(image, channels)


def from_pillow(image: Image.Image, channels: int = 3) -> np.ndarray:
    """Any Pillow image to uint8[H, W, channels]."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        found = _eight_bit(np.asarray(image), image.mode)
    elif image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        found = np.array(ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB"))
    else:
        mode = "L" if image.mode in ("1", "L") else "RGB"
        mode = "RGBA" if image.has_transparency_data else mode
        found = np.array(image if image.mode == mode else image.convert(mode))
    return in_channels(found.reshape(*found.shape[:2], -1), channels)


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8[H, W, C] as a Pillow image of the mode in CHANNELS."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8[H, W, C] to uint8[H, W, channels], each of CHANNELS; the same array if nothing changes.

    Colours become grey by their luminance (ITU-R 601). What is clear is put over white; with four
    channels it stays clear, and what has no opacity becomes opaque.
    """
    check(image)
    if channels == 4 == image.shape[2]:
        return np.where(image[:, :, 3:] == 0, _CLEAR, image)
    if channels == image.shape[2]:
        return image
    colours = as_rgb(image)
    if channels == 4:
        return np.dstack([colours, np.full(image.shape[:2], 255, np.uint8)])
    return colours if channels == 3 else np.array(to_pillow(colours).convert("L"))[:, :, None]


def as_rgb(images: np.ndarray, ground: int | np.ndarray = 255) -> np.ndarray:
    """uint8[..., C] to uint8[..., 3]: as it looks over a ground, white or uint8[H, W, 1].

    For what knows colours only, such as a feature network. Rounded as in Pillow's alpha_composite.
    """
    if images.shape[-1] == 1:
        return np.repeat(images, 3, axis=-1)
    if images.shape[-1] == 3:
        return images
    colours, opacity = images[..., :3].astype(np.uint16), images[..., 3:].astype(np.uint16)
    over = colours * opacity + ground * (255 - opacity) + 128  # below 2^16
    return ((over + (over >> 8)) >> 8).astype(np.uint8)


def grey(value: int, channels: int) -> np.ndarray:
    """An opaque grey as a pixel uint8[channels]."""
    return np.array((value, value, value, 255)[:channels], np.uint8)


def _eight_bit(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey numbers to uint8.

    White is 65535 in a 16-bit image. If the mode does not say what white is, it is the smallest
    usual value (1 for floats, 255, 65535) that no pixel exceeds. Values that fit none of them are
    stretched from the smallest to the largest.
    """
    values = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    whites = {"F": (1, 255, 65535), "I": (255, 65535)}.get(mode, (65535,))
    white = next((w for w in whites if low >= 0 and high <= w), None)
    if white is None:
        values, white = values - low, (high - low) or 1
    return np.rint(values * (255 / white)).astype(np.uint8)


def middle(shape: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the largest part of `shape`, (height, width), in its middle
    that has the proportions of `wanted`, up to a pixel."""
    (height, width), (tall, wide) = shape, wanted
    if width * tall >= height * wide:
        tall, wide = height, max(1, round(height * wide / tall))
    else:
        tall, wide = max(1, round(width * tall / wide)), width
    top, left = (height - tall) // 2, (width - wide) // 2
    return top, left, top + tall, left + wide


def check(image: np.ndarray, mask: np.ndarray | None = None) -> None:
    """ValueError unless the image is uint8[H, W, C] and its mask, if any, bool[H, W]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in CHANNELS:
        raise UserError(
            f"image: {image.dtype}{list(image.shape)}, expected uint8[H, W, C] with 1, 3 or 4 "
            "channels"
        )
    if not image.size:
        raise UserError(f"image: {image.dtype}{list(image.shape)}, expected at least one pixel")
    if mask is not None and (mask.dtype != bool or mask.shape != image.shape[:2]):
        raise UserError(
            f"mask: {mask.dtype}{list(mask.shape)}, expected bool{list(image.shape[:2])} as the "
            "image"
        )
