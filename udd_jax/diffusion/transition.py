"""The unified transition kernel. Read this first.

One matrix noises all modalities (Hu et al. 2022, eq. 4; column = from, row = to):

    Q_t = | a I + b_img 11'        0            0 |      a + K_m b_m + g = 1
          |       0          a I + b_txt 11'    0 |
          |     g 1'             g 1'           1 |

A token stays, becomes another token OF ITS OWN MODALITY (b each), or is masked (g); a mask stays.
The product of such matrices has the same form, so every probability below is a few scalars for
each position. Nothing here builds a V x V matrix or a one-hot array. `objective` has the loss.

Conventions. Time runs 1..T, 0 is clean; `s < t` is any earlier time, one step or many. Functions
on distributions work on one modality with index `m` and LOCAL ids: class k is k, the mask is K_m,
and a distribution is [..., K_m + 1] with the mask last. `log_p0` is the log p(x_0 | x_t) of the
network over the K_m classes. Tables are made in float64 and used in float32.

The published code differs in three places, and a test pins each of them: it leaks mass between the
modalities, it swaps beta in its conditional modes, and it applies the one-step posterior across a
stride.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion import random_words
from udd_jax.diffusion.schedules import Schedule
from udd_jax.diffusion.vocab import Vocab
from udd_jax.errors import UserError


@flax.struct.dataclass
class Kernel:
    """Cumulative tables, float[M, T+1], one row for each modality; entry 0 is clean."""

    alpha_bar: jax.Array  # untouched
    gamma_bar: jax.Array  # masked
    unmasked: jax.Array  # 1 - gamma_bar
    beta_bar: jax.Array  # replaced by one given token: uniform_bar / K_m
    vocab: Vocab = flax.struct.field(pytree_node=False)
    masks: bool = flax.struct.field(pytree_node=False)  # most of the noise is the mask
    replaces: bool = flax.struct.field(pytree_node=False)  # more than one token in 100,000
    masks_only: tuple[bool, ...] = flax.struct.field(pytree_node=False)  # no token is ever replaced

    @property
    def steps(self) -> int:
        """T."""
        return self.alpha_bar.shape[1] - 1


class Marginal(NamedTuple):
    """The cumulative scalars at a time, one array [...] each."""

    alpha: jax.Array
    gamma: jax.Array
    unmasked: jax.Array
    beta: jax.Array


class Step(NamedTuple):
    """The scalars of the matrix from s to t."""

    alpha: jax.Array  # stays (in addition to beta)
    beta: jax.Array  # is replaced by one given token
    gamma: jax.Array  # is masked


def make_kernel(
    vocab: Vocab, schedules: Schedule | Sequence[Schedule], dtype=jnp.float32
) -> Kernel:
    """One schedule for all modalities, or one for each with the same T; otherwise ValueError."""
    if isinstance(schedules, Schedule):
        schedules = [schedules] * len(vocab.modalities)
    if len(schedules) != len(vocab.modalities):
        raise UserError(f"{len(schedules)} schedules for {len(vocab.modalities)} modalities")
    if len({s.steps for s in schedules}) != 1:
        raise UserError(f"schedules differ in T: {[s.steps for s in schedules]}")
    classes = [m.classes for m in vocab.modalities]

    def stack(tables):
        return jnp.asarray(np.stack(tables), dtype)

    return Kernel(
        alpha_bar=stack([s.alpha_bar for s in schedules]),
        gamma_bar=stack([s.gamma_bar for s in schedules]),
        unmasked=stack([s.unmasked for s in schedules]),
        beta_bar=stack([s.uniform_bar / k for s, k in zip(schedules, classes, strict=True)]),
        vocab=vocab,
        masks=all(s.masks for s in schedules),
        replaces=any(s.uniform_bar.max() > 1e-5 for s in schedules),
        masks_only=tuple(s.masks_only for s in schedules),
    )


def marginal(kernel: Kernel, m: int | np.ndarray, t: jax.Array) -> Marginal:
    """q(x_t | x_0) in four scalars, for times int32[...] of modality `m` (or an array of them)."""
    return Marginal(
        kernel.alpha_bar[m, t],
        kernel.gamma_bar[m, t],
        kernel.unmasked[m, t],
        kernel.beta_bar[m, t],
    )


def newly_masked(at_s: Marginal, at_t: Marginal) -> jax.Array:
    """gbar_t - gbar_s, from the smaller of gbar and 1 - gbar, whose difference is more exact.

    At the end of `cosine` with T = 600 the difference of gbar is off by a hundredth. At s = 0 the
    result is gbar_t, so that the last step reveals everything.
    """
    early, late = at_t.gamma - at_s.gamma, at_s.unmasked - at_t.unmasked
    return jnp.where(at_t.gamma <= at_s.unmasked, early, late)


def step(at_s: Marginal, at_t: Marginal) -> Step:
    """The matrix from s to t, from differences that are exact in float32.

    With the published schedule, `1 - a - g` from the tables would be off by a factor of 40.
    """
    change = (at_s.alpha - at_t.alpha) / at_s.alpha  # 1 - a
    beta = (at_t.beta - at_s.beta + change * at_s.beta) / at_s.unmasked
    return Step(
        alpha=at_t.alpha / at_s.alpha,
        beta=jnp.maximum(beta, 0),  # rounding must not make it negative
        gamma=newly_masked(at_s, at_t) / at_s.unmasked,
    )


def is_class(x: jax.Array, classes: int) -> jax.Array:
    """[k = x] for local ids x, int32[...] -> bool[..., K]; all False at a mask."""
    return x[..., None] == lax.broadcasted_iota(jnp.int32, (*x.shape, classes), x.ndim)


def safe_log(x: jax.Array) -> jax.Array:
    """log x with log 0 = -inf and a gradient of 0 there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)


