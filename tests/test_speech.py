"""Recordings of spoken words (`benchmarks speech`), and the config that learns them."""

import shutil

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import speech
from configs import speech as speech_config
from tests.helpers import tiny
from udd_jax import build, stages
from udd_jax.data import sounds
from udd_jax.evaluation.report import report
from udd_jax.runtime import files
from udd_jax.training import plan

spoken = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
COUNTS = {"train": 6, "validation": 3, "test": 4}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """(folder, {split: its voices})"""
    folder = tmp_path_factory.mktemp("speech") / "data"
    return folder, speech.make(folder, COUNTS)


def test_speakers_are_in_one_split_with_all_their_variants():
    voices = [*(f"{name}{n}" for name in "abcdefghijklm" for n in (1, 2)), "steph", "steph2", "Ed"]
    found = speech.of_splits(voices)
    assert sorted(v for own in found.values() for v in own) == sorted(voices)
    assert all(found.values())
    whose = {v: split for split, own in found.items() for v in own}
    assert whose["steph"] == whose["steph2"]
    assert len({speech.family(v) for v in ("f1", "f2", "m1")}) == 3


@spoken
def test_a_recording_is_a_second_of_a_word_by_a_voice_of_its_split(recordings):
    folder, found = recordings
    assert not set(found["train"]) & set(found["test"])
    for split, count in COUNTS.items():
        for number in range(count):
            sound, rate = sounds.read(folder / split / f"{number:06}.wav")
            assert (len(sound), rate) == (8000, 8000)
            heard = np.flatnonzero(abs(sound) > 0.02)
            assert heard[0] >= speech.LEAD and 0.39 < abs(sound).max() < 0.91
            assert 1200 < heard[-1] - heard[0] < 7600  # no word is shorter than 150 ms
            word = (folder / split / f"{number:06}.txt").read_text()
            assert word == speech.WORDS[number] + "\n"


@spoken
def test_the_same_seed_gives_the_same_recordings(recordings, tmp_path):
    speech.make(tmp_path / "again", {"train": 2, "validation": 0, "test": 0})
    for name in ("000000.wav", "000001.wav"):
        first = (recordings[0] / "train" / name).read_bytes()
        assert (tmp_path / "again" / "train" / name).read_bytes() == first


@spoken
def test_a_word_that_is_too_long_is_spoken_faster():
    long, short = (speech.speak("seven", "f2", "en-us", 50, speed, 0.5) for speed in (60, 150))
    assert np.flatnonzero(long)[-1] > np.flatnonzero(short)[-1]
    with pytest.raises(ValueError, match="takes more than a second as en-us"):
        speech.speak("seven " * 9, "f2", "en-us", 50, 100, 0.5)


@spoken
def test_recordings_are_not_mixed_with_other_files(recordings):
    with pytest.raises(SystemExit, match=r"error: .*data has files already: choose another --out="):
        benchmarks.main(["speech", f"--out={recordings[0]}"])


def test_without_the_program_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: .* need the program espeak-ng: apt install esp"):
        benchmarks.main(["speech", f"--out={tmp_path / 'out'}"])


def test_the_sounds_of_the_config_are_64_codes_and_its_image_is_one():
    vocab = plan.vocab_of(speech_config.get_config())
    assert {m.name: m.length for m in vocab.modalities} == {"image": 1, "sound": 64, "text": 4}


@pytest.mark.slow
def test_sounds_and_captions_without_pictures_go_through_the_whole_job(tmp_path, capsys):
    """Tones with names, 12 and 3: the tokenizers, the diffusion, the listener, the report."""
    for n in range(15):
        word, folder = ("low", "high")[n % 2], tmp_path / "in" / ("test" if n >= 12 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        sound = 0.5 * np.sin(2 * np.pi * (1 + n % 2) * 300 * np.arange(4000 + 100 * n) / 8000)
        sounds.write_wav(folder / f"{n:02}.wav", sound, 8000)
        (folder / f"{n:02}.txt").write_text(word)
    c = tiny.shrink(speech_config.get_config("smoke"), 4, 2)
    c.data = f"folder:{tmp_path / 'in'}"
    c.data_options.update({"size": None, "validation": 0.0})
    small = {"steps": 2, "plain_steps": 1, "warmup": 1, "batch_size": 4}
    c.vq.update(small)
    c.modalities.sound.vq.update({"steps": 2, "plain_steps": 1})
    c.modalities.sound.vq.model.update({"n_embed": 12, "ch": 8})
    c.train.update({"steps": 3, "warmup": 1, "batch_size": 8})
    c.evaluate.update({"samples": 3, "batch_size": 3, "listener": 1})
    stages.run(c, tmp_path / "run")
    said = capsys.readouterr().out
    assert "has a picture, so it is not trained" in said
    result = files.read_json(tmp_path / "run" / "evaluation.json")
    assert result["scores"] == {} and result["errors"] == []
    assert set(result["rules"]) == set(speech_config.BOTH)
    assert all(rates["agreement"]["count"] == 3 for rates in result["rules"].values())
    assert result["listener"]["sound"]["names"] == 2
    page = (tmp_path / "run" / report.FILE).read_text()
    assert "knows 2 names" in page and "<audio" in page and "Images and, beside" not in page
    before = (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns
    stages.evaluate_run(tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns == before
    vocab = build.make_vocab(c, build.load_tokenizers(tmp_path / "run"))
    assert [m.length for m in vocab.modalities] == [1, 64, 4]
