"""Embedded worlds: data whose law is known, so that what is generated from them can be judged.

A world draws a scene, says it in a caption and shows it in a picture, and it reads both back. So an
image and a caption agree or do not, and what a model generates has a true law to be compared with.
Nothing outside a world looks into its scenes and meanings: they are values of its own.

To add a world, make a `World` and enter it in `WORLDS` of `data/sources/__init__.py`, or from
outside the package `sources.WORLDS["name"] = world`. `--config.data=name` then opens it, and every
suite and the report measure it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from udd_jax.data.records import Record

SPLITS = ("train", "validation", "test")

# What is known of one property of a sample: (scene, meaning) -> (condition, law, outcome). The law
# {outcome: p} is that of the true world, given what the condition names (None for nothing).
Law = Callable[[Any, Any], tuple[Any, Mapping[Any, float], Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """What there is, how it is shown and told, and how both are read back.

    name: of the data, as in `--config.data=name`; about: what it is, for the report, as in "a drawn
    world of one or two objects"; held_out: what `test` shows that training does not, as in "which
    show only pairs that no training image has".

    image_size: S, the side of its pictures.
    draw: (split, rng) -> scene. Scenes are compared with ==.
    caption: (scene, rng) -> str.
    render: (scene, rng=None) -> uint8[S, S, 3], with noise if `rng` is given.

    read_images: uint8[B, S, S, 3] -> list of B scenes, None where nothing can be read.
    parse_caption: str -> meaning, or None.
    difference: (scene, meaning) -> None where all that the caption says is so, else one of
        `reasons`, which has for each the words of the report.
    tiles, residual: the given pixels of an infilled image are kept if in each of `tiles` (rows,
        columns) their mean squared difference from `render` of what is read is at most `residual`.

    named: meaning -> how many attributes a caption names; rates are split by it.
    category: scene -> the name of its kind, one of `categories`; so are they in the suite "full".
    entropy: scenes -> H(caption | scene) in bits, the mean over the scenes.
    laws: task -> {property: Law}. In "image" the meaning is None, in "text" the scene.
    aims: task (or "tokenizer") -> the least rate that is asked of a full training, "variation" ->
        the largest total variation; floors: task -> the rate below which something is broken. They
        are shown where `evaluate.aims` of the config is on.
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

    def agrees(self, scene, meaning) -> bool:
        """Whether all that the caption says is so."""
        return self.difference(scene, meaning) is None


@dataclasses.dataclass(frozen=True)
class Source:
    """`size` records of a world; record i depends on (split, seed, i) and nothing else.

    `record.extra["scene"]` is the scene that it shows.
    """

    world: World
    split: str
    size: int
    seed: int = 0
    captions_per_image: int = 1

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: expected one of {', '.join(SPLITS)}")
        for name, least in (("size", 1), ("seed", 0), ("captions_per_image", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")

    @property
    def name(self) -> str:
        seed = f", seed {self.seed}" if self.seed else ""
        captions = f", {self.captions_per_image} captions" if self.captions_per_image > 1 else ""
        return f"{self.world.name}/{self.split}{seed}{captions}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.size:
            raise IndexError(f"record {index} of {self.size}")
        rng = np.random.default_rng((SPLITS.index(self.split), self.seed, index))
        scene = self.world.draw(self.split, rng)
        captions = tuple(self.world.caption(scene, rng) for _ in range(self.captions_per_image))
        image = self.world.render(scene, rng)
        return Record(f"{self.split}-{self.seed}-{index}", image, captions, {"scene": scene})
