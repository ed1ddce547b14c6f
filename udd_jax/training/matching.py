"""Matching: a predicted image must be found by its own caption among those of the batch, and a
predicted caption by its own image.

    L = -log softmax_j( 10 score(predicted of row i, real of row j) ) at j = i

The score is that of a dual encoder (`networks/dual_encoder.py`, the form of AttnGAN's DAMSM), which
is trained along with the network, by the same softmax on real pairs, in both directions. It gets no
gradient from predictions, and the network none from real pairs. The prediction enters as p at the
free positions, a point of the simplex, so the gradient reaches p. The local part of the score holds
B^2 N M numbers at once.

VLMGAN* (arXiv 2208.09596) scores samples in this way; as a loss of a diffusion it is ours.
"""

import functools

import jax
import jax.numpy as jnp

from udd_jax.diffusion.transition import Kernel
from udd_jax.networks import dual_encoder
from udd_jax.training import terms

GAMMA = 10.0
SIDES = ("image", "text")
SIZE = {"width": 64, "layers": 1, "heads": 2}  # of the encoder


def from_config(config, kernel: Kernel, pad_id: int) -> dict[str, tuple[float, terms.Learned]]:
    """{name: (weight, term)}, empty if `config.train.matching` is 0."""
    weight = config.train.get("matching", 0.0)
    return {"matching": (weight, make(kernel, pad_id, **SIZE))} if weight else {}


def make(kernel: Kernel, pad_id: int, **size) -> terms.Learned:
    """The term, with an encoder of these sizes."""
    model = dual_encoder.DualEncoder(kernel.vocab, kernel.steps, pad_id, **size)
    create = functools.partial(dual_encoder.init, model)
    return terms.Learned(create, functools.partial(match, model))


def match(model: dual_encoder.DualEncoder, own, denoise_fn, outcome: terms.Outcome, key):
    """A loss term (`terms.Learned`), float[B] in nats. What is absent is not asked for."""
    vocab, x0, logits, (free, absent) = model.vocab, outcome.x0, outcome.logits, outcome.masks
    number = {name: vocab.index(name) for name in SIDES}
    ids = {name: vocab.local(m, x0[:, vocab.slices[m]]) for name, m in number.items()}

    def encode(params, name, tokens):
        clean = jnp.zeros(len(x0), jnp.int32)
        return model.apply({"params": params}, name, tokens, clean, method="encode")

    def surprise(image, text):
        """-log p of the own text of each image, and of the own image of each text, float[B]."""
        table = GAMMA * dual_encoder.pairs(dual_encoder.both, image, text)
        return [-jnp.diagonal(jax.nn.log_softmax(table, axis=axis)) for axis in (1, 0)]

    real = {name: encode(own, name, ids[name]) for name in SIDES}
    learns = sum(surprise(**real)) / 2
    kept, seen = jax.lax.stop_gradient((own, real))
    total, asked = jnp.zeros(len(x0)), jnp.zeros(len(x0), bool)
    for side, (name, m) in enumerate(number.items()):
        here = free[:, vocab.slices[m]]
        given = ids[name][..., None] == jnp.arange(logits[m].shape[-1])[None, None]
        soft = jnp.where(here[..., None], jax.nn.softmax(logits[m]), given)
        value = surprise(**{**seen, name: encode(kept, name, soft)})[side]
        use = here.any(axis=1) & ~absent[:, number[SIDES[1 - side]]]
        total, asked = total + jnp.where(use, value, 0), asked | use
    logged = {"matching": total.sum() / asked.sum()}  # NaN where there is none
    return total + learns, logged | {"matching_encoder": learns.mean()}
