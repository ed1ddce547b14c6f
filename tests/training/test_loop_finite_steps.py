"""What counts as a step that is not finite, and as several in a row."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import test_loop
from udd_jax.training import loop


@pytest.mark.parametrize("values", [(1.0, np.inf), (np.nan, 1.0), (1.0, np.array([0.0, np.nan]))])
def test_one_value_that_is_not_finite_keeps_the_old_state(values):
    new, old = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    kept, skipped = loop.apply_if_finite(new, old, *(jnp.asarray(v) for v in values))
    np.testing.assert_array_equal(kept["w"], old["w"])
    assert float(skipped) == 1
    taken, skipped = loop.apply_if_finite(new, old, jnp.asarray(1.0), jnp.zeros(2))
    np.testing.assert_array_equal(taken["w"], new["w"])
    assert float(skipped) == 0


def test_bad_steps_that_are_not_in_a_row_do_not_end_a_run(tmp_path):
    def batch(step):
        return test_loop.batch_at(step) * (np.nan if step % 3 < 2 else 1)

    state = test_loop.run(tmp_path, batch_at=batch, patience=3)
    assert int(state["count"]) == 20 // 3
    with pytest.raises(ValueError, match="in 2 steps in a row"):
        test_loop.run(tmp_path / "again", batch_at=batch, patience=2)
