"""Random draws from 32-bit words: exact in the tail, one or a few words a draw.

A sampling step asks for one block of random words, a few a position, and all its draws are
functions of them. This compiles in a fraction of the time that one call of `jax.random` for each
draw takes, and a token costs one word instead of K Gumbel variables. The resolution of
probabilities is 2^-32 (of tokens: 2^-31 of their sum). `jax.random.categorical` in its default mode
misses more than half of the events that are as rare as 1e-7.
"""

import jax
import jax.numpy as jnp
from jax import lax


def words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random words uint32[..., *shape], one block for each key; key: [] or [B]."""
    if key.ndim:
        return jax.vmap(lambda one: jax.random.bits(one, shape, jnp.uint32))(key)
    return jax.random.bits(key, shape, jnp.uint32)


def uniform(word: jax.Array) -> jax.Array:
    """uint32[...] -> float32[...] in (0, 1); the resolution of small numbers is 2^-32."""
    u = (word.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    return jnp.minimum(u, jnp.float32(1 - 2.0**-24))


def bernoulli(word: jax.Array, p: jax.Array) -> jax.Array:
    """True with probability p: always at p = 1, never at p = 0."""
    return uniform(word) < p


def below(word: jax.Array, high: int | jax.Array) -> jax.Array:
    """A uniform whole number in 0..high-1, int32[...]."""
    high = jnp.broadcast_to(jnp.asarray(high, jnp.uint32), word.shape)
    return high_word(word, high).astype(jnp.int32)


def high_word(a: jax.Array, b: jax.Array) -> jax.Array:
    """The upper 32 bits of the product of uint32[...] and uint32[...].

    Computed in halves of 16 bits: `lax.mulhi` cannot be lowered on a mesh of several devices
    (jax 0.10.2).
    """
    a1, a0, b1, b0 = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a1 * b0 + (a0 * b0 >> 16)  # at most 2^32 - 2^16 - 1
    return a1 * b1 + (middle >> 16) + ((a0 * b1 + (middle & 0xFFFF)) >> 16)


def gumbel(word: jax.Array) -> jax.Array:
    """A standard Gumbel variable, exact in its upper tail."""
    return -jnp.log(-jnp.log1p(-uniform(word)))


def categorical(word: jax.Array, log_p: jax.Array) -> jax.Array:
    """A class with probability exp(log_p), normalised: uint32[...], float[..., K] -> int32[...].

    It is the class at which the cumulative mass passes a random number. Both are whole multiples of
    2^-31, so the sums are exact. The search is a bisection without a cumulative array.
    """
    classes = log_p.shape[-1]
    mass = jnp.round(jnp.exp(log_p) * 2.0**31).astype(jnp.uint32)
    index = lax.broadcasted_iota(jnp.int32, log_p.shape, log_p.ndim - 1)
    number = high_word(word, mass.sum(-1))

    def passed(i):
        return jnp.where(index <= i[..., None], mass, 0).sum(-1) > number

    return bisect(passed, jnp.full(word.shape, classes - 1, jnp.int32), classes.bit_length())


def bisect(holds, high: jax.Array, rounds: int) -> jax.Array:
    """The smallest whole number in 0..high at which `holds` is true; `high` if there is none.

    `holds` must stay true once it is true. high: int32[...]; 2^rounds must exceed high + 1.
    """

    def halve(_, ends):
        low, high = ends
        middle = low + (high - low) // 2
        true = holds(middle)
        return jnp.where(true, low, jnp.minimum(middle + 1, high)), jnp.where(true, middle, high)

    return lax.fori_loop(0, rounds, halve, (jnp.zeros_like(high), high))[1]
