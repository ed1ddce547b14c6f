"""The Frechet distance between two sets of features, FID (Heusel et al. 2017, arXiv 1706.08500).

Both sets are treated as Gaussians, and

    d^2 = |mu_a - mu_b|^2 + tr A + tr B - 2 tr (A B)^(1/2)

The usual `sqrtm(A @ B)` squares the condition number, needs repairs if a covariance is singular,
and loses half of the digits. Here each covariance is factored by its eigenvalues l,
A = R_a R_a^T with R_a = U diag(sqrt l), and

    tr (A B)^(1/2) = the sum of the singular values of R_a^T R_b,

because the squares of these are the eigenvalues of A B. A covariance of n samples has rank at most
n - 1. So at most n - 1 eigenvalues are kept, and none that is only rounding: singular covariances
are exact and cheaper. All numbers are float64; covariances divide by n - 1.

Features are read in blocks and summed up as `Moments`: 30,000 samples need one D x D table.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import arrays, intervals

GROUPS = 10


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of feature rows. `a + b` has the moments of both sets together.

    Attributes:
      count: n.
      mean: float64[D].
      scatter: float64[D, D], the sum over rows of (x - mean)(x - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """float64[D, D], with n - 1 in the denominator."""
        return self.scatter / (self.count - 1)

    def __add__(self, other: "Moments") -> "Moments":
        """Chan, Golub and LeVeque (1979): no difference of large sums."""
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        correction = np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + correction)


def moments(features: Iterable[np.ndarray]) -> Moments:
    """The moments of the rows of all blocks, an iterable of arrays [b, D] of any real dtype.

    Raises:
      ValueError: no rows, or NaN or infinity in them.
    """
    total = None
    for block in features:
        block = np.asarray(arrays.checked("moments", block, least=0), np.float64)
        if len(block):
            mean = block.mean(0)
            deviation = block - mean[None]
            part = Moments(len(block), mean, deviation.T @ deviation)
            total = part if total is None else total + part
    if total is None:
        raise UserError("moments: no feature rows")
    return total


def distance(a: Moments, b: Moments) -> float:
    """d^2 of the formula above; zero for equal moments.

    Raises:
      ValueError: only one sample, or sets of different dimensions.
    """
    return _distance(a, _root(a), b, _root(b))


def fid(generated, reference) -> intervals.Estimate:
    """The Frechet distance of generated and reference features, with an interval.

    The interval is a jackknife over ten groups of the generated samples; the reference set is
    fixed. A finite sample biases the distance upwards, and the interval does not show this bias.
    Compare only numbers with equal sample counts (Chong and Forsyth 2020, arXiv 1911.07023).

    Args:
      generated: array or memory map [n, D], n >= 2.
      reference: another such array, or its `Moments`.

    Raises:
      ValueError: too few samples, NaN, or dimensions that disagree.
    """
    arrays.checked("generated", generated, least=2)
    if not isinstance(reference, Moments):
        arrays.checked("reference", reference, least=2)
        reference = moments(arrays.blocks(reference))
    groups = min(GROUPS, len(generated) // 2)
    parts = [moments(arrays.blocks(generated[g::groups])) for g in range(max(groups, 1))]
    whole = sum(parts[1:], parts[0])
    root = _root(reference)
    value = _distance(whole, _root(whole), reference, root)
    dimensions = len(reference.mean)
    warnings = [
        f"{count} {name} samples for {dimensions} dimensions: the covariance is singular and the "
        "distance is biased upwards"
        for name, count in (("generated", whole.count), ("reference", reference.count))
        if count <= dimensions
    ]
    warning = "; ".join(warnings) or None
    if groups < 2:
        return intervals.Estimate(value, None, None, None, whole.count, "none", warning)
    left_out = []
    for g in range(groups):
        others = parts[:g] + parts[g + 1 :]
        rest = sum(others[1:], others[0])
        left_out.append(_distance(rest, _root(rest), reference, root))
    method = f"jackknife over {groups} groups of generated samples"
    return intervals.jackknife(value, left_out, whole.count, method, warning, least=0)


def _root(m: Moments) -> np.ndarray:
    """float64[D, r] with root @ root.T = covariance; r <= count - 1, without the null space."""
    if m.count < 2:
        raise UserError(f"Frechet distance: {m.count} sample, at least 2 are needed")
    size = len(m.mean)
    values, vectors = np.linalg.eigh(m.covariance)  # ascending
    first = max(size - (m.count - 1), 0)
    first += int(np.sum(values[first:] <= size * np.finfo(np.float64).eps * values[-1]))
    return vectors[:, first:] * np.sqrt(values[first:])[None]


def _distance(a: Moments, root_a: np.ndarray, b: Moments, root_b: np.ndarray) -> float:
    arrays.same_width("one set", root_a.T, "the other", root_b.T)
    overlap = root_a.T @ root_b
    shared = np.linalg.svd(overlap, compute_uv=False).sum() if overlap.size else 0.0
    trace = np.square(root_a).sum() + np.square(root_b).sum()
    return float(max(np.square(a.mean - b.mean).sum() + trace - 2 * shared, 0))
