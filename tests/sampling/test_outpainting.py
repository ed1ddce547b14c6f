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
