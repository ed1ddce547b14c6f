"""`.npy` files: one array of numbers, as NumPy writes it.

A file comes from anyone, so nothing of it is trusted: its size is compared with what its header
says, and no memory is taken for more than there is. Objects, which may run code, and archives
(`.npz`), which may unpack to any size, are refused.
"""

import io
import math
import os
import pathlib

import numpy as np

from udd_jax.errors import UserError, first_line

SUFFIX = ".npy"
MAGIC, ARCHIVE = b"\x93NUMPY", b"PK"
NUMBERS = "biuf"  # kinds of dtypes
# Of `picture`: colours of the most negative number, of 0, and of the most positive one.
_LOW, _ZERO, _HIGH = (np.array(c, float) for c in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))
_CELL, _ROW = 8, 32  # pixels of a number, and numbers of a row
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(source: str | os.PathLike | bytes) -> np.ndarray:
    """A file, or its bytes -> an array of whole numbers, floats or bools, of any shape.

    UserError, one line: the file cannot be read, is damaged or cut off, or holds something else.
    """
    name = f"a file of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        return _decoded(source if isinstance(source, bytes) else pathlib.Path(source).read_bytes())
    except OSError as error:
        cause = error.strerror or str(error)
    except Exception as error:  # damaged headers raise errors of any type
        cause = first_line(error)
    raise UserError(f"{name} is not an array of numbers (.npy): {cause}") from None


def _decoded(content: bytes) -> np.ndarray:
    if content.startswith(ARCHIVE):
        raise UserError("it is an archive (.npz), take one array out of it")
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise UserError(f"its format is {version}, expected one of {', '.join(map(str, _HEADERS))}")
    shape, columns_first, dtype = _HEADERS[version](file)
    if dtype.kind not in NUMBERS:
        raise UserError(f"it holds {dtype}, expected whole numbers or floats")
    there, least = len(content) - file.tell(), min(shape, default=0)
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != there or least < 0:
        raise UserError(f"{list(shape)} of {dtype} are {claimed} bytes, and it has {there}")
    found = np.frombuffer(content, dtype, offset=file.tell())
    found = found.reshape(shape[::-1]).T if columns_first else found.reshape(shape)
    return found.astype(dtype.newbyteorder("="))  # a copy, which may be written to


def stack(rows: list[np.ndarray]) -> np.ndarray:
    """Arrays of one shape -> [n, ...]. UserError, one line, if they differ or there are none."""
    if not rows:
        raise UserError("no values are given, expected one at least")
    shapes = dict.fromkeys(np.shape(row) for row in rows)
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in list(shapes)[:2])
        raise UserError(f"values have the shapes {shown}, expected one shape")
    return np.stack(rows)


def picture(numbers: np.ndarray) -> np.ndarray:
    """float[n] or float[m, n] -> uint8[H, W, 3]: each number a square, blue below 0, red above it.

    The strongest colour is the largest size of a number. Rows of more than 32 are broken.
    """
    rows = np.atleast_2d(np.asarray(numbers, float))
    rows = rows.reshape(-1, rows.shape[-1])
    lines = -(-rows.shape[1] // _ROW)
    width = -(-rows.shape[1] // lines)
    padded = np.zeros((len(rows), lines * width))
    padded[:, : rows.shape[1]] = rows
    share = padded / (np.abs(padded).max(initial=0) or 1)
    ends = np.where(share[..., None] < 0, _LOW, _HIGH)
    colours = _ZERO + np.abs(share)[..., None] * (ends - _ZERO)
    cells = np.round(colours).astype(np.uint8).reshape(len(rows) * lines, width, 3)
    return cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
