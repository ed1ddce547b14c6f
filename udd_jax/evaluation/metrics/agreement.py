"""Do image and caption agree, and is the variety still there? Exact answers on `shapes`.

An image is read back to a scene, a caption parsed to a meaning, and they agree when everything that
the caption says is so: number, attributes, relation or place. What cannot be read is wrong.

Agreement alone is blind to collapse (always the same wording, always the upper row). So outcomes o
are also compared with their true law given what the condition c names, by total variation

    TV = 1/2 sum_(c, o) | share of items with c and o  -  mean over items of [c_i = c] p(o | c) |

over the items that can be read. `noise` beside it is the TV to be expected of as many draws from
the true law itself: 1/2 sum sqrt(2 v / pi), with v the variance of each share.

Images are uint8[B, 32, 32, 3], captions lists of B strings. Rates carry the half-width of Wilson's
interval at one standard error, which is not zero at 0 and 1.
"""

import collections
import itertools
import math
import re

import numpy as np

from udd_jax.data.sources import shapes
from udd_jax.data.sources.shapes.grammar import Description, Meaning
from udd_jax.data.sources.shapes.scenes import Scene

BLANK = "___"
REASONS = ("unreadable image", "unparsable caption", "number", "attribute", "relation", "place")
TASKS = ("pair", "i2t", "t2i")


def rate(hits) -> dict[str, float]:
    """Share of true values among bool[n], with Wilson's standard error: of none, 0 and 1."""
    count = len(hits)
    if count == 0:
        return {"rate": 0.0, "error": 1.0, "count": 0}
    share = float(np.mean(hits))
    error = math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)
    return {"rate": share, "error": error, "count": count}


def verdict(scene: Scene | None, meaning: Meaning | None) -> str | None:
    """None where they agree, else the first of REASONS that is wrong."""
    if scene is None:
        return "unreadable image"
    if meaning is None:
        return "unparsable caption"
    if shapes.grammar.agrees(scene, meaning):
        return None
    if len(scene.objects) != len(meaning.objects):
        return "number"
    orders = itertools.permutations(scene.objects)
    if not any(all(map(Description.fits, meaning.objects, things)) for things in orders):
        return "attribute"
    return "relation" if meaning.relation else "place"


def agreement(images: np.ndarray, captions: list[str]) -> tuple[np.ndarray, dict]:
    """Whether each image agrees with its caption: bool[B], and the rates

    `agreement`; `by_named`, the same by the number of attributes that the caption names; `reasons`,
    the share of all items that fail for each of REASONS."""
    scenes, meanings = _read(images, captions)
    found = [verdict(scene, meaning) for scene, meaning in zip(scenes, meanings, strict=True)]
    agreed = np.array([reason is None for reason in found], bool)
    groups = collections.defaultdict(list)
    for meaning, good in zip(meanings, agreed, strict=True):
        if meaning is not None:
            groups[meaning.named].append(good)
    counts = collections.Counter(found)
    return agreed, {
        "agreement": rate(agreed),
        "by_named": {str(named): rate(groups[named]) for named in sorted(groups)},
        "reasons": {reason: counts[reason] / max(len(found), 1) for reason in REASONS},
    }


def reader_error(count: int, seed: int, split: str = "test") -> dict[str, dict]:
    """How often reading fails on ground truth: noisy images not read as their own scene, captions
    that do not parse to what is true of it, and pairs that are said to disagree."""
    images, captions, truth = shapes.arrays(split, count, seed)
    scenes, meanings = _read(images, captions)
    agreed, _ = agreement(images, captions)
    return {
        "images": rate([a != b for a, b in zip(scenes, truth, strict=True)]),
        "captions": rate([verdict(s, m) is not None for s, m in zip(truth, meanings, strict=True)]),
        "pairs": rate(~agreed),
    }


def _read(images, captions) -> tuple[list[Scene | None], list[Meaning | None]]:
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions: give one for each")
    return shapes.drawing.read_images(images), [
        shapes.grammar.parse_caption(text) for text in captions
    ]


# ------------------------------------------------------------------------------------- variety


def number_law() -> dict[int, float]:
    """p(number of objects)."""
    return {1: shapes.scenes.ONE_OBJECT, 2: 1 - shapes.scenes.ONE_OBJECT}


def place_law(meaning: Meaning | None = None) -> dict[tuple[int, ...], float]:
    """p(cells of the objects), given what a caption says if one is given; held-out pairs are held
    out in every place, so that it is the same in every split."""
    law = {}
    for number, share in number_law().items():
        places = list(itertools.combinations(range(4), number))
        law |= {place: share / len(places) for place in places}
    if meaning is None:
        return law
    if meaning.relation is None:
        fitting = [(cell,) for cell in range(4) if meaning.place in (None, cell)]
    else:
        found = shapes.scenes.RELATIONS.items()
        fitting = [tuple(sorted(cells)) for cells, name in found if name == meaning.relation]
    return {place: 1 / len(fitting) for place in fitting}


def template_law(number: int | None = None) -> dict[str, float]:
    """p(caption template), given the number of objects in the scene if it is given."""
    laws = {1: shapes.grammar.ONE_TEMPLATES, 2: shapes.grammar.TWO_TEMPLATES}
    if number is not None:
        return dict(laws[number])
    shares = number_law()
    return {name: shares[n] * p for n, law in laws.items() for name, p in law.items()}


