"""The world of notes: what is written can be read, and the law of captions is the stated one."""

import collections
import itertools
import math

import numpy as np
import pytest

from udd_jax.data import sources
from udd_jax.data.sources import glyphs
from udd_jax.evaluation.metrics import agreement


@pytest.fixture(scope="module")
def records():
    source = sources.open_source("glyphs", "train", size=600, captions_per_image=2)
    return [source[i] for i in range(len(source))]


@pytest.fixture(scope="module")
def held_out_records():
    source = sources.open_source("glyphs", "test", size=200)
    return [source[i] for i in range(len(source))]


def test_every_noisy_picture_is_read_as_its_note(records, held_out_records):
    for found in (records, held_out_records):
        read = glyphs.read_images(np.stack([record.image for record in found]))
        assert read == [record.extra["scene"] for record in found]


def test_every_text_in_every_ink_is_read_on_some_paper():
    papers = itertools.cycle(glyphs.PAPERS)
    lines = [(text, ink) for text in glyphs.TEXTS for ink in glyphs.INKS]
    notes = [glyphs.Note(next(papers), tuple(lines[i : i + 4])) for i in range(0, len(lines), 4)]
    notes = notes[:: len(notes) // 200]
    rng = np.random.default_rng(0)
    assert glyphs.read_images(np.stack([glyphs.render(note, rng) for note in notes])) == notes


def test_pictures_that_are_no_notes_are_not_read():
    note = glyphs.Note("white", (("river", "red"), ("407", "blue")))
    other = glyphs.Note("white", (("river", "red"), ("491", "blue")))
    image, changed = glyphs.render(note), glyphs.render(other)
    assert glyphs.read_image(image) == note
    gap = image.copy()
    gap[:16] = 250
    mixed = ((image.astype(int) + changed) // 2).astype(np.uint8)
    half = image.copy()
    half[16:24] = 250
    noise = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    empty = np.full_like(image, 250)
    for picture in (gap, mixed, half, noise, empty, 255 - image):
        assert glyphs.read_image(picture) is None


def test_every_caption_means_what_its_note_says_and_rarely_fits_another(records):
    fits = 0
    for record, other in itertools.pairwise(records):
        for caption in record.captions:
            meaning = glyphs.parse_caption(caption)
            assert glyphs.WORLD.agrees(record.extra["scene"], meaning), caption
            fits += glyphs.WORLD.agrees(other.extra["scene"], meaning)
    assert fits <= 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"paper": "pink"}, "paper"),
        ({"lines": (("river", "red"),)}, "number"),
        ({"lines": (("407", "blue"), ("river", "red"))}, "text"),
        ({"lines": (("river", "black"), ("407", "blue"))}, "ink"),
        ({"lines": (("river", "red"), ("470", "blue"))}, "text"),
        ({"lines": (("river", "red"), ("407", "blue"), ("407", "blue"))}, "number"),
    ],
)
def test_one_wrong_thing_is_a_disagreement(change, reason):
    text = "a note on white paper that reads the word river in red, then the number 407 in blue"
    truth = {"paper": "white", "lines": (("river", "red"), ("407", "blue"))}
    meaning = glyphs.parse_caption(text)
    assert glyphs.WORLD.agrees(glyphs.Note(**truth), meaning)
    assert glyphs.difference(glyphs.Note(**truth | change), meaning) == reason
    assert reason in glyphs.WORLD.reasons and glyphs.named(meaning) == 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a note that reads",
        "a note that reads the word seven hundred",
        "a note that reads the word stream",
        "a note that reads the number 1000",
        "a note that reads the number 007",
        "a note that reads the number four hundred seven",
        "a note that reads the word river in green",
        "a blue sheet with one line: the word river",
        "a sheet with two lines: the word river",
        "a note that reads the word river then the word lake",
        "a note that reads " + ", then ".join(["the word river"] * 5),
    ],
)
def test_other_texts_mean_nothing(text):
    assert glyphs.parse_caption(text) is None


def test_numbers_are_spelled_in_one_way_each():
    assert [glyphs.spell(n) for n in (0, 13, 20, 21, 100, 407, 999)] == [
        "zero",
        "thirteen",
        "twenty",
        "twenty one",
        "one hundred",
        "four hundred and seven",
        "nine hundred and ninety nine",
    ]
    assert len({glyphs.spell(n) for n in range(1000)}) == 1000


