"""Feature arrays: checks, reading in blocks, distances and nearest neighbours.

The features of a data set may be larger than memory (30,000 x 2,048 floats and more). So the
measures read slices of at most `ROWS` rows, from an array or from a file mapped by `numpy.memmap`.
Squared distances are |a|^2 + |b|^2 - 2 a.b. Both sets are first shifted by the same vector, which
changes no distance and avoids most of the cancellation.
"""

from collections.abc import Iterator

import numpy as np

from udd_jax.errors import UserError

ROWS = 1024


def checked(name: str, features, least: int = 1):
    """Returns the features if they are a table [n, D] of finite numbers with n >= `least`.

    Raises:
      ValueError: not a table, too few rows, or rows with NaN or infinity (how many).
    """
    if np.ndim(features) != 2 or features.shape[1] == 0:
        raise UserError(
            f"{name}: features of shape {np.shape(features)}, expected [samples, dimensions]"
        )
    if len(features) < least:
        raise UserError(f"{name}: {len(features)} samples, at least {least} are needed")
    broken = sum(int((~np.isfinite(block).all(1)).sum()) for block in blocks(features))
    if broken:
        raise UserError(
            f"{name}: {broken} of {len(features)} feature rows hold NaN or infinity; "
            "look at the images or the weights that they came from"
        )
    return features


def same_width(name: str, features, other_name: str, other) -> None:
    """ValueError unless two tables have the same number of columns."""
    if features.shape[1] != other.shape[1]:
        raise UserError(
            f"{name} has {features.shape[1]} feature dimensions and {other_name} {other.shape[1]}; "
            "both must come from the same network"
        )


def blocks(features) -> Iterator[np.ndarray]:
    """Consecutive slices of at most `ROWS` rows, in float64."""
    for start in range(0, len(features), ROWS):
        yield np.asarray(features[start : start + ROWS], np.float64)


def squared_distances(rows: np.ndarray, others: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """|a - b|^2 for all pairs: float64[n, D], float64[m, D], float64[D] -> float64[n, m]."""
    rows, others = rows - centre[None], others - centre[None]
    lengths = np.square(rows).sum(1)[:, None] + np.square(others).sum(1)[None]
    return np.maximum(lengths - 2 * rows @ others.T, 0)


def nearest(queries, keys, count: int = 1, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest keys of each query: (indices int64[n, count], squared distances).

    Sorted, the nearest first; equal distances have no fixed order. With `same=True` queries and
    keys are one set, and no sample is its own neighbour. Works on one block of queries and of keys
    at a time. ValueError: fewer than `count` keys.
    """
    available = len(keys) - same
    if available < count:
        raise UserError(f"{count} neighbours asked of {available} samples")
    centre = np.mean(np.asarray(keys[:ROWS], np.float64), 0)
    indices, distances = [], []
    for i, rows in enumerate(blocks(queries)):
        best = np.full((len(rows), count), np.inf)
        where = np.full((len(rows), count), -1, np.int64)
        for j, others in enumerate(blocks(keys)):
            square = squared_distances(rows, others, centre)
            if same and i == j:
                np.fill_diagonal(square, np.inf)
            square = np.concatenate([best, square], 1)
            number = np.arange(j * ROWS, j * ROWS + len(others))
            number = np.concatenate([where, np.broadcast_to(number, (len(rows), len(others)))], 1)
            kept = np.argpartition(square, count - 1, 1)[:, :count]
            best = np.take_along_axis(square, kept, 1)
            where = np.take_along_axis(number, kept, 1)
        order = np.argsort(best, 1, kind="stable")
        best, where = (np.take_along_axis(z, order, 1) for z in (best, where))
        indices.append(where)
        distances.append(best)
    return np.concatenate(indices), np.concatenate(distances)
