"""The world of shapes: its law, its captions, its pictures and the reading of both."""

import collections
import math

import numpy as np

from udd_jax.data import shapes
from udd_jax.data.shapes import Object, Scene

RED = Object("circle", "red", "small", 0)
BLUE = Object("square", "blue", "large", 2)
SCENE = Scene((RED, BLUE))


def some_scenes(count, seed=0):
    scenes = shapes.all_scenes()
    return [scenes[i] for i in np.random.default_rng(seed).choice(len(scenes), count, False)]


def test_there_are_168_scenes_of_one_object_and_10584_of_two():
    scenes = shapes.all_scenes()
    assert len(set(scenes)) == len(scenes)
    assert collections.Counter(len(s.objects) for s in scenes) == {1: 168, 2: 10584}


def test_reader_is_right_on_noisy_ground_truth():
    images, captions, scenes = shapes.arrays("validation", 3000, seed=1)
    read = shapes.read_images(images)
    assert np.mean([a == b for a, b in zip(read, scenes, strict=True)]) >= 0.999
    parsed = map(shapes.parse_caption, captions)
    assert all(shapes.agrees(s, m) for s, m in zip(scenes, parsed, strict=True))


def test_caption_law_is_a_law():
    for scene in (shapes.all_scenes()[7], *some_scenes(20)):
        assert math.isclose(math.fsum(shapes.caption_law(scene).values()), 1, rel_tol=1e-12)
