"""The unified transition kernel and the objective. Read this first.

One matrix noises all modalities (Hu et al. 2022, eq. 4; column = from, row = to):

    Q_t = | a I + b_img 11'        0            0 |      a + K_m b_m + g = 1
          |       0          a I + b_txt 11'    0 |
          |     g 1'             g 1'           1 |

A token stays, becomes another token OF ITS OWN MODALITY (b each), or is masked (g); a mask stays.
The product of such matrices has the same form, so every probability below is a few scalars a
position: nothing here builds a V x V matrix or a one-hot array.

Conventions. Time runs 1..T, 0 is clean; `s < t` is any earlier time, one step or many. Functions
on distributions work on one modality `m` (its index) with LOCAL ids: class k is k, the mask is
K_m, and a distribution is [..., K_m + 1] with the mask last. `log_p0` is the network's
log p(x_0 | x_t) over the K_m classes. Tables are made in float64 and used in float32.

The published code differs in three places, and the tests pin each of them: it leaks mass between
the modalities, it swaps beta in its conditional modes, and it applies the one-step posterior
across a stride.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion import chunks, random_words
from udd_jax.diffusion.schedules import Schedule
from udd_jax.diffusion.vocab import Vocab

# denoise_fn(xt int32[B, L], t int32[B, M], free bool[B, L]) -> logits over x_0, one
# float[B, length_m, K_m] a modality; t has one time for each of the M modalities.
DenoiseFn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]


def begin(denoise_fn: DenoiseFn, x: jax.Array, t: jax.Array, free: jax.Array) -> DenoiseFn:
    """`denoise_fn` for a chain that begins with these inputs: what it has to say of a modality of
    which nothing is free is computed here, once, if it can (`transformer.Denoiser`). A pytree."""
    starts = getattr(denoise_fn, "begin", None)
    return starts(x, t, free) if starts else jax.tree_util.Partial(denoise_fn)


@flax.struct.dataclass
class Kernel:
    """Cumulative tables, float[M, T+1], a row a modality; entry 0 is clean."""

    alpha_bar: jax.Array  # untouched
    gamma_bar: jax.Array  # masked
    unmasked: jax.Array  # 1 - gamma_bar
    beta_bar: jax.Array  # replaced by one given token: uniform_bar / K_m
    vocab: Vocab = flax.struct.field(pytree_node=False)
    masks: bool = flax.struct.field(pytree_node=False)  # the mask is most of the noise
    replaces: bool = flax.struct.field(pytree_node=False)  # more than one token in 100,000
    masks_only: tuple[bool, ...] = flax.struct.field(pytree_node=False)  # none is ever replaced

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
    """The scalars of the matrix that leads from s to t."""

    alpha: jax.Array  # stays (besides beta)
    beta: jax.Array  # is replaced by one given token
    gamma: jax.Array  # is masked


def make_kernel(
    vocab: Vocab, schedules: Schedule | Sequence[Schedule], dtype=jnp.float32
) -> Kernel:
    """One schedule for all modalities, or one a modality with the same T; else ValueError."""
    if isinstance(schedules, Schedule):
        schedules = [schedules] * len(vocab.modalities)
    if len(schedules) != len(vocab.modalities):
        raise ValueError(f"{len(schedules)} schedules for {len(vocab.modalities)} modalities")
    if len({s.steps for s in schedules}) != 1:
        raise ValueError(f"schedules differ in T: {[s.steps for s in schedules]}")
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
    """gbar_t - gbar_s, as a difference of the smaller of gbar and 1 - gbar: the more exact one.

    At the end of `cosine` with T = 600 that of gbar is off by a hundredth. At s = 0 it is gbar_t,
    so that the last step reveals everything.
    """
    early, late = at_t.gamma - at_s.gamma, at_s.unmasked - at_t.unmasked
    return jnp.where(at_t.gamma <= at_s.unmasked, early, late)


def step(at_s: Marginal, at_t: Marginal) -> Step:
    """The matrix from s to t. Differences are taken where they are exact in float32:
    `1 - a - g` from the tables would be off by a factor of 40 for the published schedule."""
    change = (at_s.alpha - at_t.alpha) / at_s.alpha  # 1 - a
    beta = (at_t.beta - at_s.beta + change * at_s.beta) / at_s.unmasked
    return Step(
        alpha=at_t.alpha / at_s.alpha,
        beta=jnp.maximum(beta, 0),  # rounding must not make it negative
        gamma=newly_masked(at_s, at_t) / at_s.unmasked,
    )


def is_class(x: jax.Array, classes: int) -> jax.Array:
    """[k = x] for local ids x, int32[...] -> bool[..., K]; nowhere at a mask."""
    return x[..., None] == lax.broadcasted_iota(jnp.int32, (*x.shape, classes), x.ndim)


def _log(x: jax.Array) -> jax.Array:
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
    """Draws x_t ~ q(x_t | x_0). x0, t: int32[B, L], a time a position -> int32[B, L].

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
    return _with_mask(_log(block), _log(at_t.gamma))


