"""Truncation against a stable sort, and its place in the order of operations."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from udd_jax.sampling import truncation
from udd_jax.sampling.settings import Settings

truncate = jax.jit(truncation.truncate)


def by_sorting(p, weight, target):
    """Which classes are kept, bool[K], by a stable sort."""
    order = np.argsort(-p, kind="stable")
    reached = np.cumsum(weight[order])
    number = min((reached < target).sum() + 1, len(p))
    return np.isin(np.arange(len(p)), order[:number])


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=7, max_size=7).filter(any),
    st.sampled_from((0.3, 0.86, 0.999)),
    st.integers(1, 7),
)
def test_truncation_keeps_the_smallest_prefix_and_the_first_of_equals(numbers, mass, count):
    p = np.array(numbers) / sum(numbers)
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log(p), jnp.float32)
    for target, weight in ((mass, p), (count, np.ones(7))):
        if target is mass and np.abs(np.cumsum(np.sort(p)[::-1]) - mass).min() < 1e-6:
            continue
        log_weight = log_p if target is mass else jnp.zeros(7)
        ours = np.exp(truncate(log_p, log_weight, jnp.float32(target)), dtype=float)
        kept = by_sorting(p, weight, target) & (p > 0)
        np.testing.assert_allclose(ours, np.where(kept, p, 0) / p[kept].sum(), atol=2e-6)


def test_temperature_comes_before_top_k_and_that_before_top_r():
    log_p = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    p = np.exp(np.asarray(log_p)) ** 0.5
    p[3] = 0
    p /= p.sum()  # .431, .334, .236
    ours = truncation.adjust(log_p, Settings(temperature=2, top_k=3, top_r=0.7))
    p[2:] = 0
    np.testing.assert_allclose(np.exp(ours), p / p.sum(), rtol=1e-5)
    np.testing.assert_array_equal(truncation.adjust(log_p, Settings()), log_p)
