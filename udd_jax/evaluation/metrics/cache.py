"""A cache for the features of a set of images: a file whose name is a hash of its inputs.

The hash covers every image, the weights of the network and the resizing. So a changed data set,
network or filter never reads old features. Rows are written to a memory-mapped file as they are
computed; the file gets its name when it is complete. A set of 30,000 images needs the memory of one
batch.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from udd_jax.errors import UserError
from udd_jax.runtime import files


def content_hash(batches: Iterable[np.ndarray]) -> tuple[str, int]:
    """(SHA-256 over all images in order, their number) of batches uint8[b, H, W, C] of any size."""
    digest, count = hashlib.sha256(), 0
    for batch in batches:
        for image in np.asarray(batch):
            digest.update(f"{image.shape}{image.dtype.str}".encode())
            digest.update(np.ascontiguousarray(image).tobytes())
            count += 1
    return digest.hexdigest(), count


def features(
    directory: str | os.PathLike,
    batches: Callable[[], Iterable[np.ndarray]],
    extract: Callable[[np.ndarray], np.ndarray],
    network: str,
) -> np.ndarray:
    """The features of all images, read from the cache or computed and stored there.

    Args:
      directory: the folder of the cache; created if it does not exist.
      batches: each call yields all images from the beginning, uint8[b, H, W, C].
      extract: uint8[b, H, W, C] -> float[b, D].
      network: identifies `extract`: hash of the weights, layer, resize filter.

    Returns:
      float32[n, D], read-only, mapped from the file.

    Raises:
      ValueError: no images, or features that are not finite (then nothing is stored).
    """
    content, count = content_hash(batches())
    if count == 0:
        raise UserError("features: no pictures")
    name = hashlib.sha256(f"{content} {network}".encode()).hexdigest()[:32]
    path = pathlib.Path(directory) / f"{name}.npy"
    if not path.exists():
        with files.whole(path, several=True) as unfinished:
            _write(unfinished, batches(), extract, count)
    return np.load(path, mmap_mode="r")


def _write(path: pathlib.Path, batches, extract, count: int) -> None:
    table, row = None, 0
    for batch in batches:
        values = np.asarray(extract(batch), np.float32)
        if not np.isfinite(values).all():
            raise UserError(
                f"features: pictures {row} to {row + len(values) - 1} give NaN or infinity; "
                "look at the feature network's weights"
            )
        if table is None:
            shape = (count, values.shape[1])
            table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        table[row : row + len(values)] = values
        row += len(values)
    if row != count:
        raise UserError(f"features: {count} pictures at first, {row} the second time")
    table.flush()
