"""Where a codebook's thresholds lie: squares against squares, and the unit of perplexity."""

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.tokenizers import codebook


def test_only_an_error_over_factor_times_the_root_mean_square_earns_a_row():
    rows = jnp.asarray([[0.0], [50.0], [-50.0]])
    state = codebook.Averages(jnp.asarray([9.0, 0.0, 0.0]), rows)
    z = jnp.sqrt(jnp.asarray([[0.0], [0.0], [5.0], [9.0]]))  # mean of the squares 3.5
    codes = jnp.zeros(4, jnp.int32)
    # 1.3^2 of the mean is 5.9, between the two.
    _, rows, moved = codebook.restart(jax.random.key(0), state, rows, z, codes, factor=1.3)
    assert moved == 1 and 3.0 in np.asarray(rows)[:, 0].tolist()


def test_codes_are_joined_by_their_distance_and_not_by_its_square():
    rows = np.array([[0.0], [0.6], [5.0]])
    assert codebook.used_codes([9, 3, 1], rows, closer_than=0.5)[0].tolist() == [0, 1, 2]
    assert codebook.used_codes([9, 3, 1], rows, closer_than=0.7)[0].tolist() == [0, 0, 1]


def test_the_perplexity_of_evenly_used_codes_is_their_number():
    np.testing.assert_allclose(
        codebook.perplexity(jnp.asarray([0, 1, 2, 2, 1, 0]), 8), 3, rtol=1e-6
    )
    np.testing.assert_allclose(codebook.perplexity(jnp.zeros((2, 3), jnp.int32), 8), 1, rtol=1e-6)


def test_a_row_is_dead_below_a_share_of_the_mean_count_and_not_below_the_mean():
    rows = jnp.asarray([[0.0], [50.0], [-50.0]])
    state = codebook.Averages(jnp.asarray([8.0, 0.5, 0.0]), rows)
    z, codes = jnp.asarray([[3.0], [4.0]]), jnp.zeros(2, jnp.int32)
    _, rows, moved = codebook.restart(jax.random.key(0), state, rows, z, codes, threshold=0.1)
    assert moved == 1 and rows[0] == 0 and rows[1] == 50


def test_the_most_used_code_speaks_for_its_neighbours_on_both_sides():
    rows = np.array([[0.0], [0.4], [0.8], [5.0]])
    assert codebook.used_codes([1, 9, 2, 1], rows, closer_than=0.5)[0].tolist() == [0, 0, 0, 1]


def test_unused_codes_stay_where_too_few_would_be_left():
    rows = np.array([[0.0], [1.0], [9.0]])
    assert codebook.used_codes([5, 0, 0], rows, least=2)[0].tolist() == [0, 1, 1]
    assert codebook.used_codes([5, 0, 0], rows)[0].tolist() == [0, 0, 0]
