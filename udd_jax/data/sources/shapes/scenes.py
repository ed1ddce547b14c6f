"""The scenes of the world of shapes: objects on a grid, and relations between them.

Ten per cent of the 903 unordered pairs of kinds are held out by a hash, in every place and wording:
the splits `train` and `validation` never show such a pair, and every scene of `test` shows one.
"""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np

from udd_jax.errors import UserError

SHAPES = ("circle", "square", "triangle")
COLOURS = {  # seven corners of a cube: any two are 195 apart in at least one channel
    "black": (25, 25, 25),
    "red": (220, 25, 25),
    "green": (25, 220, 25),
    "blue": (25, 25, 220),
    "yellow": (220, 220, 25),
    "magenta": (220, 25, 220),
    "cyan": (25, 220, 220),
}
SIZES = {"small": 5.0, "large": 7.0}  # half of the side of a square, in pixels
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of each cell
PLACES = ("upper left", "upper right", "lower left", "lower right")

ONE_OBJECT = 0.2
HELD_OUT = 0.1


@dataclasses.dataclass(frozen=True)
class Object:
    """An object in an image: the words for its attributes, and the number of its cell."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def kind(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects in ascending order of their cells. ValueError for anything else."""

    objects: tuple[Object, ...]

    def __post_init__(self):
        cells = self.place
        if not (1 <= len(cells) <= 2 and sorted(set(cells) & {0, 1, 2, 3}) == list(cells)):
            raise UserError(f"Scene.objects in cells {cells}: give 1 or 2 of 0..3, in rising order")

    @property
    def place(self) -> tuple[int, ...]:
        return tuple(thing.cell for thing in self.objects)


KINDS = tuple(itertools.product(SIZES, COLOURS, SHAPES))  # template k + 1 of a cell is KINDS[k]


@functools.cache
def all_scenes() -> tuple[Scene, ...]:
    """The 10,752 scenes in a fixed order, those of one object first."""
    scenes = []
    for count in (1, 2):
        for cells in itertools.combinations(range(4), count):
            for kinds in itertools.product(range(len(KINDS)), repeat=count):
                row = [0, 0, 0, 0]
                for cell, kind in zip(cells, kinds, strict=True):
                    row[cell] = kind + 1
                scenes.append(of_templates(row))
    return tuple(scenes)


def of_templates(templates) -> Scene:
    """The scene for the template numbers of the four cells; one or two of them are not 0."""
    things = []
    for cell, template in enumerate(templates):
        if template:
            size, colour, shape = KINDS[template - 1]
            things.append(Object(shape, colour, size, cell))
    return Scene(tuple(things))


@functools.cache
def held_out_pairs() -> frozenset[tuple]:
    """The unordered pairs of kinds (sorted tuples) with the lowest hashes: 90 of 903."""

    def rank(pair):
        return hashlib.sha256(repr(pair).encode()).hexdigest()

    pairs = itertools.combinations_with_replacement(sorted(KINDS), 2)
    ranked = sorted(pairs, key=rank)
    return frozenset(ranked[: int(HELD_OUT * len(ranked))])


def held_out(scene: Scene) -> bool:
    """Whether the scene shows a held-out pair, wherever its objects stand."""
    kinds = tuple(sorted(thing.kind for thing in scene.objects))
    return kinds in held_out_pairs()


def _relation(first: int, second: int) -> str:
    (row, column), (other_row, other_column) = CELLS[first], CELLS[second]
    vertical, horizontal = int(np.sign(row - other_row)), int(np.sign(column - other_column))
    if not horizontal:
        return {-1: "above", 1: "below"}[vertical]
    side = {-1: "left of", 1: "right of"}[horizontal]
    return f"{('', 'lower', 'upper')[vertical]} {side}".strip()


# From the cells of two objects to the relation of the first to the second, and its inverse.
RELATIONS = {cells: _relation(*cells) for cells in itertools.permutations(range(4), 2)}
INVERSE = {name: RELATIONS[cells[::-1]] for cells, name in RELATIONS.items()}