def p_log_probs(
    kernel: Kernel, m: int, log_p0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
) -> jax.Array:
    """log p(x_s | x_t) = log sum_i p(i) q(x_s | x_t, x_0 = i), exact for any s < t.

    log_p0: float[..., K_m], normalised; xt: int32[...], a class or the mask K_m; s, t: int32[...]
    or []. Returns float[..., K_m + 1]. With j = x_t, w(i) = p(i) / (abar_t [i=j] + bbar_t) and
    W = sum w:

        j = mask:   g (abar_s p(k) + bbar_s) / gbar_t,  and gbar_s / gbar_t for the mask
        j a class:  (a [k=j] + b) (abar_s w(k) + bbar_s W),  and 0 for the mask

    The second line is computed times bbar_t / bbar_t, so that nothing is divided by a bbar of
    1e-10. Where bbar_t = 0 a visible token is the truth and stays.
    """
    classes = kernel.vocab.modalities[m].classes
    s, t = jnp.broadcast_to(s, xt.shape), jnp.broadcast_to(t, xt.shape)
    at_s, at_t = marginal(kernel, m, s), marginal(kernel, m, t)
    move = step(at_s, at_t)
    masked = xt == classes
    here = is_class(xt, classes)

    # bbar_t W, with r = bbar_t / (abar_t + bbar_t). A sum, since 1 - p(j) would be rounding alone.
    r = at_t.beta / jnp.where(at_t.unmasked > 0, at_t.alpha + at_t.beta, 1)
    total = (jnp.exp(log_p0) * jnp.where(here, r[..., None], 1)).sum(-1)
    total = jnp.where(masked, 1, total)
    log_w = log_p0 + jnp.where(here, _log(r)[..., None], 0)
    log_x0 = jnp.logaddexp(
        _log(at_s.alpha)[..., None] + log_w, (_log(at_s.beta) + _log(total))[..., None]
    )
    log_step = jnp.where(here, _log(move.alpha + move.beta)[..., None], _log(move.beta)[..., None])
    visible = log_x0 + log_step - _log(jnp.where(at_t.beta > 0, at_t.beta, 1))[..., None]
    visible = jnp.where((at_t.beta > 0)[..., None], visible, jnp.where(here, 0, -jnp.inf))

    some = jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    hidden = log_x0 + (_log(move.gamma) - _log(some))[..., None]
    block = jnp.where(masked[..., None], hidden, visible)
    return _with_mask(block, jnp.where(masked, _log(at_s.gamma / some), -jnp.inf))


def q_posterior(
    kernel: Kernel, m: int, x0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
) -> jax.Array:
    """log q(x_s | x_t, x_0), the reverse step of a network that is certain of x_0.

    x0, xt, s, t: int32[...] -> float[..., K_m + 1]. Where q(x_t | x_0) = 0 it has no meaning.
    """
    here = is_class(x0, kernel.vocab.modalities[m].classes)
    certain = jnp.where(here, 0.0, -jnp.inf).astype(kernel.alpha_bar.dtype)
    return p_log_probs(kernel, m, certain, xt, s, t)


