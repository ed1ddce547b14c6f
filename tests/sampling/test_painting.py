"""Painted words: the attention that they get, and the evidence for them, on small tables."""

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import schedules, tasks, transition, vocab
from udd_jax.networks import layers
from udd_jax.sampling import painting

LAYOUT = vocab.image_text((1, 3), 4, 5, 2)
KERNEL = transition.make_kernel(LAYOUT, [schedules.make("linear", 6)] * 2)
PROMPT = np.array([[4, 6], [4, 6]])  # global ids


def paint(weight):
    return painting.Paint(
        jnp.asarray(PROMPT),
        jnp.asarray([[[False, True]] * 2]),
        jnp.asarray([[[6, 8]] * 2]),
        jnp.asarray([[[True, False, False], [False, True, True]]]),
        jnp.asarray([weight], jnp.float32),
        evidence=True,
    )


def noisy(text):
    x = np.concatenate([np.full((2, 3), LAYOUT.mask_id), text], axis=1)
    return jnp.asarray(x), jnp.asarray(np.arange(5)[None].repeat(2, 0) < 3)


def test_the_strength_is_that_of_the_equation_and_0_where_the_prompt_is_not_seen():
    strength = painting.attention(KERNEL, paint(2.0))
    x, free = noisy(PROMPT)
    found = np.asarray(strength(x, jnp.array([[3, 0], [6, 0]]), free))
    abar = np.asarray(KERNEL.alpha_bar[0])[[3, 5]]  # at T that of T - 1
    expected = np.zeros((2, 1, 5, 5))
    expected[0, 0, 0, 4] = expected[1, 0, 1:3, 4] = 1
    grow = 2 * painting.ATTENTION * np.log1p(np.sqrt((1 - abar) / abar))
    np.testing.assert_allclose(found, expected * grow[:, None, None, None], rtol=1e-5)
    other, free = noisy(np.array([[4, 6], [4, 7]]))
    found = strength(other, jnp.array([[3, 0], [3, 6]]), free)
    assert (found[0] != 0).any() and (found[1] == 0).all()


def test_the_attention_on_painted_words_rises_with_the_weight_and_others_are_as_without():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(2, 5, 2, 4)), jnp.float32) for _ in range(2))
    v = jnp.broadcast_to(jnp.eye(5)[:, None, :4], (2, 5, 2, 4)).at[:, 4].set(1)
    x, free = noisy(PROMPT)

    @jax.jit
    def attend(weight):
        strength = painting.attention(KERNEL, paint(weight))(x, jnp.full((2, 2), 3), free)
        bias = layers.Painted(None, strength)
        return layers.dot_product_attention(q, k, v.at[:, :4].set(0), bias)[..., 0]

    mass = np.stack([attend(w) for w in (0.0, 1.0, 3.0, 9.0)])  # of the word, [4, B, L, H]
    bare = layers.dot_product_attention(q, k, v.at[:, :4].set(0))[..., 0]
    np.testing.assert_allclose(mass[0], bare, rtol=1e-5)
    for row, places in ((0, [0]), (1, [1, 2])):
        assert (np.diff(mass[:, row, places], axis=0) > 0).all()
        rest = [i for i in range(5) if i not in places]
        np.testing.assert_array_equal(mass[1:, row, rest], mass[:1, row, rest].repeat(3, 0))


def test_evidence_counts_for_the_phrase_under_the_mask_and_against_it_elsewhere():
    """A network whose answer tells what text it saw: code 1 is likelier with the phrase."""

    def denoise_fn(xt, t, free):
        phrase = (xt[:, 3:] == jnp.array([[6, 8]])).all(1) & (t[:, 1] == 0)
        logits = jnp.zeros((2, 3, 4)).at[..., 1].set(jnp.where(phrase, 2.0, 0.0)[:, None])
        return logits, jnp.zeros((2, 2, 5))

    x, free = noisy(PROMPT)
    masks = tasks.Masks(free, jnp.zeros((2, 2), bool))
    scorer = painting.evidence(KERNEL, denoise_fn, masks, x, paint(1.5))
    log_p = jnp.zeros((2, 3, 4)), jnp.zeros((2, 2, 5))
    image, text = scorer(x, jnp.full(2, 3), log_p)
    rise = 2 - np.log((3 + np.exp(2)) / 4)
    sign = np.array([[1, -1, -1], [-1, 1, 1]])
    expected = np.zeros((2, 3, 4))
    expected[..., 1] = 1.5 * painting.EVIDENCE * rise * sign
    assert text is None
    np.testing.assert_allclose(image, expected, atol=1e-5)
