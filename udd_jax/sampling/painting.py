"""Painted words: a phrase of the prompt belongs where its mask is white.

Two things act, each with the weight w of a phrase. The first is eDiff-I's (arXiv 2211.01324): image
positions under the mask attend more to the words of the phrase. The scores of attention get

    w' log(1 + sigma_t) max(Q K') A,      sigma_t = sqrt((1 - abar_t) / abar_t),   w' = w ATTENTION

A is 1 for these pairs of positions and 0 elsewhere, max is over the scores of a head, and sigma_t
is that of T - 1 at t = T (ours, for discrete tokens). Only rows that see the whole prompt get it,
so branches without it, or with another one, are as they were.

A small network hardly obeys its attention. The second is ours: the evidence for the phrase, which
the network gives when it sees the phrase alone, counts for a code under the mask and against it
elsewhere:

    log p_l += (+ or -) w EVIDENCE max(0, log p_l(x_0 | x_t, phrase) - log p_l(x_0 | x_t, no text))

It takes a network that knows absent texts, and one more call a phrase, and one, in each step.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from udd_jax.diffusion import tasks
from udd_jax.diffusion.transition import Kernel

ATTENTION, EVIDENCE = 0.1, 2.0  # for a weight of 1, measured on shapes (benchmarks/RESULTS.md)


@flax.struct.dataclass
class Paint:
    """P painted phrases of a batch."""

    prompt: jax.Array  # int32[B, M_text], the prompt, global ids
    words: jax.Array  # bool[P, B, M_text], the tokens of each phrase in it
    phrase: jax.Array  # int32[P, B, M_text], each phrase alone, global ids
    where: jax.Array  # bool[P, B, N], the codes under its mask
    weight: jax.Array  # float32[P], w
    evidence: bool = flax.struct.field(pytree_node=False)  # False: attention alone


def attention(kernel: Kernel, paint: Paint):
    """The function (xt, t, free) -> what multiplies the largest score, float[B, 1, L, L]."""
    vocab = kernel.vocab
    image, text = vocab.index("image"), vocab.index("text")
    of_image, of_text = vocab.slices[image], vocab.slices[text]
    pairs = paint.where[..., None] & paint.words[:, :, None]  # [P, B, N, M]
    pairs = ATTENTION * (paint.weight[:, None, None, None] * pairs).sum(0)

    def strength(xt, t, free):
        abar = kernel.alpha_bar[image][jnp.minimum(t[:, image], kernel.steps - 1)]
        sees = (xt[:, of_text] == paint.prompt).all(axis=1) & ~free[:, of_text].any(axis=1)
        grow = jnp.where(sees, jnp.log1p(jnp.sqrt((1 - abar) / abar)), 0)
        full = jnp.zeros((len(xt), vocab.length, vocab.length))
        return full.at[:, of_image, of_text].set(pairs * grow[:, None, None])[:, None]

    return strength


def evidence(kernel: Kernel, denoise_fn, masks: tasks.Masks, prior, paint: Paint):
    """The scorer (`guidance.Scorer`) of the phrases. prior: int32[B, L], a draw from it."""
    vocab, steps = kernel.vocab, kernel.steps
    image, text = vocab.index("image"), vocab.index("text")
    here = jnp.arange(len(vocab.modalities)) == text
    sign = jnp.where(paint.where, 1, -1) * paint.weight[:, None, None]  # [P, B, N]

    def scorer(x, t, log_p):
        now = tasks.times(vocab, masks, t, steps)

        def answer(inputs):
            words, then = inputs
            seen = x.at[:, vocab.slices[text]].set(words)
            logits = denoise_fn(seen, jnp.where(here[None], then, now), masks.free)[image]
            return jax.nn.log_softmax(logits.astype(log_p[image].dtype), axis=-1)

        words = jnp.concatenate([prior[None, :, vocab.slices[text]], paint.phrase])
        none, *each = lax.map(answer, (words, jnp.where(jnp.arange(len(words)) == 0, steps, 0)))
        rise = jnp.stack([jnp.maximum(found - none, 0) for found in each])
        added = EVIDENCE * (sign[..., None] * rise).sum(0)
        return tuple(added if m == image else None for m in range(len(log_p)))

    return scorer