# ---- The objective ------------------------------------------------------------------------------


def token_terms(
    kernel: Kernel,
    m: int,
    logits: jax.Array,
    x0: jax.Array,
    xt: jax.Array,
    s: jax.Array,
    t: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """KL( q(x_s | x_t, x_0) || p(x_s | x_t) ) and -log p(x_0 | x_t), in nats a position.

    logits: float[..., K_m]; x0, xt, s, t: int32[...], s < t, local ids. Two float[...]. At s = 0
    the first is the decoder's -log p(x_0 | x_t), for visible tokens too; for mask-only schedules,
    whose visible tokens are the truth, it is (1 - gbar_s / gbar_t) times that at a mask and 0
    elsewhere, for any s.

    q(x_s | ...) takes three values, at x_0, at x_t and at the rest, so that all that runs over
    the classes is logsumexp(logits) and F = sum_k log(1 + abar_s p(k) / (bbar_s S)) with
    S = 1 at a mask and bbar_t W (see `p_log_probs`) at a visible token.
    """
    classes = logits.shape[-1]
    logits = logits.astype(kernel.alpha_bar.dtype)
    at_s, at_t = marginal(kernel, m, s), marginal(kernel, m, t)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_pi = jnp.where(is_class(x0, classes), logits, 0).sum(-1) - log_z
    decode = -log_pi
    masked = xt == classes
    gamma_t = jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    hidden_plain = newly_masked(at_s, at_t) / gamma_t * decode
    if kernel.masks_only[m]:
        return jnp.where(masked, hidden_plain, 0), decode

    # At s = 0 and, for some schedules, at t = T nothing is replaced. A beta of 0 is made 1 there
    # and its terms are not used.
    beta_s = jnp.where(at_s.beta > 0, at_s.beta, 1)
    beta_t = jnp.where(at_t.beta > 0, at_t.beta, 1)
    move = step(at_s, at_t)
    same = xt == x0
    log_pj = jnp.where(is_class(xt, classes), logits, 0).sum(-1) - log_z
    # Rounding must not make it positive: `total` would be negative.
    log_pj = jnp.where(masked, 0, jnp.minimum(log_pj, 0))
    r = beta_t / (at_t.alpha + beta_t)
    total = jnp.where(masked, 1, -jnp.expm1(log_pj) + r * jnp.exp(log_pj))
    log_total = jnp.log(total)
    log_ratio = jnp.log(at_s.alpha) - jnp.log(beta_s) - log_total  # log(abar_s / (bbar_s S))

    def spread(log_w):  # log(abar_s w + bbar_s S) - log(bbar_s S)
        return jax.nn.softplus(log_ratio + log_w)

    every = jax.nn.softplus(logits + (log_ratio - log_z)[..., None]).sum(-1)  # F
    at_i = spread(log_pi)

    # A mask: weights g/gbar_t (abar_s [k=i] + bbar_s).
    scale = move.gamma / gamma_t
    log_keep = jnp.log1p(at_s.alpha / beta_s)  # log(abar_s + bbar_s) - log bbar_s
    hidden = scale * ((at_s.alpha + beta_s) * (log_keep - at_i) - beta_s * (every - at_i))

    # A visible token j: weights (a [k=j] + b) (abar_s [k=i] + bbar_s) / d_i.
    log_d = jnp.where(same, jnp.log1p(at_t.alpha / beta_t), 0)  # log(d_i / bbar_t)
    d = jnp.where(same, at_t.alpha + beta_t, beta_t)
    at_j = spread(log_pj + jnp.log(r))
    common = -log_d - log_total
    kept = jnp.where(same, at_j, at_i)  # the model's value at k = i
    weight_i = (jnp.where(same, move.alpha, 0) + move.beta) * (at_s.alpha + beta_s)
    weight_j = jnp.where(same, 0, (move.alpha + move.beta) * beta_s)
    weight_rest = move.beta * beta_s
    others = classes - jnp.where(same, 1, 2)
    rest = every - spread(log_pj) - jnp.where(same, 0, at_i)
    visible = (
        weight_i * (log_keep + common - kept)
        + weight_j * (common - at_j)
        + weight_rest * (others * common - rest)
    ) / d

    kl = jnp.where(masked, hidden, jnp.where(at_t.beta > 0, visible, 0))
    return jnp.where(s == 0, decode, kl), decode


def prior_kl(kernel: Kernel, m: int) -> jax.Array:
    """KL( q(x_T | x_0) || p(x_T) ) of one position, nats. It has no parameters."""
    at_T = marginal(kernel, m, jnp.int32(kernel.steps))
    uniform = at_T.unmasked / kernel.vocab.modalities[m].classes
    here = at_T.alpha + at_T.beta

    def part(q):
        return q * (_log(jnp.where(q > 0, q, 1)) - _log(jnp.where(q > 0, uniform, 1)))

    return part(here) + (kernel.vocab.modalities[m].classes - 1) * part(at_T.beta)


def free_times(vocab: Vocab, t: jax.Array, free: jax.Array) -> jax.Array:
    """The time of each position: its modality's where it is free, 0 where it is given.

    t: int32[B, M], free: bool[B, L] -> int32[B, L].
    """
    return jnp.where(free, t[:, vocab.modality_of], 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frugal_terms(terms, logits, *tokens):
    """`terms(logits, *tokens)` and its gradient, in pieces of the positions.

    Of a modality its logits are kept for the backward pass, which computes everything anew and
    holds nothing of their size but the gradient.
    """
    return chunks.in_pieces(terms, logits, *tokens)


def _keep(terms, logits, *tokens):
    return _frugal_terms(terms, logits, *tokens), (logits, tokens)


def _gradient(terms, kept, towards):
    logits, tokens = kept

    def of_piece(logits, towards, *tokens):
        return jax.vjp(lambda y: terms(y, *tokens), logits)[1](towards)[0]

    return chunks.in_pieces(of_piece, logits, towards, *tokens), *(None for _ in tokens)


_frugal_terms.defvjp(_keep, _gradient)


def loss_terms(
    kernel: Kernel,
    logits: Sequence[jax.Array],
    x0: jax.Array,
    xt: jax.Array,
    t: jax.Array,
    free: jax.Array,
    s: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`token_terms` of a whole batch, 0 where a position is not free.

    logits: one float[B, length_m, K_m] a modality; x0, xt: int32[B, L]; t: int32[B, M];
    free: bool[B, L]; s: int32[B, M], t - 1 unless given. Returns (kl, nll), float[B, L] each.
    """
    vocab = kernel.vocab
    s = t - 1 if s is None else s
    parts = []
    for m, where in enumerate(vocab.slices):
        t_m = jnp.maximum(t[:, m : m + 1], 1)  # a given modality (t = 0) carries no loss
        s_m = jnp.clip(s[:, m : m + 1], 0, t_m - 1)
        shape = x0[:, where].shape
        parts.append(
            _frugal_terms(
                functools.partial(token_terms, kernel, m),
                logits[m],
                vocab.local(m, x0[:, where]),
                vocab.local(m, xt[:, where]),
                jnp.broadcast_to(s_m, shape),
                jnp.broadcast_to(t_m, shape),
            )
        )
    kl, nll = (jnp.concatenate(p, axis=1) for p in zip(*parts, strict=True))
    return jnp.where(free, kl, 0), jnp.where(free, nll, 0)


# ---- Continuous time ----------------------------------------------------------------------------


class Instant(NamedTuple):
    """A time in (0, T] of modalities that are only ever masked, one array [...] each."""

    t: jax.Array  # int32, the whole number above, as the network is fed it
    gamma: jax.Array  # masked by then
    rate: jax.Array  # d log gamma / dt


def instant(kernel: Kernel, time: jax.Array) -> Instant:
    """gamma_bar between its entries: along a straight line. time: float[B, M] in 0..T."""
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


def continuous_terms(kernel: Kernel, nll: jax.Array, xt: jax.Array, rate: jax.Array) -> jax.Array:
    """What a position adds to the bound of the chain with infinitely many steps, float[B, L].

    The KL of a step from t - dt to t is rate dt times the cross-entropy at a mask (MDLM, MD4:
    arXiv 2406.07524, 2406.04329). nll: float[B, L] of `loss_terms`; rate: float[B, M] of `instant`.
    """
    weight = rate[:, kernel.vocab.modality_of]
    return jnp.where(xt == kernel.vocab.mask_id, weight * nll, 0)


# ---- The bound ----------------------------------------------------------------------------------


def chain_times(steps: int, calls: int) -> np.ndarray:
    """The times T > ... > 0 of a chain of `calls` steps, as even as whole numbers can be.

    int[calls + 1]; steps is T.
    """
    return chain_time(steps, calls, np.arange(calls + 1))


def chain_time(steps: int, calls, number):
    """The time before call `number`, 0 and on, of such a chain; whole numbers or int arrays."""
    return steps - number * steps // calls


def bound(
    kernel: Kernel,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    x0: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    times: int,
    calls: int = 0,
) -> jax.Array:
    """An upper bound on -log p of the free modalities given the others, nats, float[B, M].

    p is that of the ancestral chain of `calls` steps (0 is T), with nothing truncated: the sum of
    its L_t, estimated from `times` of them, one from each of as many strata, and the prior's term.
    keys: one a sample, [B]; x0: int32[B, L]; free: bool[B, L], whole modalities; absent:
    bool[B, M]. Its mean over keys is exact for any `times`. Every time draws another absent
    modality, so that a `denoise_fn` may keep what it knows of given ones alone.
    """
    vocab, calls = kernel.vocab, calls or kernel.steps
    clock = jnp.asarray(chain_times(kernel.steps, calls)[::-1].astype(np.int32))
    lead = jnp.stack([free[:, where].any(axis=1) for where in vocab.slices], axis=1)
    denoise_fn = begin(denoise_fn, x0, jnp.where(lead, kernel.steps, 0), free)

    def one_time(total, k):
        def draw(key):
            key_time, key_noise, key_prior = jax.random.split(jax.random.fold_in(key, k), 3)
            u = (k + jax.random.uniform(key_time)) / times
            number = jnp.minimum(jnp.floor(u * calls).astype(jnp.int32), calls - 1)
            return number, key_noise, prior_sample(kernel, key_prior, 1)[0]

        number, key_noise, prior = jax.vmap(draw)(keys)
        s, t = clock[number][:, None], clock[number + 1][:, None]
        t = jnp.where(absent, kernel.steps, jnp.where(lead, t, 0))
        position_t = free_times(vocab, t, free)
        noised = jax.vmap(lambda key, x, t: q_sample(kernel, key, x[None], t[None])[0])
        xt = noised(key_noise, x0, position_t)
        xt = jnp.where(absent[:, vocab.modality_of], prior, xt)
        s = jnp.broadcast_to(s, t.shape)
        kl, _ = loss_terms(kernel, denoise_fn(xt, t, free), x0, xt, t, free, s)
        sums = jnp.stack([kl[:, where].sum(axis=1) for where in vocab.slices], axis=1)
        return total + calls / times * sums, None

    priors = [prior_kl(kernel, m) * vocab.modalities[m].length for m in range(lead.shape[1])]
    start = jnp.where(lead, jnp.stack(priors)[None], 0)
    total, _ = jax.lax.scan(one_time, start, jnp.arange(times))
    return total
