"""The length head: how many tokens a caption has, from the summary of its picture (DDCap).

    L = -log p(M' | x^image),    M' = the tokens of the caption before its padding

The head sees the picture as it is and a text of noise, at time T, so it knows nothing of the
caption. A row without a picture teaches p(M'). One row in `EVERY` is asked, and counts as many
times, so that the pass of the network for it costs a small part of a step.
"""

import functools

import jax
import jax.numpy as jnp

from udd_jax.diffusion import transition
from udd_jax.diffusion.transition import Kernel
from udd_jax.errors import UserError
from udd_jax.tokenizers import length_tokenizer
from udd_jax.training import terms

EVERY = 4


def from_config(config, kernel: Kernel, pad_id: int) -> dict[str, tuple[float, terms.Term]]:
    """{name: (weight, term)}, empty if `config.train.length` is 0."""
    weight = config.train.get("length", 0.0)
    if weight and not config.model.get("length_head", False):
        raise UserError(
            f"train.length = {weight} without a head: add --config.model.length_head=true"
        )
    if weight and config.get("experts"):
        raise UserError(f"train.length = {weight} with experts, which have no head: expected 0")
    return {"length": (weight, functools.partial(guess, kernel, pad_id))} if weight else {}


def asked(kernel: Kernel, key: jax.Array, image: jax.Array, absent: jax.Array):
    """The inputs (xt, t, free) of `Transformer.lengths`.

    image: int32[B, N], global ids; absent: bool[B], whether the picture is left out.
    """
    vocab, steps = kernel.vocab, kernel.steps
    m, where = vocab.index("image"), vocab.slices[vocab.index("image")]
    x = transition.prior_sample(kernel, key, len(image))
    x = x.at[:, where].set(jnp.where(absent[:, None], x[:, where], image))
    t = jnp.full((len(image), len(vocab.modalities)), steps)
    t = t.at[:, m].set(jnp.where(absent, steps, 0))
    text = vocab.modality_of == vocab.index("text")
    return x, t, jnp.broadcast_to(jnp.asarray(text)[None], x.shape)


def guess(kernel: Kernel, pad_id: int, denoise_fn, outcome: terms.Outcome, key):
    """A loss term (`terms.Term`), float[B] in nats; 0 where no token of the text is free, and in
    rows that are not asked."""
    vocab, x0, (free, absent) = kernel.vocab, outcome.x0, outcome.masks
    m, where = vocab.index("text"), vocab.slices[vocab.index("text")]
    image, batch = vocab.index("image"), len(x0)
    x0, free, absent = (rows[::EVERY] for rows in (x0, free, absent))
    length = length_tokenizer.count(vocab.local(m, x0[:, where]), pad_id)
    inputs = asked(kernel, key, x0[:, vocab.slices[image]], absent[:, image])
    log_p = jax.nn.log_softmax(denoise_fn(*inputs, method="lengths"), axis=-1)
    nll = -jnp.take_along_axis(log_p, length[:, None], axis=1)[:, 0]
    use = free[:, where].any(axis=1)
    nll, count = jnp.where(use, nll, 0), use.sum()  # what is told is NaN where there is none
    right = (jnp.argmax(log_p, axis=-1) == length) & use
    each = jnp.zeros(batch).at[::EVERY].set(batch / len(x0) * nll)
    return each, {"length_nll": nll.sum() / count, "length_accuracy": right.sum() / count}