# ---- Sampling forward ---------------------------------------------------------------------------


def _uniform_tokens(kernel: Kernel, words: jax.Array) -> jax.Array:
    """A uniform token of its own modality at every position, global ids int32[B, L]."""
    vocab = kernel.vocab
    classes = np.array([m.classes for m in vocab.modalities], np.int32)[vocab.modality_of]
    offsets = np.array(vocab.offsets, np.int32)[vocab.modality_of]
    return random_words.below(words, classes[None]) + offsets[None]


def q_sample(kernel: Kernel, key: jax.Array, x0: jax.Array, t: jax.Array) -> jax.Array:
    """Draws x_t ~ q(x_t | x_0). x0, t: int32[B, L], one time a position -> int32[B, L].

    `key` is one key, or one a sample, [B].
    """
    vocab = kernel.vocab
    shape = x0.shape if key.ndim == 0 else x0.shape[1:]
    words = random_words.words(key, (*shape, 3))
    at_t = marginal(kernel, vocab.modality_of[None], t)
    masked = random_words.bernoulli(words[..., 0], at_t.gamma)
    classes = np.array([m.classes for m in vocab.modalities])[vocab.modality_of]
    some = jnp.where(at_t.unmasked > 0, at_t.unmasked, 1)
    replaced = random_words.bernoulli(words[..., 1], classes[None] * at_t.beta / some)
    token = _uniform_tokens(kernel, words[..., 2])
    return jnp.where(masked, vocab.mask_id, jnp.where(replaced, token, x0))


def prior_sample(kernel: Kernel, key: jax.Array, batch: int) -> jax.Array:
    """Draws x_T ~ p(x_T): masked with gamma_bar[T], otherwise uniform -> int32[B, L].

    `key` is one key, or one a sample, [B].
    """
    length = kernel.vocab.length
    words = random_words.words(key, (batch, length, 2) if key.ndim == 0 else (length, 2))
    gamma = kernel.gamma_bar[kernel.vocab.modality_of, -1]
    masked = random_words.bernoulli(words[..., 0], gamma[None])
    return jnp.where(masked, kernel.vocab.mask_id, _uniform_tokens(kernel, words[..., 1]))


# ---- Distributions of one modality, local ids ---------------------------------------------------


