"""Agreement of image and caption: verdicts, rates, variety, infilling."""

import collections
import dataclasses
import math

import numpy as np
import pytest

from udd_jax.data.sources import shapes
from udd_jax.data.sources.shapes.scenes import Object, Scene
from udd_jax.evaluation.metrics import agreement

RED = Object("circle", "red", "small", 0)
BLUE = Object("square", "blue", "large", 2)
SCENE = Scene((RED, BLUE))
TRUTH = "a small red circle above a large blue square"
WORLD = shapes.WORLD


def judged(images, captions):
    """Which agree, bool[B], and the rates."""
    found, rates = agreement.agreement(WORLD, agreement.read(WORLD, images, captions))
    agrees = [reason is None for reason in found]
    assert agreement.agreed(WORLD, images, captions).tolist() == agrees
    return np.array(agrees, bool), rates


def variation(images, captions, task):
    pairs = agreement.read(WORLD, images, captions)
    return agreement.variation(WORLD.laws[task], [pair for pair in pairs if None not in pair])


def consistency(images, captions, given_images, free_pixels, given_captions):
    pairs = agreement.read(WORLD, images, captions)
    given = given_images, free_pixels, given_captions
    return agreement.consistency(WORLD, pairs, captions, *given)


@pytest.fixture(scope="module")
def ground_truth():
    return shapes.arrays("validation", 1500, seed=5)


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (TRUTH, None),
        ("a circle above a blue square", None),
        ("a large square with a red circle above it", None),
        ("a small red circle above a blue", "unparsable caption"),
        ("a small red circle", "number"),
        ("a small red circle above a small blue square", "attribute"),
        ("a small red circle below a large blue square", "relation"),
        ("a small red circle upper left of a large blue square", "relation"),
    ],
)
def test_verdict_names_what_is_wrong(caption, reason):
    assert agreement.verdict(WORLD, SCENE, shapes.grammar.parse_caption(caption)) == reason


def test_verdict_on_one_object_names_the_place():
    meaning = shapes.grammar.parse_caption("a circle in the lower left")
    assert agreement.verdict(WORLD, Scene((RED,)), meaning) == "place"
    assert agreement.verdict(WORLD, None, meaning) == "unreadable image"


def test_rates_are_split_by_number_of_named_attributes_and_by_reason():
    images = np.stack([shapes.drawing.render(SCENE)] * 5)
    images[4] = 0
    captions = [
        TRUTH,
        "a circle above a square",
        "a circle below a square",
        "a circle above",
        "a red circle above a square",
    ]
    agreed, rates = judged(images, captions)
    assert agreed.tolist() == [True, True, False, False, False]
    assert rates["agreement"]["rate"] == 0.4
    by_named = {named: (r["rate"], r["count"]) for named, r in rates["by_named"].items()}
    assert by_named == {"2": (0.5, 2), "3": (0.0, 1), "6": (1.0, 1)}
    wrong = {reason: share for reason, share in rates["reasons"].items() if share}
    assert wrong == {"unreadable image": 0.2, "unparsable caption": 0.2, "relation": 0.2}


def test_error_is_the_half_width_of_the_wilson_interval():
    # roots of (p - 3/4)^2 = p (1 - p) / 4, by hand: 5 p^2 / 4 - 7 p / 4 + 9 / 16 = 0
    roots = [(7 + sign * math.sqrt(49 - 45)) / 10 for sign in (-1, 1)]
    result = agreement.rate([True, True, True, False])
    assert math.isclose(result["error"], (roots[1] - roots[0]) / 2)
    assert agreement.rate([True] * 9)["error"] == pytest.approx(1 / 20)  # z^2 / (n + z^2) / 2
    assert agreement.rate([]) == {"rate": 0.0, "error": 1.0, "count": 0}


def test_ground_truth_agrees_and_the_reader_reports_its_error(ground_truth):
    images, captions, _ = ground_truth
    agreed, _ = judged(images, captions)
    assert agreed.mean() >= 0.999
    errors = agreement.reader_error(WORLD, list(shapes.source("test", 500, seed=2)))
    assert {name: error["count"] for name, error in errors.items()} == {
        "images": 500,
        "captions": 500,
        "pairs": 500,
    }
    assert max(error["rate"] for error in errors.values()) <= 0.002


