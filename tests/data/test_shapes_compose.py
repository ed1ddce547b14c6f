"""The world of compositions: its law by counting, its reading, and what agrees."""

import collections
import math

import numpy as np

from udd_jax.data import sources
from udd_jax.data.sources import worlds
from udd_jax.data.sources.shapes import compose, scenes
from udd_jax.data.sources.shapes.scenes import Object, Scene

RED = Object("circle", "red", "small", 0)
BLUE = Object("square", "blue", "large", 3)
TEXT = "the colour of the first and the shape of the second"


def composed(*row):
    return compose.Composition(Scene((Object(*row),)))


def test_the_law_fixes_what_the_text_names_and_is_even_over_the_rest():
    able = compose.law(RED, BLUE, compose.parse_caption(TEXT))
    assert {(o.colour, o.shape) for o in able} == {("red", "square")}
    assert len(able) == len(set(able)) == 2 * 4  # sizes and places
    one = compose.parse_caption("the second in the colour of the first")
    assert compose.law(RED, BLUE, one) == (Object("square", "red", "large", 3),)
    assert len(compose.captions()) == len(set(compose.captions().values())) == 20


def test_drawn_pictures_follow_the_law():
    """Each caption has the same share, and each free attribute an even one: by chi-square."""
    rng = np.random.default_rng(0)
    drawn = [compose.draw("train", rng) for _ in range(4000)]
    for scene in drawn[:200]:
        assert scene.shown.objects[0] in compose.law(*scene.references, scene.meaning)
    meaning = compose.parse_caption(TEXT)
    texts = collections.Counter(scene.meaning for scene in drawn)
    places = collections.Counter(
        scene.shown.objects[0].cell for scene in drawn if scene.meaning.source[3] is None
    )
    for counts, cells in ((texts, 20), (places, 4)):
        even = sum(counts.values()) / cells
        assert sum((n - even) ** 2 for n in counts.values()) / even < cells + 6 * math.sqrt(cells)
    assert meaning in texts


def test_references_of_the_test_are_pairs_that_training_never_shows():
    rng = np.random.default_rng(1)
    for split, expected in (("train", False), ("validation", False), ("test", True)):
        for _ in range(50):
            kinds = tuple(sorted(o.kind for o in compose.draw(split, rng).references))
            assert (kinds in scenes.held_out_pairs()) == expected


def test_noisy_pictures_references_and_captions_are_read_back():
    records = list(sources.open_source("compose", "test", size=40, further=compose.NAMES))
    world = compose.WORLD
    truth = [record.extra["scene"] for record in records]
    images = np.stack([record.image for record in records])
    read = {"image": world.read_images(images)}
    assert read["image"] == truth
    read["text"] = [world.parse_caption(record.captions[0]) for record in records]
    assert read["text"] == [scene.meaning for scene in truth]
    for name in compose.NAMES:
        read[name] = world.senses[name].read(np.stack([r.extra[name] for r in records]))
        assert read[name] == [world.senses[name].told(scene) for scene in truth]
    rows = [dict(zip(read, row, strict=True)) for row in zip(*read.values(), strict=True)]
    assert all(world.fitting(**row) for row in rows)


def test_a_picture_with_another_attribute_fits_no_composition():
    told = {"first": RED, "second": BLUE, "text": compose.parse_caption(TEXT)}
    assert compose.fitting(image=composed("square", "red", "large", 1), **told)
    assert not compose.fitting(image=composed("square", "blue", "large", 1), **told)
    assert not compose.fitting(image=composed("circle", "red", "large", 1), **told)
    # Without a text, the picture has to share two attributes with its references.
    del told["text"]
    assert compose.fitting(image=composed("square", "red", "small", 1), **told)
    assert not compose.fitting(image=composed("triangle", "green", "small", 1), **told)
    assert not compose.fitting(image=composed("circle", "green", "small", 1), **told)
    # Without the first reference, only what the text takes from the second is told.
    del told["first"]
    told["text"] = compose.parse_caption(TEXT)
    assert compose.fitting(image=composed("square", "green", "small", 1), **told)
    assert not compose.fitting(image=composed("circle", "green", "small", 1), **told)


def test_two_objects_are_no_composition_and_captions_know_their_spelling():
    two = worlds.Source(sources.WORLDS["shapes"], "test", 1)[0].image
    assert compose.read_images(two[None]) == [None]
    assert compose.parse_caption("the colour of the first and the colour of the second") is None
    assert compose.parse_caption(f" {TEXT.replace(' ', '  ')}") == compose.captions()[TEXT]
