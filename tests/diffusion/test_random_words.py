"""Draws from words: their laws, by sweeping through the words, and their tails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udd_jax.diffusion import random_words

# Words that sweep evenly through all of them.
SWEEP = jnp.asarray(np.arange(2**16, dtype=np.uint64) * 2**16 + 2**15, jnp.uint32)
MILLION = random_words.words(jax.random.key(0), (1_000_000,))
TENTHS = MILLION.reshape(10, 100_000)
categorical = jax.jit(random_words.categorical)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=7, max_size=7), st.integers(0, 6))
def test_a_token_is_drawn_with_its_probability(weights, last):
    p = np.array(weights)
    p[last] += 1e-3
    p /= p.sum()
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log(p), jnp.float32)
    seen = np.bincount(categorical(SWEEP, jnp.broadcast_to(log_p, (2**16, 7))), minlength=7)
    np.testing.assert_allclose(seen / 2**16, p, atol=3 / 2**16)
    assert (seen[p < 1e-12] == 0).all()


def test_rare_events_happen_as_often_as_they_should():
    for p in (1e-3, 1e-5):
        spread = 3 * np.sqrt(1e6 * p)
        assert abs(int(random_words.bernoulli(MILLION, jnp.float32(p)).sum()) - 1e6 * p) < spread
        for place in (0, 4, 9):  # the rest is in one other class: the tail of the token draw
            row = np.full(10, p)
            row[(place + 1) % 10] = 1 - 9 * p
            log_p = jnp.broadcast_to(jnp.log(jnp.asarray(row, jnp.float32)), (100_000, 10))
            count = sum(int((categorical(w, log_p) == place).sum()) for w in TENTHS)
            assert abs(count - 1e6 * p) < spread
    tail = int((random_words.gumbel(MILLION) > 10).sum())
    assert abs(tail - 1e6 * np.exp(-10)) < 3 * np.sqrt(1e6 * np.exp(-10))


def test_certain_events_always_happen_and_impossible_ones_never():
    ends = jnp.asarray([0, 1, 2**31, 2**32 - 1], jnp.uint32)
    assert random_words.bernoulli(ends, jnp.float32(1)).all()
    assert not random_words.bernoulli(ends, jnp.float32(0)).any()
    u = random_words.uniform(ends)
    assert ((u > 0) & (u < 1)).all() and jnp.isfinite(random_words.gumbel(ends)).all()
    one = jnp.where(jnp.arange(5) == 3, 0.0, -jnp.inf)
    assert (random_words.categorical(ends, jnp.broadcast_to(one, (4, 5))) == 3).all()


def test_whole_numbers_are_uniform_below_their_bound():
    seen = np.bincount(random_words.below(SWEEP, 7), minlength=7)
    assert len(seen) == 7 and np.ptp(seen) <= 1
    ends = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    np.testing.assert_array_equal(random_words.below(ends, jnp.asarray([5, 9])), [0, 8])


def test_the_words_of_a_sample_depend_on_its_own_key():
    keys = jax.random.split(jax.random.key(1), 3)
    words = random_words.words(keys, (4, 2))
    assert words.shape == (3, 4, 2)
    np.testing.assert_array_equal(words[1:2], random_words.words(keys[1:2], (4, 2)))
    np.testing.assert_array_equal(words[1], random_words.words(keys[1], (4, 2)))


@pytest.mark.parametrize("high", (0, 1, 6, 2**30))
def test_bisection_finds_the_first_number(high):
    bounds = jnp.asarray([0, high // 2, high, high + 1], jnp.int32)
    found = random_words.bisect(lambda i: i >= bounds, jnp.full(4, high, jnp.int32), 31)
    np.testing.assert_array_equal(found, np.minimum(bounds, high))
