"""Weights of what is given: how much attention each given modality gets.

    scores + log w_m      for the keys of modality m, in every attention

w = 1 is off, w = 0 equals a modality without keys, and w = 2 counts a key twice. So two references
with equal weights and one segment may be swapped. It is M-VADER's (arXiv 2212.02936) weighting of
prompts of several pictures and texts, in a form of ours.

A weight counts where the modality is given (time 0). So the branches of guidance that leave it out
are as they were.
"""

import jax
import jax.numpy as jnp
import numpy as np

NEVER = -1e9  # log 0; a softmax makes an exact 0 of it


def attention(vocab, weights: jax.Array):
    """The function (xt, t, free) -> what is added to the scores of each key, float[B, 1, 1, L].

    weights: float32[B, M], at least 0.
    """
    added = jnp.maximum(jnp.log(weights), NEVER)

    def bias(xt, t, free):
        each = jnp.where(t == 0, added, 0.0)
        return each[:, np.asarray(vocab.modality_of)][:, None, None]

    return bias
