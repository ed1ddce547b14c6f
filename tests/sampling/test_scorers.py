"""Scorers against the enumerated tilt."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.diffusion import vocab
from udd_jax.sampling import scorers

LAYOUT = vocab.image_text((1, 3), 4, 5, 2)


def laws(seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.dirichlet(np.ones(m.classes), (2, m.length)) for m in LAYOUT.modalities)


def steered(asked, p):
    """The law after the scorers, float64[B, n, K] a modality."""
    x, t = jnp.full((2, LAYOUT.length), LAYOUT.mask_id), jnp.ones(2, int)
    log_p = tuple(jnp.log(jnp.asarray(y, jnp.float32)) for y in p)
    for scorer in scorers.parse(asked, LAYOUT):
        added = jax.jit(scorer)(x, t, log_p)
        log_p = tuple(jax.nn.log_softmax(y + more) for y, more in zip(log_p, added, strict=True))
    return [np.exp(np.asarray(y, float)) for y in log_p]


@pytest.mark.parametrize("point", scorers.POINTS)
def test_an_additive_score_is_the_enumerated_tilt(point):
    """Of whole images, 4^3 of them: the marginals of p(x) exp(1.5 F(x)), with places of its own."""
    p, table = laws(), np.random.default_rng(1).normal(size=(3, 4))
    ours, text = steered([(scorers.additive(table), 1.5, point)], p)
    expected = np.zeros_like(p[0])
    for x in itertools.product(range(4), repeat=3):
        at = (range(3), x)
        weight = p[0][:, *at].prod(1) * np.exp(1.5 * table[at].sum())
        expected[:, *at] += weight[:, None]
    np.testing.assert_allclose(ours, expected / expected.sum(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(text, p[1], atol=1e-6)
    assert np.abs(ours - p[0]).max() > 0.1


def test_a_gradient_is_taken_at_the_point_that_its_name_says():
    p = laws()

    def square(tokens, x, t):  # the gradient is the point itself
        return (tokens[0] ** 2).sum((1, 2)) / 2

    likeliest = np.eye(4)[p[0].argmax(-1)]
    for point, at in {"expected": p[0], "straight_through": likeliest}.items():
        ours, _ = steered([(square, 1.5, point)], p)
        expected = p[0] * np.exp(1.5 * at)
        np.testing.assert_allclose(ours, expected / expected.sum(-1, keepdims=True), atol=1e-6)


def test_a_scale_of_0_leaves_the_scorer_out():
    assert scorers.parse([(scorers.additive(np.ones(4)), 0)], LAYOUT) == ()


def test_likeness_is_largest_for_the_reference_and_pulls_towards_it():
    vectors, codes = np.random.default_rng(2).normal(size=(4, 3)), np.array([0, 3, 1])
    score = scorers.likeness(vectors, codes)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    values = score((jnp.eye(4)[every], None), None, None)
    assert every[values.argmax()].tolist() == codes.tolist()
    np.testing.assert_allclose(values.max(), 1, atol=1e-5)
    p = laws()
    pulled = steered([(score, 0.5)], p)[0]
    before, after = (score((jnp.asarray(y),), None, None) for y in (p[0], pulled))
    assert (after > before).all()


def test_content_and_style_have_their_own_weights_and_the_mean_of_the_vectors_none():
    vectors, codes = np.random.default_rng(2).normal(size=(4, 3)), np.array([0, 3, 1])
    shown = jnp.eye(4)[codes[None, ::-1]], None  # the same codes at other places: the same style
    content, style = (
        scorers.likeness(vectors, codes, *weights)(shown, None, None)
        for weights in ((1, 0), (0, 1))
    )
    np.testing.assert_allclose(style, 0, atol=1e-6)
    assert content < 0.99
    moved = scorers.likeness(vectors + 5, codes, 1, 0)(shown, None, None)
    np.testing.assert_allclose(moved, content, rtol=1e-4)


def test_the_gram_matrix_of_style_is_the_expected_one_of_all_pictures():
    vectors, codes = np.random.default_rng(2).normal(size=(4, 3)), np.array([0, 3, 1])
    p = np.random.default_rng(3).dirichlet(np.ones(4), 3)  # [N, K]
    gram = lambda picture: vectors[picture].T @ vectors[picture] / 3  # noqa: E731
    every = np.array(list(itertools.product(range(4), repeat=3)))
    chances = p[np.arange(3)[None], every].prod(axis=1)
    expected = sum(c * gram(picture) for c, picture in zip(chances, every, strict=True))
    distance = ((expected - gram(codes)) ** 2).sum() / (gram(codes) ** 2).sum()
    style = scorers.likeness(vectors, codes, 0, 1)((jnp.asarray(p)[None], None), None, None)
    np.testing.assert_allclose(style, [-distance], rtol=1e-4)


def test_the_palette_of_a_picture_is_the_distance_to_its_nearest_colour():
    black, red, white = [0.0, 0, 0], [1.0, 0, 0], [1.0, 1, 1]
    patches = np.array([[black, black], [black, red], [red, white], [white, white]])
    score = scorers.palette(patches, np.array([1, 0, 1]))  # black and red
    every = np.array(list(itertools.product(range(4), repeat=3)))
    far = np.array([0, 0, 1, 2])  # white is 2 from red; the mean of two pixels
    found = score((jnp.eye(4)[every], None), None, None)
    np.testing.assert_allclose(found, -far[every].sum(1), atol=1e-6)


def test_what_appears_somewhere_is_the_enumerated_probability_and_one_place_is_enough():
    shown = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]])  # [codes, things]
    p = np.random.default_rng(4).dirichlet(np.ones(4), 3)
    every = np.array(list(itertools.product(range(4), repeat=3)))
    chances = p[np.arange(3)[None], every].prod(axis=1)
    there = shown[every].max(axis=1)  # of each picture, what it shows
    score = scorers.appears(shown)
    gradient = jax.grad(lambda p: score((p[None], None), None, None)[0])
    for place, code in itertools.product(range(3), range(4)):
        here = (every[:, place] == code) * chances
        expected = np.log((here @ there) / here.sum()).mean()
        np.testing.assert_allclose(gradient(p)[place, code], expected, atol=1e-3)
    sure = p.copy()
    sure[1] = [0, 0, 1, 0]  # a code that shows both
    np.testing.assert_allclose(np.asarray(gradient(sure))[[0, 2]], 0, atol=1e-3)


def test_of_one_place_what_appears_is_bayes_rule():
    p, shown = np.array([[0.5, 0.3, 0.2]]), np.array([[0.0], [1.0], [0.5]])
    (tilt,) = scorers.tilt(scorers.appears(shown), 1.0, None, None, (jnp.log(p)[None],))
    found, expected = p * np.exp(tilt[0]), p * shown.T
    np.testing.assert_allclose(found / found.sum(), expected / expected.sum(), atol=1e-3)


def test_the_colours_of_a_picture_are_wanted_somewhere_and_others_may_be_there():
    black, red, white = [0.0, 0, 0], [1.0, 0, 0], [1.0, 1, 1]
    patches = np.array([[black, black], [black, red], [red, white], [white, white]])
    score = scorers.colours(patches, np.array([1, 0, 1]))  # black and red
    codes = np.array([[1, 3, 3], [0, 2, 3], [0, 0, 3], [3, 3, 3]])
    found = score((jnp.eye(4)[codes], None), None, None) / 3
    nothing = np.log(scorers.FLOOR)  # at each of three places, of no, one or two colours
    np.testing.assert_allclose(found, [0, 0, nothing / 2, nothing], atol=1e-2)


def test_the_distance_and_the_variation_are_known():
    u = scorers.unit(jnp.asarray([[3.0, 4.0], [1.0, 0.0]]))
    np.testing.assert_allclose(scorers.distance(u, u), 0, atol=1e-6)
    np.testing.assert_allclose(scorers.distance(u, -u), np.pi**2 / 2, rtol=1e-5)
    image = jnp.zeros((1, 2, 2, 1)).at[0, 0, 0].set(2)
    np.testing.assert_allclose(scorers.total_variation(image), [4])


def test_a_cut_out_is_one_square_of_all_images_and_squares_are_at_many_places():
    places = np.stack(np.mgrid[:2, :8, :8], -1)  # each pixel tells its image and its place
    cut = np.asarray(scorers.cut_outs(jax.random.key(0), jnp.asarray(places), 200))
    assert cut.shape == (200, 2, 4, 4, 3)
    corners = cut[:, 0, 0, 0, 1:]
    for square, (y, x) in zip(cut, corners, strict=True):
        np.testing.assert_array_equal(square, places[:, y : y + 4, x : x + 4])
    assert len(np.unique(corners, axis=0)) == 25  # five along each side


@pytest.mark.parametrize(
    "asked, message",
    [
        (
            (lambda p, x, t: p[0].sum((1, 2)), "x"),
            r"scale 'x', expected a finite",
        ),
        ((lambda p, x, t: p[0].sum((1, 2)), jnp.nan), r"scorers 0: scale nan"),
        ((lambda p, x, t: p[0].sum(), 1), r"scorers 0 returns the shape \[\] for one sample"),
        ((lambda p, x, t: p[0].sum((1, 2)) / 0, 1), r"scorers 0 returns NaN or infinity"),
        ((lambda p, x, t: p[0].sum((1, 2)), 1, "here"), r"'here', expected one of expected"),
        ((3, 1), r"scorers 0: \(3, 1\), expected \(function, scale\)"),
    ],
)
def test_a_bad_scorer_is_one_line(asked, message):
    with pytest.raises(ValueError, match=message):
        scorers.parse([asked], LAYOUT)


def test_a_function_is_compiled_once_whatever_its_arrays_are():
    layout = vocab.image_text((2, 2), 3, 4, 3)
    make = lambda number: jax.tree_util.Partial(_scaled, jnp.float32(number))  # noqa: E731
    scorers.parse([(make(1), 1.0)], layout)
    before = scorers._both._cache_size()
    scorers.parse([(make(2), 1.0)], layout)
    assert scorers._both._cache_size() == before


def _scaled(number, tokens, x, t):
    return number * tokens[0].sum((1, 2))


def test_a_picture_without_a_colour_of_many_pixels_has_that_of_its_fullest_cell():
    grey = np.linspace(0, 0.99, 64)
    patches = np.stack([grey, grey[::-1], np.roll(grey, 9)], -1)[:, None]  # a pixel a code
    patches = patches.astype(np.float32)
    score = scorers.colours(patches, np.arange(64))
    found = score((jnp.eye(64)[np.arange(64)][None], None), None, None)
    assert found.shape == (1,) and np.isfinite(found).all()
