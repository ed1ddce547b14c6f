"""Embedded worlds: data with a known distribution, so that generated samples can be checked.

A world draws a scene, describes it in a caption and draws it as an image. It can also read both
back. So it can decide whether an image and a caption agree, and samples have a true distribution to
compare with. No code outside a world uses the structure of its scenes and meanings.

To add a world, make a `World` and add it to `WORLDS` in `data/sources/__init__.py`, or from outside
the package: `sources.WORLDS["name"] = world`. Then `--config.data=name` opens it, and every suite
and the report measure it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from udd_jax.data.records import Record
from udd_jax.data.sources.listing import SPLITS
from udd_jax.errors import UserError

# One property of a sample: (scene, meaning) -> (condition, law, outcome). The law {outcome: p} is
# the true distribution given the condition (None for no condition).
Law = Callable[[Any, Any], tuple[Any, Mapping[Any, float], Any]]


@dataclasses.dataclass(frozen=True)
class Sense:
    """One more way to show a scene, such as a sound.

    render: (scene, rng=None) -> array, with noise if `rng` is given.
    read: arrays stacked along the first axis -> list of what each tells, None if it is unclear.
    told: scene -> what a clear one tells of it. Hashable; compared with ==.
    row: {setting: value} that a row of `config.modalities` needs to hold what is rendered, such as
        {"kind": "sound", "rate": 8000}; of `classes`, at least so many. {}: not checked.
    """

    render: Callable[..., np.ndarray]
    read: Callable[[np.ndarray], list]
    told: Callable[[Any], Any]
    row: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Edit(NamedTuple):
    """A new caption for the picture of a scene, and of a read scene whether the rest is kept."""

    caption: str
    kept: Callable[[Any], bool]


class Painting(NamedTuple):
    """A caption that leaves places open, (phrase, mask bool[S, S]) for each object, and of a read
    scene whether all are where they were painted."""

    caption: str
    painted: tuple[tuple[str, np.ndarray], ...]
    placed: Callable[[Any], bool]


class Reference(NamedTuple):
    """A picture uint8[S, S, C], and of a read scene whether all or some of it has its look."""

    picture: np.ndarray
    all: Callable[[Any], bool]
    some: Callable[[Any], bool]


@dataclasses.dataclass(frozen=True)
class Steering:
    """What the suite "full" asks of steering (`evaluation/suites/steering.py`).

    edit: (scene, number, rng) -> Edit. paint: (phrases, rng) -> Painting. word, has_word: a word,
    and whether a scene fits it. reference: rng -> Reference, whose look is not that of the word.
    """

    edit: Callable[..., Edit]
    paint: Callable[..., Painting]
    word: str
    has_word: Callable[[Any], bool]
    reference: Callable[..., Reference]


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """The functions that draw, describe and read the scenes of a world.

    name: of the data, as in `--config.data=name`. about: a description for the report, such as "a
    drawn world of one or two objects". held_out: how `test` differs from training, such as "which
    show only pairs that no training image has".

    image_size: S, pixels of a side of its images. channels: C, 3 for colours.
    draw: (split, rng) -> scene. Scenes are compared with ==.
    caption: (scene, rng) -> str.
    render: (scene, rng=None) -> uint8[S, S, C], with noise if `rng` is given.

    read_images: uint8[B, S, S, C] -> list of B scenes, None for an image that cannot be read.
    parse_caption: str -> meaning, or None if it cannot be parsed.
    difference: (scene, meaning) -> None if the caption is true of the scene, or one of `reasons`,
        a dict from reasons to words for the report.
    tiles, residual: an infilled image keeps the given pixels if, in each of `tiles` (rows,
        columns), their mean squared difference from `render` of the read scene is at most
        `residual`.

    named: meaning -> the number of attributes that a caption names; rates are grouped by it.
    category: scene -> its category, one of `categories`, for the report by category.
    entropy: scenes -> the mean of H(caption | scene), in bits.
    laws: {task: {property: Law}}. For "image" the meaning is None, for "text" the scene is None.
    aims: {task or "tokenizer": the rate that a full training should reach, "variation": the largest
        total variation}; floors: {task: the rate below which something is broken}. Both are used if
        `evaluate.aims` of the config is on.
    senses: {modality: Sense} besides image and text. A source renders those in its `senses`.
    fitting: (image=scene, text=meaning, and by name what senses read) -> the scenes that fit all.
    steering: a Steering, or None.
    """

    name: str
    image_size: int
    draw: Callable[[str, np.random.Generator], Any]
    caption: Callable[[Any, np.random.Generator], str]
    render: Callable[..., np.ndarray]
    read_images: Callable[[np.ndarray], list]
    parse_caption: Callable[[str], Any]
    difference: Callable[[Any, Any], str | None]
    reasons: Mapping[str, str]
    residual: float
    tiles: tuple[int, int] = (1, 1)
    about: str = "an embedded world"
    held_out: str = ""
    named: Callable[[Any], int] | None = None
    category: Callable[[Any], str] | None = None
    categories: tuple[str, ...] = ()
    entropy: Callable[[list], float] | None = None
    laws: Mapping[str, Mapping[str, Law]] = dataclasses.field(default_factory=dict)
    aims: Mapping[str, float] = dataclasses.field(default_factory=dict)
    floors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    senses: Mapping[str, Sense] = dataclasses.field(default_factory=dict)
    fitting: Callable[..., Any] | None = None
    steering: Steering | None = None
    channels: int = 3

    def agrees(self, scene, meaning) -> bool:
        """Whether the caption is true of the scene."""
        return self.difference(scene, meaning) is None


@dataclasses.dataclass(frozen=True)
class Source:
    """`size` records of a world; record i depends on (split, seed, i) and nothing else.

    `record.extra["scene"]` is its scene, `record.extra[name]` the array of each of `senses`. A
    sense has random numbers of its own, so image and captions do not depend on `senses`.
    """

    world: World
    split: str
    size: int
    seed: int = 0
    captions_per_image: int = 1
    senses: tuple[str, ...] = ()

    def __post_init__(self):
        if self.split not in SPLITS:
            raise UserError(f"split={self.split!r}: expected one of {', '.join(SPLITS)}")
        for name, least in (("size", 1), ("seed", 0), ("captions_per_image", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: expected at least {least}")
        for name in self.senses:
            if name not in self.world.senses:
                known = ", ".join(self.world.senses) or "none"
                raise UserError(f"senses: {self.world.name} has no {name!r}, expected of {known}")

    @property
    def name(self) -> str:
        seed = f", seed {self.seed}" if self.seed else ""
        captions = f", {self.captions_per_image} captions" if self.captions_per_image > 1 else ""
        return f"{self.world.name}/{self.split}{seed}{captions}"

    @property
    def further(self) -> tuple[str, ...]:
        return self.senses

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.size:
            raise IndexError(f"record {index} of {self.size}")
        rng = np.random.default_rng((SPLITS.index(self.split), self.seed, index))
        scene = self.world.draw(self.split, rng)
        captions = tuple(self.world.caption(scene, rng) for _ in range(self.captions_per_image))
        image = self.world.render(scene, rng)
        extra = {"scene": scene}
        for name in self.senses:
            place = sorted(self.world.senses).index(name) + 1
            own = np.random.default_rng((SPLITS.index(self.split), self.seed, index, place))
            extra[name] = self.world.senses[name].render(scene, own)
        return Record(f"{self.split}-{self.seed}-{index}", image, captions, extra)
