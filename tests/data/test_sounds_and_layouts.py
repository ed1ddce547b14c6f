"""Sound files and layout files."""

import json

import numpy as np
import pytest
from PIL import Image

from udd_jax.data import layouts, pixels, sounds
from udd_jax.errors import UserError


def test_a_wav_file_comes_back_within_its_16_bits(tmp_path):
    sound = np.float32(0.5 * np.sin(np.arange(800) / 9))
    sounds.write_wav(tmp_path / "a.wav", sound, 8000)
    read, rate = sounds.read(tmp_path / "a.wav")
    assert rate == 8000 and read.dtype == np.float32
    np.testing.assert_allclose(read, sound, atol=2**-15)
    assert sounds.data_uri(sound, 8000).startswith("data:audio/wav;base64,UklGR")


def test_another_rate_keeps_the_pitch_and_a_short_sound_ends_in_silence():
    sound = np.sin(2 * np.pi * 440 * np.arange(22050) / 22050)
    fitted = sounds.fit(sound, 22050, 8000, 8192)
    assert fitted.shape == (8192,) and not fitted[8010:].any()
    assert abs(np.fft.rfft(fitted[:8000])).argmax() == 440
    assert len(sounds.fit(sound, 22050, 8000, 100)) == 100


def test_a_picture_of_ids_has_one_number_a_pixel_of_any_size(tmp_path):
    wide = np.uint16([[0, 300], [70, 65535]])
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert layouts.read(tmp_path / "wide.png").tolist() == wide.tolist()
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "two.png")
    assert layouts.read(tmp_path / "two.png").tolist() == [[1, 0]]
    Image.new("RGB", (2, 2)).save(tmp_path / "colours.png")
    with pytest.raises(UserError, match="mode RGB, expected one number a pixel"):
        layouts.read(tmp_path / "colours.png")


def test_what_is_no_sound_is_one_line(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFFhello")
    with pytest.raises(ValueError, match=r"a\.wav is not a sound that can be read"):
        sounds.read(path)
    with pytest.raises(FileNotFoundError):
        sounds.read(tmp_path / "b.wav")


def test_a_header_in_which_fuzzing_found_a_stream_without_an_end_is_refused():
    content = b"RIFF\xa4\0\0\xa9WAVEfmt \x10\0\0\0@\0\1\0\1\x1f\0\0\x80>\0\0\2\0\x10\0data\0l"
    with pytest.raises(UserError, match="a file of 42 bytes is not a sound that can be read"):
        sounds.read(content)


def test_a_layout_is_read_from_json_npy_and_a_picture_of_ids(tmp_path):
    layout = np.array([[0, 1, 2], [3, 0, 1]], np.int32)
    layouts.write(tmp_path / "a.json", layout)
    np.save(tmp_path / "a.npy", layout)
    pixels.Image.fromarray(layout.astype(np.uint8)).save(tmp_path / "a.seg.png")
    for name in ("a.json", "a.npy", "a.seg.png"):
        np.testing.assert_array_equal(layouts.read(tmp_path / name), layout)
        np.testing.assert_array_equal(layouts.read((tmp_path / name).read_bytes()), layout)
    assert json.loads((tmp_path / "a.json").read_text()) == layout.tolist()
    np.testing.assert_array_equal(layouts.fit(layout.repeat(4, 0).repeat(2, 1), (2, 3)), layout)


@pytest.mark.parametrize(
    "text, message", [("[[0.5]]", r"float64\[1, 1\], expected int"), ("[[1", "is not a layout")]
)
def test_what_is_no_layout_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        layouts.read(tmp_path / "a.json")


@pytest.mark.parametrize("content", (b"RIFF0000WAVE", b""))
def test_a_file_of_another_kind_is_no_layout_and_is_named(tmp_path, content):
    (tmp_path / "w.wav").write_bytes(content)
    wanted = r"w\.wav is not a layout: expected JSON, \.npy or a picture of ids$"
    with pytest.raises(ValueError, match=wanted):
        layouts.read(tmp_path / "w.wav")


def test_each_id_has_its_colour():
    shown = layouts.picture(np.array([[0, 3], [1, 0]]))
    assert shown.shape == (16, 16, 3)
    assert (shown[:8, 8:] == layouts.COLOURS[3]).all()
    assert (shown[8:, :8] == layouts.COLOURS[1]).all()


def test_one_id_is_a_layout_of_one_cell(tmp_path):
    (tmp_path / "a.json").write_text("3\n")
    for source in (tmp_path / "a.json", b"3\n"):
        np.testing.assert_array_equal(layouts.read(source), [[3]])
    np.testing.assert_array_equal(layouts.check(3), [[3]])
