"""Importance-sampled times: the law of the draws, and what the histories hold."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from udd_jax.diffusion import time_sampling

T = 6


def warm(square):
    """A sampler that has seen everything often, with the same row of squares in each history."""
    table = jnp.broadcast_to(jnp.asarray(square, jnp.float32), (3, T + 1))
    return time_sampling.TimeSampler(table, jnp.full((3, T + 1), 11, jnp.int32))


def test_times_are_uniform_until_each_was_seen_more_than_ten_times():
    sampler = warm([0, 9, 1, 1, 1, 1, 100])
    cold = sampler.replace(seen=sampler.seen.at[:, 3].set(10))
    np.testing.assert_allclose(time_sampling.probabilities(cold)[:, 1:], 1 / T, rtol=1e-6)
    assert time_sampling.probabilities(sampler)[0, 6] > 0.5


def test_p_is_the_root_of_the_mean_square_and_p1_is_p2():
    p = np.asarray(time_sampling.probabilities(warm([0, 81, 4, 4, 16, 16, 36])))[0]
    size = np.array([0, 2, 2, 2, 4, 4, 6])
    size = size + 1e-4 * (size > 0)
    np.testing.assert_allclose(p, size / size.sum(), rtol=1e-5)


def test_draws_follow_p_and_never_give_time_0():
    sampler = warm([0, 1, 1, 4, 9, 0.25, 16])
    none = jnp.zeros(500, bool)
    draw = jax.jit(lambda key: time_sampling.draw(sampler, key, jnp.zeros(500, jnp.int32), none, 2))
    t, p = zip(*[draw(key) for key in jax.random.split(jax.random.key(0), 20)], strict=True)
    t, p = np.concatenate(t), np.concatenate(p)
    expected = np.asarray(time_sampling.probabilities(sampler))[0]
    share = np.bincount(t[:, 0], minlength=T + 1) / len(t)
    np.testing.assert_allclose(share, expected, atol=0.005)
    assert (t[:, 0] == t[:, 1]).all()
    np.testing.assert_allclose(p[:, 0], expected[t[:, 0]], rtol=1e-6)


def test_with_experts_a_batch_has_the_times_of_one_interval_and_its_weights_stay_right():
    """Each time's share, divided by the probability that the draw gives, is 1: so is the loss."""
    sampler, ends, none = warm([0, 1, 1, 4, 9, 0.25, 16]), (0.35, 0.4, 0.5), jnp.zeros(40, bool)
    # In 1..6: 1 and 2; none is within .35 and .4; 3; 4, 5 and 6.
    assert time_sampling.interval_of(ends, T).tolist() == [0, 0, 0, 2, 3, 3, 3]
    assert time_sampling.interval_of((0.07, 0.29), 100)[[7, 8, 29, 30]].tolist() == [0, 1, 1, 2]
    asked = (jnp.zeros(40, jnp.int32), none, 2, ends)
    draws = jax.jit(jax.vmap(lambda key: time_sampling.draw(sampler, key, *asked)))
    t, p = (np.asarray(x)[..., 0] for x in draws(jax.random.split(jax.random.key(0), 3000)))
    of = time_sampling.interval_of(ends, T)[t]
    assert (of == of[:, :1]).all()
    assert all(abs((of[:, 0] == i).mean() - 1 / 3) < 0.03 for i in (0, 2, 3))
    weight = np.bincount(t.ravel(), weights=1 / p.ravel(), minlength=T + 1)[1:] / t.size
    np.testing.assert_allclose(weight, np.ones(T), atol=0.06)


def test_independent_rows_are_uniform_with_a_clock_each():
    sampler = warm([0, 1, 1, 4, 9, 0.25, 100])
    t, p = time_sampling.draw(
        sampler, jax.random.key(1), jnp.zeros(3000, jnp.int32), jnp.ones(3000, bool), 2
    )
    assert (np.asarray(p) == np.float32(1 / T)).all()
    assert abs((np.asarray(t[:, 0]) == np.asarray(t[:, 1])).mean() - 1 / T) < 0.03
    assert np.bincount(np.asarray(t[:, 0]))[1:].min() > 400


def test_histories_are_sets_of_modalities():
    carries = jnp.array([[True, False], [False, True], [True, True]])
    assert time_sampling.history(carries).tolist() == [0, 1, 2]


def test_repeated_times_enter_as_their_mean_in_one_step():
    sampler = time_sampling.create(T, 2)
    histories = jnp.array([2, 2, 2, 0, 2])
    t, loss = jnp.array([3, 3, 5, 3, 6]), jnp.array([1.0, 3.0, 2.0, 7.0, 9.0])
    used = jnp.array([True, True, True, True, False])
    new = time_sampling.update(sampler, histories, t, loss, used)
    np.testing.assert_allclose(new.square[2, 3], 0.1 * (1 + 9) / 2, rtol=1e-6)
    np.testing.assert_allclose(new.square[2, 5], 0.1 * 4, rtol=1e-6)
    np.testing.assert_allclose(new.square[0, 3], 0.1 * 49, rtol=1e-6)
    assert new.square[2, 6] == 0
    assert new.seen[2].tolist() == [0, 0, 0, 2, 0, 1, 0]
    again = time_sampling.update(new, histories, t, loss, used)
    np.testing.assert_allclose(again.square[2, 3], 0.9 * 0.5 + 0.1 * 5, rtol=1e-6)


def test_histories_and_draws_are_the_same_on_one_device_and_on_eight():
    rng, sampler = np.random.default_rng(0), warm([0, 1, 1, 4, 9, 0.25, 16])
    rows = rng.integers(0, 3, 16), rng.integers(1, T + 1, 16), rng.random(16), rng.random(16) < 0.8
    place = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))

    @jax.jit
    def step(histories, t, loss, used):
        drawn = time_sampling.draw(sampler, jax.random.key(0), histories, ~used, 2)
        return drawn, time_sampling.update(sampler, histories, t, loss, used)

    alone, spread = step(*rows), step(*jax.device_put(rows, place))
    np.testing.assert_array_equal(alone[0][0], spread[0][0])
    np.testing.assert_array_equal(alone[1].seen, spread[1].seen)
    np.testing.assert_allclose(alone[1].square, spread[1].square, rtol=1e-6)


def test_spread_times_are_one_in_each_part_of_the_unit_interval():
    independent = jnp.arange(8) >= 6
    drawn = np.asarray(time_sampling.spread(jax.random.key(0), independent, 2))
    assert (drawn > 0).all() and (drawn <= 1).all()
    np.testing.assert_array_equal(drawn[:6, 0], drawn[:6, 1])
    assert (drawn[6:, 0] != drawn[6:, 1]).all()
    np.testing.assert_allclose(np.diff(np.sort(drawn[:, 0])), 1 / 8, atol=1e-6)
    assert (np.diff(drawn[:, 0]) < 0).any() and (np.diff(drawn[:, 0]) > 0).any()
