"""Recognition: chances by enumeration, names in captions, and once all of it on patterns."""

import itertools
import types

import jax
import ml_collections
import numpy as np
import pytest

from tests.helpers import drawings as drawings_of
from udd_jax.evaluation import held_out, recognition
from udd_jax.evaluation.metrics import intervals
from udd_jax.evaluation.samples import Samples

SIDE, NAMES = 16, 24


@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_the_chance_among_n_names_is_that_of_all_draws_of_the_other_names(rank):
    """Of 5 wrong names the first `rank` score higher; 3 names are offered, so 2 wrong ones."""
    draws = list(itertools.combinations(range(5), 2))
    fine = sum(all(name >= rank for name in draw) for draw in draws)
    found = recognition.right(np.array([rank]), classes=6, among=3)
    np.testing.assert_allclose(found, [fine / len(draws)])


def test_a_tie_with_the_true_name_counts_against_it():
    logits = np.array([[1.0, 2.0, 2.0, 0.0]])
    assert recognition.ranks(logits, np.array([1])) == [1]
    assert recognition.ranks(np.zeros((1, 4)), np.array([2])) == [3]


def test_a_caption_names_the_longest_known_beginning():
    names = ["bat", "bat, night", "cat"]
    found = recognition.Recogniser(None, {}, names, frozenset())
    asked = ["Cat", "cat, pet, animal", "bat, night, vampire", "bat, day", "a cat", ""]
    assert [found.name(text) for text in asked] == [2, 2, 1, 0, -1, -1]


def test_colours_change_and_shapes_stay():
    """Pictures of one colour keep it everywhere, grey ones stay grey: the first two, the others."""
    rng = np.random.default_rng(0)
    flat = np.broadcast_to(np.float32([0.5, -0.25, 0.0]), (2, SIDE, SIDE, 3))
    grey = rng.uniform(-1, 1, (2, SIDE, SIDE, 1)).astype(np.float32).repeat(3, axis=-1)
    new = np.asarray(jax.jit(recognition.changed)(jax.random.key(1), np.concatenate([flat, grey])))
    assert np.ptp(new[:2], axis=(1, 2)).max() < 1e-6 and np.abs(new[:2] - flat).max() > 0.01
    assert np.ptp(new[2:], axis=-1).max() < 1e-6 and np.abs(new[2:] - grey).max() > 0.01


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A pipeline of a config alone, whose data have 24 patterns, each in five colours."""
    folder = drawings_of.patterns(tmp_path_factory.mktemp("drawings"), SIDE, NAMES)
    config = ml_collections.ConfigDict(
        {
            "data": f"folder:{folder}",
            "data_options": {},
            "image_size": SIDE,
            "seed": 0,
            "evaluate": {},
        }
    )
    image = types.SimpleNamespace(shape=(SIDE, SIDE, 3))
    return types.SimpleNamespace(config=config, tokenizers={"image": image})


@pytest.mark.slow
def test_right_pictures_reach_what_real_ones_reach_and_wrong_ones_chance(drawings, tmp_path):
    found = list(held_out.stream(drawings, -1))
    images = np.stack([example.pixels[0] for example in found])
    texts = [example.captions[0] for example in found]
    items = types.SimpleNamespace(
        name="drawings", images=images, references=[(text,) for text in texts], world=None
    )

    def drawn(images, captions):
        count = len(captions)
        return Samples(np.zeros((count, 1)), np.ones(count), {}, images, captions)

    perfect = {task: drawn(images, texts) for task in ("t2i", "i2t", "pair")}
    report = recognition.measure(drawings, items, perfect, tmp_path, tmp_path / "samples", 60)
    real, made = report["real held-out pictures"], report["text to image"]
    assert real["among 20"].value > 0.9 and made["among 20"] == real["among 20"]
    assert report["the same in grey"]["among 20"].value > 0.6
    assert report["image to text"]["the name"].value == 1
    assert report["image to text"]["without broken words"].value == 1
    assert made["Frechet distance in its features"].value == pytest.approx(0, abs=1e-6)
    near = report["cosine to the nearest training picture"]
    assert near["samples"] == near["held-out pictures"]
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {
        recognition.KEPT,
        "recognition-sheet.png",
    }

    training = np.stack([e.pixels[0] for e in held_out.stream(drawings, 5, "train")])
    few = {task: drawn(training, texts[:5]) for task in perfect}
    report = recognition.measure(drawings, items, few, tmp_path, tmp_path / "samples", 60)
    kept = np.load(tmp_path / "samples" / recognition.KEPT)
    assert kept["right"].shape == (5,)
    np.testing.assert_array_equal(kept["near_images"], training)  # a copy is nearest to its own
    near = report["cosine to the nearest training picture"]
    assert near["samples"].value == pytest.approx(1, abs=1e-5)
    assert near["held-out pictures"].value < near["samples"].value - 1e-3

    broken = [*texts[:-1], "patern x"]
    wrong = {"t2i": drawn(images[::-1], texts), "i2t": drawn(images, broken[1:] + broken[:1])}
    wrong["pair"] = drawn(images[::-1], broken)
    report = recognition.measure(drawings, items, wrong, tmp_path, tmp_path / "samples", 60)
    assert report["text to image"]["among 20"].value < 0.3
    assert report["image to text"]["the name"].value == 0
    assert report["image to text"]["without broken words"].value == 23 / 24
    assert report["pairs"]["caption is a name"].value == 23 / 24


def test_captions_that_are_not_names_are_refused_with_the_reason(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "LEAST", 4.5)
    found = recognition.obtain(drawings, tmp_path)
    assert isinstance(found, intervals.Unmeasured)
    assert found.unmeasured.startswith("captions are not names: 24 of them for 9")
