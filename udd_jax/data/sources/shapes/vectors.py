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
# Of `worlds.Sense`.
ROW = {"kind": "features", "count": SHAPE[0], "width": SHAPE[1]}
SUMMARY_ROW = {"kind": "embedding", "dimensions": SHAPE[0] * SHAPE[1]}


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """float32[2, 16]. `rng` is not used: vectors have no noise."""
    rows = np.zeros(SHAPE, np.float32)
    for row, thing in zip(rows, scene.objects, strict=False):
        told = (thing.shape, thing.colour, thing.size, thing.cell)
        for start, values, value in zip((0, *PARTS), ATTRIBUTES, told, strict=False):
            row[start + values.index(value)] = 1
    return rows


def summary(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """`render` as one vector, float32[32]: an embedding, which can be generated."""
    return render(scene).reshape(-1)


def read(vectors: np.ndarray) -> list[Scene | None]:
    """The scenes of vectors float[B, 2, 16], or of summaries float[B, 32].

    Each attribute is its largest number, which has to be above one half. None if one is not, or if
    there is no such scene.
    """
    found = []
    for rows in np.asarray(vectors).reshape(-1, *SHAPE):
        things = []
        for row in rows[rows.max(axis=1) > 0.5]:
            parts = list(zip(ATTRIBUTES, np.split(row, PARTS[:-1]), strict=True))
            if min(part.max() for _, part in parts) > 0.5:
                things.append(Object(*(values[int(part.argmax())] for values, part in parts)))
            else:
                things.append(None)
        cells = [thing and thing.cell for thing in things]
        clear = cells and None not in cells and sorted(set(cells)) == cells
        found.append(Scene(tuple(things)) if clear else None)
    return found
