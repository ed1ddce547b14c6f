"""The captions of shapes: a closed grammar, its distribution, and its parser.

Four choices make a caption: which object comes first (with probability .8 the upper or left one, in
reading order), the template, whether sizes are named, and whether colours are named (of both
objects or of neither). The shape and, for two objects, the relation are always named. Every word
describes the scene, and no two derivations give the same caption. So p(caption | scene) is known by
enumeration.
"""

import dataclasses
import functools
import itertools
import math
import re

import numpy as np

from udd_jax.data.sources.shapes import scenes
from udd_jax.data.sources.shapes.scenes import Object, Scene

READING_ORDER = 0.8
SIZE_NAMED = 0.85
COLOUR_NAMED = 0.95
# A template is its own name. {relation} is the relation of the first object to the second,
# {inverse} that of the second to the first.
ONE_TEMPLATES = {
    "{first}": 0.5,
    "{first} in the {place}": 0.5,
}
TWO_TEMPLATES = {
    "{first} {relation} {second}": 0.6,
    "{first} with {second} {inverse} it": 0.4,
}
MAX_WORDS = 13


@dataclasses.dataclass(frozen=True)
class Description:
    """The attributes of one object in a caption; None for an attribute that is not named."""

    shape: str
    colour: str | None
    size: str | None

    def fits(self, thing: Object) -> bool:
        return (
            self.shape == thing.shape
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
        )


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The content of a caption: its objects in order, the relation of the first to the second (None
    for one object), the cell that it names (None if it does not), and its template."""

    objects: tuple[Description, ...]
    relation: str | None
    place: int | None
    template: str


def _derive(scene: Scene, choose) -> str:
    """The grammar: makes one caption. `choose(probabilities) -> index` makes each choice."""
    things = scene.objects
    if len(things) == 2 and choose((READING_ORDER, 1 - READING_ORDER)):
        things = things[::-1]
    templates = ONE_TEMPLATES if len(things) == 1 else TWO_TEMPLATES
    template = tuple(templates)[choose(tuple(templates.values()))]
    sized = choose((SIZE_NAMED, 1 - SIZE_NAMED)) == 0
    coloured = choose((COLOUR_NAMED, 1 - COLOUR_NAMED)) == 0
    parts = {}
    for role, thing in zip(("first", "second"), things, strict=False):
        words = ("a", sized and thing.size, coloured and thing.colour, thing.shape)
        parts[role] = " ".join(filter(None, words))
    if len(things) == 1:
        parts["place"] = scenes.PLACES[things[0].cell]
    else:
        parts["relation"] = scenes.RELATIONS[things[0].cell, things[1].cell]
        parts["inverse"] = scenes.INVERSE[parts["relation"]]
    return template.format(**parts)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Draws a caption of the scene."""

    def choose(probabilities):
        point, index = rng.random() * sum(probabilities), 0
        while point >= probabilities[index] and index < len(probabilities) - 1:
            point -= probabilities[index]
            index += 1
        return index

    return _derive(scene, choose)


def caption_law(scene: Scene) -> dict[str, float]:
    """{caption: p(caption | scene)} for all captions of the grammar, by following every choice."""
    law: dict[str, float] = {}
    pending = [()]
    while pending:
        prefix, taken, probability = pending.pop(), [], 1.0

        def choose(probabilities, prefix=prefix, taken=taken):
            nonlocal probability
            if len(taken) < len(prefix):
                index = prefix[len(taken)]
            else:
                index = 0
                pending.extend((*taken, other) for other in range(1, len(probabilities)))
            taken.append(index)
            probability *= probabilities[index]
            return index

        text = _derive(scene, choose)
        law[text] = law.get(text, 0.0) + probability
    return law


def caption_entropy(scenes) -> float:
    """The mean of H(caption | scene) over the scenes, in bits.

    No two derivations of a scene give the same caption, so the entropy depends only on the number
    of objects. One distribution for each number is enumerated.
    """
    numbers = [len(scene.objects) for scene in scenes]
    entropy = {}
    for number, scene in dict(zip(numbers, scenes, strict=True)).items():
        entropy[number] = -math.fsum(p * math.log2(p) for p in caption_law(scene).values())
    return math.fsum(entropy[number] for number in numbers) / len(numbers)


@functools.cache
def _patterns() -> dict[str, re.Pattern]:
    def phrase(role):
        return (
            f"a (?:(?P<{role}_size>{'|'.join(scenes.SIZES)}) )?"
            f"(?:(?P<{role}_colour>{'|'.join(scenes.COLOURS)}) )?"
            f"(?P<{role}_shape>{'|'.join(scenes.SHAPES)})"
        )

    relations = "|".join(sorted(scenes.INVERSE))
    parts = {
        "first": phrase("first"),
        "second": phrase("second"),
        "relation": f"(?P<relation>{relations})",
        "inverse": f"(?P<inverse>{relations})",
        "place": f"(?P<place>{'|'.join(scenes.PLACES)})",
    }
    return {t: re.compile(t.format(**parts)) for t in (*ONE_TEMPLATES, *TWO_TEMPLATES)}


def parse_caption(text: str) -> Meaning | None:
    """The content of the caption; None if it does not follow the grammar.

    A caption that names the size or colour of only one of two objects has probability 0, but is
    read, too.
    """
    for template, pattern in _patterns().items():
        match = pattern.fullmatch(text)
        if match:
            found = match.groupdict()
            objects = tuple(
                Description(found[f"{r}_shape"], found[f"{r}_colour"], found[f"{r}_size"])
                for r in ("first", "second")
                if f"{r}_shape" in found
            )
            relation = found.get("relation") or scenes.INVERSE.get(found.get("inverse"))
            place = scenes.PLACES.index(found["place"]) if "place" in found else None
            return Meaning(objects, relation, place, template)
    return None


def named(meaning: Meaning) -> int:
    """The number of attributes (shape, colour, size) in the caption: 1..3 for one object, 2..6."""
    return sum(1 + (d.colour is not None) + (d.size is not None) for d in meaning.objects)


def difference(scene: Scene, meaning: Meaning) -> str | None:
    """None if the caption is true of the scene, else the first difference: "number", "attribute",
    "relation" or "place"."""
    if len(scene.objects) != len(meaning.objects):
        return "number"
    orders = [
        tuple(thing.cell for thing in things)
        for things in itertools.permutations(scene.objects)
        if all(map(Description.fits, meaning.objects, things))
    ]
    if not orders:
        return "attribute"
    for cells in orders:
        if meaning.relation == scenes.RELATIONS.get(cells) and meaning.place in (None, cells[0]):
            return None
    return "relation" if meaning.relation else "place"


def words() -> list[str]:
    """Every word of the grammar, sorted."""
    templates = " ".join((*ONE_TEMPLATES, *TWO_TEMPLATES)).split()
    fixed = [word for word in templates if not word.startswith("{")]
    spread = " ".join((*scenes.PLACES, *scenes.INVERSE)).split()
    return sorted({"a", *fixed, *spread, *scenes.SIZES, *scenes.COLOURS, *scenes.SHAPES})
