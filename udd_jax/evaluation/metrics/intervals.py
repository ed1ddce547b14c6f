"""Numbers with their uncertainty.

Most measures are averages over items, or functions of such averages (BLEU: of counts; a ratio: of
two sums). Their intervals come from one bootstrap (Efron 1979). A draw of n items with replacement
is a vector of counts, so the mean of a resample is `counts @ rows / n` with one row per item, and
no item is copied. (`scipy.stats.bootstrap` copies the items for every resample.) Other measures use
a jackknife over groups: with g groups and theta_i the measure without group i,

    SE^2 = (g - 1)/g sum_i (theta_i - mean theta)^2,   interval = value +- t_{g-1} SE

Intervals are 95 %. A measure that could not be taken is an `Unmeasured` with the reason. Reports
show the reason; no number replaces the missing one.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from udd_jax.errors import UserError

LEVEL = 0.95
RESAMPLES = 1000
_DRAWS = 65536  # item draws in one call of NumPy
_NORMAL = 1.959964  # 95 % of a normal law lie within so many standard deviations


@dataclass(frozen=True)
class Estimate:
    """A measured number; `dataclasses.asdict` makes it JSON.

    Attributes:
      value: the measure on all `count` items.
      low, high: ends of the 95 % interval, or None.
      standard_error: a number, or None.
      count: the number of items.
      method: how the interval was computed, in words.
      warning: why the number may be misleading, or None.
    """

    value: float
    low: float | None
    high: float | None
    standard_error: float | None
    count: int
    method: str
    warning: str | None = None


@dataclass(frozen=True)
class Unmeasured:
    """A measure that could not be taken; `unmeasured` is the reason."""

    unmeasured: str


def resamples(rows, function: Callable | None = None, seed: int = 0) -> np.ndarray:
    """The measure on `RESAMPLES` bootstrap samples of the items.

    Args:
      rows: [n] or [n, k], the contribution of each item.
      function: means float64[..., k] -> float64[...]; None for the mean itself (k = 1).
      seed: of the resampling.

    Returns:
      float64[RESAMPLES].
    """
    rows = _table(rows)
    count, generator = len(rows), np.random.default_rng(seed)
    means = np.empty((RESAMPLES, rows.shape[1]))
    together = max(1, _DRAWS // count)  # one NumPy call for each would cost more than the draws
    for i in range(0, RESAMPLES, together):
        parts = min(together, RESAMPLES - i)
        drawn = generator.integers(count, size=(parts, count))
        drawn += count * np.arange(parts)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=parts * count).reshape(parts, count)
        means[i : i + parts] = counts @ rows / count
    return means[:, 0] if function is None else function(means)


def bootstrap(rows, function: Callable | None = None, seed: int = 0) -> Estimate:
    """A function of item averages with its percentile interval; arguments as in `resamples`.

    If the items are bool[n] and all equal, every resample is the same. Then the share has Wilson's
    interval instead.

    Raises:
      ValueError: no items, or an item that is not finite.
    """
    share = function is None and np.ndim(rows) == 1 and np.asarray(rows).dtype == bool
    rows = _table(rows)
    mean = rows.mean(0)
    value = float(mean[0] if function is None else function(mean))
    if len(rows) == 1:
        return Estimate(value, None, None, None, 1, "none", "1 item: no interval")
    if share and value in (0, 1):
        reach = _NORMAL**2 / (len(rows) + _NORMAL**2)
        low, high = (0.0, reach) if value == 0 else (1 - reach, 1.0)
        error = reach / (2 * _NORMAL)
        return Estimate(value, low, high, error, len(rows), "Wilson, as all items are alike")
    drawn = resamples(rows, function, seed)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(
        value,
        float(low),
        float(high),
        float(drawn.std(ddof=1)),
        len(rows),
        f"bootstrap over items, {RESAMPLES} resamples",
    )


def jackknife(
    value: float, left_out, count: int, method: str, warning: str | None = None, **limits
) -> Estimate:
    """The jackknife interval of `value`; left_out[g]: the measure without group g.

    `limits` are those of `spread`.
    """
    left_out = np.asarray(left_out, np.float64)
    groups = len(left_out)
    error = np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean()).sum())
    return spread(value, error, groups - 1, count, method, warning, **limits)


def spread(
    value: float,
    error: float,
    freedom: int,
    count: int,
    method: str,
    warning: str | None = None,
    *,
    least: float = -math.inf,
    most: float = math.inf,
) -> Estimate:
    """The interval value +- t error, with Student's t for `freedom` degrees of freedom.

    error: the standard error. The interval is clipped to the possible values `least`..`most`.
    """
    reach = _student(freedom) * error
    return Estimate(
        float(value),
        float(max(value - reach, least)),
        float(min(value + reach, most)),
        float(error),
        int(count),
        method,
        warning,
    )


@functools.cache
def _student(freedom: int) -> float:
    from scipy import special  # here, so that importing the package stays quick

    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))


def _table(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or len(rows) == 0:
        raise UserError(f"bootstrap: scores of shape {rows.shape}, expected at least one item")
    if not np.isfinite(rows).all():
        broken = int((~np.isfinite(rows).all(1)).sum())
        raise UserError(f"bootstrap: {broken} of {len(rows)} items have a score that is not finite")
    return rows
