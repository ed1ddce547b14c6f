"""The second view of the same process: scores and rates instead of a chain.

The concrete score of one position compares the probability of the sequence with that of its
neighbours, which differ in this position only (Meng et al. 2022, arXiv 2211.00802):

    s(x_t)_y = q(x_t with y here) / q(x_t) = sum_i p(x_0 = i | x_t) q(y | i) / q(x_t | i)

It is exact for every schedule if p(x_0 | x_t) is. In continuous time, the reverse process jumps
from x_t to y with the rate at which the forward process jumps from y to x_t, times s(x_t)_y. The
conventions are those of `transition`: one modality, local ids, the mask last.
"""

import jax
import jax.numpy as jnp

from udd_jax.diffusion import transition
from udd_jax.diffusion.transition import Kernel


def concrete_score(
    kernel: Kernel, m: int, log_p0: jax.Array, xt: jax.Array, t: jax.Array
) -> jax.Array:
    """s(x_t)_y for every class y and the mask; 1 at y = x_t.

    log_p0: float[..., K_m], normalised; xt: int32[...], a class or the mask K_m; t: int32[...] or
    []. Returns float[..., K_m + 1]. With j = x_t and w, W as in `transition.p_log_probs`:

        j = mask:   (abar_t p(y) + bbar_t) / gbar_t,  and 1 for the mask
        j a class:  abar_t w(y) + bbar_t W,  and gbar_t W for the mask

    Where bbar_t = 0 a visible token is the truth, and p says nothing of what else could be there.
    That score is 0 here. No rate needs it, since nothing turns into a visible token.
    """
    classes = kernel.vocab.modalities[m].classes
    at_t = transition.marginal(kernel, m, jnp.broadcast_to(t, xt.shape))
    p, masked, here = jnp.exp(log_p0), xt == classes, transition.is_class(xt, classes)
    beta_t = jnp.where(at_t.beta > 0, at_t.beta, 1)
    some = jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    hidden = (at_t.alpha[..., None] * p + at_t.beta[..., None]) / some[..., None]

    # w(i) = p(i) / bbar_t for all classes but j; `total` is bbar_t W.
    own = beta_t / (at_t.alpha + beta_t)
    total = (p * jnp.where(here, own[..., None], 1)).sum(-1)
    visible = (at_t.alpha / beta_t)[..., None] * p + total[..., None]
    visible = jnp.where((at_t.beta > 0)[..., None], visible, 0)
    to_mask = jnp.where(at_t.beta > 0, at_t.gamma * total / beta_t, 0)

    block = jnp.where(masked[..., None], hidden, jnp.where(here, 1, visible))
    mask = jnp.where(masked, 1, to_mask)
    return jnp.concatenate([block, mask[..., None]], axis=-1)


def reverse_rates(
    kernel: Kernel, m: int, log_p0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
) -> jax.Array:
    """Rates of the reverse jumps from x_t to each class, times the length of the step from t to s.

    log_p0: float[..., K_m], normalised; xt: int32[...]; s, t: int32[...] or []. Returns
    float[..., K_m], 0 at y = x_t. A reverse jump never leads to the mask. The rates are those at
    time t, times the score at t:

        j = mask:   (gbar_t - gbar_s) / gbar_t (abar_t p(y) + bbar_t) / (1 - gbar_t)
        j a class:  b (abar_t w(y) + bbar_t W)

    b of the step from s to t is the forward rate times the length of the step, up to its square.
    At a time T that masks everything, 1 - gbar is 0, the forward rate infinite and the score 0.
    Their product is then its limit along a straight line of the tables between s and T.
    """
    classes = kernel.vocab.modalities[m].classes
    s, t = jnp.broadcast_to(s, xt.shape), jnp.broadcast_to(t, xt.shape)
    at_s, at_t = transition.marginal(kernel, m, s), transition.marginal(kernel, m, t)
    at = jax.tree.map(lambda a, b: jnp.where(at_t.unmasked > 0, a, b), at_t, at_s)
    gone = transition.newly_masked(at_s, at_t) / jnp.where(at_t.gamma > 0, at_t.gamma, 1)
    shown = at.alpha[..., None] * jnp.exp(log_p0) + at.beta[..., None]
    hidden = (gone / at.unmasked)[..., None] * shown
    score = concrete_score(kernel, m, log_p0, xt, t)[..., :-1]
    visible = transition.step(at_s, at_t).beta[..., None] * score
    visible = jnp.where(transition.is_class(xt, classes), 0, visible)
    return jnp.where((xt == classes)[..., None], hidden, visible)