def wording_law(scene: Scene) -> dict[str, float]:
    """p(`wording` of the caption | scene)."""
    if len(scene.objects) == 1:
        named = sum(p for name, p in shapes.grammar.ONE_TEMPLATES.items() if "{place}" in name)
        return {shapes.scenes.PLACES[scene.place[0]]: named, "": 1 - named}
    relation = shapes.scenes.RELATIONS[scene.place]
    return {
        relation: shapes.grammar.READING_ORDER,
        shapes.scenes.INVERSE[relation]: 1 - shapes.grammar.READING_ORDER,
    }


def wording(meaning: Meaning) -> str:
    """What a caption says of where things are: the relation, the place, or "" for nothing."""
    if meaning.place is not None:
        return shapes.scenes.PLACES[meaning.place]
    return meaning.relation or ""


def total_variation(laws: list[dict], outcomes: list) -> dict[str, float]:
    """TV between the outcomes and the mean of the laws, one law {outcome: p} an item; 1 of none."""
    count = len(outcomes)
    if count == 0:
        return {"tv": 1.0, "noise": 1.0, "count": 0}
    excess, variance = collections.defaultdict(float), collections.defaultdict(float)
    for law, outcome in zip(laws, outcomes, strict=True):
        excess[outcome] += 1 / count
        for key, p in law.items():
            excess[key] -= p / count
            variance[key] += p * (1 - p) / count**2
    return {
        "tv": math.fsum(map(abs, excess.values())) / 2,
        "noise": math.fsum(math.sqrt(2 * v / math.pi) for v in variance.values()) / 2,
        "count": count,
    }


def variation(images: np.ndarray, captions: list[str], task: str) -> dict[str, dict]:
    """Total variation from the true law of `number`, `place` and `template`, for a task of TASKS.

    `pair`: number and place (the cells) of the image, template of the caption, given nothing.
    `i2t`: number, place (the words for it) and template of the caption, given the scene.
    `t2i`: number and place (the cells) of the image, given what the caption names."""
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(TASKS)}")
    items = [(s, m) for s, m in zip(*_read(images, captions), strict=True) if s and m]
    laws, outcomes = collections.defaultdict(list), collections.defaultdict(list)

    def add(name, condition, law, outcome):
        laws[name].append({(condition, key): p for key, p in law.items()})
        outcomes[name].append((condition, outcome))

    names = ("number", "place") if task == "t2i" else ("number", "place", "template")
    for scene, meaning in items:
        drawn, told = len(scene.objects), len(meaning.objects)
        if task == "pair":
            add("number", None, number_law(), drawn)
            add("place", None, place_law(), scene.place)
            add("template", None, template_law(), meaning.template)
        elif task == "i2t":
            add("number", drawn, {drawn: 1.0}, told)
            add("place", scene.place, wording_law(scene), wording(meaning))
            add("template", drawn, template_law(drawn), meaning.template)
        else:
            add("number", told, {told: 1.0}, drawn)
            add("place", (told, wording(meaning)), place_law(meaning), scene.place)
    return {name: total_variation(laws[name], outcomes[name]) for name in names}


# ----------------------------------------------------------------------------------- infilling


def consistency(
    images: np.ndarray,
    captions: list[str],
    given_images: np.ndarray,
    free_pixels: np.ndarray,
    given_captions: list[str],
) -> tuple[np.ndarray, dict]:
    """Whether each infilled pair keeps what was given, and agrees: bool[B], and the rates

    `consistency` (all of it), `image`, `words`, `agreement`. `free_pixels` bool[B, 32, 32] is true
    where the image was to be generated: the given pixels must be explained, in each cell, by the
    scene that is read from the result. In `given_captions` each `___` stands for one word."""
    agreed, _ = agreement(images, captions)
    kept_image = _explained(images, given_images, free_pixels)
    pairs = zip(captions, given_captions, strict=True)
    kept_words = np.array([_fills(text, given) for text, given in pairs], bool)
    good = agreed & kept_image & kept_words
    return good, {
        "consistency": rate(good),
        "image": rate(kept_image),
        "words": rate(kept_words),
        "agreement": rate(agreed),
    }


def _explained(images, given_images, free_pixels) -> np.ndarray:
    """Whether the clean drawing of what is read from each image lies within RESIDUAL_LIMIT of the
    given pixels, as a mean over those of each cell: bool[B], False where nothing can be read."""
    scenes = shapes.drawing.read_images(images)
    if given_images.shape != images.shape or free_pixels.shape != images.shape[:3]:
        raise ValueError(
            f"images {images.shape}, given_images {given_images.shape}, free_pixels "
            f"{free_pixels.shape}: expected [B, 32, 32, 3] twice and [B, 32, 32]"
        )
    nothing = np.zeros_like(images[0])
    drawn = np.stack([nothing if s is None else shapes.drawing.render(s) for s in scenes])
    error = ((given_images.astype(np.float32) - drawn) ** 2).mean(-1)
    total = shapes.drawing.as_cells(np.where(free_pixels, 0, error)).sum((2, 3))  # [B, 4]
    count = shapes.drawing.as_cells(~free_pixels).sum((2, 3))
    read = np.array([scene is not None for scene in scenes])
    return read & (total <= shapes.drawing.RESIDUAL_LIMIT * count).all(1)


def _fills(text: str, given: str) -> bool:
    """Whether the caption is the given one with one word for each blank."""
    pattern = r"\S+".join(map(re.escape, given.split(BLANK)))
    return re.fullmatch(pattern, text) is not None
