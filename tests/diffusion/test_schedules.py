"""The noise schedules: their values, their marginals, and what is not a schedule."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udd_jax.diffusion import schedules


@pytest.mark.parametrize("name", schedules.MAKERS)
@settings(max_examples=15, deadline=None)
@given(steps=st.integers(2, 600))
def test_every_schedule_is_a_forward_process_for_any_number_of_steps(name, steps):
    table = schedules.make(name, steps)  # raises where it is none
    assert table.steps == steps
    assert table.gamma_bar[-1] + table.uniform_bar[-1] > 0.9999  # nothing is left at T
    np.testing.assert_allclose(table.unmasked, 1 - table.gamma_bar, atol=1e-15)


def test_linear_has_the_published_constants():
    table = schedules.linear(500)
    stays = table.alpha_bar[1:] / table.alpha_bar[:-1]
    masks = 1 - (1 - table.gamma_bar[1:]) / (1 - table.gamma_bar[:-1])
    at = [0, 1, 250, 498, 499]  # the published times
    np.testing.assert_allclose(stays[at], [0.99999, 0.997996, 0.996, 0.50112, 0.004471], atol=5e-7)
    np.testing.assert_allclose(masks[at], [9e-6, 0.002004, 0.004, 0.498756, 0.995035], atol=5e-7)
    np.testing.assert_array_equal(table.uniform_bar[1:], 1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 50), st.just(0.0) | st.floats(1e-9, 1))
def test_mask_and_replace_divides_the_noise_in_its_ratio(steps, replace):
    table = schedules.mask_and_replace(steps, replace)
    t = np.arange(steps + 1) / steps
    np.testing.assert_allclose(table.alpha_bar, 1 - t, atol=1e-15)
    np.testing.assert_allclose(table.gamma_bar, (1 - replace) * t, atol=1e-15)
    np.testing.assert_allclose(table.uniform_bar, replace * t, atol=1e-15)


def test_absorbing_never_replaces_and_uniform_never_masks():
    assert schedules.absorbing(10).masks_only and schedules.absorbing(10).masks
    assert (schedules.uniform(10).gamma_bar == 0).all() and not schedules.uniform(10).masks


def test_cosine_masks_two_parts_in_pi_on_average():
    assert abs(schedules.cosine(2000).gamma_bar.mean() - 2 / np.pi) < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30).map(lambda n: 2 * n), st.floats(0.01, 0.9), st.floats(0.1, 2))
def test_hybrid_has_its_uniform_share_in_the_middle(steps, share, power):
    table = schedules.hybrid(steps, share, power)
    np.testing.assert_allclose(table.uniform_bar[steps // 2], share, rtol=1e-9)
    np.testing.assert_allclose(  # the masked and the untouched rest divide as 1/2 : 1/2
        table.gamma_bar[steps // 2], table.alpha_bar[steps // 2], rtol=1e-9
    )


def changed(**tables):
    old = {f.name: getattr(schedules.mask_and_replace(4), f.name).copy() for f in FIELDS}
    return lambda: schedules.Schedule(**{**old, **{k: np.array(v) for k, v in tables.items()}})


FIELDS = dataclasses.fields(schedules.Schedule)
ZERO, ONE = np.zeros(4), np.array([1, 0.5, 0.2, 0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: schedules.make("linar", 10), "'linar' is not one of linear, "),
        (lambda: schedules.linear(1), "T = 1, expected at least 2"),
        (lambda: schedules.mask_and_replace(9, 1.5), "replace = 1.5"),
        (lambda: schedules.hybrid(9, 0.0), "uniform_share = 0.0"),
        (lambda: schedules.hybrid(9, 0.1, 3.0), "power = 3.0"),
        (lambda: schedules.Schedule(ONE, 1 - ONE, np.zeros(5)), "shapes"),
        (lambda: schedules.Schedule(ONE - 0.1, 1.1 - ONE, ZERO), "alpha_bar leaves"),
        (lambda: schedules.Schedule(ONE[::-1], 1 - ONE[::-1], ZERO), "time 0 must be clean"),
        (lambda: schedules.Schedule(ONE, 0.5 * (1 - ONE), ZERO), "must be 1"),
        (
            changed(
                alpha_bar=[1, 0.4, 0.5, 0.2, 0],
                gamma_bar=[0, 0.6, 0.5, 0.8, 1],
                uniform_bar=[0] * 5,
            ),
            "alpha_bar rises at t = 2",
        ),
        (
            changed(
                alpha_bar=[1, 0.6, 0.5, 0.2, 0],
                gamma_bar=[0, 0.3, 0.2, 0.5, 0.9],
                uniform_bar=[0, 0.1, 0.3, 0.3, 0.1],
            ),
            "gamma_bar falls at t = 2",
        ),
        (
            changed(alpha_bar=[1, 0.6, 0, 0, 0], gamma_bar=[0, 0.4, 1, 1, 1], uniform_bar=[0] * 5),
            "alpha_bar > 0 and gamma_bar < 1",
        ),
        (
            changed(
                alpha_bar=[1, 0.5, 0.4, 0.2, 0],
                gamma_bar=[0, 0.5, 0.5, 0.7, 0.9],
                uniform_bar=[0, 0, 0.1, 0.1, 0.1],
            ),
            "at all 0 < t < T or at none",
        ),
        (
            changed(
                alpha_bar=[1, 0.5, 0.49, 0.2, 0],
                gamma_bar=[0, 0.1, 0.49, 0.7, 0.9],
                uniform_bar=[0, 0.4, 0.02, 0.1, 0.1],
            ),
            "step t = 2 is negative",
        ),
    ],
)
def test_what_is_no_forward_process_is_an_error_that_names_the_time(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_chain_is_spaced_evenly_and_ends_at_0():
    assert schedules.chain_times(7, 4).tolist() == [7, 6, 4, 2, 0]
    assert schedules.chain_times(7, 7).tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
