"""Compositions: a picture of one object, made of two others as a text says.

    the colour of the first and the shape of the second      two attributes are named
    the second in the colour of the first                    one is the first's, all others are not

Two references show an object each, drawn evenly and by themselves. The text says of each attribute
(shape, colour, size, place) whether the picture has it from the first or from the second. An
attribute that it does not name is drawn evenly. So p(picture | references, text) is known exactly:
it is even over all objects that have what is named.

In `test` the kinds of the two references are a pair that no training scene shows (`scenes`).
"""

import dataclasses
import functools
import itertools

import numpy as np

from udd_jax.data.sources import worlds
from udd_jax.data.sources.shapes import drawing, scenes
from udd_jax.data.sources.shapes.scenes import Object, Scene

ATTRIBUTES = {  # {word of a caption: values}; that of Object has the same name, but for the place
    "shape": scenes.SHAPES,
    "colour": tuple(scenes.COLOURS),
    "size": tuple(scenes.SIZES),
    "place": tuple(range(len(scenes.PLACES))),
}
NAMES = ("first", "second")  # of the references
PLACES = dict.fromkeys(range(len(scenes.PLACES)), 1 / len(scenes.PLACES))  # p(place of a picture)
TWO, ONE = "the {a} of the first and the {b} of the second", "the {base} in the {a} of the {other}"


@dataclasses.dataclass(frozen=True)
class Meaning:
    """From which reference each attribute comes: a name of NAMES, or None if the text is silent."""

    source: tuple[str | None, ...]  # in the order of ATTRIBUTES

    @property
    def named(self) -> int:
        """How many attributes the text decides."""
        return sum(name is not None for name in self.source)


@dataclasses.dataclass(frozen=True)
class Composition:
    """What a picture shows, and how it came about; two are equal if their pictures show the same.

    `drawing.read_images` finds `shown` alone.
    """

    shown: Scene
    references: tuple[Object, Object] | None = dataclasses.field(default=None, compare=False)
    meaning: Meaning | None = dataclasses.field(default=None, compare=False)


@functools.cache
def captions() -> dict[str, Meaning]:
    """{caption: its meaning} of all 20 captions; a scene has one, drawn evenly."""
    found = {}
    for a, b in itertools.permutations(ATTRIBUTES, 2):
        named = {a: "first", b: "second"}
        found[TWO.format(a=a, b=b)] = Meaning(tuple(named.get(name) for name in ATTRIBUTES))
    for a, (base, other) in itertools.product(ATTRIBUTES, itertools.permutations(NAMES)):
        source = tuple(other if name == a else base for name in ATTRIBUTES)
        found[ONE.format(a=a, base=base, other=other)] = Meaning(source)
    return found


def values(thing: Object) -> tuple:
    """The attributes of an object in the order of ATTRIBUTES."""
    return thing.shape, thing.colour, thing.size, thing.cell


@functools.cache
def objects() -> tuple[Object, ...]:
    """All 168 objects in their places."""
    return tuple(Object(*row) for row in itertools.product(*ATTRIBUTES.values()))


def law(first: Object, second: Object, meaning: Meaning) -> tuple[Object, ...]:
    """The objects that the picture may show, each with the same probability."""
    of = {"first": values(first), "second": values(second)}
    wanted = [None if name is None else of[name][i] for i, name in enumerate(meaning.source)]
    return tuple(
        thing
        for thing in objects()
        if all(want in (None, has) for want, has in zip(wanted, values(thing), strict=True))
    )


def held_out(first: Object, second: Object) -> bool:
    """Whether the kinds of the references are a held-out pair, in either order."""
    return tuple(sorted((first.kind, second.kind))) in scenes.held_out_pairs()


def draw(split: str, rng: np.random.Generator) -> Composition:
    """Draws references, text and picture; `test` has only held-out pairs of references."""
    while True:
        first, second = (objects()[rng.integers(len(objects()))] for _ in NAMES)
        if held_out(first, second) == (split == "test"):
            break
    meaning = tuple(captions().values())[rng.integers(len(captions()))]
    fitting = law(first, second, meaning)
    shown = fitting[rng.integers(len(fitting))]
    return Composition(Scene((shown,)), (first, second), meaning)


def caption(scene: Composition, rng: np.random.Generator) -> str:
    """The one caption of a scene. `rng` is not used."""
    return next(text for text, meaning in captions().items() if meaning == scene.meaning)


def parse_caption(text: str) -> Meaning | None:
    """The meaning of a caption, or None if it is none."""
    return captions().get(" ".join(text.split()))


def read_images(images: np.ndarray) -> list[Composition | None]:
    """What pictures uint8[B, 32, 32, 3] show; None unless it is exactly one object, and clear."""
    found = drawing.read_images(images)
    return [Composition(s) if s is not None and len(s.objects) == 1 else None for s in found]


def difference(scene: Composition, meaning: Meaning) -> str | None:
    """None: a picture by itself contradicts no text. With references, see `fitting`."""
    return None if scene.references is None else _difference(scene, meaning)


def _difference(scene: Composition, meaning: Meaning) -> str | None:
    fits = scene.shown.objects[0] in law(*scene.references, meaning)
    return None if fits else "attribute"


def fitting(
    image: Composition | None = None,
    text: Meaning | None = None,
    first: Object | None = None,
    second: Object | None = None,
) -> tuple[Composition, ...]:
    """Compositions that fit all readings, one for each meaning that does; None is not known.

    An unknown reference can always be the object in the picture. An unknown picture can be made.
    """
    found = []
    for meaning in captions().values() if text is None else (text,):
        shown = None if image is None else image.shown.objects[0]
        pair = tuple(thing or shown or objects()[0] for thing in (first, second))
        able = law(*pair, meaning)
        if shown is None or shown in able:
            found.append(Composition(Scene((shown or able[0],)), pair, meaning))
    return tuple(found)


def _reference(number: int) -> worlds.Sense:
    """The picture of a reference, as a further modality."""

    def render(scene: Composition, rng=None):
        return drawing.render(Scene((scene.references[number],)), rng)

    def read(images):
        return [found and found.shown.objects[0] for found in read_images(np.asarray(images))]

    told = lambda scene: scene.references[number]  # noqa: E731
    return worlds.Sense(render, read, told, {"kind": "image"})


WORLD = worlds.World(
    name="compose",
    about="a drawn world of pictures that a text composes of two others",
    held_out="whose references are pairs of objects that no training scene has",
    image_size=drawing.IMAGE_SIZE,
    draw=draw,
    caption=caption,
    render=lambda scene, rng=None: drawing.render(scene.shown, rng),
    read_images=read_images,
    parse_caption=parse_caption,
    difference=difference,
    reasons={"attribute": "another shape, colour, size or place"},
    tiles=(2, 2),
    residual=drawing.RESIDUAL_LIMIT,
    named=lambda meaning: meaning.named,
    category=lambda scene: scenes.PLACES[scene.shown.objects[0].cell],
    categories=scenes.PLACES,
    laws={"image": {"place": lambda scene, _: (None, PLACES, scene.shown.objects[0].cell)}},
    senses={name: _reference(number) for number, name in enumerate(NAMES)},
    fitting=lambda **readings: fitting(**readings),
)
