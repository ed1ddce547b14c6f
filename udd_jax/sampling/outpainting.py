"""Outpainting: a picture larger than the model's, one window of the model's size at a time.

The picture is laid on a larger canvas. Of the windows of which at least half is known, the one with
the most unknown pixels is infilled, given what is known in it; if there is none, the one with the
most known pixels. This repeats until all is known. Each window thus continues what the windows
before it have drawn. `fill` does that for any canvas, also for one of which nothing is known.
"""

import numpy as np

from udd_jax.errors import UserError

SIDES = ("left", "right", "top", "bottom")
LARGEST = 8  # times the side of the model's pictures; a canvas is not larger


def sides(extend: dict[str, int], size: tuple[int, int]) -> dict[str, int]:
    """{side: pixels} of all four sides, checked. UserError: another side, or a bad number.

    size: (height, width) of the model's pictures.
    """
    if not isinstance(extend, dict):
        raise UserError(f"extend = {extend!r}, expected {{side: pixels}} such as {{'left': 8}}")
    for side, number in extend.items():
        if side not in SIDES:
            raise UserError(f"extend {side!r}: expected some of {', '.join(SIDES)}")
        whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        most = LARGEST * size[side in SIDES[:2]]
        if not whole or not 0 <= number <= most:
            raise UserError(f"extend {side} = {number!r}, expected 0 to {most} whole pixels")
    if not sum(extend.values()):
        raise UserError("extend: nothing is to be added, expected such as {'left': 8}")
    return {side: int(extend.get(side, 0)) for side in SIDES}


def outpaint(infill, images: np.ndarray, extend: dict[str, int], cell: int) -> np.ndarray:
    """Extends pictures uint8[n, H, W, 3] -> uint8[n, H + top + bottom, W + left + right, 3].

    infill: (windows uint8[n, H, W, 3], mask bool[H, W], number of the window) -> uint8[n, H, W, 3].
    extend: of `sides`; cell: pixels of a code, by which windows move. Known pixels stay as they
    are, bit for bit.
    """
    size = images.shape[1:3]
    rows, columns = ((extend[a], extend[b]) for a, b in (SIDES[2:], SIDES[:2]))
    canvas = np.pad(images, ((0, 0), rows, columns, (0, 0)))
    known = np.pad(np.ones(size, bool), (rows, columns))
    draw = lambda windows, mask, number, here: infill(windows, mask, number)  # noqa: E731
    return fill(draw, canvas, known, size, (rows[0], columns[0]), cell)


def fill(infill, canvas: np.ndarray, known: np.ndarray, size, start, cell: int) -> np.ndarray:
    """The canvas uint8[n, H', W', 3] with all pixels drawn that are not known, bool[H', W'].

    infill: (windows uint8[n, *size, 3], mask bool[*size], number of the window, its place in the
    canvas, two slices) -> uint8[n, *size, 3]. size: (height, width) of a window. start: a corner,
    (y, x), from which windows move by cells. The canvas and `known` are changed, too.
    """
    height, width = size
    # Half of a window is context; steps of cells keep the codes aligned with the picture's.
    number = 0
    while not known.all():
        y, x = max(
            _places(known.shape, start, size, cell),
            key=lambda place: _value(known[_window(*place, height, width)]),
        )
        here = _window(y, x, height, width)
        mask = ~known[here]
        drawn = infill(canvas[:, *here], mask, number, here)
        canvas[:, *here] = np.where(mask[None, ..., None], drawn, canvas[:, *here])
        known[here] = True
        number += 1
    return canvas


def _window(y, x, height, width):
    return np.s_[y : y + height, x : x + width]


def _places(shape, starts, sizes, cell):
    """Corners of windows inside the canvas: by cells from the picture's corner, and the edges."""
    axes = []
    for length, start, size in zip(shape, starts, sizes, strict=True):
        last = length - size
        axes.append(sorted({start % cell, *range(start % cell, last + 1, cell), 0, last}))
    return [(y, x) for y in axes[0] for x in axes[1]]


def _value(known: np.ndarray):
    """How good a window is: it shows unknown pixels, at least half of it is known, many are new."""
    share = known.mean()
    if share == 1:
        return -1.0
    return 1 + (1 - share) if share >= 0.5 else share
