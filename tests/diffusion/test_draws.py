"""Small claims about what is drawn in training: words, times, tasks and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.diffusion import random_words, schedules, tasks, time_sampling, transition, vocab

LAYOUT = vocab.image_text((2, 3), image_classes=3, text_classes=4, text_length=5)
IMAGE, TEXT = LAYOUT.slices

# ---- Words --------------------------------------------------------------------------------------


def test_the_upper_word_of_a_product_is_exact_to_the_last_bit():
    ends = np.array([0, 1, 0xFFFF, 0x10000, 0x1FFFF, 2**31, 2**32 - 1], np.uint64)
    some = np.random.default_rng(0).integers(0, 2**32, 200, np.uint64)
    a, b = (part.ravel() for part in np.meshgrid(np.append(ends, some), np.append(some, ends)))
    ours = random_words.high_word(jnp.asarray(a, jnp.uint32), jnp.asarray(b, jnp.uint32))
    np.testing.assert_array_equal(ours, ((a * b) >> np.uint64(32)).astype(np.uint32))


def test_the_smallest_words_reach_the_rarest_events():
    words = jnp.asarray([0, 2**32 - 1], jnp.uint32)
    np.testing.assert_allclose(random_words.uniform(words), [2.0**-33, 1], rtol=1e-6)
    np.testing.assert_allclose(random_words.gumbel(words[:1]), np.log(2.0**33), rtol=1e-6)
    log_p = jnp.log(jnp.asarray([1e-8, 1 - 1e-8]))  # 21 of 2^31
    drawn = random_words.categorical(words, jnp.broadcast_to(log_p[None], (2, 2)))
    np.testing.assert_array_equal(drawn, [0, 1])


# ---- Times --------------------------------------------------------------------------------------


def test_the_time_of_every_row_has_the_law_of_its_own_history():
    steps, count = 4, 4000
    square = jnp.asarray([[0, 1, 1, 1, 1], [0, 1, 1, 9, 25], [0, 64, 64, 4, 1]], jnp.float32)
    sampler = time_sampling.TimeSampler(square, jnp.full((3, steps + 1), 99, jnp.int32))
    law = np.asarray(time_sampling.probabilities(sampler))
    histories = jnp.asarray([1, 2, 1])
    draw = jax.jit(
        jax.vmap(lambda key: time_sampling.draw(sampler, key, histories, jnp.zeros(3, bool), 2))
    )
    t, p = draw(jax.random.split(jax.random.key(0), count))
    for row, h in enumerate(histories):
        np.testing.assert_allclose(p[:, row], law[h][t[:, row]], rtol=1e-6)
        seen = np.bincount(t[:, row, 0], minlength=steps + 1) / count
        sigma = np.sqrt(law[h] * (1 - law[h]) / count)
        assert (np.abs(seen - law[h]) <= 4 * sigma).all(), (row, seen, law[h])


def test_the_continuous_time_of_every_row_is_uniform_and_never_0():
    count, batch = 3000, 3
    spread = jax.jit(jax.vmap(lambda key: time_sampling.spread(key, jnp.zeros(batch, bool), 2)))
    drawn = np.asarray(spread(jax.random.split(jax.random.key(0), count)))
    assert (drawn > 0).all() and (drawn <= 1).all()
    for row in range(batch):
        share = (drawn[:, row, 0] < 1 / 4).mean()
        assert abs(share - 1 / 4) <= 4 * np.sqrt(3 / 16 / count)


# ---- Tasks --------------------------------------------------------------------------------------


def test_infill_frees_parts_and_independent_rows_are_told():
    mixture = {"pair": 1.0, "infill": 1.0, "independent": 2.0}
    drawn = tasks.draw(jax.random.key(0), LAYOUT, mixture, 2000)
    free, own = np.asarray(drawn.masks.free), np.asarray(drawn.independent)
    assert abs(own.mean() - 0.5) < 0.05 and free[own].all()
    parts = ~free.all(1)
    assert abs(parts.mean() - 0.25) < 0.06  # nearly every infill leaves something
    assert not np.asarray(drawn.masks.absent).any()
    image, text = free[parts][:, IMAGE].any(1), free[parts][:, TEXT].any(1)
    assert (image & text).any() and (image & ~text).any() and (~image & text).any()


def test_a_given_position_of_a_partly_free_modality_is_not_noised():
    free = np.ones((2, 11), bool)
    free[0, ::2], free[1, TEXT] = False, False
    t = jnp.asarray([[9, 7], [5, 0]])
    ours = np.asarray(transition.free_times(LAYOUT, t, jnp.asarray(free)))
    assert (ours[~free] == 0).all()
    assert (ours[0, IMAGE][1::2] == 9).all() and (ours[0, TEXT][1::2] == 7).all()
    assert (ours[1, IMAGE] == 5).all()
    kernel = transition.make_kernel(LAYOUT, schedules.linear(9))
    x0 = jnp.asarray([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 3]] * 2)
    xt = np.asarray(transition.q_sample(kernel, jax.random.key(0), x0, jnp.asarray(ours)))
    np.testing.assert_array_equal(xt[~free], np.asarray(x0)[~free])


# ---- The kernel ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, masks, replaces, masks_only",
    [
        (("linear", "linear"), True, False, (False, False)),  # 1e-6 is as good as nothing
        (("linear", "uniform"), False, True, (False, False)),
        (("absorbing", "mask_and_replace"), True, True, (True, False)),
        (("cosine", "absorbing"), True, False, (True, True)),
    ],
)
def test_a_kernel_says_what_its_noise_is_of_all_modalities(names, masks, replaces, masks_only):
    kernel = transition.make_kernel(LAYOUT, [schedules.make(name, 6) for name in names])
    assert (kernel.masks, kernel.replaces, kernel.masks_only) == (masks, replaces, masks_only)


def test_a_schedule_masks_where_most_of_its_noise_is_the_mask():
    assert schedules.mask_and_replace(5, 0.4).masks
    assert not schedules.mask_and_replace(5, 0.6).masks


@pytest.mark.parametrize("name", ("linear", "cosine", "absorbing"))
def test_the_share_masked_in_each_of_600_steps_is_right_from_the_first_to_the_last(name):
    table = schedules.make(name, 600)
    kernel = transition.make_kernel(LAYOUT, table)
    t = np.arange(1, 601)
    ours = transition.newly_masked(
        transition.marginal(kernel, 0, t - 1), transition.marginal(kernel, 0, t)
    )
    np.testing.assert_allclose(ours, np.diff(table.gamma_bar), rtol=5e-4)
