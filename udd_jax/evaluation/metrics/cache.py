"""Features of a set of pictures, computed once: a file named by the content that it came from.

The name is a hash of every picture, of the network's weights and of how pictures are resized, so a
changed data set, network or filter can never meet old features. Rows are written as they are
computed, into a file mapped to memory and renamed when whole; a set of 30,000 needs memory for one
batch.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from udd_jax.runtime import files


def content_hash(batches: Iterable[np.ndarray]) -> tuple[str, int]:
    """(SHA-256 over all pictures in order, how many) of uint8[b, H, W, C], whatever the batches."""
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
    """The features of all pictures, from the cache or into it.

    Args:
      directory: of the cache; made if it does not exist.
      batches: gives the pictures from the start each time it is called, uint8[b, H, W, C].
      extract: uint8[b, H, W, C] -> float[b, D].
      network: what identifies `extract`: hash of the weights, layer, resize filter.

    Returns:
      float32[n, D], read-only, mapped from the file.

    Raises:
      ValueError: no pictures, or features that are not finite (nothing is kept then).
    """
    content, count = content_hash(batches())
    if count == 0:
        raise ValueError("features: no pictures")
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
            raise ValueError(
                f"features: pictures {row} to {row + len(values) - 1} give NaN or infinity; "
                "look at the feature network's weights"
            )
        if table is None:
            shape = (count, values.shape[1])
            table = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        table[row : row + len(values)] = values
        row += len(values)
    if row != count:
        raise ValueError(f"features: {count} pictures at first, {row} the second time")
    table.flush()