def test_each_kind_of_reading_error_is_counted_apart():
    """One image of four cannot be read, and the caption of another is not true of it."""
    records = list(shapes.source("test", 4, seed=2))
    records[0] = dataclasses.replace(records[0], image=np.zeros((32, 32, 3), np.uint8))
    records[1] = dataclasses.replace(records[1], captions=("a small red circle",))
    errors = agreement.reader_error(WORLD, records)
    shares = {name: error["rate"] for name, error in errors.items()}
    assert shares == {"images": 0.25, "captions": 0.25, "pairs": 0.5}


def test_total_variation_by_hand():
    laws = [{"a": 0.5, "b": 0.5}] * 4
    assert agreement.total_variation(laws, list("aabb"))["tv"] == 0
    assert agreement.total_variation(laws, list("aaab"))["tv"] == 0.25
    assert agreement.total_variation(laws, list("cccc"))["tv"] == 1
    mixed = [{"a": 1.0}, {"b": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.5}]
    assert agreement.total_variation(mixed, list("aaab"))["tv"] == 0.25
    # a share of 4 fair coins has the variance 1/16: 1/2 * 2 * sqrt(2 / (16 pi))
    noise = agreement.total_variation(laws, list("aabb"))["noise"]
    assert math.isclose(noise, math.sqrt(1 / (8 * math.pi)))
    error = agreement.total_variation(laws, list("aaab"))["error"]
    assert math.isclose(error, math.sqrt(2 / 16) / 2)
    assert agreement.total_variation([], [])["tv"] == 1


def test_laws_are_the_marginals_of_caption_law():
    for scene in (Scene((RED,)), SCENE):
        templates, wordings = collections.Counter(), collections.Counter()
        for text, p in shapes.grammar.caption_law(scene).items():
            meaning = shapes.grammar.parse_caption(text)
            templates[meaning.template] += p
            wordings[shapes.laws.wording(meaning)] += p
        assert shapes.laws.template_law(len(scene.objects)) == pytest.approx(templates)
        assert shapes.laws.wording_law(scene) == pytest.approx(wordings)
    for law in (shapes.laws.number_law(), shapes.laws.place_law(), shapes.laws.template_law()):
        assert math.isclose(sum(law.values()), 1)


def test_place_law_is_the_posterior_over_scenes():
    """p(place | caption) by Bayes over all scenes, for one caption of every kind of wording."""
    few = ("red", "black"), ("circle", "square")
    scenes = [
        scene
        for scene in shapes.scenes.all_scenes()
        if all(thing.colour in few[0] and thing.shape in few[1] for thing in scene.objects)
    ]
    texts = ["a circle", "a red square", "a circle in the upper right"]
    texts += [f"a red circle {relation} a black square" for relation in shapes.scenes.INVERSE]
    for text in texts:
        meaning = shapes.grammar.parse_caption(text)
        law = collections.Counter()
        for scene in scenes:
            if shapes.WORLD.agrees(scene, meaning):
                law[scene.place] += shapes.grammar.caption_law(scene)[text]
        total = sum(law.values())
        expected = {place: p / total for place, p in law.items()}
        assert shapes.laws.place_law(meaning) == pytest.approx(expected)


@pytest.mark.parametrize("task", agreement.TASKS)
def test_true_pairs_are_within_sampling_noise_of_the_true_law(ground_truth, task):
    images, captions, _ = ground_truth
    for name, result in variation(images, captions, task).items():
        assert result["tv"] <= 0.005 + 3 * result["noise"], name
        assert result["noise"] < 0.05


