"""Pictures with their captions on one page: a contact sheet, made with Pillow."""

import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from udd_jax.data import pixels
from udd_jax.errors import UserError

# Lengths in pixels, colours in RGB.
_PAPER, _INK = (255, 255, 255), (64, 64, 64)
_RIGHT, _WRONG = (34, 150, 84), (208, 52, 44)
_MARGIN, _GAP, _FRAME, _BADGE = 20, 20, 3, 8
_FONT, _LINE, _MOST_LINES, _MOST_CHARACTERS = 12, 16, 5, 500
_PICTURE = 128  # side to which `sheet` enlarges small pictures
_SQUARE, _DARK = 8, 224  # side and grey of every other square behind what is clear


def sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int = 8,
    scale: int | None = None,
    marks: Sequence[bool | None] | None = None,
) -> np.ndarray:
    """Pictures in rows with their captions below: a contact sheet, uint8[H, W, 3].

    Every uint8[h, w, C] is enlarged `scale` times, without smoothing; by default to about 128
    pixels. What is clear shows a board of white and grey squares. Captions are wrapped to the width
    of the picture and cut after five lines. `marks` says which pictures are right (green frame,
    tick), wrong (red frame, cross) or neither (None).
    """
    images = list(images)
    captions = [""] * len(images) if captions is None else [str(text) for text in captions]
    marks = [None] * len(images) if marks is None else list(marks)
    if not images or not len(images) == len(captions) == len(marks):
        raise UserError(
            f"sheet: {len(images)} images, {len(captions)} captions, {len(marks)} marks; "
            "expected as many of each, at least one"
        )
    for image in images:
        pixels.check(image)
    height, width = np.max([image.shape[:2] for image in images], axis=0).tolist()
    scale = scale or max(1, round(_PICTURE / max(height, width)))
    height, width = height * scale, width * scale
    columns = min(columns, len(images))

    font = _font(captions)
    wrapped = [_wrap(text, font, width + _GAP // 2) for text in captions]
    rows = [range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)]
    lines = [max(len(wrapped[i]) for i in row) for row in rows]
    heights = [height + (6 + _LINE * count if count else 0) for count in lines]
    paper = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * width + (columns - 1) * _GAP,
            2 * _MARGIN + sum(heights) + (len(rows) - 1) * _GAP,
        ),
        _PAPER,
    )
    draw = ImageDraw.Draw(paper)
    top = _MARGIN
    for row, row_height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = _MARGIN + column * (width + _GAP)
            picture = _enlarged(images[i], scale)
            x = left + (width - picture.width) // 2
            y = top + (height - picture.height) // 2
            paper.paste(picture, (x, y))
            _mark(draw, (x, y, x + picture.width, y + picture.height), marks[i])
            for k, line in enumerate(wrapped[i]):
                centre = (left + width / 2, top + height + 6 + _LINE * k)
                draw.text(centre, line, _INK, font, anchor="ma")
        top += row_height + _GAP
    return np.array(paper)


def _enlarged(image: np.ndarray, scale: int) -> Image.Image:
    """uint8[h, w, C] so many times as large, over squares of white and grey."""
    image = image.repeat(scale, axis=0).repeat(scale, axis=1)
    squares = np.indices(image.shape[:2]) // _SQUARE
    ground = np.where(squares.sum(axis=0) % 2, _DARK, 255).astype(np.uint8)
    return Image.fromarray(pixels.as_rgb(image, ground[..., None]))


def _mark(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], right: bool | None) -> None:
    left, top, end, bottom = box
    if right is None:
        draw.rectangle((left - 1, top - 1, end, bottom), outline=(225, 225, 225))
        return
    colour = _RIGHT if right else _WRONG
    frame = (left - _FRAME, top - _FRAME, end + _FRAME - 1, bottom + _FRAME - 1)
    draw.rectangle(frame, outline=colour, width=_FRAME)
    x, y = end, top  # a badge on the corner, for readers who cannot tell red from green
    draw.ellipse((x - _BADGE, y - _BADGE, x + _BADGE, y + _BADGE), colour, _PAPER)
    if right:
        draw.line([(x - 4, y), (x - 1, y + 3), (x + 4, y - 3)], _PAPER, 2)
    else:
        draw.line([(x - 3, y - 3), (x + 3, y + 3)], _PAPER, 2)
        draw.line([(x - 3, y + 3), (x + 3, y - 3)], _PAPER, 2)


def _font(texts: Sequence[str]) -> ImageFont.FreeTypeFont:
    """The font of Pillow; for texts that are not ASCII, the font that comes with matplotlib."""
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is None or all(text.isascii() for text in texts):
        return ImageFont.load_default(_FONT)
    folder = pathlib.Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(folder / "DejaVuSans.ttf", _FONT - 1)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width`; a longer word is broken, a longer text ends in an ellipsis."""
    lines, line = [], ""
    for word in text[:_MOST_CHARACTERS].split():
        if font.getlength(f"{line} {word}".strip()) <= width:
            line = f"{line} {word}".strip()
            continue
        lines += [line] if line else []
        while font.getlength(word) > width and len(word) > 1:
            cut = 1
            while font.getlength(word[: cut + 1]) <= width:
                cut += 1
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    lines += [line] if line else []
    if len(lines) > _MOST_LINES:
        lines = lines[:_MOST_LINES]
        while lines[-1] and font.getlength(lines[-1] + "...") > width:
            lines[-1] = lines[-1][:-1].rstrip()
        lines[-1] += "..."
    return lines
