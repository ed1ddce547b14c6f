"""Guidance: what the network says of x_0, pushed along what the condition adds.

    log p = log p_u + s(t) (log p_c - log p_u), renormalised, s = 1 + w

A sum of terms in log space: a branch that sees everything, and one a modality that sees that
modality alone, the others absent (or replaced by a negative prompt). A single condition has one
term, a pair has two, one for each of its modalities. `settings` is a `sampling.Settings`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion import denoiser, tasks

FLOOR = -1e4  # log-probabilities below it count as it where they are subtracted


def strength(settings, t: jax.Array, steps: int) -> jax.Array:
    """s(t) = 1 + w(t) for t, int32[...]: constant, w (1 - t/T), or w inside an interval of t/T."""
    w, part = settings.guidance - 1, t / steps
    if settings.guidance_schedule == "linear":
        return 1 + w * (1 - part)
    if settings.guidance_schedule == "interval":
        low, high = settings.guidance_interval
        return 1 + w * ((part >= low) & (part <= high))
    return jnp.full(t.shape, 1 + w)


def predictor(kernel, denoise_fn, settings, masks, start, prior, negative=None):
    """(x, t int32[B]) -> log p(x_0 | x_t) guided, normalised, one float[B, n, K] a modality.

    masks: free and absent; start: int32[B, L], x at the beginning; prior: what absent modalities
    hold; negative as in `run`.
    """
    vocab = kernel.vocab
    free, absent = masks
    first = tasks.times(vocab, masks, jnp.full(len(start), kernel.steps), kernel.steps)
    if not settings.on("guidance"):
        begun = denoiser.prepare(denoise_fn, start, first, free)

        def plain(x, t):
            logits = begun(x, tasks.times(vocab, masks, t, kernel.steps), free)
            return tuple(jax.nn.log_softmax(_wide(y), axis=-1) for y in logits)

        return plain

    # log p = s log p(. | all) + (1 - s) log p(. | the other modalities absent, or negative): a sum
    # of one branch that sees all and one a modality, of which those that nobody needs are skipped.
    modalities, at = np.arange(len(vocab.modalities)), vocab.modality_of
    given, instead = jnp.zeros_like(absent), prior
    if negative is not None:
        given = jnp.stack([(negative[:, w] != vocab.mask_id).any(-1) for w in vocab.slices], 1)
        instead = jnp.where(given[:, at], negative, prior)
    has_free = jnp.stack([free[:, w].any(-1) for w in vocab.slices], axis=1)
    others = [((~absent | given) & (modalities != m)[None]).any(-1) for m in modalities]
    guided = has_free & jnp.stack(others, axis=1)  # [B, M]

    def branches(x, now):
        """(x, t, free) of each."""
        yield x, now, free
        for m in modalities:
            own, here = (at == m)[None], (modalities == m)[None]
            t = jnp.where(here, now, jnp.where(given, 0, kernel.steps))
            yield jnp.where(own, x, instead), t, free & own

    begun = [denoiser.prepare(denoise_fn, *branch) for branch in branches(start, first)]
    begun = jax.tree.map(lambda *b: jnp.stack(b), *begun)

    def guide(x, t):
        s = jnp.where(guided, strength(settings, t, kernel.steps)[:, None], 1)  # [B, M]
        now = tasks.times(vocab, masks, t, kernel.steps)
        weights = [s, *(jnp.where((modalities == m)[None], 1 - s, 0) for m in modalities)]
        inputs = jax.tree.map(lambda *b: jnp.stack(b), *branches(x, now))

        def add(total, branch):
            denoise, inputs, weight = branch

            def term(total):
                logs = [jax.nn.log_softmax(_wide(y), -1) for y in denoise(*inputs)]
                return tuple(
                    sums + weight[:, m, None, None] * jnp.maximum(log_p, FLOOR)
                    for m, (sums, log_p) in enumerate(zip(total, logs, strict=True))
                )

            return lax.cond((weight != 0).any(), term, lambda total: total, total), None

        shapes = [(x.shape[0], m.length, m.classes) for m in vocab.modalities]
        zeros = tuple(jnp.zeros(shape, kernel.alpha_bar.dtype) for shape in shapes)
        total, _ = lax.scan(add, zeros, (begun, inputs, jnp.stack(weights)))
        return tuple(jax.nn.log_softmax(y, axis=-1) for y in total)

    return guide


def _wide(y: jax.Array) -> jax.Array:
    return y.astype(jnp.promote_types(jnp.float32, y.dtype))
