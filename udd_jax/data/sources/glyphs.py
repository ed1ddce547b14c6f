"""Glyphs: a small world of written notes with long captions, whose distribution is known exactly.

A note is a sheet of one of 4 papers with 1 to 4 lines from the top; all numbers of lines are
equally likely. A line is a word (probability .6, one of 64) or a number (0 to 999), in one of 5
inks; each choice is uniform.

The image is 64 x 64 RGB. Each line is written into its 16 rows with the font of Pillow, and
Gaussian noise of 4/255 is added. The caption draws a template, whether the paper is named, whether
each ink is named, and whether each number is written in digits or in words:

    a note on yellow paper that reads the word river in blue, then the number four hundred and seven

So the words of the caption are shapes in the image, and a number in words becomes digits. No two
derivations give the same caption, so H(caption | note) is the sum of the entropies of the choices.

To read a note, each line is compared with the ink coverage m of every text: pixels are paper + m
(ink - paper), and the nearest text and ink are the maximum-likelihood reading.

Ten per cent of the (text, ink) combinations are held out by a hash: the splits `train` and
`validation` never show one of them, and every note of `test` shows at least one.
"""

import dataclasses
import functools
import math
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from udd_jax.data import hashing
from udd_jax.data.sources import worlds
from udd_jax.errors import UserError

_NOUNS = """
    acorn anchor apple basket bell bird boat bottle branch bread bridge button candle castle cat
    chair cherry circle clock cloud copper corn cup desk door feather field fish flute forest garden
    glass hammer hat honey house island kettle key lake lamp leaf lemon letter map mirror moon
    needle ocean paper pearl river roof sand ship silver stone summer table tiger tower tree violin
    winter
"""
WORDS = tuple(_NOUNS.split())
NUMBERS = 1000
PAPERS = {
    "white": (250, 250, 250),
    "yellow": (250, 240, 150),
    "pink": (250, 200, 215),
    "green": (190, 240, 190),
}
INKS = {
    "black": (20, 20, 20),
    "red": (200, 0, 30),
    "blue": (20, 50, 220),
    "brown": (110, 60, 10),
    "purple": (130, 0, 150),
}
TEXTS = (*WORDS, *map(str, range(NUMBERS)))
IMAGE_SIZE, LINE_HEIGHT, MAX_LINES = 64, 16, 4
NOISE = 4.0
IS_WORD, INK_NAMED, PAPER_NAMED, IN_WORDS = 0.6, 0.8, 0.7, 0.5
# With the paper named, and without.
TEMPLATES = {
    ("a note on {paper} paper that reads {lines}", "a note that reads {lines}"): 0.4,
    ("{lines}, written on {paper} paper", "{lines}, written on paper"): 0.3,
    ("a {paper} sheet with {count}: {lines}", "a sheet with {count}: {lines}"): 0.3,
}
COUNTS = ("one line", "two lines", "three lines", "four lines")
HELD_OUT = 0.1

# A line can be read if its mean squared difference from the nearest text (over 3,072 values) is at
# most RESIDUAL_LIMIT, and at most AMBIGUITY_LIMIT times the difference from any other text. Noise
# alone gives 16; one more or fewer digit changes it by at least 100.
RESIDUAL_LIMIT = 1000.0
AMBIGUITY_LIMIT = 0.8
# The given part of a line was kept if its mean squared difference from a clean drawing of the read
# note is at most this. Noise alone gives 16; another text adds at least 22, even half visible.
KEPT_LIMIT = 30.0


