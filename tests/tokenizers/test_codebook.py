"""Claims about how a codebook is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.tokenizers import codebook

nearest = jax.jit(codebook.nearest)
ema_update = jax.jit(codebook.ema_update)
restart = jax.jit(codebook.restart)


def normal(*shape):
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def test_nearest_row_is_the_one_of_a_slow_search():
    rows, z = normal(7, 3), normal(2, 5, 3)
    slow = [[np.argmin([np.sum((v - e) ** 2) for e in rows]) for v in r] for r in z]
    codes = nearest(z, rows)
    np.testing.assert_array_equal(codes, slow)
    assert codes.dtype == jnp.int32


def test_nearest_takes_the_lowest_of_equal_rows():
    rows = jnp.array([[9.0], [1.0], [1.0]])
    assert nearest(jnp.array([[1.2]]), rows).tolist() == [1]


def test_moving_average_is_the_one_computed_by_hand():
    state = codebook.Averages(jnp.array([4.0, 2.0]), jnp.array([[4.0], [20.0]]))
    z, codes = jnp.array([[3.0], [5.0], [10.0]]), jnp.array([0, 0, 1])
    state, rows = ema_update(state, z, codes, decay=0.9, epsilon=0.5)
    # n = .9 (4, 2) + .1 (2, 1); s = .9 (4, 20) + .1 (8, 10)
    np.testing.assert_allclose(state.counts, [3.8, 1.9], rtol=1e-6)
    np.testing.assert_allclose(state.sums, [[4.4], [19.0]], rtol=1e-6)
    # Laplace: n' = (n + .5) / (5.7 + 1) 5.7
    np.testing.assert_allclose(
        rows, [[4.4 / (4.3 / 6.7 * 5.7)], [19.0 / (2.4 / 6.7 * 5.7)]], rtol=1e-6
    )


def test_fresh_averages_stay_at_the_codebook_they_were_made_for():
    rows = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    state = codebook.averages(rows, 8)
    codes = np.array([0, 1, 0, 1])
    _, after = ema_update(state, np.asarray(rows)[codes], codes)
    np.testing.assert_allclose(after, rows, rtol=1e-4)


def test_dead_row_moves_to_a_vector_with_a_large_error():
    rows = jnp.array([[0.0], [50.0], [-50.0]])
    state = codebook.Averages(jnp.array([9.0, 0.0, 0.0]), rows)
    z = jnp.array([[0.1], [-0.1], [0.05], [8.0]])
    codes = jnp.zeros(4, jnp.int32)
    state, rows, moved = restart(jax.random.key(0), state, rows, z, codes, factor=1.0)
    assert moved == 1  # only one vector is worth a row; the other dead row waits
    assert sorted(np.asarray(rows)[:, 0].tolist()) == [-50.0, 0.0, 8.0]
    where = int(jnp.argmax(rows[:, 0]))
    assert state.counts[where] == 3.0
    np.testing.assert_allclose(state.sums[where], [24.0])


def test_living_rows_are_never_restarted():
    rows, z = normal(5, 2), normal(10, 2)
    state = codebook.averages(rows, 10)
    codes = nearest(z, rows)
    after, same, moved = restart(jax.random.key(2), state, rows, z, codes)
    assert moved == 0
    np.testing.assert_array_equal(same, rows)
    np.testing.assert_array_equal(after.counts, state.counts)


def test_no_vector_is_given_to_two_dead_rows():
    rows = jnp.full((6, 1), 100.0)
    state = codebook.Averages(jnp.array([1.0, 0, 0, 0, 0, 0]), rows)
    z = jnp.arange(1.0, 4.0)[:, None]
    _, rows, moved = restart(
        jax.random.key(0), state, rows, z, jnp.zeros(3, jnp.int32), threshold=0.5
    )
    assert moved == 3  # more dead rows than vectors: the rest wait
    assert sorted(np.asarray(rows)[:, 0].tolist()) == [1.0, 2.0, 3.0, 100.0, 100.0, 100.0]


def test_kmeans_finds_every_cluster_however_rare():
    centres = 30 * np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    vectors = np.repeat(centres, [500, 3, 3, 3], axis=0) + 0.1 * normal(509, 2)
    found, error = codebook.kmeans(jax.random.key(2), vectors, 4)
    gaps = ((centres[:, None] - np.asarray(found)[None]) ** 2).sum(-1).min(1)
    assert (gaps < 0.2**2).all()
    assert error < 0.03


def test_used_codes_sends_each_unused_code_to_the_nearest_used_one():
    rows = np.array([[0.0], [1.0], [5.0], [6.0], [9.0]])
    full, used = codebook.used_codes([0, 3, 0, 7, 2], rows)
    assert full.tolist() == [0, 0, 1, 1, 2] and used.tolist() == [1, 3, 4]
    assert full.dtype == used.dtype == np.int32


def test_used_codes_joins_codes_that_divide_noise():
    rows = np.array([[0.0], [0.1], [0.2], [5.0]])
    full, used = codebook.used_codes([1, 9, 3, 1], rows, closer_than=0.5)
    assert full.tolist() == [0, 0, 0, 1] and used.tolist() == [1, 3]  # the most used of the three


def test_used_codes_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="counts are all 0"):
        codebook.used_codes([0, 0], np.zeros((2, 1)))
