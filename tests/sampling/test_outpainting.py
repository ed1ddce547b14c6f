"""Outpainting with an infilling that is known."""

import numpy as np
import pytest

from udd_jax.sampling import outpainting


@pytest.mark.parametrize(
    "extend", [{"left": 3}, {"right": 8, "top": 2}, {"left": 20, "bottom": 9, "top": 1}]
)
def test_known_pixels_stay_and_every_window_shows_some(extend):
    """The infilling draws the number of its window."""
    images = np.random.default_rng(0).integers(100, 200, (2, 8, 8, 3), np.uint8)
    asked = []

    def infill(windows, mask, number):
        assert windows.shape == (2, 8, 8, 3) and mask.any() and not mask.all()
        asked.append((~mask).mean())
        return np.full_like(windows, number)

    sides = outpainting.sides(extend, (8, 8))
    canvas = outpainting.outpaint(infill, images, sides, 2)
    size = (2, 8 + sides["top"] + sides["bottom"], 8 + sides["left"] + sides["right"], 3)
    assert canvas.shape == size and asked[0] >= 0.5
    inside = np.s_[:, sides["top"] : sides["top"] + 8, sides["left"] : sides["left"] + 8]
    np.testing.assert_array_equal(canvas[inside], images)
    outside = np.ones(size, bool)
    outside[inside] = False
    assert set(np.unique(canvas[outside])) == set(range(len(asked)))


@pytest.mark.parametrize("extend", [{"left": 3, "right": 20}, {"left": 21, "bottom": 9, "top": 1}])
def test_windows_keep_to_the_cells_and_half_of_each_is_known_where_one_is(extend, monkeypatch):
    """Of those of which half is known, one with most that is new; else one with most known."""
    fill, places, cell = outpainting.fill, [], 4

    def spy(infill, *rest):
        def spied(windows, mask, number, here):
            places.append((here[0].start, here[1].start, 1 - mask.mean()))
            return infill(windows, mask, number, here)

        return fill(spied, *rest)

    monkeypatch.setattr(outpainting, "fill", spy)
    sides = outpainting.sides(extend, (8, 8))
    images, (top, left) = np.ones((1, 8, 8, 3), np.uint8), (sides["top"], sides["left"])
    outpainting.outpaint(lambda windows, mask, number: windows, images, sides, cell)
    known = np.zeros((8 + top + sides["bottom"], 8 + left + sides["right"]), bool)
    known[top : top + 8, left : left + 8] = True
    last = [side - 8 for side in known.shape]
    rows, columns = (
        [i for i in range(end + 1) if (i - first) % cell == 0 or i in (0, end)]
        for end, first in zip(last, (top, left), strict=True)
    )
    for y, x, share in places:
        every = [known[i : i + 8, j : j + 8].mean() for i in rows for j in columns]
        half = [other for other in every if 0.5 <= other < 1]
        best = min(half) if half else max(other for other in every if other < 1)
        assert y in rows and x in columns and share == known[y : y + 8, x : x + 8].mean() == best
        known[y : y + 8, x : x + 8] = True
    assert known.all() and len(places) > 3


@pytest.mark.parametrize(
    "extend, message",
    [
        ({"up": 3}, "extend 'up': expected some of left, right, top, bottom"),
        ({"left": -1}, "extend left = -1, expected 0 to 64 whole pixels"),
        ({"left": 0}, "nothing is to be added"),
    ],
)
def test_a_bad_side_is_one_line(extend, message):
    with pytest.raises(ValueError, match=message):
        outpainting.sides(extend, (8, 8))
