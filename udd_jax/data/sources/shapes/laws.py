"""The true distributions of the properties of samples of shapes: number, place and template.

Held-out pairs are held out in every place and wording, so these distributions are the same in every
split. `LAWS` has them for each task as `worlds.Law`:

    pair     number and place (the cells) of the image, template of the caption, no condition
    t2i      number and place of the image, given the content of the caption
    i2t      number, place (the words for it) and template of the caption, given the scene
    image    number and place;  text    number, place (the words for it) and template
"""

import functools
import itertools

from udd_jax.data.sources.shapes import grammar, scenes
from udd_jax.data.sources.shapes.grammar import Meaning
from udd_jax.data.sources.shapes.scenes import Scene


def number_law() -> dict[int, float]:
    """p(number of objects)."""
    return {1: scenes.ONE_OBJECT, 2: 1 - scenes.ONE_OBJECT}


def place_law(meaning: Meaning | None = None) -> dict[tuple[int, ...], float]:
    """p(cells of the objects), given the content of a caption if `meaning` is given."""
    law = {}
    for number, share in number_law().items():
        places = list(itertools.combinations(range(4), number))
        law |= {place: share / len(places) for place in places}
    if meaning is None:
        return law
    if meaning.relation is None:
        fitting = [(cell,) for cell in range(4) if meaning.place in (None, cell)]
    else:
        found = scenes.RELATIONS.items()
        fitting = [tuple(sorted(cells)) for cells, name in found if name == meaning.relation]
    return {place: 1 / len(fitting) for place in fitting}


def template_law(number: int | None = None) -> dict[str, float]:
    """p(caption template), given the number of objects if `number` is given."""
    laws = {1: grammar.ONE_TEMPLATES, 2: grammar.TWO_TEMPLATES}
    if number is not None:
        return dict(laws[number])
    shares = number_law()
    return {name: shares[n] * p for n, law in laws.items() for name, p in law.items()}


def wording_law(scene: Scene) -> dict[str, float]:
    """p(`wording` of the caption | scene)."""
    if len(scene.objects) == 1:
        named = sum(p for name, p in grammar.ONE_TEMPLATES.items() if "{place}" in name)
        return {scenes.PLACES[scene.place[0]]: named, "": 1 - named}
    relation = scenes.RELATIONS[scene.place]
    return {relation: grammar.READING_ORDER, scenes.INVERSE[relation]: 1 - grammar.READING_ORDER}


def wording(meaning: Meaning) -> str:
    """The words of a caption for positions: the relation, the place, or "" for none."""
    if meaning.place is not None:
        return scenes.PLACES[meaning.place]
    return meaning.relation or ""


@functools.cache
def where_law() -> dict[tuple[int, str], float]:
    """p(number of objects, `wording` of the caption)."""
    law, places = {}, place_law()
    for place, scene in {scene.place: scene for scene in scenes.all_scenes()}.items():
        for words, share in wording_law(scene).items():
            key = len(place), words
            law[key] = law.get(key, 0.0) + places[place] * share
    return law


def _drawn(scene: Scene) -> int:
    return len(scene.objects)


def _told(meaning: Meaning) -> int:
    return len(meaning.objects)


_IMAGE = {
    "number": lambda scene, _: (None, number_law(), _drawn(scene)),
    "place": lambda scene, _: (None, place_law(), scene.place),
}
_TEMPLATE = {"template": lambda _, meaning: (None, template_law(), meaning.template)}
LAWS = {
    "pair": _IMAGE | _TEMPLATE,
    "t2i": {
        "number": lambda scene, m: (_told(m), {_told(m): 1.0}, _drawn(scene)),
        "place": lambda scene, m: ((_told(m), wording(m)), place_law(m), scene.place),
    },
    "i2t": {
        "number": lambda scene, m: (_drawn(scene), {_drawn(scene): 1.0}, _told(m)),
        "place": lambda scene, m: (scene.place, wording_law(scene), wording(m)),
        "template": lambda scene, m: (_drawn(scene), template_law(_drawn(scene)), m.template),
    },
    "image": _IMAGE,
    "text": {
        "number": lambda _, meaning: (None, number_law(), _told(meaning)),
        "place": lambda _, meaning: (None, where_law(), (_told(meaning), wording(meaning))),
    }
    | _TEMPLATE,
}
