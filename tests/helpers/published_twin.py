"""The published process as dense matrices: float64 NumPy, slow, with its two errors as switches.

    leak      every step gives beta_img to each image class and beta_txt to each text class, from
              whatever token, so that it can change its modality (even the mask does)
    swapped   the posterior of the conditional modes divides by q(x_t | x_0) with the beta of the
              OTHER modality

Both on is the published code, both off is the paper and this library. Arrays are laid out as in
the recording: [B, V, L], classes on axis 1, and times run 0..T-1 with -1 for clean.

Every term is one of a position, so that its derivative by the logits of that position is found
by a complex step, a class at a time.
"""

import functools

import numpy as np

from tests.helpers import recorded

SIZES = (recorded.CONFIG["K_img"], recorded.CONFIG["K_txt"])
V = sum(SIZES) + 1
BLOCKS = (slice(0, SIZES[0]), slice(SIZES[0], V - 1))


@functools.cache
def cumulative(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """abar and gbar at times -1..T-1, at index t + 1."""
    ramp = np.arange(steps) / (steps - 1)
    abar = 0.99999 + ramp * (9e-6 - 0.99999)
    gbar = 9e-6 + ramp * (0.99999 - 9e-6)
    return np.concatenate([[1.0], abar]), np.concatenate([[0.0], gbar])


@functools.lru_cache(100)
def _matrix(alpha: float, gamma: float, leak: bool) -> np.ndarray:
    q = np.zeros((V, V))  # [to, from]
    for block, size in zip(BLOCKS, SIZES, strict=True):
        q[block, slice(None) if leak else block] = (1 - alpha - gamma) / size
        q[block, block] += alpha * np.eye(size)
    q[-1, :-1] = gamma
    q[-1, -1] = 1
    return q


def step_matrix(t: int, leak: bool, steps: int = recorded.CONFIG["T"]) -> np.ndarray:
    """Q_t: [to, from]."""
    abar, gbar = cumulative(steps)
    gamma = 1 - (1 - gbar[t + 1]) / (1 - gbar[t])
    return _matrix(abar[t + 1] / abar[t], gamma, leak)


def cumulative_matrix(t: int, leak: bool, steps: int = recorded.CONFIG["T"]) -> np.ndarray:
    """Qbar_t: [to, from]; at t = -1 the identity."""
    abar, gbar = cumulative(steps)
    return _matrix(abar[t + 1], gbar[t + 1], leak)


def one_hot(x: np.ndarray) -> np.ndarray:
    """int[B, L] -> float[B, V, L]."""
    return np.moveaxis(np.eye(V)[x], -1, 1)


def p_x0(logits: list[np.ndarray]) -> np.ndarray:
    """Logits [B, n, K] a modality, None for one that is not there -> p(x_0), [B, V-1, L]."""
    lengths = [0 if y is None else y.shape[1] for y in logits]
    batch = next(y.shape[0] for y in logits if y is not None)
    dtype = np.result_type(*[y for y in logits if y is not None], np.float64)
    p = np.zeros((batch, V - 1, sum(lengths)), dtype)
    start = 0
    for y, block, length in zip(logits, BLOCKS, lengths, strict=True):
        if y is not None:
            e = np.exp(y - y.real.max(-1, keepdims=True))
            e = e / e.sum(-1, keepdims=True)
            p[:, block, start : start + length] = np.moveaxis(e, -1, 1)
            start += length
    return p


def posterior(p0, xt, t, *, leak: bool, swapped: bool = False, steps=recorded.CONFIG["T"]):
    """sum_i p0(i) q(x_{t-1} | x_t, x_0 = i), [B, V, L], from p0 [B, V-1, L], xt [B, L], t [B].

    `swapped` asks that all positions be of one modality: the conditional modes.
    """
    abar, gbar = cumulative(steps)
    rows = []
    for p, x, time in zip(p0, xt, t, strict=True):
        q = step_matrix(time, leak, steps)
        masked = x == V - 1
        likelihood = cumulative_matrix(time, leak, steps)[:-1, x]  # of x_t for each x_0, [V-1, L]
        if swapped:
            other = int(p[BLOCKS[0]].real.any())  # an image's is that of the text
            beta = (1 - abar[time + 1] - gbar[time + 1]) / SIZES[other]
            likelihood = abar[time + 1] * (np.arange(V - 1)[:, None] == x) + beta
        likelihood = np.where(masked, gbar[time + 1], likelihood)
        w = np.where(p == 0, 0, p) / np.where(likelihood == 0, 1, likelihood)
        before = cumulative_matrix(time - 1, leak, steps)[:-1, :-1] @ w
        to_here = np.where(masked, q[-1, 0], q[:-1, x])
        mask = np.where(masked, gbar[time] * w.sum(0), 0)
        rows.append(np.concatenate([before * to_here, mask[None]]))
    p = np.stack(rows)
    return np.where(p.real > 1, 1, p)  # with the errors on it can be, and the published code clamps


def terms(logits, x0, xt, t, *, leak: bool, swapped: bool = False):
    """KL(q || p), -log p(x_{t-1} = x_0 | x_t) and -log p(x_0 | x_t) a position, [B, L] each."""
    p0, truth = p_x0(logits), one_hot(x0)
    options = {"leak": leak, "swapped": swapped}
    p = posterior(p0, xt, t, **options)
    q = posterior(truth[:, :-1].astype(float), xt, t, **options)
    some = np.where(q == 0, 1, q)
    kl = np.where(q == 0, 0, q * (np.log(some) - np.log(np.where(p == 0, 1, p)))).sum(1)

    here = truth > 0
    decode = -np.log(np.where(here, p, 1)).sum(1)
    return kl, decode, -np.log(np.where(here[:, :-1], p0, 1)).sum(1)


def by_logits(total, logits: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """The derivative of sum(total(logits)), where total [B, L] has a term a position."""
    grads, start = [], 0
    for m, y in enumerate(logits):
        if y is None:
            grads.append(None)
            continue
        grad = np.zeros(y.shape)
        for k in range(y.shape[-1]):
            bent = y.astype(complex)
            bent[..., k] += 1e-30j
            moved = total([bent if i == m else other for i, other in enumerate(logits)])
            grad[..., k] = moved.imag[:, start : start + y.shape[1]] / 1e-30
        grads.append(grad)
        start += y.shape[1]
    return grads
