"""Shapes: a small world of captioned images whose joint distribution is known exactly.

A scene is one object (probability .2) or two (.8) on a 2 x 2 grid of cells, numbered

    0 1      each object one of 3 shapes, 7 colours and 2 sizes, all uniform:
    2 3      168 scenes of one object, 10,584 of two.

    scenes.py     objects and scenes, and the held-out pairs of kinds
    grammar.py    captions: their distribution, and their parser
    drawing.py    images of 32 x 32 pixels (64 x 64 for `shapes64`): drawing and reading them
    sounds.py     a sound of each scene: playing and reading it
    layouts.py    a map of categories of each scene, and its reading
    vectors.py    features that tell all of a scene
    compose.py    a world of its own: pictures that a text composes of two others
    steered.py    edits, painted words and more to steer to
    laws.py       the distributions of the properties of samples
"""

import dataclasses
import functools
import itertools

import numpy as np

from udd_jax.data.sources import worlds
from udd_jax.data.sources.shapes import (
    drawing,
    grammar,
    laws,
    layouts,
    scenes,
    sounds,
    steered,
    vectors,
)
from udd_jax.data.sources.shapes.scenes import Scene


@functools.cache
def _pools() -> dict[str, np.ndarray]:
    """The numbers of the scenes with one object, with two, and with two that are held out."""
    one = np.array([len(scene.objects) == 1 for scene in scenes.all_scenes()])
    held = np.array([scenes.held_out(scene) for scene in scenes.all_scenes()])
    pools = {"one": one, "two": ~one & ~held, "held out": held}
    return {name: np.flatnonzero(pool) for name, pool in pools.items()}


def draw(split: str, rng: np.random.Generator) -> Scene:
    """Draws a scene: `train` and `validation` have no held-out pair, `test` has one."""
    if split == "test":
        pool = _pools()["held out"]
    else:
        pool = _pools()["one" if rng.random() < scenes.ONE_OBJECT else "two"]
    return scenes.all_scenes()[int(pool[rng.integers(len(pool))])]


def _where(cells: tuple[int, ...]) -> str:
    return " and ".join(scenes.PLACES[cell] for cell in cells)


WORLD = worlds.World(
    name="shapes",
    about="a drawn world of one or two objects on a grid",
    held_out="which show only pairs of objects that no training image has",
    image_size=drawing.IMAGE_SIZE,
    draw=draw,
    caption=grammar.caption,
    render=drawing.render,
    read_images=drawing.read_images,
    parse_caption=grammar.parse_caption,
    difference=grammar.difference,
    reasons={
        "number": "another number of objects",
        "attribute": "another shape, colour or size",
        "relation": "another relation",
        "place": "another place",
    },
    tiles=(2, 2),
    residual=drawing.RESIDUAL_LIMIT,
    named=grammar.named,
    category=lambda scene: _where(scene.place),
    categories=tuple(_where(c) for n in (1, 2) for c in itertools.combinations(range(4), n)),
    entropy=grammar.caption_entropy,
    laws=laws.LAWS,
    aims={"t2i": 0.95, "i2t": 0.95, "pair": 0.90, "infill": 0.90, "tokenizer": 0.99}
    | {"variation": 0.10},
    floors={"pair": 0.80},
    senses={
        "sound": worlds.Sense(sounds.render, sounds.read, sounds.told, sounds.ROW),
        "layout": worlds.Sense(layouts.render, layouts.read, layouts.told, layouts.ROW),
        "summary": worlds.Sense(
            vectors.summary, vectors.read, lambda scene: scene, vectors.SUMMARY_ROW
        ),
        "vectors": worlds.Sense(vectors.render, vectors.read, lambda scene: scene, vectors.ROW),
    },
    fitting=lambda **readings: fitting(**readings),
    steering=steered.STEERING,
)

# The same scenes, captions and laws at 64 x 64 pixels; its cases of steering are of 32 x 32.
WORLD_64 = dataclasses.replace(
    WORLD,
    name="shapes64",
    image_size=2 * drawing.IMAGE_SIZE,
    render=functools.partial(drawing.render, scale=2),
    read_images=functools.partial(drawing.read_images, scale=2),
    steering=None,
)

# `source(split, size, seed=0, captions_per_image=1)`: records of this world.
source = functools.partial(worlds.Source, WORLD)


@functools.cache
def _told(name: str) -> dict:
    """{what the sense tells: the numbers of the scenes of which it tells this}."""
    found: dict = {}
    for number, scene in enumerate(scenes.all_scenes()):
        found.setdefault(WORLD.senses[name].told(scene), []).append(number)
    return found


def fitting(image: Scene | None = None, text=None, **told) -> tuple[Scene, ...]:
    """The scenes that fit all readings: a scene of `read_images`, the meaning of `parse_caption`,
    and by name what each of `WORLD.senses` read. What is None is not known.

    Modalities agree if at least one scene fits. All scenes with the same number of objects have the
    same probability, and what a sense tells includes the number. So the scenes that fit a sense are
    its exact posterior, uniform (without the held-out pairs in `train` and `validation`).
    """
    numbers = set(range(len(scenes.all_scenes())))
    for name, reading in told.items():
        if reading is not None:
            numbers &= set(_told(name).get(reading, ()))
    found = tuple(scenes.all_scenes()[number] for number in sorted(numbers))
    if image is not None:
        found = (image,) if image in found else ()
    return tuple(s for s in found if text is None or WORLD.agrees(s, text))


def arrays(split: str, size: int, seed: int = 0) -> tuple[np.ndarray, list[str], list[Scene]]:
    """The records of `source(split, size, seed)` as arrays.

    Returns (images uint8[size, 32, 32, 3], captions, scenes).
    """
    records = list(source(split, size, seed))
    images = np.stack([record.image for record in records])
    captions = [record.captions[0] for record in records]
    return images, captions, [record.extra["scene"] for record in records]
