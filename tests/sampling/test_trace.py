"""The states of a chain that are returned, against the inputs of the network, one after another."""

import jax
import numpy as np
import pytest

from tests.helpers import finite
from udd_jax.diffusion import schedules, transition
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings

LAYOUT = finite.LAYOUT
ABSORBING = transition.make_kernel(LAYOUT, schedules.absorbing(finite.STEPS))
ORACLE, KEY = finite.oracle(ABSORBING), jax.random.key(0)
ROWS = ("pair", "t2i", "i2t", "image", "text", "infill")


def test_the_trace_shows_the_sequence_on_its_way():
    x, free, absent = finite.batch_of(ROWS)
    run = finite.quick(reverse.run, static_argnums=(1, 6), static_argnames="trace")
    drawn = run(ABSORBING, ORACLE, KEY, x, free, absent, Settings(steps=8), trace=4)
    masked = (np.asarray(drawn.states) == LAYOUT.mask_id).sum((1, 2))
    assert drawn.states.shape == (4, 6, 16) and (np.diff(masked) < 0).all()
    np.testing.assert_array_equal(drawn.states[-1], drawn.tokens)


@pytest.mark.parametrize(
    "settings", [Settings(steps=7), Settings(sampler="best_first", group=1)], ids=["time", "order"]
)
def test_a_trace_keeps_the_last_sequences_of_which_no_more_than_their_share_is_done(settings):
    """Of three: a third, two thirds and all of the steps, or of the free tokens of the row."""
    x, free, absent = finite.batch_of(ROWS)
    seen = []

    def noted(xt, t, free):
        jax.debug.callback(lambda xt: seen.append(np.asarray(xt)), xt, ordered=True)
        return ORACLE(xt, t, free)

    run = finite.quick(reverse.run, static_argnums=(1, 6), static_argnames="trace")
    drawn = run(ABSORBING, noted, KEY, x, free, absent, settings, trace=3)
    jax.effects_barrier()
    every = np.stack([*seen, drawn.tokens])  # a call is given what the one before has left
    free = np.asarray(free & ~absent[:, LAYOUT.modality_of])
    for row in range(len(x)):
        done = np.arange(len(every)) / (len(every) - 1)
        if settings.sampler == "best_first":
            done = (every[:, row, free[row]] != LAYOUT.mask_id).mean(1)
        kept = [np.flatnonzero(done <= part + 1e-4)[-1] for part in (1 / 3, 2 / 3, 1)]
        assert 0 < kept[0] < kept[1] < kept[2]
        np.testing.assert_array_equal(np.asarray(drawn.states)[:, row], every[kept, row])
