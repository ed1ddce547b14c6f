"""Shapes: a small world of captioned images whose joint law is known exactly.

A scene is one object (probability .2) or two (.8) on a 2 x 2 grid of cells, numbered

    0 1      each object one of 3 shapes, 7 colours and 2 sizes, all uniform:
    2 3      168 scenes of one object, 10,584 of two.

The picture is 32 x 32 RGB: each object is drawn anti-aliased in the middle of its 16 x 16 cell, on
a light grey ground, with Gaussian noise of 5/255. So a cell is one of 43 templates (empty, or one
of 42 kinds of object) plus noise, and the nearest template is its maximum-likelihood reading.

The caption is drawn from a closed grammar: which object comes first (four times in five it is the
upper or left one, as one reads), the template, whether sizes are named and whether colours are, of
both objects or of neither. The shape and, for two objects,
the relation are always named. Every word says something of the scene, no two derivations give the
same caption, and p(caption | scene) is known by enumeration.

Ten per cent of the 903 unordered pairs of kinds are held out by a hash, in every place and wording:
the splits `train` and `validation` never show such a pair, `test` shows nothing else.

In one file, though it is long: the law, what is drawn from it, and the reading of what is drawn.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
import re

import numpy as np

from udd_jax.data.records import Record

SHAPES = ("circle", "square", "triangle")
SIZES = {"small": 5.0, "large": 7.0}  # half of the side of a square, in pixels
ROUND = 0.93  # a circle's radius by that: chosen so that the nearest two kinds are far apart
COLOURS = {  # seven corners of a cube: any two are 195 apart in at least one channel
    "black": (25, 25, 25),
    "red": (220, 25, 25),
    "green": (25, 220, 25),
    "blue": (25, 25, 220),
    "yellow": (220, 220, 25),
    "magenta": (220, 25, 220),
    "cyan": (25, 220, 220),
}
GROUND = (240, 240, 240)  # far enough from 0 and 255 for the noise to be hardly clipped
NOISE = 5.0
IMAGE_SIZE = 32
CELL_SIZE = 16
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row and column of each cell
PLACES = ("upper left", "upper right", "lower left", "lower right")

ONE_OBJECT = 0.2
READING_ORDER = 0.8
SIZE_NAMED = 0.85
COLOUR_NAMED = 0.95
# A template is its own name. {relation} is that of the first object to the second, {inverse} the
# other way round.
ONE_TEMPLATES = {
    "{first}": 0.5,
    "{first} in the {place}": 0.5,
}
TWO_TEMPLATES = {
    "{first} {relation} {second}": 0.6,
    "{first} with {second} {inverse} it": 0.4,
}
MAX_WORDS = 13

HELD_OUT = 0.1
SPLITS = ("train", "validation", "test")

# A cell is read as its nearest template when its mean squared difference from it (over 768 values)
# is at most RESIDUAL_LIMIT, and at most AMBIGUITY_LIMIT of that from any other one. Noise alone
# gives 25 and .02. A blur of .7 pixels (27.5 dB) reaches 977 on a large black square, but only .23
# of the distance to anything else; half an object, or the mean or the halves of two, is about as
# near to one template as to another, and small yellow ones stay below any useful absolute limit.
RESIDUAL_LIMIT = 1000.0
AMBIGUITY_LIMIT = 1 / 3


@dataclasses.dataclass(frozen=True)
class Object:
    """One thing in a picture: words for what it is, and the number of its cell."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def kind(self) -> tuple[str, str, str]:
        return self.size, self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two objects, in rising order of their cells. ValueError for anything else."""

    objects: tuple[Object, ...]

    def __post_init__(self):
        cells = self.place
        if not (1 <= len(cells) <= 2 and sorted(set(cells) & {0, 1, 2, 3}) == list(cells)):
            raise ValueError(
                f"Scene.objects in cells {cells}: give 1 or 2 of 0..3, in rising order"
            )

    @property
    def place(self) -> tuple[int, ...]:
        return tuple(thing.cell for thing in self.objects)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a caption says of one object; None is left out."""

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
    """What a caption says: its objects as they come, the relation of the first to the second (None
    for one object), the cell that it names (None if it does not), and the template that it has."""

    objects: tuple[Description, ...]
    relation: str | None
    place: int | None
    template: str

    @property
    def named(self) -> int:
        """How many attributes (shape, colour, size) are named: 1..3 of one object, 2..6 of two."""
        return sum(1 + (d.colour is not None) + (d.size is not None) for d in self.objects)