def _with_mask(block: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.concatenate([block, mask[..., None]], axis=-1)


def q_log_probs(kernel: Kernel, m: int, x0: jax.Array, t: jax.Array) -> jax.Array:
    """log q(x_t | x_0): abar_t [k = x0] + bbar_t in the block, gbar_t at the mask.

    x0, t: int32[...] with x0 a class -> float[..., K_m + 1].
    """
    at_t = marginal(kernel, m, t)
    here = is_class(x0, kernel.vocab.modalities[m].classes)
    block = jnp.where(here, (at_t.alpha + at_t.beta)[..., None], at_t.beta[..., None])
    return _with_mask(safe_log(block), safe_log(at_t.gamma))


def p_log_probs(
    kernel: Kernel, m: int, log_p0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
) -> jax.Array:
    """log p(x_s | x_t) = log sum_i p(i) q(x_s | x_t, x_0 = i), exact for any s < t.

    log_p0: float[..., K_m], normalised; xt: int32[...], a class or the mask K_m; s, t: int32[...]
    or []. Returns float[..., K_m + 1]. With j = x_t, w(i) = p(i) / (abar_t [i=j] + bbar_t) and
    W = sum w:

        j = mask:   g (abar_s p(k) + bbar_s) / gbar_t,  and gbar_s / gbar_t for the mask
        j a class:  (a [k=j] + b) (abar_s w(k) + bbar_s W),  and 0 for the mask

    The second line is multiplied by bbar_t / bbar_t, so that the code never divides by a bbar of
    1e-10. Where bbar_t = 0 a visible token is the truth and stays.
    """
    classes = kernel.vocab.modalities[m].classes
    s, t = jnp.broadcast_to(s, xt.shape), jnp.broadcast_to(t, xt.shape)
    at_s, at_t = marginal(kernel, m, s), marginal(kernel, m, t)
    move = step(at_s, at_t)
    masked = xt == classes
    here = is_class(xt, classes)

    # bbar_t W, with r = bbar_t / (abar_t + bbar_t). A sum, since 1 - p(j) would be all rounding.
    r = at_t.beta / jnp.where(at_t.unmasked > 0, at_t.alpha + at_t.beta, 1)
    total = (jnp.exp(log_p0) * jnp.where(here, r[..., None], 1)).sum(-1)
    total = jnp.where(masked, 1, total)
    log_w = log_p0 + jnp.where(here, safe_log(r)[..., None], 0)
    log_x0 = jnp.logaddexp(
        safe_log(at_s.alpha)[..., None] + log_w, (safe_log(at_s.beta) + safe_log(total))[..., None]
    )
    log_step = jnp.where(
        here, safe_log(move.alpha + move.beta)[..., None], safe_log(move.beta)[..., None]
    )
    visible = log_x0 + log_step - safe_log(jnp.where(at_t.beta > 0, at_t.beta, 1))[..., None]
    visible = jnp.where((at_t.beta > 0)[..., None], visible, jnp.where(here, 0, -jnp.inf))

    some = jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    hidden = log_x0 + (safe_log(move.gamma) - safe_log(some))[..., None]
    block = jnp.where(masked[..., None], hidden, visible)
    return _with_mask(block, jnp.where(masked, safe_log(at_s.gamma / some), -jnp.inf))


def q_posterior(
    kernel: Kernel, m: int, x0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
) -> jax.Array:
    """log q(x_s | x_t, x_0): the reverse step of a network that is certain of x_0.

    x0, xt, s, t: int32[...] -> float[..., K_m + 1]. It is meaningless where q(x_t | x_0) = 0.
    """
    here = is_class(x0, kernel.vocab.modalities[m].classes)
    certain = jnp.where(here, 0.0, -jnp.inf).astype(kernel.alpha_bar.dtype)
    return p_log_probs(kernel, m, certain, xt, s, t)


def free_times(vocab: Vocab, t: jax.Array, free: jax.Array) -> jax.Array:
    """The time of each position: that of its modality where it is free, 0 where it is given.

    t: int32[B, M], free: bool[B, L] -> int32[B, L].
    """
    return jnp.where(free, t[:, vocab.modality_of], 0)


# ---- Continuous time ----------------------------------------------------------------------------


class Instant(NamedTuple):
    """A time in (0, T], for mask-only schedules; one array [...] each."""

    t: jax.Array  # int32, rounded up: the time that the network gets
    gamma: jax.Array  # the share that is masked by then
    rate: jax.Array  # d log gamma / dt


def instant(kernel: Kernel, time: jax.Array) -> Instant:
    """gamma_bar between its entries, along a straight line. time: float[B, M] in 0..T."""
    modality = np.arange(time.shape[1])[None]
    t = jnp.ceil(time).astype(jnp.int32)
    s = jnp.maximum(t - 1, 0)
    at_s, at_t = marginal(kernel, modality, s), marginal(kernel, modality, t)
    slope = newly_masked(at_s, at_t)
    gamma = at_s.gamma + (time - s) * slope
    return Instant(t, gamma, slope / jnp.where(gamma > 0, gamma, 1))


def mask_sample(kernel: Kernel, key: jax.Array, x0: jax.Array, gamma: jax.Array) -> jax.Array:
    """Masks each position with probability gamma, float[B, L]: `q_sample` at an instant."""
    words = random_words.words(key, x0.shape if key.ndim == 0 else x0.shape[1:])
    return jnp.where(random_words.bernoulli(words, gamma), kernel.vocab.mask_id, x0)