def test_the_entropy_of_captions_is_that_of_their_frequencies():
    note = glyphs.Note("pink", (("41", "red"),))
    rng = np.random.default_rng(0)
    counts = collections.Counter(glyphs.caption(note, rng) for _ in range(8000))
    assert len(counts) == 3 * 2 * 2 * 2
    measured = -sum(c / 8000 * math.log2(c / 8000) for c in counts.values())
    measured += (len(counts) - 1) / (2 * 8000 * math.log(2))  # Miller and Madow
    assert abs(measured - glyphs.caption_entropy([note])) < 0.04
    two = glyphs.Note("pink", (("41", "red"), ("lake", "red")))
    more = glyphs.caption_entropy([two]) - glyphs.caption_entropy([note])
    assert more == pytest.approx(-0.8 * math.log2(0.8) - 0.2 * math.log2(0.2))
    assert glyphs.caption_entropy([note, two]) == pytest.approx(
        glyphs.caption_entropy([note]) + more / 2
    )


def test_held_out_lines_are_in_every_test_note_and_in_no_other(records, held_out_records):
    def held(record):
        return [glyphs.held_out(*line) for line in record.extra["scene"].lines]

    assert not any(any(held(record)) for record in records)
    assert all(any(held(record)) for record in held_out_records)
    share = np.mean([glyphs.held_out(text, ink) for text in glyphs.TEXTS for ink in glyphs.INKS])
    assert 0.08 < share < 0.12


def test_notes_follow_their_law(records):
    notes = [record.extra["scene"] for record in records]
    counts = np.bincount([len(note.lines) for note in notes], minlength=5)[1:]
    assert np.abs(counts / len(notes) - 0.25).max() < 0.08
    words = [text in glyphs.WORDS for note in notes for text, _ in note.lines]
    assert abs(np.mean(words) - glyphs.IS_WORD) < 0.05
    assert len(set(glyphs.WORDS)) == 64


@pytest.mark.parametrize("task", ["pair", "t2i", "i2t", "image", "text"])
def test_what_was_drawn_is_within_sampling_noise_of_the_true_law(records, task):
    pairs = [(r.extra["scene"], glyphs.parse_caption(r.captions[0])) for r in records]
    found = agreement.variation(glyphs.LAWS[task], pairs)
    for name, result in found.items():
        assert result["tv"] <= 0.005 + 3 * result["noise"] < 0.2, name
    assert set(found) >= {"number", "paper"}


def test_a_habit_shows_in_the_variation(records):
    plain = [glyphs.caption(r.extra["scene"], Always()) for r in records]
    pairs = [
        (r.extra["scene"], glyphs.parse_caption(text))
        for r, text in zip(records, plain, strict=True)
    ]
    found = agreement.variation(glyphs.LAWS["i2t"], pairs)
    assert found["number"]["tv"] == 0
    assert found["paper"]["tv"] == pytest.approx(0.3)  # always named
    assert found["template"]["tv"] == pytest.approx(1 - 0.4 * 0.7)


class Always:
    """Takes the first of every choice."""

    def random(self):
        return 0.0

    def choice(self, count, p):
        return 0


def test_a_given_part_is_kept_if_it_is_the_same_text(records):
    """Half of a line is enough to see that another digit, word, ink or paper stands there."""
    note = glyphs.Note("green", (("river", "brown"), ("407", "brown")))
    given = np.stack([glyphs.render(note, np.random.default_rng(0))] * 5)
    read = [
        note,
        glyphs.Note("green", (("river", "brown"), ("401", "brown"))),
        glyphs.Note("green", (("violin", "brown"), ("407", "brown"))),
        glyphs.Note("green", (("river", "brown"), ("407", "black"))),
        glyphs.Note("white", (("river", "brown"), ("407", "brown"))),
    ]
    free = np.zeros((5, 64, 64), bool)
    free[:, :, 32:] = True  # the right half, which is empty but for the end of "violin"
    pairs = [(scene, None) for scene in read]
    texts = [""] * 5
    kept, rates = agreement.consistency(glyphs.WORLD, pairs, texts, given, free, texts)
    assert kept.tolist() == [True, False, False, False, False]
    assert rates["image"]["rate"] == 0.2


def test_captions_are_long(records):
    lengths = [len(caption.split()) for record in records for caption in record.captions]
    assert np.mean(lengths) > 15 and max(lengths) > 35


def test_a_record_depends_on_split_seed_and_index_alone(records):
    source = sources.open_source("glyphs", "train", size=600, captions_per_image=2)
    np.testing.assert_array_equal(source[7].image, records[7].image)
    assert source[7].captions == records[7].captions
    other = sources.open_source("glyphs", "train", size=9, seed=1)
    assert other[7].captions[0] != records[7].captions[0] and other.name != source.name
    with pytest.raises(IndexError):
        source[600]


@pytest.mark.parametrize(
    ("paper", "lines"),
    [("blue", (("river", "red"),)), ("white", ()), ("white", (("rivers", "red"),))],
)
def test_impossible_notes_are_an_error(paper, lines):
    with pytest.raises(ValueError, match="expected a paper of white"):
        glyphs.Note(paper, lines)
