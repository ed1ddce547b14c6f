"""A task is a mask: what is free, given and absent, and the times that follow."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from udd_jax.diffusion import tasks, vocab
from udd_jax.diffusion.vocab import Modality, Vocab

VOCAB = vocab.image_text((2, 3), 3, 4, 5)
IMAGE, TEXT = VOCAB.slices


@pytest.mark.parametrize(
    ("task", "image_free", "text_free", "absent"),
    [
        ("pair", True, True, (False, False)),
        ("t2i", True, False, (False, False)),
        ("i2t", False, True, (False, False)),
        ("image", True, False, (False, True)),
        ("text", False, True, (True, False)),
    ],
)
def test_each_task_frees_whole_modalities(task, image_free, text_free, absent):
    masks = tasks.masks(VOCAB, task, 2)
    assert (np.asarray(masks.free[:, IMAGE]) == image_free).all()
    assert (np.asarray(masks.free[:, TEXT]) == text_free).all()
    assert np.asarray(masks.absent).tolist() == [list(absent)] * 2


@pytest.mark.parametrize("task", tasks.ALIASES)
def test_what_a_row_lacks_is_absent_and_it_generates_what_it_has_if_nothing_else_is_left(task):
    if task == "infill":
        masks = tasks.Masks(
            tasks.random_blocks(jax.random.key(0), VOCAB, 3), np.zeros((3, 2), bool)
        )
    else:
        masks = tasks.masks(VOCAB, task, 3)
    present = jnp.array([[True, True], [True, False], [False, True]])
    free, absent = map(np.asarray, tasks.of_present(VOCAB, masks, present))
    assert (free[0] == masks.free[0]).all() and (absent[0] == masks.absent[0]).all()
    for row, own, other in ((1, IMAGE, TEXT), (2, TEXT, IMAGE)):
        assert not free[row, other].any() and absent[row].tolist() == [row == 2, row == 1]
        asked = np.asarray(masks.free)[row, own]
        assert (free[row, own] == (asked if asked.any() else True)).all()


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match=r"task 'sing' names 'sing': expected FREE or FREE.GIVEN"):
        tasks.masks(VOCAB, "sing", 1)


THREE = vocab.Vocab((*VOCAB.modalities, vocab.Modality("sound", 2, 6)))


@pytest.mark.parametrize("rule", ["sound|text", "image,sound|text", "image", "image,text,sound"])
def test_of_three_modalities_a_row_may_lack_any(rule):
    masks = tasks.masks(THREE, rule, 7)
    present = np.array([[n >> bit & 1 for bit in range(3)] for n in range(1, 8)], bool)
    free, absent = map(np.asarray, tasks.of_present(THREE, masks, jnp.asarray(present)))
    parsed = tasks.parse(THREE, rule)
    names = [m.name for m in THREE.modalities]
    for row, has in enumerate(present):
        there = [name for name, here in zip(names, has, strict=True) if here]
        asked = [name for name in there if name in parsed.free]
        made = asked or there  # nothing that the rule makes: then all that there is
        shown = made if not asked else [*asked, *(n for n in there if n in parsed.given)]
        for name, where in zip(names, THREE.slices, strict=True):
            assert free[row, where].all() == free[row, where].any() == (name in made)
            assert absent[row, names.index(name)] == (name not in shown)


@pytest.mark.parametrize(
    ("rule", "free", "absent"),
    [
        ("sound|text", [0, 0, 1], [1, 0, 0]),
        ("image,sound|text", [1, 0, 1], [0, 0, 0]),
        ("sound | image , text", [0, 0, 1], [0, 0, 0]),
        ("sound", [0, 0, 1], [1, 1, 0]),
        ("t2i", [1, 0, 0], [0, 0, 1]),
        ("infill", [1, 1, 1], [0, 0, 0]),
    ],
)
def test_a_rule_names_what_is_free_and_what_is_given_and_the_rest_is_absent(rule, free, absent):
    masks = tasks.masks(THREE, rule, 2)
    expected = np.array(free, bool)[THREE.modality_of]
    assert np.asarray(masks.free).tolist() == [expected.tolist()] * 2
    assert np.asarray(masks.absent).astype(int).tolist() == [absent] * 2


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("smell|text", "names 'smell'"),
        ("image|smell", "names 'smell'"),
        ("|text", "nothing is generated"),
        ("", "nothing is generated"),
        ("image|", "nothing is given"),
        ("image|image", "names 'image' twice"),
    ],
)
def test_a_rule_that_means_nothing_is_one_line_that_says_what_is_expected(rule, message):
    with pytest.raises(ValueError, match=message) as error:
        tasks.masks(VOCAB, rule, 1)
    assert "\n" not in str(error.value) and "of image, text" in str(error.value)


def test_a_mixture_takes_rules_and_draws_the_same_as_their_aliases():
    ours, theirs = (
        tasks.draw(jax.random.key(0), VOCAB, {a: 0.5, b: 0.5}, 16)
        for a, b in (("image|text", "text"), ("t2i", "text"))
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_given_is_time_0_absent_is_T_and_free_is_the_clock():
    rows = [tasks.masks(VOCAB, task, 1) for task in ("pair", "t2i", "i2t", "image", "text")]
    masks = tasks.Masks(*(jnp.concatenate(part) for part in zip(*rows, strict=True)))
    t = tasks.times(VOCAB, masks, jnp.full((5,), 7), steps=9)
    assert t.tolist() == [[7, 7], [7, 0], [0, 7], [7, 9], [9, 7]]


def test_a_partly_given_modality_has_the_time_of_its_free_positions():
    free = np.zeros((1, VOCAB.length), bool)
    free[0, 2] = True
    masks = tasks.Masks(jnp.asarray(free), jnp.zeros((1, 2), bool))
    assert tasks.times(VOCAB, masks, jnp.array([4]), steps=9).tolist() == [[4, 0]]


def test_random_blocks_are_never_empty_and_free_every_position_sometimes():
    free = np.asarray(tasks.random_blocks(jax.random.key(0), VOCAB, 2000))
    assert free.any(axis=1).all()
    assert (free.mean(axis=0) > 0.2).all()
    assert (free.mean(axis=0) < 0.8).all()
    image, text = free[:, IMAGE].any(1), free[:, TEXT].any(1)
    assert abs((image & text).mean() - 0.5) < 0.05  # both in half of the rows
    assert abs((image & ~text).mean() - 0.25) < 0.05


def test_picture_blocks_are_rectangles_or_their_complements():
    free = np.asarray(tasks.random_blocks(jax.random.key(1), VOCAB, 300))[:, IMAGE]

    def rectangle(cells):
        cells = cells.reshape(2, 3)
        return (np.outer(cells.any(1), cells.any(0)) == cells).all()

    assert all(rectangle(row) or rectangle(~row) for row in free)


def chances_of_intervals(size):
    """{(first, last): its chance}: between two even draws, and half of the time everything."""
    chances = collections.Counter({(0, size - 1): 0.5})
    for ends in itertools.product(range(size), repeat=2):
        chances[min(ends), max(ends)] += 0.5 / size**2
    return chances


def test_rectangles_and_their_complements_have_the_chances_of_their_draws():
    """An axis is whole half of the time, and half of what is not all of a picture is turned."""
    layout, expected = vocab.image_text((2, 3), 3, 4, 1), collections.Counter()
    axes = (chances_of_intervals(size).items() for size in (2, 3))
    for (rows, p), (columns, q) in itertools.product(*axes):
        inside = np.zeros((2, 3), bool)
        inside[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
        for free in (inside,) if inside.all() else (inside, ~inside):
            expected[free.tobytes()] += p * q * (1 if inside.all() else 0.5)
    drawn = np.asarray(tasks.random_blocks(jax.random.key(4), layout, 30_000))[:, layout.slices[0]]
    counts = collections.Counter(row.tobytes() for row in drawn if row.any())
    assert counts.keys() == expected.keys()
    ours, total = [counts[free] for free in expected], counts.total()
    assert stats.chisquare(ours, [total * p for p in expected.values()]).pvalue > 1e-3


def test_a_row_of_a_text_frees_any_number_of_places_alike_since_its_chance_is_its_own():
    """And one place where it would free none."""
    free = np.asarray(tasks.random_blocks(jax.random.key(5), VOCAB, 12_000))[:, TEXT]
    counts = np.bincount(free.sum(1), minlength=6)[1:]  # of texts that are not given
    expected = np.array([2, 1, 1, 1, 1]) / 6 * counts.sum()
    assert counts.sum() > 8000 and stats.chisquare(counts, expected).pvalue > 1e-3
    single = free[free.sum(1) == 1].sum(0)
    assert stats.chisquare(single).pvalue > 1e-3


def test_a_mixture_gives_each_task_its_share():
    mixture = {"pair": 1.0, "t2i": 2.0, "text": 1.0}
    drawn = tasks.draw(jax.random.key(2), VOCAB, mixture, 4000)
    free = np.asarray(drawn.masks.free)
    t2i = free[:, IMAGE].all(1) & ~free[:, TEXT].any(1)
    assert abs(t2i.mean() - 0.5) < 0.03
    assert abs(np.asarray(drawn.masks.absent)[:, 0].mean() - 0.25) < 0.03
    assert not np.asarray(drawn.independent).any()


@pytest.mark.parametrize("mixture", [{}, {"pair": -1.0}, {"pair": 0.0}, {"sing": 1.0}])
def test_a_bad_mixture_is_one_line(mixture):
    with pytest.raises(ValueError, match=r"task mixture|task 'sing'"):
        tasks.draw(jax.random.key(0), VOCAB, mixture, 2)


def test_any_draws_every_rule_with_something_free_and_no_other():
    three = Vocab((Modality("a", 2, 3), Modality("b", 1, 4), Modality("c", 3, 2)))
    drawn = tasks.draw(jax.random.key(0), three, {"any": 1.0}, 2000).masks
    free, absent = np.asarray(drawn.free), np.asarray(drawn.absent)
    whole = np.stack([free[:, where].all(1) for where in three.slices], 1)
    np.testing.assert_array_equal(whole, np.stack([free[:, w].any(1) for w in three.slices], 1))
    assert whole.any(1).all() and not (whole & absent).any()
    patterns, counts = np.unique(np.where(whole, 0, 1 + absent), axis=0, return_counts=True)
    assert len(patterns) == 3**3 - 2**3 and counts.min() > 30
