"""Shapes: a small world of captioned images whose joint law is known exactly.

A scene is one object (probability .2) or two (.8) on a 2 x 2 grid of cells, numbered

    0 1      each object one of 3 shapes, 7 colours and 2 sizes, all uniform:
    2 3      168 scenes of one object, 10,584 of two.

    scenes.py     what there is, and which pairs of kinds are held out
    grammar.py    captions: their law, and what they mean
    drawing.py    pictures of 32 x 32 pixels: how they are drawn and read back
"""

import dataclasses
import functools

import numpy as np

from udd_jax.data.records import Record
from udd_jax.data.sources.shapes import drawing, grammar, scenes
from udd_jax.data.sources.shapes.scenes import Scene

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Source:
    """A sequence of `size` records; record i depends on (split, seed, i) and nothing else."""

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
        return f"shapes/{self.split}{seed}{captions}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.size:
            raise IndexError(f"record {index} of {self.size}")
        rng = np.random.default_rng((SPLITS.index(self.split), self.seed, index))
        if self.split == "test":
            pool = _pools()["held out"]
        else:
            pool = _pools()["one" if rng.random() < scenes.ONE_OBJECT else "two"]
        number = int(pool[rng.integers(len(pool))])
        scene = scenes.all_scenes()[number]
        captions = tuple(grammar.caption(scene, rng) for _ in range(self.captions_per_image))
        image = drawing.render(scene, rng)
        return Record(f"{self.split}-{self.seed}-{index}", image, captions, {"scene": number})


@functools.cache
def _pools() -> dict[str, np.ndarray]:
    """Numbers of the scenes of one object, of two, and of two held out."""
    one = np.array([len(scene.objects) == 1 for scene in scenes.all_scenes()])
    held = np.array([scenes.held_out(scene) for scene in scenes.all_scenes()])
    pools = {"one": one, "two": ~one & ~held, "held out": held}
    return {name: np.flatnonzero(pool) for name, pool in pools.items()}


def source(split: str, size: int, seed: int = 0, captions_per_image: int = 1) -> Source:
    """`size` records: `train` and `validation` without held-out pairs, `test` with nothing else."""
    return Source(split, size, seed, captions_per_image)


def arrays(split: str, size: int, seed: int = 0) -> tuple[np.ndarray, list[str], list[Scene]]:
    """The records of `source(split, size, seed)` at once: uint8[size, 32, 32, 3], their captions
    and their scenes."""
    records = list(source(split, size, seed))
    images = np.stack([record.image for record in records])
    captions = [record.captions[0] for record in records]
    return images, captions, [scenes.all_scenes()[record.extra["scene"]] for record in records]
