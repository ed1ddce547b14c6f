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

from udd_jax.errors import UserError

SUFFIX = ".npy"
MAGIC, ARCHIVE = b"\x93NUMPY", b"PK"
NUMBERS = "biuf"  # kinds of dtypes
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
        cause = (str(error).splitlines() or [type(error).__name__])[0]
    raise UserError(f"{name} is no array of numbers (.npy): {cause}") from None


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
