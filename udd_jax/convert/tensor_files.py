"""Tensors by name from a checkpoint file: `.safetensors`, or any file of `torch.save`."""

import json
import mmap
import pathlib

import numpy as np

from udd_jax.convert import torch_files
from udd_jax.errors import UserError, first_line
from udd_jax.runtime import trees


def read(path) -> dict[str, np.ndarray]:
    """{name: array} of a checkpoint: `.safetensors`, or any file of `torch.save`.

    ValueError, one line: the file does not exist, has another kind, is damaged or not trustworthy.
    """
    if pathlib.Path(path).suffix == ".safetensors":
        return _safetensors(path)
    return torch_files.load(path)


def _safetensors(path) -> dict[str, np.ndarray]:
    """Reads the layout: the length of the header, the header in JSON, the numbers it describes."""
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        state = {}
        for name, entry in header.items():
            dtype = np.dtype(trees.DTYPES[entry["dtype"]])
            first, last = entry["data_offsets"]
            count = (last - first) // dtype.itemsize
            array = np.frombuffer(content, dtype, count, start + first)
            state[name] = array.reshape(entry["shape"])
    except Exception as error:  # a damaged header can raise any exception
        reason = first_line(error)
        raise UserError(
            f"{path} is not a safetensors file, or is damaged or cut short ({reason})"
        ) from None
    return state
