"""The parts of samplers: draws at each position, and choices of the positions to reveal.

Arrays of one modality use local ids; the mask is K_m. `words` are random words for each position
(`random_words`). A draw first decides between mask and token, then draws the token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import concrete_score, random_words, transition
from udd_jax.diffusion.transition import Kernel

# ---- The input of a rule ------------------------------------------------------------------------


class Look(NamedTuple):
    """The drawn tokens and how certain p is at each position, [B, L] (or [B, n]) each."""

    token: jax.Array  # int32, local ids, drawn from p after temperature and truncation
    log_prob: jax.Array  # its log p; this and all below: before temperature and truncation
    best: jax.Array  # int32, the most likely class
    log_best: jax.Array  # its log p
    margin: jax.Array  # p of the most likely class minus p of the second
    entropy: jax.Array  # in nats
    purity: jax.Array | None = None  # for the sampler "purity": log purity


def look(words: jax.Array, log_p: jax.Array, log_plain: jax.Array | None = None) -> Look:
    """Draws tokens from p and measures how certain p is. Fields that a rule ignores cost nothing.

    words: uint32[B, n]; log_p: float[B, n, K] of one modality, normalised. log_plain: log p before
    temperature and truncation, if it differs; all but the token is computed from it. If truncation
    leaves one class of two, the token is certain but the network is not.
    """
    token = random_words.categorical(words, log_p)
    log_q = log_p if log_plain is None else log_plain
    best = jnp.argmax(log_q, axis=-1).astype(jnp.int32)
    log_best = jnp.max(log_q, axis=-1)
    own = transition.is_class(best, log_q.shape[-1])
    second = jnp.max(jnp.where(own, -jnp.inf, log_q), axis=-1)
    return Look(
        token,
        jnp.take_along_axis(log_q, token[..., None], axis=-1)[..., 0],
        best,
        log_best,
        jnp.exp(log_best) - jnp.exp(second),
        entropy(log_q),
    )


def entropy(log_p: jax.Array) -> jax.Array:
    """In nats, of normalised log p: float[..., K] -> float[...]."""
    p = jnp.exp(log_p)
    return -jnp.where(p > 0, p * jnp.where(p > 0, log_p, 0), 0).sum(-1)


# ---- Rules by time ------------------------------------------------------------------------------


def ancestral(
    kernel: Kernel,
    m: int,
    words: jax.Array,
    log_p: jax.Array,
    xt: jax.Array,
    s: jax.Array,
    t: jax.Array,
    fresh: jax.Array | None = None,
) -> jax.Array:
    """Draws x_s ~ p(x_s | x_t) of `transition.p_log_probs`, exact for any s < t.

    words: uint32[B, n, 4]; log_p: float[B, n, K], normalised; xt: int32[B, n]; s, t: int32 scalars.
    Returns int32[B, n]. `fresh`, bool[B, n], marks visible positions that are treated as masked and
    are revealed now (`left_out`). With j = x_t and W as in `p_log_probs`, a move is a draw from a
    mixture of p and a uniform token, so only a few sums and the draw run over the classes:

        j = mask:   revealed with 1 - gbar_s / gbar_t;  p : uniform = abar_s : K bbar_s
        j a class:  moves with b (abar_s rest / bbar_t + (K - 1) bbar_s W), rest = 1 - p(j);
                    p without j : uniform without j = abar_s rest / bbar_t : (K - 1) bbar_s W
    """
    classes = log_p.shape[-1]
    at_s, at_t = transition.marginal(kernel, m, s), transition.marginal(kernel, m, t)
    masked = xt == classes
    if fresh is not None:
        masked = masked | fresh
    gamma_t = jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    reveal = transition.newly_masked(at_s, at_t) / gamma_t
    if kernel.masks_only[m]:
        moves = random_words.bernoulli(words[..., 0], jnp.where(masked, reveal, 0))
        return jnp.where(moves, random_words.categorical(words[..., 1], log_p), xt)

    own = ~masked[..., None] & transition.is_class(xt, classes)
    others = jnp.where(own, -jnp.inf, log_p)
    rest = jnp.exp(others).sum(-1)
    others = others - jnp.log(jnp.where(rest > 0, rest, 1))[..., None]
    p_j = jnp.where(own, jnp.exp(log_p), 0).sum(-1)
    beta_t = jnp.where(at_t.beta > 0, at_t.beta, 1)
    total = rest / beta_t + p_j / (at_t.alpha + beta_t)  # W
    beta = jnp.where(at_t.beta > 0, transition.step(at_s, at_t).beta, 0)
    from_p = jnp.where(masked, at_s.alpha, at_s.alpha * rest / beta_t)
    from_uniform = jnp.where(masked, classes * at_s.beta, (classes - 1) * at_s.beta * total)
    move = jnp.where(masked, reveal, beta * (from_p + from_uniform))
    if fresh is not None:
        move = jnp.where(fresh, 1, move)

    moves = random_words.bernoulli(words[..., 0], move)
    weight = from_p + from_uniform
    mixed = random_words.bernoulli(words[..., 2], from_uniform / jnp.where(weight > 0, weight, 1))
    some = random_words.below(words[..., 3], jnp.where(masked, classes, classes - 1))
    some = some + (~masked & (some >= xt))  # one of the K - 1 that are not j
    token = jnp.where(mixed, some, random_words.categorical(words[..., 1], others))
    return jnp.where(moves, token, xt)


def tau_leaping(
    kernel: Kernel,
    m: int,
    words: jax.Array,
    log_p: jax.Array,
    xt: jax.Array,
    s: jax.Array,
    t: jax.Array,
) -> jax.Array:
    """A step of tau-leaping (arXiv 2205.14987): each position jumps with the rates at time t.

    words: uint32[B, n, 4]; log_p: float[B, n, K], normalised; xt: int32[B, n]; s, t: int32 scalars.
    Returns int32[B, n]. With tau rate from `concrete_score.reverse_rates` and its sum R over the
    classes, a position jumps at most once, with probability 1 - exp(-R), to a class in proportion
    to its rate. The law of a step is that of `ancestral` up to O(tau^2). The last step, to s = 0,
    is exact: it draws x_0 from p.
    """
    rates = concrete_score.reverse_rates(kernel, m, log_p, xt, s, t)
    total = rates.sum(-1)
    log_law = transition.safe_log(rates / jnp.where(total > 0, total, 1)[..., None])
    unsure = (xt == log_p.shape[-1]) | (transition.marginal(kernel, m, t).beta > 0)
    last = s == 0
    moves = random_words.bernoulli(
        words[..., 0], jnp.where(last, unsure.astype(total.dtype), -jnp.expm1(-total))
    )
    token = random_words.categorical(words[..., 1], jnp.where(last, log_p, log_law))
    return jnp.where(moves, token, xt)


def left_out(kernel: Kernel, m: int, log_p: jax.Array, xt: jax.Array, t: jax.Array) -> jax.Array:
    """log p(x_0 | x_t without this position) at visible tokens; log p itself at masks.

    p(i) contains the evidence q(x_t = j | i) of the position's own token j. Dividing by it leaves
    the prediction from the other positions: p(i) / (abar_t [i=j] + bbar_t), normalised. log_p:
    float[B, n, K]; xt: int32[B, n]; t: int32 scalar. Returns float[B, n, K].
    """
    at_t = transition.marginal(kernel, m, t)
    own = transition.is_class(xt, log_p.shape[-1])
    evidence = jnp.log(at_t.beta) - jnp.log(at_t.alpha + at_t.beta)
    return jax.nn.log_softmax(jnp.where(own, log_p + evidence, log_p), axis=-1)


def remdm(
    kernel: Kernel,
    m: int,
    words: jax.Array,
    look: Look,
    xt: jax.Array,
    s: jax.Array,
    t: jax.Array,
    free: jax.Array,
    psi: jax.Array,
    rule: str,
    eta: float,
) -> tuple[jax.Array, jax.Array]:
    """One step of ReMDM (arXiv 2503.00307): masks a revealed token again with probability sigma.

    A = 1 - gbar is the unmasked share, and sigma <= sigma_max = min(1, (1 - A_s) / A_t). A masked
    position stays masked with probability (1 - A_s - sigma A_t) / (1 - A_t). `rule` gives sigma:

        "cap"         min(eta, sigma_max)
        "rescale"     eta sigma_max
        "confidence"  sigma_max softmax(-psi) over the revealed free positions; their mean at masks

    The first two keep the marginals. psi: float[B, n], the probability of each token when it was
    drawn. words: uint32[B, n]; xt: int32[B, n]; s, t: int32 scalars; free: bool[B, n]. Returns
    (x_s int32[B, n], the new psi).
    """
    classes = kernel.vocab.modalities[m].classes
    at_s, at_t = transition.marginal(kernel, m, s), transition.marginal(kernel, m, t)
    masked = xt == classes
    shown = free & ~masked
    limit = jnp.minimum(1, at_s.gamma / jnp.where(at_t.unmasked > 0, at_t.unmasked, 1))
    limit = jnp.where(at_t.unmasked > 0, limit, 1)
    if rule == "confidence":
        share = jax.nn.softmax(jnp.where(shown, -psi, -1e9), axis=-1)
        count = jnp.maximum(shown.sum(-1, keepdims=True), 1)
        sigma = limit * jnp.where(shown, share, 1 / count)
    else:
        sigma = jnp.full(xt.shape, jnp.minimum(eta, limit) if rule == "cap" else eta * limit)
    reveal = (transition.newly_masked(at_s, at_t) + sigma * at_t.unmasked) / at_t.gamma
    moves = random_words.bernoulli(words, jnp.where(masked, reveal, sigma))
    xs = jnp.where(moves, jnp.where(masked, look.token, classes), xt)
    return xs, jnp.where(moves, jnp.where(masked, jnp.exp(look.log_prob), 0), psi)


def sharpen(log_p: jax.Array, masked: jax.Array, strength: float) -> tuple[jax.Array, jax.Array]:
    """Purity (Improved VQ-Diffusion): log softmax((1 + r purity) log p), and log purity.

    purity = max_k p(k), divided by its maximum over the masked positions. log_p: float[B, n, K];
    masked: bool[B, n]; strength: r. Returns float[B, n, K] and float[B, n].
    """
    log_best = jnp.max(log_p, axis=-1)
    top = jnp.max(jnp.where(masked, log_best, -jnp.inf), axis=-1, keepdims=True)
    purity = jnp.minimum(log_best - jnp.where(jnp.isfinite(top), top, 0), 0)
    sharp = jnp.where(log_p > -jnp.inf, (1 + strength * jnp.exp(purity))[..., None] * log_p, log_p)
    return jax.nn.log_softmax(sharp, axis=-1), purity


def halton(length: int, grid: tuple[int, int] | None) -> np.ndarray:
    """The rank of each position in the Halton order, int[length] (arXiv 2503.17076).

    The points of the Halton sequence (base 2 for columns, base 3 for rows) fall into the cells of
    the grid. The first point in a cell decides its rank. Without a grid, this is the
    one-dimensional sequence of base 2.
    """
    rows, columns = grid or (1, length)
    order, number = {}, 0
    while len(order) < length:
        number += 1
        cell = int(_radical_inverse(number, 3) * rows) * columns
        cell += int(_radical_inverse(number, 2) * columns)
        order.setdefault(cell, len(order))
    return np.array([order[cell] for cell in range(length)])


def _radical_inverse(number: int, base: int) -> float:
    """The radical inverse: the digits of `number` mirrored at the radix point, in [0, 1)."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