def test_collapse_shows_in_total_variation(ground_truth):
    images, captions, scenes = ground_truth
    images, captions, scenes = images[:150], captions[:150], scenes[:150]
    plain = []
    for scene in scenes:
        law = shapes.grammar.caption_law(scene)
        # always the same template, and "above" or "left of" wherever it can be said
        texts = sorted(law, key=lambda text: (" it" in text or " in the " in text, text))
        plain.append(next((t for t in texts if "above" in t or "left of" in t), texts[0]))
    assert judged(images, plain)[0].all()
    found = variation(images, plain, "i2t")
    assert found["number"]["tv"] == 0
    assert found["template"]["tv"] > 0.35
    assert found["place"]["tv"] > 0.3
    upper = np.stack([shapes.drawing.render(SCENE)] * 40)
    found = variation(upper, [TRUTH] * 40, "t2i")
    assert found["place"]["tv"] == pytest.approx(0.5) and found["number"]["tv"] == 0
    found = variation(upper, [TRUTH] * 40, "pair")
    assert found["place"]["tv"] == pytest.approx(1 - 0.8 / 6)
    assert found["template"]["tv"] == pytest.approx(1 - 0.8 * 0.6)
    assert variation(upper, [TRUTH] * 40, "image")["place"] == found["place"]


def test_a_habit_shows_even_where_the_habits_of_two_conditions_cancel():
    row = {
        name: Object(name, "red", "small", cell) for cell, name in enumerate(("circle", "square"))
    }
    upper = Scene(tuple(row.values()))
    lower = Scene(tuple(Object(o.shape, o.colour, o.size, o.cell + 2) for o in row.values()))
    images = np.stack([shapes.drawing.render(upper)] * 20 + [shapes.drawing.render(lower)] * 20)
    captions = ["a circle left of a square"] * 20 + ["a square right of a circle"] * 20
    assert judged(images, captions)[0].all()
    assert variation(images, captions, "i2t")["place"]["tv"] == pytest.approx(0.5)
    assert variation(images, captions, "t2i")["place"]["tv"] == pytest.approx(0.5)


def test_infilling_must_keep_what_was_given():
    other = Scene((RED, Object("triangle", "green", "small", 2)))
    moved = Scene((Object("circle", "cyan", "small", 0), BLUE))
    images = np.stack([shapes.drawing.render(scene) for scene in (SCENE, other, moved, SCENE)])
    captions = [
        TRUTH,
        "a small red circle above a green triangle",
        "a small cyan circle above a large blue square",
        "a small red circle above a blue square",
    ]
    given = np.stack([shapes.drawing.render(SCENE, np.random.default_rng(i)) for i in range(4)])
    free = np.zeros((4, 32, 32), bool)
    free[:, 16:] = True  # the circle is given, the square is not
    words = ["a small ___ circle above ___ ___ blue square"] * 4
    words[1] = "a small red circle above a ___ ___"
    assert judged(images, captions)[0].all()
    kept, rates = consistency(images, captions, given, free, words)
    assert kept.tolist() == [True, True, False, False]
    assert rates["consistency"]["rate"] == 0.5
    assert rates["image"]["rate"] == 0.75
    assert rates["words"]["rate"] == 0.75


def test_a_blank_stands_for_exactly_one_word():
    given = ["a ___ circle"] * 4
    texts = ["a red circle", "a circle", "a small red circle", "a red circle below it"]
    images = np.stack([shapes.drawing.render(SCENE)] * 4)
    nothing_given = np.ones((4, 32, 32), bool)
    _, rates = consistency(images, texts, images, nothing_given, given)
    assert rates["words"]["rate"] == 0.25 and rates["image"]["rate"] == 1
    assert rates["consistency"]["rate"] == 0  # it is kept, and not true: there are two objects
    images[1] = 0  # what cannot be read keeps nothing
    _, rates = consistency(images, texts, images, nothing_given, given)
    assert rates["image"]["rate"] == 0.75


def test_nothing_generated_is_no_agreement():
    agreed, rates = judged(np.zeros((0, 32, 32, 3), np.uint8), [])
    assert agreed.shape == (0,) and rates["agreement"]["count"] == 0
    found = variation(np.zeros((1, 32, 32, 3), np.uint8), [TRUTH], "t2i")
    assert found["place"] == {"tv": 1.0, "noise": 1.0, "error": 0.0, "count": 0}


def test_shapes_that_do_not_match_are_an_error():
    images = np.stack([shapes.drawing.render(SCENE)] * 2)
    with pytest.raises(ValueError, match="2 images and 1 captions"):
        judged(images, [TRUTH])
    with pytest.raises(ValueError, match="free_pixels"):
        consistency(images, [TRUTH] * 2, images, np.zeros((2, 16, 16), bool), ["a"] * 2)
