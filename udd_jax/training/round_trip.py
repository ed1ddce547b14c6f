"""The round trip: what is generated must tell what it was generated for.

    x_m ~ p(x_0^m | x_t)                       tokens of a modality m, drawn from the network
    L = -log p(x_0^o | x_m), o at time T       of all others, summed and divided by L

The second pass gets the drawn tokens as ids, and their embeddings carry a gradient straight through
to the probabilities: E[x_m] + (p - stop_gradient(p)) E. So both directions learn. The form is ours;
the idea is that of cycle consistency between captions and images.
"""

import functools

import jax
import jax.numpy as jnp

from udd_jax.diffusion import objective, random_words, transition
from udd_jax.diffusion.transition import Kernel
from udd_jax.errors import UserError
from udd_jax.training import terms


def from_config(config, kernel: Kernel) -> dict[str, tuple[float, terms.Term]]:
    """{name: (weight, term)}, empty if `config.train.round_trip` is 0."""
    weight = config.train.get("round_trip", 0.0)
    if weight and config.model.get("time", "shared") != "per_modality":
        raise UserError(
            f"train.round_trip = {weight} with model.time = {config.model.get('time')!r}: expected "
            "0, or 'per_modality'"
        )
    return {"round_trip": (weight, functools.partial(trip, kernel))} if weight else {}


def trip(kernel: Kernel, denoise_fn, outcome: terms.Outcome, key):
    """A loss term (`terms.Term`), float[B] in nats a position; one more pass for each modality.

    It is the sum over the modalities m that have free positions. What is absent is not asked for.
    `denoise_fn` takes `soft`, see `transformer.Transformer`.
    """
    vocab, x0, logits, (free, absent) = kernel.vocab, outcome.x0, outcome.logits, outcome.masks
    total = jnp.zeros(len(x0))
    for m, where in enumerate(vocab.slices):
        key_token, key_prior = jax.random.split(jax.random.fold_in(key, m))
        here = free[:, where]
        words = random_words.words(key_token, here.shape)
        log_p = jax.nn.log_softmax(logits[m], axis=-1)
        drawn = random_words.categorical(words, jax.lax.stop_gradient(log_p))
        drawn = jnp.where(here, vocab.globalise(m, drawn), x0[:, where])
        asked = jnp.asarray(vocab.modality_of != m)[None] & ~absent[:, vocab.modality_of]
        x = transition.prior_sample(kernel, key_prior, len(x0)).at[:, where].set(drawn)
        t = jnp.full(absent.shape, kernel.steps).at[:, m].set(0)
        soft = [None] * len(vocab.modalities)
        soft[m] = jnp.where(here[..., None], jnp.exp(log_p), 0)
        back = denoise_fn(x, t, asked, soft=tuple(soft))
        nll = objective.negative_log_likelihood(vocab, back, x0, asked)
        total += jnp.where(here.any(axis=1), nll.sum(axis=1), 0) / vocab.length
    return total, {"round_trip": total.mean()}
