"""The published process as dense matrices: float64 NumPy, slow, with its two errors as switches.

    leak      every step gives beta_img to each image class and beta_txt to each text class, from
              whatever token, so that it can change its modality (even the mask does)
    swapped   the posterior of the conditional modes divides by q(x_t | x_0) with the beta of the
              OTHER modality

Both on is the published code, both off is the paper and this library. Arrays are laid out as in
the recording: [B, V, L], classes on axis 1, and times run 0..T-1 with -1 for clean.

Every term is one of a position, so that its derivative by the logits of that position is found
by a complex step, a class at a time. `network` is the published transformer, forward only.
"""

import dataclasses
import functools

import numpy as np
from scipy import special


@functools.cache
def cumulative(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """abar and gbar at times -1..T-1, at index t + 1."""
    ramp = np.arange(steps) / (steps - 1)
    abar = 0.99999 + ramp * (9e-6 - 0.99999)
    gbar = 9e-6 + ramp * (0.99999 - 9e-6)
    return np.concatenate([[1.0], abar]), np.concatenate([[0.0], gbar])


@functools.lru_cache(100)
def _matrix(sizes: tuple[int, int], alpha: float, gamma: float, leak: bool) -> np.ndarray:
    v = sum(sizes) + 1
    q = np.zeros((v, v))  # [to, from]
    for block, size in zip(_blocks(sizes), sizes, strict=True):
        q[block, slice(None) if leak else block] = (1 - alpha - gamma) / size
        q[block, block] += alpha * np.eye(size)
    q[-1, :-1] = gamma
    q[-1, -1] = 1
    return q


def _blocks(sizes):
    return slice(0, sizes[0]), slice(sizes[0], sum(sizes))


@dataclasses.dataclass(frozen=True)
class Twin:
    """The process of K_img and K_txt classes in T steps."""

    sizes: tuple[int, int]
    steps: int

    @property
    def classes(self) -> int:
        """V, the mask's among them."""
        return sum(self.sizes) + 1

    def step_matrix(self, t: int, leak: bool) -> np.ndarray:
        """Q_t: [to, from]."""
        abar, gbar = cumulative(self.steps)
        gamma = 1 - (1 - gbar[t + 1]) / (1 - gbar[t])
        return _matrix(self.sizes, abar[t + 1] / abar[t], gamma, leak)

    def cumulative_matrix(self, t: int, leak: bool) -> np.ndarray:
        """Qbar_t: [to, from]; at t = -1 the identity."""
        abar, gbar = cumulative(self.steps)
        return _matrix(self.sizes, abar[t + 1], gbar[t + 1], leak)

    def one_hot(self, x: np.ndarray) -> np.ndarray:
        """int[B, L] -> float[B, V, L]."""
        return np.moveaxis(np.eye(self.classes)[x], -1, 1)

    def p_x0(self, logits: list[np.ndarray | None]) -> np.ndarray:
        """Logits [B, n, K] a modality, None for one that is not there -> p(x_0), [B, V-1, L]."""
        lengths = [0 if y is None else y.shape[1] for y in logits]
        batch = next(y.shape[0] for y in logits if y is not None)
        dtype = np.result_type(*[y for y in logits if y is not None], np.float64)
        p = np.zeros((batch, self.classes - 1, sum(lengths)), dtype)
        start = 0
        for y, block, length in zip(logits, _blocks(self.sizes), lengths, strict=True):
            if y is not None:
                e = np.exp(y - y.real.max(-1, keepdims=True))
                e = e / e.sum(-1, keepdims=True)
                p[:, block, start : start + length] = np.moveaxis(e, -1, 1)
                start += length
        return p

    def posterior(self, p0, xt, t, *, leak: bool, swapped: bool = False) -> np.ndarray:
        """sum_i p0(i) q(x_{t-1} | x_t, x_0 = i), [B, V, L], from p0 [B, V-1, L], xt [B, L], t [B].

        `swapped` asks that all positions be of one modality: the conditional modes.
        """
        abar, gbar = cumulative(self.steps)
        v, rows = self.classes, []
        for p, x, time in zip(p0, xt, t, strict=True):
            q = self.step_matrix(time, leak)
            masked = x == v - 1
            likelihood = self.cumulative_matrix(time, leak)[:-1, x]  # of x_t, each x_0: [V-1, L]
            if swapped:
                other = int(p[: self.sizes[0]].real.any())  # an image's is that of the text
                beta = (1 - abar[time + 1] - gbar[time + 1]) / self.sizes[other]
                likelihood = abar[time + 1] * (np.arange(v - 1)[:, None] == x) + beta
            likelihood = np.where(masked, gbar[time + 1], likelihood)
            w = np.where(p == 0, 0, p) / np.where(likelihood == 0, 1, likelihood)
            before = self.cumulative_matrix(time - 1, leak)[:-1, :-1] @ w
            to_here = np.where(masked, q[-1, 0], q[:-1, x])
            mask = np.where(masked, gbar[time] * w.sum(0), 0)
            rows.append(np.concatenate([before * to_here, mask[None]]))
        p = np.stack(rows)
        return np.where(p.real > 1, 1, p)  # with the errors on it can be: the published code clamps

    def distributions(self, a, delta: int) -> dict[str, np.ndarray]:
        """Every distribution that a recording has, as published, by its name without `log_`.

        a: the inputs `x0`, `xt`, `x_prev`, `t`, `mat_t` and the logits; delta: steps of a skip.
        """
        x0, xt, t, n = a["x0"], a["xt"], a["t"], a["logits_img"].shape[1]
        p0, truth = self.p_x0([a["logits_img"], a["logits_txt"]]), self.one_hot(x0)

        def columns(matrix, x):
            matrices = [matrix(k, leak=True) for k in t]
            return np.stack([q[:, row] for q, row in zip(matrices, x, strict=True)])

        found = {
            "onehot_x0": truth,
            "q_xt_given_x0": columns(self.cumulative_matrix, x0),
            "q_xt_given_xt1": columns(self.step_matrix, a["x_prev"]),
            "q_x0_wrap": truth,
            "q_posterior": self.posterior(truth[:, :-1], xt, t, leak=True),
            "p_x0": with_mask(p0),
            "p_xtm1": self.posterior(p0, xt, t, leak=True),
            "p_xtm1_skip": self.posterior(p0, xt, np.where(t >= delta, t - delta, t), leak=True),
            "Q_onestep": np.stack([self.step_matrix(k, leak=True) for k in a["mat_t"]]),
            "Q_cum": np.stack([self.cumulative_matrix(k, leak=True) for k in a["mat_t"]]),
        }
        for given, part in (("txt", slice(0, n)), ("img", slice(n, None))):
            found[f"q_posterior_cond_{given}"] = self.posterior(
                truth[:, :-1, part], xt[:, part], t, leak=True, swapped=True
            )
        return found

    def terms(self, logits, x0, xt, t, *, leak: bool, swapped: bool = False):
        """KL(q || p), -log p(x_{t-1} = x_0 | x_t) and -log p(x_0 | x_t) a position, [B, L] each."""
        p0, truth = self.p_x0(logits), self.one_hot(x0)
        options = {"leak": leak, "swapped": swapped}
        p = self.posterior(p0, xt, t, **options)
        q = self.posterior(truth[:, :-1].astype(float), xt, t, **options)
        some = np.where(q == 0, 1, q)
        kl = np.where(q == 0, 0, q * (np.log(some) - np.log(np.where(p == 0, 1, p)))).sum(1)

        here = truth > 0
        decode = -np.log(np.where(here, p, 1)).sum(1)
        return kl, decode, -np.log(np.where(here[:, :-1], p0, 1)).sum(1)


def with_mask(p: np.ndarray) -> np.ndarray:
    """p of the classes, [B, V - 1, L], with a row of zeros for the mask."""
    return np.concatenate([p, 0 * p[:, :1]], axis=1)


def truncate(p0: np.ndarray, rate: float) -> np.ndarray:
    """Keeps the likeliest classes whose predecessors hold less than `rate`; not renormalised."""
    order = np.argsort(-p0, axis=1, kind="stable")
    ranked = np.take_along_axis(p0, order, axis=1)
    keep = np.cumsum(ranked, axis=1) - ranked < rate
    cut = np.zeros_like(p0)
    np.put_along_axis(cut, order, np.where(keep, ranked, 0), axis=1)
    return cut


def combine(kl, decode, aux, t, pt, weight):
    """The published total a position: at the first step the decoder's term, for both."""
    first = (t == 0)[:, None]
    return (np.where(first, decode, kl) + weight * np.where(first, decode, aux)) / pt[:, None]


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


def network(params, config, x, t, given: str | None = None):
    """The published transformer -> logits [B, n, K] a modality, in float64.

    params: by published name; x: int[B, L]; t: int[B]; given: "txt" or "img" in a conditional mode,
    where only the other modality attends, and has logits; the given one's are None.
    """
    w = {name.removeprefix("transformer."): a.astype(float) for name, a in params.items()}
    n, heads = config["L_img"], config["heads"]

    def linear(name, h):
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(h):
        h = h - h.mean(-1, keepdims=True)
        return h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)

    def scaled(name, h):
        return norm(h) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def timed(name, h):
        e = w[f"{name}.emb.weight"][t]
        scale, shift = np.split(linear(f"{name}.linear", e * special.expit(e))[:, None], 2, -1)
        return norm(h) * (1 + scale) + shift

    def attention(name, h, source):
        def split(part, h):
            return linear(f"{name}.{part}", h).reshape(*h.shape[:2], heads, -1)  # [B, L, H, d]

        q, k, v = split("query", h), split("key", source), split("value", source)
        scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1])
        mixed = np.einsum("bhij,bjhd->bihd", special.softmax(scores, -1), v)
        return linear(f"{name}.proj", mixed.reshape(h.shape))

    h = w["embedding.embedding.weight"][x]
    rows, columns = w["embedding.height_emb.weight"], w["embedding.width_emb.weight"]
    h[:, :n] += (rows[:, None] + columns).reshape(n, -1)
    h[:, n:] += w["embedding.length_emb.weight"]
    for i in range(config["depth"]):
        at = f"blocks.{i}."
        normed = timed(at + "ln1", h)
        h = h + attention(at + "attn1", normed, normed)
        image, text = mixed = [h[:, :n], h[:, n:]]
        if given != "img":
            image = attention(at + "image_attn", timed(at + "ln1_1", mixed[0]), mixed[1])
        if given != "txt":
            text = attention(at + "text_attn", timed(at + "ln1_2", mixed[1]), mixed[0])
        h = h + norm(np.concatenate([image, text], 1))
        inner = linear(at + "mlp.0", scaled(at + "ln2", h))
        h = h + linear(at + "mlp.2", inner * special.ndtr(inner))  # GELU, exact
    h = scaled("norm", h)
    parts = {"img": h[:, :n], "txt": h[:, n:]}
    logits = {m: w["rezero.alpha"] * linear(f"to_logits_{m}", y) for m, y in parts.items()}
    return [None if m == given else y for m, y in logits.items()]
