"""The images of shapes: how a scene is drawn, and how an image is read back.

An image is 32 x 32 RGB, or a multiple of that, drawn with more pixels (`scale`). Each of its four
cells is one of 43 templates (empty, or one of 42 kinds of object) plus noise, so the nearest
template is the maximum-likelihood reading.
"""

import functools

import numpy as np

from udd_jax.data.sources.shapes import scenes
from udd_jax.data.sources.shapes.scenes import Scene
from udd_jax.errors import UserError

ROUND = 0.93  # radius of a circle / that size, chosen so that the two nearest kinds are far apart
GROUND = (240, 240, 240)  # so far from 0 and 255 that the noise is hardly clipped
NOISE = 5.0
IMAGE_SIZE = 32
CELL_SIZE = 16

# A cell is read as its nearest template if the mean squared difference (over 768 values) is at most
# RESIDUAL_LIMIT, and at most AMBIGUITY_LIMIT times the difference from any other template. Noise
# alone gives 25 and .02. A blur of .7 pixels (27.5 dB) reaches 977 on a large black square, but
# only .23 of the difference from any other template. Half an object, or a mixture of two, is about
# equally near to two templates. For small yellow objects such errors stay below any useful absolute
# limit, so the second limit is needed.
RESIDUAL_LIMIT = 1000.0
AMBIGUITY_LIMIT = 1 / 3


@functools.cache
def cell_templates(scale: int = 1) -> np.ndarray:
    """float32[43, 16, 16, 3] in 0..255: the empty cell, then KINDS, without noise.

    scale: pixels instead of one, down and across: float32[43, 16 scale, 16 scale, 3].
    """
    fine = 16 // scale  # samples per pixel side
    centre, side = CELL_SIZE / 2, CELL_SIZE * scale
    points = (np.arange(side * fine) + 0.5) / (fine * scale) - centre
    y, x = points[:, None], points[None, :]
    cells = [np.full((side, side, 3), GROUND, np.float64)]
    for size, colour, shape in scenes.KINDS:
        r = scenes.SIZES[size]
        inside = {
            "circle": x**2 + y**2 < (ROUND * r) ** 2,
            "square": np.maximum(abs(x), abs(y)) < r,
            "triangle": (y < r) & (2 * abs(x) < y + r),  # upright, as wide as it is high
        }[shape]
        cover = inside.reshape(side, fine, side, fine).mean((1, 3))[..., None]
        cells.append(np.float64(GROUND) * (1 - cover) + np.float64(scenes.COLOURS[colour]) * cover)
    return np.stack(cells).astype(np.float32)


def as_cells(images: np.ndarray) -> np.ndarray:
    """Images [B, 32, 32, ...] -> their cells [B, 4, 16, 16, ...]; or those of larger images."""
    count, channels, side = len(images), images.shape[3:], images.shape[1] // 2
    cells = images.reshape(count, 2, side, 2, side, *channels).swapaxes(2, 3)
    return cells.reshape(count, 4, side, side, *channels)


def render(scene: Scene, rng: np.random.Generator | None = None, scale: int = 1) -> np.ndarray:
    """Draws the scene as uint8[32, 32, 3], with noise if `rng` is given; `scale` times as large."""
    size, side = IMAGE_SIZE * scale, CELL_SIZE * scale
    image = np.full((size, size, 3), GROUND, np.float32)
    for thing in scene.objects:
        top, left = (side * i for i in scenes.CELLS[thing.cell])
        template = cell_templates(scale)[1 + scenes.KINDS.index(thing.kind)]
        image[top : top + side, left : left + side] = template
    if rng is not None:
        image += np.float32(NOISE) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def read_images(images: np.ndarray, scale: int = 1) -> list[Scene | None]:
    """The scenes in images uint8[B, 32, 32, 3]: each cell is read as its nearest template.

    scale: of images that are so many times as large.

    None if a cell is too far from it (RESIDUAL_LIMIT, AMBIGUITY_LIMIT), or if there is no object or
    more than two.
    """
    size = IMAGE_SIZE * scale
    if images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise UserError(
            f"images {images.shape}: expected [B, {size}, {size}, 3]; resize them first"
        )
    ground = np.float32(GROUND)  # measured from the ground, so that float32 is exact enough
    known = (cell_templates(scale) - ground).reshape(len(scenes.KINDS) + 1, -1)
    cells = (as_cells(images.astype(np.float32)) - ground).reshape(-1, known.shape[1])
    square = (cells**2).sum(1, keepdims=True) - 2 * cells @ known.T + (known**2).sum(1)[None]
    nearest = square.argmin(1).reshape(-1, 4)
    first, second = np.partition(square, 1, axis=1)[:, :2].T / known.shape[1]
    clear = (first <= RESIDUAL_LIMIT) & (first <= AMBIGUITY_LIMIT * second)
    count = (nearest > 0).sum(1)
    good = clear.reshape(-1, 4).all(1) & (count >= 1) & (count <= 2)
    return [scenes.of_templates(row) if ok else None for row, ok in zip(nearest, good, strict=True)]


def read_image(image: np.ndarray) -> Scene | None:
    """`read_images` for one image uint8[32, 32, 3]."""
    return read_images(image[None])[0]