@dataclasses.dataclass(frozen=True)
class Note:
    """A sheet: its paper, and its lines as (text, ink) from the top."""

    paper: str
    lines: tuple[tuple[str, str], ...]

    def __post_init__(self):
        known = all(text in _NUMBER_OF and ink in INKS for text, ink in self.lines)
        if self.paper not in PAPERS or not known or not 1 <= len(self.lines) <= MAX_LINES:
            raise UserError(
                f"Note {self.paper} {self.lines}: expected a paper of {', '.join(PAPERS)} and "
                f"1 to {MAX_LINES} lines of a text and an ink of {', '.join(INKS)}"
            )


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The content of a caption: lines as (text, ink or None), the paper or None, the template."""

    lines: tuple[tuple[str, str | None], ...]
    paper: str | None
    template: str


_NUMBER_OF = {text: number for number, text in enumerate(TEXTS)}
# ---------------------------------------------------------------------------------- the world


def held_out(text: str, ink: str) -> bool:
    """Whether this text in this ink is held out from training."""
    return bool(hashing.uniform(_NUMBER_OF[text], tuple(INKS).index(ink)) < HELD_OUT)


@functools.cache
def _combinations() -> dict[bool, list[list[tuple[str, str]]]]:
    """{held out or not: [words with inks, numbers with inks]}."""
    found = {False: [[], []], True: [[], []]}
    for text in TEXTS:
        for ink in INKS:
            found[held_out(text, ink)][text.isdigit()].append((text, ink))
    return found


def draw_note(rng: np.random.Generator, test: bool = False) -> Note:
    """Draws a note without held-out lines; with `test`, at least one line is held out."""
    count = int(rng.integers(1, MAX_LINES + 1))
    special = int(rng.integers(count)) if test else None
    lines = []
    for place in range(count):
        held = place == special or (test and rng.random() < HELD_OUT)
        pool = _combinations()[held][int(rng.random() >= IS_WORD)]
        lines.append(pool[int(rng.integers(len(pool)))])
    return Note(tuple(PAPERS)[int(rng.integers(len(PAPERS)))], tuple(lines))


# ------------------------------------------------------------------------------- the captions

_SMALL = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
_UNITS, _TENS = _SMALL.split()[:20], _SMALL.split()[20:]


def spell(number: int) -> str:
    """A number from 0 to 999 in words: 407 -> "four hundred and seven"."""
    hundreds, rest = divmod(number, 100)
    small = _UNITS[rest] if rest < 20 else _TENS[rest // 10 - 2]
    if rest >= 20 and rest % 10:
        small += f" {_UNITS[rest % 10]}"
    if not hundreds:
        return small
    return f"{_UNITS[hundreds]} hundred" + (f" and {small}" if rest else "")


_SPELLED = {spell(number): str(number) for number in range(NUMBERS)}


def caption(note: Note, rng: np.random.Generator) -> str:
    """Draws a caption of the note."""
    lines = []
    for text, ink in note.lines:
        if text.isdigit():
            line = f"the number {spell(int(text)) if rng.random() < IN_WORDS else text}"
        else:
            line = f"the word {text}"
        lines.append(line + (f" in {ink}" if rng.random() < INK_NAMED else ""))
    templates = tuple(TEMPLATES)
    with_paper, without = templates[int(rng.choice(len(templates), p=tuple(TEMPLATES.values())))]
    template = with_paper if rng.random() < PAPER_NAMED else without
    count = COUNTS[len(lines) - 1]
    return template.format(lines=", then ".join(lines), paper=note.paper, count=count)


def caption_entropy(notes) -> float:
    """The mean of H(caption | note) in bits: the sum of the entropies of the choices."""

    def entropy(probabilities):
        return -math.fsum(p * math.log2(p) for p in probabilities)

    whole = entropy(TEMPLATES.values()) + entropy((PAPER_NAMED, 1 - PAPER_NAMED))
    ink, words = entropy((INK_NAMED, 1 - INK_NAMED)), entropy((IN_WORDS, 1 - IN_WORDS))
    texts = [text for note in notes for text, _ in note.lines]
    numbers = sum(text.isdigit() for text in texts)
    return whole + (len(texts) * ink + numbers * words) / len(notes)


@functools.cache
def _patterns() -> dict[str, re.Pattern]:
    parts = {
        "paper": f"(?P<paper>{'|'.join(PAPERS)})",
        "lines": "(?P<lines>.+)",
        "count": f"(?P<count>{'|'.join(COUNTS)})",
    }
    return {t: re.compile(t.format(**parts)) for pair in TEMPLATES for t in pair}


_LINE = re.compile(rf"the (?P<kind>word|number) (?P<text>.+?)(?: in (?P<ink>{'|'.join(INKS)}))?")


def parse_caption(text: str) -> Meaning | None:
    """The content of the caption; None if the grammar cannot produce it."""
    for template, pattern in _patterns().items():
        match = pattern.fullmatch(text)
        lines = match and _parse_lines(match["lines"])
        if (
            lines
            and match.groupdict().get("count", COUNTS[len(lines) - 1]) == COUNTS[len(lines) - 1]
        ):
            return Meaning(lines, match.groupdict().get("paper"), template)
    return None


def _parse_lines(text: str) -> tuple | None:
    found = []
    for part in text.split(", then "):
        match = _LINE.fullmatch(part)
        if match is None:
            return None
        written = match["text"] if match["kind"] == "word" else _digits(match["text"])
        if written not in (WORDS if match["kind"] == "word" else _NUMBER_OF):
            return None
        found.append((written, match["ink"]))
    return tuple(found) if len(found) <= MAX_LINES else None


def _digits(text: str) -> str | None:
    return text if text.isdigit() else _SPELLED.get(text)


def difference(note: Note, meaning: Meaning) -> str | None:
    """None if the caption is true and names the text of every line, else the first difference:
    "number", "text", "ink" or "paper"."""
    if len(meaning.lines) != len(note.lines):
        return "number"
    if [said for said, _ in meaning.lines] != [text for text, _ in note.lines]:
        return "text"
    inks = zip(meaning.lines, note.lines, strict=True)
    if not all(said in (None, ink) for (_, said), (_, ink) in inks):
        return "ink"
    return None if meaning.paper in (None, note.paper) else "paper"


def named(meaning: Meaning) -> int:
    """The number of attributes (text, ink, paper) that the caption names."""
    inks = sum(ink is not None for _, ink in meaning.lines)
    return len(meaning.lines) + inks + (meaning.paper is not None)


# ------------------------------------------------------------------------------- the pictures


@functools.cache
def _coverage() -> np.ndarray:
    """float32[texts + 1, 16, 64] in [0, 1]: the ink coverage of every text and of an empty line."""
    font, masks = ImageFont.load_default(12), []
    for text in (*TEXTS, ""):
        line = Image.new("L", (IMAGE_SIZE, LINE_HEIGHT))
        ImageDraw.Draw(line).text((4, 0), text, 255, font)
        masks.append(np.asarray(line, np.float32) / 255)
    return np.stack(masks)


@functools.cache
def _coverage_squared() -> np.ndarray:
    return (_coverage() ** 2).sum((1, 2))


def render(note: Note, rng: np.random.Generator | None = None) -> np.ndarray:
    """uint8[64, 64, 3]: the note, with noise if `rng` is given."""
    paper = np.float32(PAPERS[note.paper])
    image = np.tile(paper, (IMAGE_SIZE, IMAGE_SIZE, 1))
    for place, (text, ink) in enumerate(note.lines):
        rows = image[place * LINE_HEIGHT : (place + 1) * LINE_HEIGHT]
        rows += _coverage()[_NUMBER_OF[text], :, :, None] * (np.float32(INKS[ink]) - paper)
    if rng is not None:
        image += np.float32(NOISE) * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def read_images(images: np.ndarray) -> list[Note | None]:
    """The notes in uint8[B, 64, 64, 3]; None if a line fits no text, or fits two."""
    papers, inks = np.float32([*PAPERS.values()]), np.float32([*INKS.values()])
    masks = _coverage().reshape(len(TEXTS) + 1, -1)
    images = np.asarray(images, np.float32)
    middles = np.median(images.reshape(len(images), -1, 1, 3), axis=1)  # [B, 1, 3]
    papers_read = ((papers - middles) ** 2).sum(-1).argmin(-1)
    rest = images - papers[papers_read][:, None, None]
    rest = rest.reshape(-1, MAX_LINES, masks.shape[1], 3).swapaxes(2, 3)
    along = rest.reshape(-1, masks.shape[1]) @ masks.T  # one product, since small ones are slow
    along = along.reshape(-1, MAX_LINES, 3, len(masks))
    squares = (rest**2).sum((2, 3))
    found = []
    for paper, here, square in zip(papers_read.tolist(), along, squares, strict=True):
        ways = inks - papers[paper]
        weight = (ways**2).sum(-1)[:, None] * _coverage_squared()
        errors = square[:, None, None] - 2 * ways @ here + weight  # [lines, inks, texts]
        errors = errors.transpose(0, 2, 1) / (3 * masks.shape[1])
        found.append(_note(tuple(PAPERS)[paper], errors))
    return found


def _note(paper: str, errors: np.ndarray) -> Note | None:
    """The note for float32[lines, texts + 1, inks], the differences from every text and ink."""
    errors[:, -1, 1:] = np.inf  # an empty line has no ink: one reading of it
    lines = []
    for line in errors:
        best, second = np.partition(line.ravel(), 1)[:2]
        if best > RESIDUAL_LIMIT or best > AMBIGUITY_LIMIT * second:
            return None
        text, ink = np.unravel_index(line.argmin(), line.shape)
        lines.append(None if text == len(TEXTS) else (TEXTS[text], tuple(INKS)[ink]))
    count = sum(line is not None for line in lines)
    if count == 0 or None in lines[:count]:
        return None
    return Note(paper, tuple(lines[:count]))


def read_image(image: np.ndarray) -> Note | None:
    """`read_images` for one image uint8[64, 64, 3]."""
    return read_images(image[None])[0]


# ---------------------------------------------------------------------------------- the laws

_NUMBER = {number: 1 / MAX_LINES for number in range(1, MAX_LINES + 1)}
_PAPER = {paper: 1 / len(PAPERS) for paper in PAPERS}
_TOLD_PAPER = {paper: PAPER_NAMED * p for paper, p in _PAPER.items()} | {None: 1 - PAPER_NAMED}
_TEMPLATE = {
    template: share * p
    for pair, share in TEMPLATES.items()
    for template, p in zip(pair, (PAPER_NAMED, 1 - PAPER_NAMED), strict=True)
}


def _paper_told(note: Note, meaning: Meaning):
    """The `Law` of the paper in a caption, given the note."""
    return note.paper, {note.paper: PAPER_NAMED, None: 1 - PAPER_NAMED}, meaning.paper


def _paper_shown(note: Note, meaning: Meaning):
    """The `Law` of the paper of a note, given a caption."""
    law = _PAPER if meaning.paper is None else {meaning.paper: 1.0}
    return meaning.paper, law, note.paper


def _number(condition: int, outcome: int):
    return condition, {condition: 1.0}, outcome


_IMAGE = {
    "number": lambda note, _: (None, _NUMBER, len(note.lines)),
    "paper": lambda note, _: (None, _PAPER, note.paper),
}
_WORDING = {"template": lambda _, meaning: (None, _TEMPLATE, meaning.template)}
# The properties of a sample as `worlds.Law`: number of lines, paper, template.
LAWS = {
    "pair": _IMAGE | _WORDING,
    "t2i": {
        "number": lambda note, meaning: _number(len(meaning.lines), len(note.lines)),
        "paper": _paper_shown,
    },
    "i2t": {
        "number": lambda note, meaning: _number(len(note.lines), len(meaning.lines)),
        "paper": _paper_told,
        **_WORDING,
    },
    "image": _IMAGE,
    "text": {
        "number": lambda _, meaning: (None, _NUMBER, len(meaning.lines)),
        "paper": lambda _, meaning: (None, _TOLD_PAPER, meaning.paper),
        **_WORDING,
    },
}

WORLD = worlds.World(
    name="glyphs",
    about="a drawn world of notes, written lines whose words and numbers the captions spell out",
    held_out="each with a line that no training image has",
    image_size=IMAGE_SIZE,
    draw=lambda split, rng: draw_note(rng, test=split == "test"),
    caption=caption,
    render=render,
    read_images=read_images,
    parse_caption=parse_caption,
    difference=difference,
    reasons={
        "number": "another number of lines",
        "text": "another word or number",
        "ink": "another ink",
        "paper": "another paper",
    },
    tiles=(MAX_LINES, 1),
    residual=KEPT_LIMIT,
    named=named,
    category=lambda note: COUNTS[len(note.lines) - 1],
    categories=COUNTS,
    entropy=caption_entropy,
    laws=LAWS,
)
