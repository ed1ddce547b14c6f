"""Sounds as pictures of one channel, and layouts as ids: there and back."""

import dataclasses

import numpy as np
import pytest

from udd_jax.data.sources import shapes
from udd_jax.data.sources.shapes import sounds
from udd_jax.tokenizers import image_tokenizer, spectrogram, vqgan
from udd_jax.tokenizers.embedding_tokenizer import EmbeddingTokenizer
from udd_jax.tokenizers.layout_tokenizer import LayoutTokenizer
from udd_jax.tokenizers.sound_tokenizer import SoundTokenizer

SMALL = spectrogram.Spectrogram(rate=1000, samples=512, bands=12, hop=32, window=128, high=500.0)
TONES = spectrogram.Spectrogram(hop=512, scale="log", low=180.0, high=3800.0)  # as configs/any.py


def sine(frequency, settings=SMALL, amplitude=0.5):
    time = np.arange(settings.samples) / settings.rate
    return np.float32(amplitude * np.sin(2 * np.pi * frequency * time))[None]


@pytest.mark.parametrize("frequency", (75, 140, 333))
def test_a_sine_comes_back_with_its_peak_in_the_same_bin_and_as_loud(frequency):
    settings = dataclasses.replace(SMALL, bands=40, low=20.0)
    heard = spectrogram.griffin_lim(settings, settings.picture(sine(frequency)))
    peak = [abs(np.fft.rfft(s[0])).argmax() for s in (heard, sine(frequency))]
    assert heard.shape == (1, 512) and abs(peak[0] - peak[1]) <= 1  # bins of 2 Hz
    assert abs(heard[0, 128:-128].std() / 0.354 - 1) < 0.25


def test_a_full_sine_is_at_0_dB_and_silence_is_black():
    picture = SMALL.picture(np.concatenate([sine(250, amplitude=1.0), sine(0)]))
    assert picture.shape == (2, 12, 16, 1) and picture.dtype == np.uint8
    assert picture[0, :, 4:-4].max(0).min() >= 235 and not picture[1].any()
    louder, softer = (SMALL.picture(sine(250, amplitude=a)).astype(int) for a in (0.4, 0.2))
    change = (louder - softer)[0, softer[0, :, 8, 0].argmax(), 8, 0]
    assert abs(change - 255 * 6.02 / 60) <= 1  # twice the amplitude is 6 dB of the 60


def test_sounds_of_another_length_have_no_picture():
    assert SMALL.picture(np.zeros((2, 512))).shape == (2, 12, 16, 1)
    with pytest.raises(ValueError, match=r"shape \(2, 511\), expected 512 samples each"):
        SMALL.picture(np.zeros((2, 511)))


def test_the_sounds_of_shapes_are_heard_right_after_the_vocoder():
    records = list(shapes.source("train", 8, senses=("sound",)))
    played = np.stack([record.extra["sound"] for record in records])
    heard = sounds.read(spectrogram.griffin_lim(TONES, TONES.picture(played)))
    truth = [sounds.told(record.extra["scene"]) for record in records]
    assert sum(h == t for h, t in zip(heard, truth, strict=True)) == 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bands": 0}, "bands = 0, expected at least 1"),
        ({"scale": "bark"}, "scale = 'bark', expected one of mel, log"),
        ({"samples": 500}, "samples = 500, hop = 32, window = 128: expected samples a multiple"),
        ({"high": 900.0}, "expected 0 <= low < high <= 500 Hz"),
        ({"bands": 200}, "of 200 bands lie between two bins of the window 128"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


class Same:
    """An image tokenizer whose codes are the pixels."""

    shape, grid, codes, hash = (12, 16, 1), (12, 16), 256, "same"
    encode = staticmethod(lambda images: images.reshape(len(images), -1).astype(np.int32))
    decode = staticmethod(lambda codes: codes.reshape(-1, 12, 16, 1).astype(np.uint8))


def test_another_vocoder_takes_the_place_of_griffin_lim():
    tokenizer = SoundTokenizer(SMALL, Same())
    ids = tokenizer.encode(sine(200))
    np.testing.assert_array_equal(ids.reshape(12, 16), SMALL.picture(sine(200))[0, ..., 0])
    mine = dataclasses.replace(tokenizer, vocoder=lambda s, p: np.full((len(p), s.samples), 0.25))
    assert (mine.decode(ids) == 0.25).all() and (tokenizer.decode(ids) != 0.25).any()
    assert mine.hash == tokenizer.hash
    with pytest.raises(ValueError, match=r"float32\[1, 100\], expected float\[B, 512\] at 1000 Hz"):
        tokenizer.encode(sine(200)[:, :100])
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="sounds have numbers that are not finite: leave them"):
            tokenizer.encode(np.where(np.arange(512) == 7, np.float32(number), sine(200)))
    with pytest.raises(ValueError, match=r"\(40, 16\) bands and frames, .* \(12, 16, 1\)"):
        SoundTokenizer(dataclasses.replace(SMALL, bands=40, low=20.0), Same())


@pytest.mark.parametrize("changes", [{"floor": -80.0}, {"low": 20.0}, {"scale": "log", "low": 9.0}])
def test_the_hash_of_sounds_tells_any_change_of_settings_or_of_the_tokenizer(changes):
    class Other(Same):
        hash = "other"

    first = SoundTokenizer(SMALL, Same())
    assert SoundTokenizer(dataclasses.replace(SMALL), Same()).hash == first.hash
    assert SoundTokenizer(dataclasses.replace(SMALL, **changes), Same()).hash != first.hash
    assert SoundTokenizer(SMALL, Other()).hash != first.hash


def test_the_hash_of_embeddings_tells_any_change_of_a_codebook():
    books = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    first, other = EmbeddingTokenizer(books), books.copy()
    other[1, 2, 3] = np.nextafter(other[1, 2, 3], np.float32(0))
    assert EmbeddingTokenizer(np.asfortranarray(books)).hash == first.hash
    assert EmbeddingTokenizer(other).hash != first.hash
    assert EmbeddingTokenizer(books[::-1]).hash != first.hash


def test_the_hash_of_layouts_tells_any_change_of_the_grid_or_the_categories():
    known = {
        LayoutTokenizer(grid, codes).hash for grid in ((2, 3), (3, 2), (2, 4)) for codes in (4, 5)
    }
    assert len(known) == 6 and LayoutTokenizer((2, 3), 4).hash in known


def test_a_layouts_ids_are_its_tokens():
    tokenizer, maps = LayoutTokenizer((2, 3), 4), np.arange(12).reshape(2, 2, 3) % 4
    assert tokenizer.encode(maps).tolist() == [[0, 1, 2, 3, 0, 1], [2, 3, 0, 1, 2, 3]]
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(maps)), maps)
    with pytest.raises(ValueError, match="ids 0 to 5, expected 0 to 3"):
        tokenizer.encode(np.arange(6).reshape(1, 2, 3))
    with pytest.raises(ValueError, match=r"int64\[1, 3, 2\], expected int\[B, 2, 3\]"):
        tokenizer.encode(np.zeros((1, 3, 2), int))


def test_a_tokenizer_of_colour_pictures_keeps_its_settings_and_hash():
    colour = image_tokenizer._settings(vqgan.VQGAN(resolution=8))
    assert "channels" not in colour and colour["resolution"] == 8
    assert image_tokenizer._settings(vqgan.VQGAN(channels=1))["channels"] == 1
    wide = vqgan.VQGAN(resolution=(16, 8), patch=4, ch_mult=(1,), channels=1)
    assert wide.grid == (4, 2) and wide.size == (16, 8)
