"""The listener of stored sounds: tones with names, of which it hears the right one."""

import dataclasses
import pathlib
import types

import flax.linen as nn
import numpy as np
import pytest

from configs import speech as speech_config
from udd_jax import modalities
from udd_jax.data import sounds, sources, survey
from udd_jax.data.sources import listing
from udd_jax.diffusion.tasks import Rule
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.evaluation import held_out, listening, recognition, rules
from udd_jax.evaluation.metrics import intervals
from udd_jax.evaluation.report import rule_sections
from udd_jax.tokenizers.spectrogram import Spectrogram

NAMES = {"low": 300, "middle": 800, "high": 2000}
SAMPLES, RATE = 2048, 8000


def tone(name: str, phase: float) -> np.ndarray:
    time = np.arange(SAMPLES) / RATE
    return (0.5 * np.sin(2 * np.pi * (NAMES[name] * time + phase))).astype(np.float32)


def config(folder, listener=1):
    c = speech_config.get_config("smoke")
    c.data = f"folder:{folder}"
    c.data_options.size = None
    c.modalities.sound.update({"samples": SAMPLES, "bands": 16})
    c.evaluate.update({"listener": listener, "samples": 6})
    return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tones and their names, 7 for the training, 1 to validate and 2 held out; no pictures."""
    path = tmp_path_factory.mktemp("tones")
    for n in range(30):
        split = "test" if n >= 24 else "train" if n < 21 else "validation"
        name = list(NAMES)[n % 3]
        (path / split).mkdir(exist_ok=True)
        sounds.write_wav(path / split / f"{n:02}.wav", tone(name, n / 30), RATE)
        (path / split / f"{n:02}.txt").write_text(name.title())
    return path


class Ids:
    """A codec whose tokens are numbers of values."""

    def __init__(self, values):
        self.values = values

    def encode(self, values, strict=False):
        return np.array(
            [
                [next(i for i, v in enumerate(self.values) if np.array_equal(v, value))]
                for value in values
            ],
            np.int32,
        )

    def decode(self, ids):
        return [self.values[i] for i in ids[:, 0]]


@pytest.fixture(scope="module")
def pipe(folder):
    """What the evaluation needs of a pipeline; a token of a sound is the number of its file."""
    c = config(folder)
    settings = Spectrogram.of(c.modalities.sound.to_dict())
    files = sorted(folder.glob("test/*.wav"))
    waves = np.stack([sounds.fit(*sounds.read(f), RATE, SAMPLES) for f in files])
    codecs = {"sound": Ids(waves), "text": Ids([name.title() for name in NAMES])}
    codecs["sound"].decode = lambda ids: waves[ids[:, 0]]
    return types.SimpleNamespace(
        config=c,
        codecs=codecs,
        tokenizers={
            "sound": types.SimpleNamespace(settings=settings),
            "text": types.SimpleNamespace(pad_id=0),
        },
        vocab=Vocab((Modality("image", 1, 2), Modality("sound", 1, 6), Modality("text", 1, 3))),
    )


class Templates(nn.Module):
    """In place of a classifier: the nearest of some spectrograms. Training is in test_speech."""

    pictures: tuple

    def __call__(self, x):
        apart = (x[:, None] - np.array(self.pictures)[None, ..., None]) ** 2
        return x[:, 0, 0], -apart.sum(axis=(2, 3, 4))


@pytest.fixture(scope="module")
def listeners(pipe):
    """As of `listening.obtain`: it knows the three names."""
    known = sorted(NAMES)
    shown = pipe.tokenizers["sound"].settings.picture(np.stack([tone(n, 0) for n in known]))
    unit = np.round(shown[..., 0] / 127.5 - 1, 3)
    module = Templates(tuple(tuple(map(tuple, picture)) for picture in unit.tolist()))
    return {"sound": recognition.Recogniser(module, {}, known, frozenset(known))}


def test_records_without_pictures_are_read_for_what_a_rule_names(pipe):
    items = held_out.read(pipe, 4, names=("sound", "text"))
    assert len(items) == 4 and items.images is None and set(items.tokens) == {"sound", "text"}
    np.testing.assert_array_equal(items.tokens["sound"][:, 0], range(4))
    assert [texts[0] for texts in items.references] == ["Low", "Middle", "High", "Low"]
    assert not held_out.whole(pipe)
    assert items.hash != held_out.read(pipe, 4, names=("text",)).hash
    with pytest.raises(ValueError, match="no readable item that has image in split 'test'"):
        held_out.read(pipe, 4, names=("image",))


def test_the_listener_hears_held_out_tones(pipe, listeners):
    found = listening.ceilings(pipe, listeners)["sound"]
    assert found["names"] == 3
    assert found["real"]["rate"] == found["kept"]["rate"] == 1 and found["real"]["count"] == 6


def test_a_sample_is_right_if_its_sound_and_its_text_have_one_name(pipe, listeners):
    """Held-out sound n has name n % 3: of six generated ones, the last two are of other names."""
    items = held_out.read(pipe, 6, names=("sound", "text"))
    made = np.array([0, 1, 2, 3, 5, 4])[:, None]
    told = np.array([0, 1, 2, 1, 1, 2])[:, None]
    right = {
        Rule(("sound",), ("text",)): 4,  # the text is that of the record
        Rule(("text",), ("sound",)): 5,
        Rule(("sound", "text"), ()): 3,
    }
    for rule, count in right.items():
        local = {"sound": made if "sound" in rule.free else items.tokens["sound"]}
        local["text"] = told if "text" in rule.free else items.tokens["text"]
        rate = listening.agreement(pipe, items, rule, local, listeners)["agreement"]
        assert rate["rate"] * 6 == pytest.approx(count), rule
    assert listening.agreement(pipe, items, Rule(("sound",), ()), local, listeners) == {}


def test_a_text_that_is_no_name_is_wrong(pipe, listeners):
    items = held_out.read(pipe, 1, names=("sound", "text"))
    codecs = pipe.codecs | {"text": Ids(["loud"])}
    other = types.SimpleNamespace(config=pipe.config, codecs=codecs, tokenizers=pipe.tokenizers)
    local = {"sound": np.zeros((1, 1), int), "text": np.zeros((1, 1), int)}
    unknown = dataclasses.replace(items, references=[("loud",)])
    for rule, asked in (
        (Rule(("sound", "text"), ()), items),
        (Rule(("text",), ("sound",)), unknown),
    ):
        found = listening.agreement(other, asked, rule, local, listeners)
        assert found["agreement"]["rate"] == 0


def test_there_is_no_listener_unless_it_is_asked_for(pipe, tmp_path):
    off = types.SimpleNamespace(config=pipe.config.copy_and_resolve_references())
    off.config.evaluate.listener = 0
    assert listening.obtain(off, tmp_path) == {}


def test_captions_that_are_no_names_have_no_listener(pipe, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(recognition, "LEAST", 9)
    found = listening.obtain(pipe, tmp_path)
    assert isinstance(found["sound"], intervals.Unmeasured)
    told = listening.ceilings(pipe, found)["sound"]["unmeasured"]
    assert told.startswith("captions are not names: 3 of them for 21 training pictures, expected 9")


def test_rules_are_asked_of_records_that_have_what_they_name(folder):
    c = config(folder)
    options = modalities.source_options(c)
    data = {split: sources.open_source(c.data, split, **options) for split in listing.SPLITS}
    assert not survey.whole(data["test"]) and not survey.pictured(data["train"])
    assert survey.asked(data, "test", incomplete=True, rules=[("sound", "text")]) == 6
    with pytest.raises(ValueError, match="no record of the split test has all of image, sound,"):
        survey.asked(data, "test", incomplete=True, rules=[("image", "sound")])
    with pytest.raises(ValueError, match="has all of image, text, sound, 6 in all"):
        survey.asked(data, "test", incomplete=True)
    length = c.copy_and_resolve_references()
    with length.unlocked():
        length.modalities.length = {"kind": "length"}
        length.evaluate.rules = ("length|sound",)
    vocab = Vocab(tuple(Modality(n, 1, 3) for n in ("image", "length", "sound", "text")))
    assert rules.named(length, vocab) == [("text", "sound")]


def test_the_report_says_how_well_the_listener_hears():
    rate = {"rate": 0.75, "error": 0.1, "count": 4}
    result = {"rules": {"sound|text": {"count": 4, "given_tokens_changed": 0, "agreement": rate}}}
    result["listener"] = {"sound": {"names": 3, "real": rate, "kept": rate}}
    c = speech_config.get_config().to_dict()
    shown = rule_sections.show(pathlib.Path("/nowhere"), result, c)
    assert "knows 3 names" in shown and "one scene" not in shown and "75" in shown