# ---- Rules by order -----------------------------------------------------------------------------


def cosine_counts(steps: int, length: int) -> np.ndarray:
    """How many of n0 positions stay masked after step k: int[steps, length + 1], row k, column n0.

    It is floor(n0 cos(pi/2 (k+1)/steps)), in float64: float32 rounds some values down.
    """
    share = np.cos(np.pi / 2 * np.arange(1, steps + 1) / steps)
    share[-1] = 0
    return np.floor(share[:, None] * np.arange(length + 1) + 1e-9).astype(np.int32)


def linear_counts(steps: int, length: int) -> np.ndarray:
    """Like `cosine_counts`, with an equal number of positions revealed in each step."""
    return np.arange(length + 1) * np.arange(steps - 1, -1, -1)[:, None] // steps


def rank(score: jax.Array, masked: jax.Array) -> jax.Array:
    """The rank of each masked position by score, 0 for the highest; int32[B, n].

    score: float[B, n]; masked: bool[B, n]. Equal scores rank by position; others come last.
    """
    order = jnp.argsort(jnp.where(masked, -score, jnp.inf), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def by_count(score: jax.Array, masked: jax.Array, stay: jax.Array) -> jax.Array:
    """The masked positions to reveal, bool[B, n]: all but the `stay` int32[B] lowest scores."""
    count = masked.sum(-1) - stay
    return masked & (rank(score, masked) < count[:, None])


def above(log_best: jax.Array, masked: jax.Array, threshold: float) -> jax.Array:
    """All masked positions with max p above `threshold`; at least the most certain one.

    log_best: float[B, n]; masked: bool[B, n]. Returns bool[B, n].
    """
    return masked & ((log_best > jnp.log(threshold)) | (rank(log_best, masked) == 0))


def within(entropy: jax.Array, masked: jax.Array, bound: float) -> jax.Array:
    """Masked positions U of lowest entropy H, as many as sum_U H - max_U H <= bound allows.

    At least one. entropy: float[B, n], nats; masked: bool[B, n]. Returns bool[B, n].
    """
    before = jnp.argsort(jnp.where(masked, entropy, jnp.inf), axis=-1, stable=True)
    ordered = jnp.take_along_axis(jnp.where(masked, entropy, 0), before, axis=-1)
    earlier = jnp.cumsum(ordered, axis=-1) - ordered  # sum minus maximum: the last is the largest
    count = (earlier <= bound).sum(-1, keepdims=True)
    return masked & (rank(-entropy, masked) < jnp.maximum(count, 1))


def first_hitting(
    kernel: Kernel, words: jax.Array, clock: jax.Array, masked: jax.Array, group: int
) -> tuple[jax.Array, jax.Array]:
    """The next `group` reveals of continuous-time ancestral sampling (arXiv 2409.02908).

    words: uint32[B, L]; clock: float[B], the time in 0..T; masked: bool[B, L]. Returns (reveal
    bool[B, L], the time of the last reveal float[B]). At time tau each masked position draws its
    own reveal time: the time at which gbar equals u gbar(tau), with uniform u. The largest of n
    such times is the time at which gbar equals u^(1/n) gbar(tau).
    """
    grid = jnp.arange(kernel.steps + 1.0)
    u = random_words.uniform(words)
    times = []
    for gamma, where in zip(kernel.gamma_bar, kernel.vocab.slices, strict=True):
        level = jnp.interp(clock, grid, gamma)[:, None] * u[:, where]
        times.append(jnp.interp(level, gamma, grid))
    times = jnp.concatenate(times, axis=1)
    reveal = masked & (rank(times, masked) < group)
    return reveal, jnp.min(jnp.where(reveal, times, clock[:, None]), axis=1)
