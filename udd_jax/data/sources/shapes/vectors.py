"""The vectors of shapes: features that tell everything of a scene.

One row an object, in reading order: its shape, colour, size and cell as ones among zeros. A scene
of one object has a second row of zeros.
"""

import numpy as np

from udd_jax.data.sources.shapes import scenes
from udd_jax.data.sources.shapes.scenes import Object, Scene

ATTRIBUTES = (scenes.SHAPES, tuple(scenes.COLOURS), tuple(scenes.SIZES), (0, 1, 2, 3))
PARTS = np.cumsum([len(values) for values in ATTRIBUTES])
SHAPE = (2, int(PARTS[-1]))  # objects, numbers of each


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """float32[2, 16]. `rng` is not used: vectors have no noise."""
    rows = np.zeros(SHAPE, np.float32)
    for row, thing in zip(rows, scene.objects, strict=False):
        told = (thing.shape, thing.colour, thing.size, thing.cell)
        for start, values, value in zip((0, *PARTS), ATTRIBUTES, told, strict=False):
            row[start + values.index(value)] = 1
    return rows


def read(vectors: np.ndarray) -> list[Scene]:
    """The scenes of vectors float[B, 2, 16] that `render` made."""
    found = []
    for rows in np.asarray(vectors):
        things = []
        for row in rows[rows.any(axis=1)]:
            parts = zip(ATTRIBUTES, np.split(row, PARTS[:-1]), strict=True)
            things.append(Object(*(values[int(part.argmax())] for values, part in parts)))
        found.append(Scene(tuple(things)))
    return found