# ---------------------------------------------------------------------------------- the world

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
                scenes.append(_scene(row))
    return tuple(scenes)


def _scene(templates) -> Scene:
    """The scene of four template numbers, one or two of them not 0."""
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


# ------------------------------------------------------------------------------- the captions


def _derive(scene: Scene, choose) -> str:
    """The grammar: one caption, each choice made by `choose(probabilities) -> index`."""
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
        parts["place"] = PLACES[things[0].cell]
    else:
        parts["relation"] = RELATIONS[things[0].cell, things[1].cell]
        parts["inverse"] = INVERSE[parts["relation"]]
    return template.format(**parts)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the scene, drawn from its law."""

    def choose(probabilities):
        point, index = rng.random() * sum(probabilities), 0
        while point >= probabilities[index] and index < len(probabilities) - 1:
            point -= probabilities[index]
            index += 1
        return index

    return _derive(scene, choose)


def caption_law(scene: Scene) -> dict[str, float]:
    """p(caption | scene) for every caption that the grammar gives, by following every choice."""
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
    """H(caption | scene) in bits, the mean over the scenes. No two derivations of a scene give the
    same caption, so it depends on the number of objects alone: one law of each is enumerated."""
    numbers = [len(scene.objects) for scene in scenes]
    entropy = {}
    for number, scene in dict(zip(numbers, scenes, strict=True)).items():
        entropy[number] = -math.fsum(p * math.log2(p) for p in caption_law(scene).values())
    return math.fsum(entropy[number] for number in numbers) / len(numbers)


@functools.cache
def _patterns() -> dict[str, re.Pattern]:
    def phrase(role):
        return (
            f"a (?:(?P<{role}_size>{'|'.join(SIZES)}) )?"
            f"(?:(?P<{role}_colour>{'|'.join(COLOURS)}) )?(?P<{role}_shape>{'|'.join(SHAPES)})"
        )

    relations = "|".join(sorted(INVERSE))
    parts = {
        "first": phrase("first"),
        "second": phrase("second"),
        "relation": f"(?P<relation>{relations})",
        "inverse": f"(?P<inverse>{relations})",
        "place": f"(?P<place>{'|'.join(PLACES)})",
    }
    return {t: re.compile(t.format(**parts)) for t in (*ONE_TEMPLATES, *TWO_TEMPLATES)}


def parse_caption(text: str) -> Meaning | None:
    """What the caption says; None for anything but the grammar's words in its order. The size or
    colour of one object alone, which the law never gives, is read all the same."""
    for template, pattern in _patterns().items():
        match = pattern.fullmatch(text)
        if match:
            found = match.groupdict()
            objects = tuple(
                Description(found[f"{r}_shape"], found[f"{r}_colour"], found[f"{r}_size"])
                for r in ("first", "second")
                if f"{r}_shape" in found
            )
            relation = found.get("relation") or INVERSE.get(found.get("inverse"))
            place = PLACES.index(found["place"]) if "place" in found else None
            return Meaning(objects, relation, place, template)
    return None


def agrees(scene: Scene, meaning: Meaning) -> bool:
    """Whether all that the caption says is so: number, attributes, and the relation or place."""
    if len(scene.objects) != len(meaning.objects):
        return False
    for things in itertools.permutations(scene.objects):
        cells = tuple(thing.cell for thing in things)
        if (
            all(d.fits(thing) for d, thing in zip(meaning.objects, things, strict=True))
            and meaning.relation == RELATIONS.get(cells)
            and meaning.place in (None, cells[0])
        ):
            return True
    return False


def words() -> list[str]:
    """Every word of the grammar, sorted."""
    templates = " ".join((*ONE_TEMPLATES, *TWO_TEMPLATES)).split()
    fixed = [word for word in templates if not word.startswith("{")]
    spread = " ".join((*PLACES, *INVERSE)).split()
    return sorted({"a", *fixed, *spread, *SIZES, *COLOURS, *SHAPES})


# ------------------------------------------------------------------------------- the pictures


@functools.cache
def cell_templates() -> np.ndarray:
    """float32[43, 16, 16, 3] in 0..255: the empty cell, then KINDS, without noise."""
    fine = 16  # samples per pixel side
    centre = CELL_SIZE / 2
    points = (np.arange(CELL_SIZE * fine) + 0.5) / fine - centre
    y, x = points[:, None], points[None, :]
    cells = [np.full((CELL_SIZE, CELL_SIZE, 3), GROUND, np.float64)]
    for size, colour, shape in KINDS:
        r = SIZES[size]
        inside = {
            "circle": x**2 + y**2 < (ROUND * r) ** 2,
            "square": np.maximum(abs(x), abs(y)) < r,
            "triangle": (y < r) & (2 * abs(x) < y + r),  # upright, as wide as it is high
        }[shape]
        cover = inside.reshape(CELL_SIZE, fine, CELL_SIZE, fine).mean((1, 3))[..., None]
        cells.append(np.float64(GROUND) * (1 - cover) + np.float64(COLOURS[colour]) * cover)
    return np.stack(cells).astype(np.float32)


def as_cells(images: np.ndarray) -> np.ndarray:
    """Images [B, 32, 32, ...] cut into their cells [B, 4, 16, 16, ...]."""
    count, channels = len(images), images.shape[3:]
    cells = images.reshape(count, 2, CELL_SIZE, 2, CELL_SIZE, *channels).swapaxes(2, 3)
    return cells.reshape(count, 4, CELL_SIZE, CELL_SIZE, *channels)


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """The scene as uint8[32, 32, 3], with noise from `rng`; without `rng`, clean."""
    image = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), GROUND, np.float32)
    for thing in scene.objects:
        top, left = (CELL_SIZE * i for i in CELLS[thing.cell])
        template = cell_templates()[1 + KINDS.index(thing.kind)]
        image[top : top + CELL_SIZE, left : left + CELL_SIZE] = template
    if rng is not None:
        image += np.float32(NOISE) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def read_images(images: np.ndarray) -> list[Scene | None]:
    """The scenes of uint8[B, 32, 32, 3], cell by cell the nearest template; None where a cell is
    too far from it (RESIDUAL_LIMIT, AMBIGUITY_LIMIT), or there is no object or more than two."""
    if images.ndim != 4 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"images {images.shape}: expected [B, 32, 32, 3]; resize them first")
    ground = np.float32(GROUND)  # measured from the ground, so that float32 is exact enough
    known = (cell_templates() - ground).reshape(len(KINDS) + 1, -1)
    cells = (as_cells(images.astype(np.float32)) - ground).reshape(-1, known.shape[1])
    square = (cells**2).sum(1, keepdims=True) - 2 * cells @ known.T + (known**2).sum(1)[None]
    nearest = square.argmin(1).reshape(-1, 4)
    first, second = np.partition(square, 1, axis=1)[:, :2].T / known.shape[1]
    clear = (first <= RESIDUAL_LIMIT) & (first <= AMBIGUITY_LIMIT * second)
    count = (nearest > 0).sum(1)
    good = clear.reshape(-1, 4).all(1) & (count >= 1) & (count <= 2)
    return [_scene(row) if ok else None for row, ok in zip(nearest, good, strict=True)]


def read_image(image: np.ndarray) -> Scene | None:
    """`read_images` for one image uint8[32, 32, 3]."""
    return read_images(image[None])[0]


# --------------------------------------------------------------------------------- the source


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
            pool = _pools()["one" if rng.random() < ONE_OBJECT else "two"]
        number = int(pool[rng.integers(len(pool))])
        scene = all_scenes()[number]
        captions = tuple(caption(scene, rng) for _ in range(self.captions_per_image))
        image = render(scene, rng)
        return Record(f"{self.split}-{self.seed}-{index}", image, captions, {"scene": number})


@functools.cache
def _pools() -> dict[str, np.ndarray]:
    """Numbers of the scenes of one object, of two, and of two held out."""
    one = np.array([len(scene.objects) == 1 for scene in all_scenes()])
    held = np.array([held_out(scene) for scene in all_scenes()])
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
    return images, captions, [all_scenes()[record.extra["scene"]] for record in records]
