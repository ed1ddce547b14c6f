"""The objective that trains a network, and the bound that measures it.

    L = E_t [ sum over modalities m of (L_t^m + lambda L_aux^m) / p(t) ]

    L_t    KL( q(x_s | x_t, x_0) || p(x_s | x_t) ) of a step, s = t - 1 (Hu et al. 2022, eq. 7);
           at s = 0 it is -log p(x_0 | x_t), the decoder's term
    L_aux  -log p(x_0 | x_t)

Both are sums over the free positions, in closed form: each position costs one logsumexp and one
sum over the classes. `loss_terms` returns both, the trainer adds them up, and `bound` adds up a
whole chain.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import chunks, denoiser, schedules, transition
from udd_jax.diffusion.denoiser import DenoiseFn
from udd_jax.diffusion.transition import Kernel


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

    logits: float[..., K_m]; x0, xt, s, t: int32[...], s < t, local ids. Returns two float[...]. At
    s = 0 the first one is the decoder's -log p(x_0 | x_t), at visible tokens too. For mask-only
    schedules the visible tokens are the truth: there the first one is (1 - gbar_s / gbar_t) times
    the second at a mask and 0 elsewhere, for any s.

    q(x_s | ...) takes three values: at x_0, at x_t and at all other classes. So only two sums run
    over the classes: logsumexp(logits) and F = sum_k log(1 + abar_s p(k) / (bbar_s S)), with S = 1
    at a mask and S = bbar_t W (see `p_log_probs`) at a visible token.
    """
    classes = logits.shape[-1]
    logits = logits.astype(kernel.alpha_bar.dtype)
    at_s, at_t = transition.marginal(kernel, m, s), transition.marginal(kernel, m, t)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_pi = jnp.where(transition.is_class(x0, classes), logits, 0).sum(-1) - log_z
    decode = -log_pi
    masked = xt == classes
    gamma_t = jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    if kernel.masks_only[m]:
        hidden = transition.newly_masked(at_s, at_t) / gamma_t * decode
        return jnp.where(masked, hidden, 0), decode

    # At s = 0 and, for some schedules, at t = T no token is replaced: beta is 0. It is made 1
    # there, and its terms are not used.
    beta_s = jnp.where(at_s.beta > 0, at_s.beta, 1)
    beta_t = jnp.where(at_t.beta > 0, at_t.beta, 1)
    move = transition.step(at_s, at_t)
    same = xt == x0
    log_pj = jnp.where(transition.is_class(xt, classes), logits, 0).sum(-1) - log_z
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
    """KL( q(x_T | x_0) || p(x_T) ) of one position, in nats. It does not depend on parameters."""
    at_T = transition.marginal(kernel, m, jnp.int32(kernel.steps))
    uniform = at_T.unmasked / kernel.vocab.modalities[m].classes
    here = at_T.alpha + at_T.beta

    def part(q):
        ratio = transition.safe_log(jnp.where(q > 0, q, 1))
        return q * (ratio - transition.safe_log(jnp.where(q > 0, uniform, 1)))

    return part(here) + (kernel.vocab.modalities[m].classes - 1) * part(at_T.beta)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frugal_terms(terms, logits, *tokens):
    """`terms(logits, *tokens)` and its gradient, in chunks of the positions.

    Saves only the logits; the backward pass recomputes the rest chunk by chunk.
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
    without: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """`token_terms` of a whole batch, 0 where a position is not free.

    logits: one float[B, length_m, K_m] a modality; x0, xt: int32[B, L]; t: int32[B, M];
    free: bool[B, L]; s: int32[B, M], t - 1 unless given; without: names of modalities that are not
    free in any row, which need not be computed. Returns (kl, nll), float[B, L] each.
    """
    vocab = kernel.vocab
    s = t - 1 if s is None else s
    parts = []
    for m, where in enumerate(vocab.slices):
        if vocab.modalities[m].name in without:
            parts.append((jnp.zeros(x0[:, where].shape, logits[m].dtype),) * 2)
            continue
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


def negative_log_likelihood(
    vocab, logits, x0: jax.Array, free: jax.Array, without: tuple[str, ...] = ()
) -> jax.Array:
    """-log p(x_0) of each position, float[B, L] in nats, 0 where it is not free; see `loss_terms`.

    logits: one float[B, length_m, K_m] a modality; x0: int32[B, L]; free: bool[B, L].
    """
    parts = [
        jnp.zeros(x0[:, where].shape, logits[m].dtype)
        if vocab.modalities[m].name in without
        else _frugal_terms(_token_nll, logits[m], vocab.local(m, x0[:, where]))
        for m, where in enumerate(vocab.slices)
    ]
    return jnp.where(free, jnp.concatenate(parts, axis=1), 0)


def _token_nll(logits, x0):
    own = jnp.where(transition.is_class(x0, logits.shape[-1]), logits, 0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - own


def continuous_terms(kernel: Kernel, nll: jax.Array, xt: jax.Array, rate: jax.Array) -> jax.Array:
    """The contribution of each position to the bound with infinitely many steps, float[B, L].

    The KL of a step from t - dt to t is rate dt times the cross-entropy at a mask (MDLM, MD4:
    arXiv 2406.07524, 2406.04329). nll: float[B, L] from `loss_terms`; rate: float[B, M] from
    `transition.instant`.
    """
    weight = rate[:, kernel.vocab.modality_of]
    return jnp.where(xt == kernel.vocab.mask_id, weight * nll, 0)


def bound(
    kernel: Kernel,
    denoise_fn: DenoiseFn,
    keys: jax.Array,
    x0: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    times: int,
    calls: int = 0,
    each: bool = False,
) -> jax.Array:
    """An upper bound on -log p of the free modalities given the others, nats, float[B, M].

    p is the law of the ancestral chain of `calls` steps (0 means T) without truncation. The bound
    is the sum of the L_t of this chain plus the term of the prior. The sum is estimated from
    `times` of its terms, one from each of as many strata; the mean over keys is exact for any
    `times`. keys: one a sample, [B]; x0: int32[B, L]; free: bool[B, L], whole modalities; absent:
    bool[B, M]. An absent modality is drawn anew at every time, so `denoise_fn.prepare` may
    precompute given modalities only. each: return the terms of each position, float[B, L], whose
    sums over a modality are the bound.
    """
    vocab, calls = kernel.vocab, calls or kernel.steps
    clock = jnp.asarray(schedules.chain_times(kernel.steps, calls)[::-1].astype(np.int32))
    has_free = vocab.any_of(free)
    denoise_fn = denoiser.prepare(denoise_fn, x0, jnp.where(has_free, kernel.steps, 0), free)

    def one_time(total, k):
        def draw(key):
            key_time, key_noise, key_prior = jax.random.split(jax.random.fold_in(key, k), 3)
            u = (k + jax.random.uniform(key_time)) / times
            number = jnp.minimum(jnp.floor(u * calls).astype(jnp.int32), calls - 1)
            return number, key_noise, transition.prior_sample(kernel, key_prior, 1)[0]

        number, key_noise, prior = jax.vmap(draw)(keys)
        s, t = clock[number][:, None], clock[number + 1][:, None]
        t = jnp.where(absent, kernel.steps, jnp.where(has_free, t, 0))
        position_t = transition.free_times(vocab, t, free)
        noised = jax.vmap(lambda key, x, t: transition.q_sample(kernel, key, x[None], t[None])[0])
        xt = noised(key_noise, x0, position_t)
        xt = jnp.where(absent[:, vocab.modality_of], prior, xt)
        s = jnp.broadcast_to(s, t.shape)
        kl, _ = loss_terms(kernel, denoise_fn(xt, t, free), x0, xt, t, free, s)
        sums = jnp.stack([kl[:, where].sum(axis=1) for where in vocab.slices], axis=1)
        return total + calls / times * (kl if each else sums), None

    lengths = [1 if each else m.length for m in vocab.modalities]
    priors = [prior_kl(kernel, m) * length for m, length in enumerate(lengths)]
    start = jnp.where(has_free, jnp.stack(priors)[None], 0)
    start = start[:, vocab.modality_of] if each else start
    total, _ = jax.lax.scan(one_time, start, jnp.arange(times))
    return total
