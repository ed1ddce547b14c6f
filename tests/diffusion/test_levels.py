"""A picture of two levels: what its rules mean, which cells are free, and noise on given codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.diffusion import schedules, tasks, transition
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.training import loss


def vocab(noise=0.0):
    return Vocab(
        (
            Modality("coarse", 6, 5, (2, 3), level_of="image", noise=noise),
            Modality("image", 24, 7, (4, 6)),
            Modality("text", 3, 4),
        )
    )


@pytest.mark.parametrize(
    "task, free, given",
    [
        ("image|text", {"coarse", "image"}, {"text"}),
        ("t2i", {"coarse", "image"}, {"text"}),
        ("text|image", {"text"}, {"coarse", "image"}),
        ("image|coarse,text", {"image"}, {"coarse", "text"}),
        ("coarse|text", {"coarse"}, {"text"}),
        ("text|coarse", {"text"}, {"coarse"}),
        ("coarse|image", {"coarse"}, {"image"}),
        ("any", {"coarse", "image", "text"}, set()),
    ],
)
def test_a_rule_means_both_levels_of_a_picture_unless_it_names_the_coarse_one(task, free, given):
    rule = tasks.parse(vocab(), task)
    assert (set(rule.free), set(rule.given)) == (free, given)


def test_a_rule_that_generates_both_levels_generates_the_coarse_one_first():
    first = {
        task: tasks.coarse_first(vocab(), task) for task in ("image|text", "pair", "text|image")
    }
    assert first == {"image|text": ["coarse"], "pair": ["coarse", "text"], "text|image": []}
    assert tasks.coarse_first(vocab(), "infill") == []
    assert tasks.typed(vocab(), "image|text") == tasks.Rule(("image",), ("text",))


def test_the_codes_of_a_picture_are_cut_into_its_levels_and_joined_again():
    rng = np.random.default_rng(0)
    codes = np.concatenate([rng.integers(0, 5, (4, 6)), rng.integers(0, 7, (4, 24))], axis=1)
    codes[2] = 7  # masks of the fine level: this row has no picture
    parts = vocab().parts({"image": codes, "text": np.zeros((4, 3), int)})
    assert {name: ids.shape[1] for name, ids in parts.items()} == {
        "coarse": 6,
        "image": 24,
        "text": 3,
    }
    assert (parts["coarse"][2] == 5).all() and (parts["image"][2] == 7).all()
    np.testing.assert_array_equal(vocab().joined("image", parts)[[0, 1, 3]], codes[[0, 1, 3]])
    x = vocab().fuse({"image": codes, "text": np.zeros((4, 3), int)})
    assert (x[2, :30] == vocab().mask_id).all() and (x[0, 6:30] == codes[0, 6:] + 5).all()
    own = vocab().parts({"coarse": np.ones((4, 6), int), "image": codes})
    assert (own["coarse"] == 1).all()  # what is given by its name stays


def test_infilling_frees_a_coarse_cell_where_a_fine_one_in_it_is_free():
    free = np.asarray(tasks.random_blocks(jax.random.key(0), vocab(), 300))
    coarse, fine = free[:, :6].reshape(-1, 2, 3), free[:, 6:30].reshape(-1, 2, 2, 3, 2)
    both = coarse.any((1, 2)) & fine.any((1, 2, 3, 4))
    assert both.sum() > 100 and (coarse.all((1, 2)) & both).sum() < both.sum()
    np.testing.assert_array_equal(coarse[both], fine[both].any((2, 4)))
    assert free.any(axis=1).all()


def noised(share, task, x0, key=1):
    v = vocab(share)
    kernel = transition.make_kernel(v, [schedules.make("linear", 10) for _ in v.modalities])
    masks = tasks.masks(v, task, len(x0))
    return np.asarray(loss.noised_given(kernel, jax.random.key(key), jnp.asarray(x0), masks))


def test_a_share_of_the_given_coarse_codes_is_noised_where_the_fine_ones_are_generated():
    x0 = np.tile(np.int32([3] * 6 + [9] * 24 + [14] * 3), (3000, 1))
    changed = noised(0.4, "image|coarse,text", x0) != x0
    assert not changed[:, 6:].any()
    # A noised code is another one with gamma_bar_t + (1 - 1/K) K beta_bar_t, at an even t in 1..10.
    v = vocab()
    kernel = transition.make_kernel(v, [schedules.make("linear", 10) for _ in v.modalities])
    t = np.arange(1, 11)
    moved = np.asarray(kernel.gamma_bar)[0, t] + 4 * np.asarray(kernel.beta_bar)[0, t]
    expected = 0.4 * moved.mean()
    found = changed[:, :6].mean()
    assert abs(found - expected) < 5 * (0.25 / 18000) ** 0.5


@pytest.mark.parametrize(
    "share, task", [(0.0, "image|coarse"), (1.0, "coarse|text"), (1.0, "text|image")]
)
def test_nothing_is_noised_anew_with_a_share_of_0_or_where_no_fine_level_is_generated(share, task):
    x0 = np.tile(np.int32([3] * 6 + [9] * 24 + [14] * 3), (20, 1))
    np.testing.assert_array_equal(noised(share, task, x0), x0)
