"""Memorisation: nearest training neighbours, duplicates, items that two sets share.

A generated sample near a training item does not prove copying: held-out samples have near training
neighbours, too. So the two are compared: `memorised` is the share of generated samples that are
nearer to the training set than the nearest 1 % of held-out samples. It is about .01 for a model
that has learned the distribution, and .5 for a model that copies half of the time.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import intervals

QUANTILE = 0.01


def nearest_tokens(samples, training) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training item of each sample: its index and how many tokens differ, int64[n].

    Of several equally near items it is the first. The tokens of a pair are those of its image, then
    those of its text.

    Args:
      samples, training: int[n, L], int[m, L].

    Raises:
      ValueError: wrong shapes, or no training items.
    """
    samples, training = np.asarray(samples), np.asarray(training)
    if samples.ndim != 2 or training.ndim != 2 or samples.shape[1] != training.shape[1]:
        raise UserError(f"tokens: {samples.shape} and {training.shape}, expected [n, L] and [m, L]")
    if not len(training):
        raise UserError("tokens: no training items")
    indices, differing = [], []
    for row in samples:
        distance = (training != row[None]).sum(1)
        indices.append(int(distance.argmin()))
        differing.append(int(distance[indices[-1]]))
    return np.array(indices, np.int64), np.array(differing, np.int64)


def memorised(generated, held_out) -> intervals.Estimate:
    """The share of generated samples nearer to training than the 1 % quantile of held-out samples.

    generated, held_out: [n], [m], distances to the nearest training item.
    """
    limit = np.quantile(np.asarray(held_out, np.float64), QUANTILE)
    return intervals.bootstrap(np.asarray(generated, np.float64) < limit)


def duplicates(items) -> tuple[intervals.Estimate, list[list[int]]]:
    """The share of samples that equal an earlier one, and the groups of equal samples.

    Args:
      items: arrays of one shape ([n, ...]) or texts.

    Returns:
      (Estimate, lists of indices).
    """
    groups, repeats = {}, []
    for i, item in enumerate(digests(items)):
        repeats.append(item in groups)
        groups.setdefault(item, []).append(i)
    return intervals.bootstrap(repeats), [group for group in groups.values() if len(group) > 1]


def digests(items: Iterable) -> list[str]:
    """The SHA-256 of each array (shape, dtype and bytes) or text."""
    out = []
    for item in items:
        if isinstance(item, str):
            out.append(hashlib.sha256(item.encode()).hexdigest())
        else:
            array = np.ascontiguousarray(item)
            head = f"{array.shape}{array.dtype.str}".encode()
            out.append(hashlib.sha256(head + array.tobytes()).hexdigest())
    return out


def shared(measured: Iterable, training: Iterable) -> list[int]:
    """The numbers of the measured items that are in the training set, too."""
    known = set(digests(training))
    return [i for i, digest in enumerate(digests(measured)) if digest in known]
