"""Weighted prompts against the enumerated product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import finite
from udd_jax.diffusion import schedules, tasks, transition
from udd_jax.sampling import guidance, prompts
from udd_jax.sampling.settings import Settings

LAYOUT, ITEMS, T = finite.LAYOUT, finite.ITEMS, 60


def made(weights, schedule="constant", same=False):
    """Prompts for eight rows: the first words of items, the rest of the text is masked."""
    first = np.arange(LAYOUT.length) == LAYOUT.slices[1].start
    texts = [np.roll(ITEMS, 0 if same else -8 * p, axis=0)[:8] for p in range(len(weights))]
    x = np.where(first, np.stack(texts), LAYOUT.mask_id)
    has = np.tile([False, True], (len(weights), 1))
    return prompts.merge(x, has, weights, [schedule] * len(weights), finite.STEPS)


@pytest.mark.parametrize("weights, scale", [((1, 0.5), 1.0), ((0.8, -0.3), 2.0)])
def test_two_conditions_are_the_enumerated_product(weights, scale):
    """p(x | a)^(s w_a) p(x | b)^(s w_b) p(x)^(1 - s (w_a + w_b)), by dense matrices."""
    asked, tables = made(weights), [schedules.absorbing(finite.STEPS)] * 2
    image, where = LAYOUT.modality_of == 0, LAYOUT.slices[0]
    free = np.broadcast_to(image, (8, LAYOUT.length))
    shown = np.random.default_rng(1).random(free.shape) < 0.1
    xt = np.where(free & ~shown, LAYOUT.mask_id, ITEMS[16:24]).astype(np.int32)
    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, tables, jnp.float64)
        prior = transition.prior_sample(kernel, jax.random.key(0), 8)
        masks = tasks.Masks(jnp.asarray(free), jnp.zeros((8, 2), bool))
        scene = guidance.Scene(kernel, Settings(guidance=scale), masks, prior, None)
        steer = jax.tree_util.Partial(prompts.branches, jax.tree.map(jnp.asarray, asked))
        predict = guidance.predictor(finite.oracle(kernel), scene, jnp.asarray(xt), steer)
        ours = np.asarray(finite.quick(predict)(xt, jnp.full(8, T, jnp.int32))[0])

    def log_p(text, silent):
        seen = np.where(image, xt, text)
        p = finite.predict(tables, seen, T, free, silent=silent)
        return np.log(p[:, where, : LAYOUT.modalities[0].classes] + 1e-30)

    total = (1 - scale * sum(weights)) * log_p(xt, ~image[None])
    for text, weight in zip(asked.x, weights, strict=True):
        total = total + scale * weight * log_p(text, False)
    expected = np.exp(total - total.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(ours), expected, atol=1e-6)
    assert np.abs(expected - np.exp(log_p(asked.x[0], False))).max() > 0.1


def test_a_prompt_is_given_at_time_0_and_is_absent_from_the_branch_without_one():
    """Also where the scene has no text: a chain of images alone can be steered by texts."""
    tables = [schedules.absorbing(finite.STEPS)] * 2
    kernel = transition.make_kernel(LAYOUT, tables)
    free = jnp.broadcast_to(jnp.asarray(LAYOUT.modality_of == 0), (8, LAYOUT.length))
    masks = tasks.Masks(free, jnp.broadcast_to(jnp.array([False, True]), (8, 2)))
    prior = transition.prior_sample(kernel, jax.random.key(0), 8)
    scene = guidance.Scene(kernel, Settings(), masks, prior, None)
    asked = jax.tree.map(jnp.asarray, made((1, 0.5)))
    *prompted, none = prompts.branches(asked, scene, jnp.asarray(ITEMS[:8]), jnp.full(8, T))
    assert [np.unique(b.t, axis=0).tolist() for b in prompted] == [[[T, 0]]] * 2
    assert np.unique(none.t, axis=0).tolist() == [[T, finite.STEPS]]


def test_equal_prompts_are_one_and_those_of_no_weight_are_left_out():
    same = made((0.25, 0.75), same=True)
    assert prompts.plain(same) and prompts.calls(same) == 1
    assert len(made((1, 0)).x) == 1 and prompts.plain(made((1, 0)))
    two = made((1, 0.5))
    assert not prompts.plain(two) and prompts.calls(two) == 3
    assert prompts.calls(made((0.4, 0.6))) == 2 and prompts.calls(made((0.4, 0.6)), 2.0) == 3


def test_prompts_that_never_have_a_weight_are_one_line():
    with pytest.raises(ValueError, match=r"prompts: none has a weight at any of the T = "):
        made((1,), schedule=(0.501 / finite.STEPS, 0.502 / finite.STEPS))


def test_a_weight_follows_its_schedule():
    weight = made((2, 4), "linear").weight
    np.testing.assert_allclose(weight[:, [0, 50, 100]], [[2, 1, 0], [4, 2, 0]])
    inside = made((2,), (0.2, 0.5)).weight[0]
    np.testing.assert_allclose(inside[[19, 20, 50, 51]], [0, 2, 2, 0])


@pytest.mark.parametrize(
    "asked, message",
    [
        ([("a", 1), ("b", -1)], r"weights of the prompts \(1, -1\) sum to 0"),
        ([], r"\(none\) sum to 0"),
        ([("a", "x")], r"prompts 0: weight 'x', expected a finite number"),
        ([("a", float("nan"))], r"weight nan, expected a finite"),
        (["a"], r"prompts 0: 'a', expected \(prompt, weight"),
        ([("a", 1, "square")], r"the schedule 'square' of a prompt: expected 'constant'"),
        ([("a", 1, (0.5, 0.2))], r"the schedule \(0.5, 0.2\) of a prompt"),
    ],
)
def test_bad_weights_are_one_line(asked, message):
    with pytest.raises(ValueError, match=message):
        prompts.parse(asked)
