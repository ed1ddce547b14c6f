"""Layout files: maps of categories as JSON (rows of ids), .npy, or a picture of ids (.seg.png)."""

import json
import os
import pathlib

import numpy as np
from PIL import Image

from udd_jax.errors import UserError
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


def read(source: str | os.PathLike) -> np.ndarray:
    """A file -> int32[rows, columns]. ValueError, one line, if it holds no such map."""
    path = pathlib.Path(source)
    try:
        if path.suffix == ".json":
            found = np.array(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                found = np.asarray(image if image.mode in ("L", "P", "I") else image.convert("L"))
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is no layout: {str(error).splitlines()[0]}") from None
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise UserError(f"{path} is {found.dtype}{list(found.shape)}, expected int[rows, columns]")
    return found.astype(np.int32)


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
