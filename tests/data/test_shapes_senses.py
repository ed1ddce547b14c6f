"""The sounds and layouts of the world of shapes: their law, their reading, and what agrees."""

import math

import numpy as np
import pytest

from udd_jax.data.sources import glyphs, shapes, worlds
from udd_jax.data.sources.shapes import layouts, sounds
from udd_jax.data.sources.shapes.scenes import Object, Scene

RED = Object("circle", "red", "small", 0)
BLUE = Object("square", "blue", "large", 3)
SCENE = Scene((RED, BLUE))
SENSES = ("sound", "layout")


def stacked(records, name):
    return np.stack([record.extra[name] for record in records])


@pytest.fixture(scope="module")
def records():
    """Every kind in each half of a sound occurs about six times."""
    return list(shapes.source("train", 300, senses=SENSES))


def test_noisy_sounds_and_layouts_are_read_back(records):
    for name in SENSES:
        sense = shapes.WORLD.senses[name]
        read = sense.read(stacked(records, name))
        assert read == [sense.told(record.extra["scene"]) for record in records]


@pytest.mark.slow
def test_every_scene_is_read_from_its_sound_in_999_of_1000_cases():
    rng, right, scenes = np.random.default_rng(1), 0, shapes.scenes.all_scenes()
    for first in range(0, len(scenes), 256):
        chunk = scenes[first : first + 256]
        heard = sounds.read(np.stack([sounds.render(scene, rng) for scene in chunk]))
        right += sum(h == sounds.told(s) for h, s in zip(heard, chunk, strict=True))
    assert right >= 0.999 * len(scenes)


def test_a_tone_has_the_pitch_of_its_colour_and_the_loudness_of_its_size():
    half = sounds.render(Scene((RED,)))[: sounds.HALF]
    peak = abs(np.fft.rfft(half)).argmax() * sounds.SAMPLE_RATE / sounds.HALF
    assert abs(peak - sounds.PITCHES["red"]) < 2  # a bin
    assert math.isclose(half[500:-500].std(), 0.06, rel_tol=0.01)
    loud = sounds.render(Scene((BLUE,)))[500 : sounds.HALF - 500]
    assert math.isclose(loud.std(), 0.2, rel_tol=0.01)
    assert not sounds.render(Scene((RED,)))[sounds.HALF :].any()


def test_a_sound_that_is_unclear_is_not_read():
    rng = np.random.default_rng(0)
    hiss = 0.1 * rng.standard_normal((1, sounds.SAMPLES))
    late = np.roll(sounds.render(SCENE), sounds.HALF // 2)[None]  # two tones in the second half
    assert sounds.read(np.concatenate([hiss, np.zeros_like(hiss), late])) == [None] * 3


def test_a_layout_with_one_wrong_id_is_not_read():
    layout = layouts.render(SCENE)
    assert layouts.read(layout[None]) == [((0, "small", "circle"), (3, "large", "square"))]
    layout[1, 1] = 3
    assert layouts.read(np.stack([layout, np.zeros_like(layout)])) == [None, None]


def test_the_six_objects_of_a_layout_differ():
    ids = {part.tobytes() for part in layouts.templates().values()}
    assert len(ids) == len(layouts.templates()) == 6


def test_senses_leave_pictures_and_captions_as_they_are(records):
    for plain, record in zip(shapes.source("train", 20), records, strict=False):
        assert plain.image.tobytes() == record.image.tobytes()
        assert plain.captions == record.captions and set(plain.extra) == {"scene"}
    alone = shapes.source("train", 3, senses=("sound",))[2]
    np.testing.assert_array_equal(alone.extra["sound"], records[2].extra["sound"])


def test_the_scenes_that_fit_a_sense_are_those_that_it_does_not_tell_apart():
    heard, seen = sounds.told(SCENE), layouts.told(SCENE)
    assert len(shapes.fitting(sound=heard)) == 6  # places of two objects
    assert len(shapes.fitting(layout=seen)) == 7**2  # colours
    assert shapes.fitting(sound=heard, layout=seen) == (SCENE,)
    assert len(shapes.fitting(sound=sounds.told(Scene((RED,))))) == 4


def test_modalities_agree_if_one_scene_fits_all():
    meaning = shapes.grammar.parse_caption
    below, same = "a large blue square lower right of a small red circle", "a circle above a square"
    heard, seen = sounds.told(SCENE), layouts.told(SCENE)
    assert shapes.fitting(SCENE, meaning(below), sound=heard, layout=seen) == (SCENE,)
    assert len(shapes.fitting(text=meaning(same), sound=heard)) == 2  # one above the other
    assert not shapes.fitting(text=meaning(same), layout=seen)
    assert not shapes.fitting(text=meaning("a red square"), sound=heard)
    assert not shapes.fitting(Scene((BLUE,)), sound=heard)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: shapes.source("train", 1, senses=("smell",)), "'smell', expected of sound, lay"),
        (
            lambda: worlds.Source(glyphs.WORLD, "train", 1, senses=("sound",)),
            "'sound', expected of none",
        ),
        (lambda: sounds.read(np.zeros((2, 100))), r"sounds \(2, 100\): expected \[B, 8192\]"),
        (lambda: layouts.read(np.zeros((2, 4, 4))), r"layouts \(2, 4, 4\): expected \[B, 8, 8\]"),
    ],
)
def test_a_wrong_request_is_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
