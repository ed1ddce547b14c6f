"""Measures from likelihoods: bits per token, and retrieval of the right partner.

Bits. Item i has b_i bits (nats / log 2) over n_i counted tokens. The reported number is the ratio
r = sum b / sum n. The tokens of one item depend on each other, so items are the units, and by the
delta method

    SE^2 = n/(n - 1) sum_i (b_i - r n_i)^2 / (sum n)^2

Retrieval. `scores[i, j]` says how well candidate j fits query i; candidate i is the right one.
`scores.T` is the other direction. A candidate with the same score as the right one counts as
better, so a constant score finds nothing. Recall among n (the right candidate and n - 1 random
others) is computed exactly: if w of the N - 1 others score at least as high, it is
C(N-1-w, n-1) / C(N-1, n-1).
"""

import math

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import intervals


def bits_per_token(nats, tokens) -> intervals.Estimate:
    """Bits per token with the standard error.

    Args:
      nats: [n, ...], totals of each item or nats of each token (0 at tokens that are not counted);
        all axes but the first are summed.
      tokens: the number of counted tokens of each item, [n] or one number for all.

    Raises:
      ValueError: no items, values that are not finite, or an item without tokens.
    """
    nats = np.asarray(nats, np.float64)
    if nats.ndim == 0 or len(nats) == 0:
        raise UserError(f"bits per token: nats of shape {nats.shape}, expected one row an item")
    bits = nats.reshape(len(nats), -1).sum(1) / math.log(2)
    tokens = np.asarray(tokens, np.float64)
    if tokens.shape not in ((), bits.shape):
        raise UserError(f"bits per token: {len(bits)} items, token counts of {tokens.shape}")
    tokens = np.broadcast_to(tokens, bits.shape)
    if not np.isfinite(bits).all() or not (tokens > 0).all():
        raise UserError(
            f"bits per token: {int((~np.isfinite(bits)).sum())} of {len(bits)} items have a "
            f"likelihood that is not finite, {int((tokens <= 0).sum())} have no tokens"
        )
    value = bits.sum() / tokens.sum()
    if len(bits) == 1:
        return intervals.Estimate(float(value), None, None, None, 1, "none", "1 item: no interval")
    residual = np.square(bits - value * tokens).sum()
    error = math.sqrt(residual * len(bits) / (len(bits) - 1)) / tokens.sum()
    return intervals.spread(value, error, len(bits) - 1, len(bits), "delta method over items")


def rivals(scores, equal=None) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong candidates score at least as high as the right one.

    Args:
      scores: [N, N].
      equal: bool[N, N] or None; True if candidate j is right for query i, too (the same caption
        twice). Such candidates are not counted.

    Returns:
      (number of such candidates int64[N], number of all wrong candidates int64[N]).

    Raises:
      ValueError: not square, or NaN.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise UserError(f"retrieval: scores of shape {scores.shape}, expected [N, N]")
    if np.isnan(scores).any():
        raise UserError(f"retrieval: {int(np.isnan(scores).sum())} scores are NaN")
    wrong = ~np.eye(len(scores), dtype=bool)
    if equal is not None:
        wrong &= ~np.asarray(equal, bool)
    better = (scores >= np.diag(scores)[:, None]) & wrong
    return better.sum(1), wrong.sum(1)


def recall_at(scores, k: int = 1, equal=None) -> np.ndarray:
    """bool[N]: whether the right candidate is among the k best."""
    return rivals(scores, equal)[0] < k


def recall_among(scores, n: int, equal=None) -> np.ndarray:
    """float64[N]: the probability that the right candidate beats n - 1 random wrong ones.

    Raises:
      ValueError: fewer than n - 1 wrong candidates for some query.
    """
    better, wrong = rivals(scores, equal)
    if n < 2 or wrong.min() < n - 1:
        raise UserError(
            f"retrieval among {n}: {int(wrong.min())} wrong candidates for some query, "
            f"{max(n - 1, 1)} are needed"
        )
    return np.array(
        [
            math.comb(int(w - b), n - 1) / math.comb(int(w), n - 1)
            for b, w in zip(better, wrong, strict=True)
        ]
    )
