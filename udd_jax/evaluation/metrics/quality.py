"""Kernel distance, Inception score, precision and recall of generated images, from features.

- Kernel distance, KID (Binkowski et al. 2018, arXiv 1801.01401): the squared maximum mean
  discrepancy under k(x, y) = (x.y / D + 1)^3, in its unbiased form, which may be negative:

      mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

- Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL between the class
  probabilities of a sample and their average over the samples, on the 1,008 classes of the
  Inception network. It uses no reference set.
- Precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991): the manifold of a set is the
  union of balls around its samples; the radius of a ball is the distance to the k-th neighbour.
  Precision is the share of generated samples on the manifold of the reference; recall is the share
  of reference samples on the manifold of the generated set.
"""

import math

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import arrays, intervals

KID_SUBSETS = 100
KID_SIZE = 1000
NEIGHBOURS = 3


def mmd(x, y) -> float:
    """The unbiased kernel distance of two sets [n, D] and [m, D], n, m >= 2.

    Time grows as (n + m)^2; memory does not grow.

    Raises:
      ValueError: fewer than two samples, NaN, or dimensions that disagree.
    """
    arrays.checked("generated", x, least=2)
    arrays.checked("reference", y, least=2)
    arrays.same_width("generated", x, "reference", y)
    n, m = len(x), len(y)
    within_x, within_y = (_kernel_sum(z, z) - _kernel_diagonal(z) for z in (x, y))
    return float(
        within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * _kernel_sum(x, y) / (n * m)
    )


def kid(generated, reference, size: int = KID_SIZE, seed: int = 0) -> intervals.Estimate:
    """The mean of `mmd` over 100 random subsets of `size` samples of each set.

    Let s be the standard deviation over subsets of m out of n samples. The subsets are drawn
    without replacement from the same n samples, so the error of the whole set is about
    s sqrt(m / (n - m)). The mean over 100 subsets adds an error of s / 10. `method` reports s, the
    number that papers print after the +-.

    Raises:
      ValueError: as `mmd`.
    """
    arrays.checked("generated", generated, least=2)
    arrays.checked("reference", reference, least=2)
    arrays.same_width("generated", generated, "reference", reference)
    available = min(len(generated), len(reference))
    size = min(size, available)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(KID_SUBSETS):
        chosen = [
            np.sort(generator.choice(len(z), size, replace=False)) for z in (generated, reference)
        ]
        values.append(mmd(generated[chosen[0]], reference[chosen[1]]))
    value, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    method = f"{KID_SUBSETS} subsets of {size}, deviation {deviation:.3g} of one"
    if size == available:
        warning = f"subsets of {size} are all of the smaller set: no interval"
        return intervals.Estimate(value, None, None, None, len(generated), method, warning)
    error = deviation * math.sqrt(size / (available - size) + 1 / KID_SUBSETS)
    return intervals.spread(value, error, KID_SUBSETS - 1, len(generated), method)


def inception_scores(probabilities, splits: int = 10) -> np.ndarray:
    """The Inception score of each of `splits` consecutive parts: [n, classes] -> float64[splits].

    Raises:
      ValueError: fewer samples than splits, or rows that are not probabilities (sum off by 1e-3).
    """
    arrays.checked("probabilities", probabilities, least=max(splits, 1))
    off = max(
        max(np.abs(block.sum(1) - 1).max(), -block.min()) for block in arrays.blocks(probabilities)
    )
    if splits < 1 or off > 1e-3:
        raise UserError(
            f"Inception score: {splits} splits of rows that miss 1 by {off:.3g}, expected at least "
            "1 split of class probabilities"
        )
    scores = []
    for i in range(splits):
        start, end = (len(probabilities) * j // splits for j in (i, i + 1))
        part = np.asarray(probabilities[start:end], np.float64)
        average = part.mean(0, keepdims=True)
        positive = np.where(part > 0, part, 1)
        ratio = np.log(positive) - np.log(np.where(average > 0, average, 1))
        scores.append(np.exp((part * ratio).sum(1).mean()))
    return np.array(scores)


def inception_score(probabilities, splits: int = 10) -> intervals.Estimate:
    """The mean of `inception_scores`. The interval comes from the splits; one split has none."""
    scores = inception_scores(probabilities, splits)
    count, value = len(probabilities), float(scores.mean())
    if splits == 1:
        return intervals.Estimate(value, None, None, None, count, "1 split", None)
    method = f"{splits} splits, deviation {scores.std():.3g} of one"
    return intervals.spread(value, scores.std(ddof=1) / splits**0.5, splits - 1, count, method)


def precision_recall(
    generated, reference, neighbours: int = NEIGHBOURS
) -> dict[str, intervals.Estimate]:
    """{"precision", "recall"} of [n, D] against [m, D]; intervals keep the other manifold fixed.

    Raises:
      ValueError: n or m is not above `neighbours`, NaN, or different dimensions.
    """
    arrays.checked("generated", generated, least=neighbours + 1)
    arrays.checked("reference", reference, least=neighbours + 1)
    arrays.same_width("generated", generated, "reference", reference)
    reach, other_reach = (
        arrays.nearest(z, z, neighbours, same=True)[1][:, -1] for z in (generated, reference)
    )
    precise, recalled = np.zeros(len(generated), bool), np.zeros(len(reference), bool)
    centre = np.mean(np.asarray(reference[: arrays.ROWS], np.float64), 0)
    for i, rows in enumerate(arrays.blocks(generated)):
        here = slice(i * arrays.ROWS, i * arrays.ROWS + len(rows))
        for j, others in enumerate(arrays.blocks(reference)):
            there = slice(j * arrays.ROWS, j * arrays.ROWS + len(others))
            square = arrays.squared_distances(rows, others, centre)  # for both measures
            precise[here] |= (square <= other_reach[None, there]).any(1)
            recalled[there] |= (square <= reach[here, None]).any(0)
    return {"precision": intervals.bootstrap(precise), "recall": intervals.bootstrap(recalled)}


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _kernel_sum(x, y) -> float:
    return sum(_kernel(a, b).sum() for a in arrays.blocks(x) for b in arrays.blocks(y))


def _kernel_diagonal(x) -> float:
    return sum(((np.square(a).sum(1) / a.shape[1] + 1) ** 3).sum() for a in arrays.blocks(x))
