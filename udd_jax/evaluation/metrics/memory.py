"""Does the model make new things? Nearest training neighbours, duplicates, items shared by sets.

A generated sample near a training item is no proof of copying: held-out samples have near training
neighbours too. So the two are set side by side: `memorised` is the share of generated samples
nearer to the training set than all but 1 % of held-out ones. About .01 for a model that has learned
the law, .5 for one that recites half of the time.
"""

import hashlib
from collections.abc import Iterable

import numpy as np

from udd_jax.evaluation.metrics import arrays, intervals

QUANTILE = 0.01


def nearest(samples, training) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training item of each sample, in features or pixels.

    Args:
      samples, training: [n, D], [m, D] real.

    Returns:
      (int64[n] its index, float64[n] its Euclidean distance).

    Raises:
      ValueError: an empty set, NaN, or dimensions that disagree.
    """
    arrays.checked("generated", samples)
    arrays.checked("training", training)
    arrays.same_width("generated", samples, "training", training)
    indices, squares = arrays.nearest(samples, training)
    return indices[:, 0], np.sqrt(squares[:, 0])


def nearest_tokens(samples, training) -> tuple[np.ndarray, np.ndarray]:
    """The same for token sequences: (int64[n] the index, int64[n] how many tokens differ).

    Of several equally near, the first. A pair's tokens are its image's and its text's side by side.

    Args:
      samples, training: int[n, L], int[m, L].

    Raises:
      ValueError: other shapes, or no training items.
    """
    samples, training = np.asarray(samples), np.asarray(training)
    if samples.ndim != 2 or training.ndim != 2 or samples.shape[1] != training.shape[1]:
        raise ValueError(
            f"tokens: {samples.shape} and {training.shape}, expected [n, L] and [m, L]"
        )
    if not len(training):
        raise ValueError("tokens: no training items")
    indices, differing = [], []
    for row in samples:
        distance = (training != row[None]).sum(1)
        indices.append(int(distance.argmin()))
        differing.append(int(distance[indices[-1]]))
    return np.array(indices, np.int64), np.array(differing, np.int64)


def memorised(generated, held_out) -> intervals.Estimate:
    """The share of generated samples nearer to training than the 1 % quantile of held-out samples;
    both [n] distances to the nearest training item."""
    limit = np.quantile(np.asarray(held_out, np.float64), QUANTILE)
    return intervals.bootstrap(np.asarray(generated, np.float64) < limit)


def duplicates(items) -> tuple[intervals.Estimate, list[list[int]]]:
    """The share of samples that repeat an earlier one exactly, and the groups of equals.

    Args:
      items: arrays of one shape ([n, ...]) or texts.
    """
    groups, repeats = {}, []
    for i, item in enumerate(digests(items)):
        repeats.append(item in groups)
        groups.setdefault(item, []).append(i)
    return intervals.bootstrap(repeats), [group for group in groups.values() if len(group) > 1]


def digests(items: Iterable) -> list[str]:
    """The SHA-256 of each array (shape, kind and bytes) or text."""
    out = []
    for item in items:
        if isinstance(item, str):
            out.append(hashlib.sha256(item.encode()).hexdigest())
        else:
            array = np.ascontiguousarray(item)
            head = f"{array.shape}{array.dtype.str}".encode()
            out.append(hashlib.sha256(head + array.tobytes()).hexdigest())
    return out


def check_disjoint(measured: Iterable, training: Iterable) -> None:
    """ValueError when a measured item stands in the training set too, found by content.

    Args:
      measured, training: arrays or texts, as `digests` takes them.
    """
    known = set(digests(training))
    found = [i for i, digest in enumerate(digests(measured)) if digest in known]
    if found:
        raise ValueError(
            f"{len(found)} measured items are training items too (the first is item {found[0]}); "
            "choose a split that the model has not seen"
        )
