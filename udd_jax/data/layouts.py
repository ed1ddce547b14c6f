"""Layout files: maps of categories as JSON (rows of ids), .npy, or a picture of ids (.seg.png)."""

import io
import json
import os
import pathlib
import re

import numpy as np
from PIL import Image

from udd_jax.data import arrays, pixels
from udd_jax.errors import UserError, first_line
from udd_jax.runtime import files

# Colours of the ids 0, 1, 2, ...: white ground, then hues that most people can tell apart.
COLOURS = np.array(
    [
        *((245, 245, 245), (230, 80, 60), (60, 120, 216), (70, 160, 90), (240, 180, 50)),
        *((140, 90, 180), (80, 190, 200), (120, 80, 50), (230, 130, 180), (90, 95, 105)),
    ],
    np.uint8,
)
CELL = 8  # pixels of an id in a picture
SUFFIXES = (".npy", ".json", ".png", ".seg.png")


def read(source: str | os.PathLike | bytes) -> np.ndarray:
    """A file, or its bytes -> int32[rows, columns].

    ValueError, one line, if it holds no such map; OSError if it cannot be read.
    """
    if isinstance(source, bytes):
        name, suffix, content = f"a file of {len(source)} bytes", "", source
        if content.startswith(arrays.MAGIC):
            suffix = arrays.SUFFIX
        elif re.match(rb"\s*(\[|\d+\s*$)", content):
            suffix = ".json"
    else:
        name, suffix = str(source), pathlib.Path(source).suffix.lower()
        content = pathlib.Path(source).read_bytes()
    try:
        found = _decoded(content, suffix)
    except Exception as error:  # damaged files raise errors of any type
        cause = first_line(error)
        raise UserError(f"{name} is not a layout: {cause}") from None
    return check(found, name)


def _decoded(content: bytes, suffix: str) -> np.ndarray:
    file = io.BytesIO(content)
    if suffix == ".json":
        return np.array(json.loads(content.decode("utf-8")))
    if suffix == arrays.SUFFIX:
        return arrays.read(content)
    try:
        with Image.open(file, formats=pixels.formats()) as image:
            if image.mode == "1":
                return np.asarray(image).astype(np.uint8)
            if image.mode not in ("L", "P", "I") and not image.mode.startswith("I;16"):
                raise UserError(f"a picture of mode {image.mode}, expected one number a pixel")
            return np.asarray(image)
    except Image.UnidentifiedImageError:
        raise UserError("expected JSON, .npy or a picture of ids") from None


def check(found, name: str = "the layout") -> np.ndarray:
    """Rows of ids, or one id, as int32[rows, columns]. ValueError, one line, for anything else."""
    try:
        found = np.asarray(found)
    except ValueError:  # rows of different lengths
        raise UserError(f"{name} has rows of different lengths") from None
    found = found[None, None] if found.ndim == 0 else found
    if found.ndim != 2 or found.dtype.kind not in "iu" or not found.size:
        raise UserError(f"{name} is {found.dtype}{list(found.shape)}, expected int[rows, columns]")
    if not -(2**31) <= found.min() <= found.max() < 2**31:
        raise UserError(f"{name} has ids up to {found.max()}, expected whole numbers of 32 bits")
    return found.astype(np.int32)


def cut(layout: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The middle of a map that a picture of `shape` = (height, width) is cut from: the largest
    part of its proportions."""
    top, left, bottom, right = pixels.middle(layout.shape, shape)
    return layout[top:bottom, left:right]


def fit(layout: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """int[rows, columns] -> int32 of the size `grid`: of each cell, the id in its middle."""
    rows, columns = (
        np.minimum((np.arange(n) + 0.5) * size / n, size - 1).astype(int)
        for n, size in zip(grid, layout.shape, strict=True)
    )
    return np.asarray(layout, np.int32)[np.ix_(rows, columns)]


def write(path: str | os.PathLike, layout: np.ndarray) -> None:
    """Writes rows of ids as JSON, atomically."""
    files.write_text(path, json.dumps(np.asarray(layout).tolist()) + "\n")


def picture(layout: np.ndarray) -> np.ndarray:
    """int[rows, columns] -> uint8[H, W, 3], each id a square of its colour; colours repeat."""
    shown = COLOURS[np.asarray(layout) % len(COLOURS)]
    return shown.repeat(CELL, axis=0).repeat(CELL, axis=1)
