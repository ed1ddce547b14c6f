"""A contact sheet shows what it got: every picture, its caption, its mark."""

import numpy as np
import pytest

from udd_jax.evaluation.report import contact_sheet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)  # odd sizes: a swapped axis shows


def find(paper: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Top left corners at which the picture's pixels stand on the paper."""
    windows = np.lib.stride_tricks.sliding_window_view(paper, picture.shape)[:, :, 0]
    return [tuple(place) for place in np.argwhere((windows == picture).all(axis=(2, 3, 4)))]


def test_a_sheet_shows_every_picture_once_in_reading_order():
    pictures = [RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8) for _ in range(5)]
    paper = contact_sheet.sheet(pictures, ["a red circle"] * 5, columns=3, scale=2)
    corners = [find(paper, picture.repeat(2, 0).repeat(2, 1)) for picture in pictures]
    assert [len(corner) for corner in corners] == [1] * 5
    assert [corner[0] for corner in corners] == sorted(corner[0] for corner in corners)
    across = np.diff([corner[0][1] for corner in corners[:3]])
    assert across[0] == across[1] > 12
    assert corners[3][0][1] == corners[0][0][1]
    assert paper.dtype == np.uint8 and (paper[:10] == 255).all() and (paper[-10:] == 255).all()


def test_a_sheet_grows_with_its_captions_and_cuts_the_endless_ones():
    pictures = [PIXELS] * 3
    heights = [
        contact_sheet.sheet(pictures, [caption, "", "x"]).shape[0]
        for caption in (
            "one",
            "several words of which not all go in a line",
            "many " * 100,
            "w" * 900,
        )
    ]
    bare = contact_sheet.sheet(pictures).shape[0]
    assert bare < heights[0] < heights[1] < heights[2] == heights[3]
    assert contact_sheet.sheet(pictures, ["é один 中 \ud83d", "", ""]).shape[0] == heights[0]


def test_marks_are_green_for_right_and_red_for_wrong():
    picture = np.zeros((8, 8, 3), np.uint8)
    papers = [contact_sheet.sheet([picture], marks=[mark]) for mark in (True, False, None)]
    greener = [int((p[..., 1].astype(int) - p[..., 0] > 80).sum()) for p in papers]
    redder = [int((p[..., 0].astype(int) - p[..., 1] > 80).sum()) for p in papers]
    assert greener[0] > 500 and greener[1:] == [0, 0]
    assert redder[1] > 500 and redder[::2] == [0, 0]


def test_a_sheet_of_nothing_or_of_unequal_lists_is_one_line():
    for pictures, captions in (([], []), ([PIXELS], ["a", "b"])):
        with pytest.raises(ValueError, match="expected as many of each, at least one"):
            contact_sheet.sheet(pictures, captions)
