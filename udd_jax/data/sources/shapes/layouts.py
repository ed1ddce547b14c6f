"""The layouts of shapes: a map of categories for each scene, and its reading.

A layout is a grid of 8 x 8 ids: 0 for the ground, else 1 + the index in SHAPES. Each id covers
4 x 4 pixels of the image, and is an object if the object covers more than half of them. A layout
tells places, shapes and sizes, and no colours. It is a function of the scene, without noise.
"""

import functools

import numpy as np

from udd_jax.data.sources.shapes import drawing, scenes
from udd_jax.data.sources.shapes.scenes import Scene
from udd_jax.errors import UserError

GRID = (8, 8)
CLASSES = 1 + len(scenes.SHAPES)
ROW = {"kind": "layout", "grid": GRID, "classes": CLASSES}  # of `worlds.Sense`
CELL = 4  # rows and columns of the layout in one of the four cells

Seen = tuple[tuple[int, str, str], ...]  # (cell, size, shape) of each object, in reading order


def told(scene: Scene) -> Seen:
    """What a layout tells of the scene: the cell, size and shape of its objects."""
    return tuple((thing.cell, thing.size, thing.shape) for thing in scene.objects)


@functools.cache
def templates() -> dict[tuple[str, str], np.ndarray]:
    """{(size, shape): ids int32[4, 4]} of a cell with that object."""
    found = {}
    for k, (size, colour, shape) in enumerate(scenes.KINDS):
        if colour == "black":  # differs from the ground in every channel, and equally
            side = drawing.CELL_SIZE // CELL
            whole = drawing.GROUND[0] - scenes.COLOURS[colour][0]
            cover = (drawing.GROUND[0] - drawing.cell_templates()[k + 1, ..., 0]) / whole
            cover = cover.reshape(CELL, side, CELL, side).mean((1, 3))
            label = 1 + scenes.SHAPES.index(shape)
            found[size, shape] = np.where(cover > 0.5, label, 0).astype(np.int32)
    return found


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """The layout of the scene, int32[8, 8]. `rng` is not used: a layout has no noise."""
    layout = np.zeros(GRID, np.int32)
    for thing in scene.objects:
        top, left = (CELL * i for i in scenes.CELLS[thing.cell])
        layout[top : top + CELL, left : left + CELL] = templates()[thing.size, thing.shape]
    return layout


def read(layouts: np.ndarray) -> list[Seen | None]:
    """The cells, sizes and shapes of the objects in layouts int[B, 8, 8].

    None if a cell is neither empty nor exactly a template, or if there is no object or more than
    two. ValueError for another shape.
    """
    if layouts.ndim != 3 or layouts.shape[1:] != GRID:
        raise UserError(f"layouts {layouts.shape}: expected [B, {GRID[0]}, {GRID[1]}]")
    known = {ids.tobytes(): kind for kind, ids in templates().items()}
    known[np.zeros((CELL, CELL), np.int32).tobytes()] = None
    readings = []
    for layout in np.asarray(layouts, np.int32):
        parts = layout.reshape(2, CELL, 2, CELL).swapaxes(1, 2).reshape(4, CELL, CELL)
        found = [known.get(part.tobytes(), "unknown") for part in parts]
        seen = tuple((cell, *kind) for cell, kind in enumerate(found) if kind)
        readings.append(seen if "unknown" not in found and 1 <= len(seen) <= 2 else None)
    return readings
