"""A run with an embedding: residual codes of a vector, generated first, then the picture."""

import json
import types

import numpy as np
import pytest

from tests import test_modalities
from tests.helpers import tiny
from udd_jax import build, generate, modalities, pipeline, values
from udd_jax.data import sources
from udd_jax.data.sources import shapes
from udd_jax.evaluation import held_out, rules
from udd_jax.evaluation.report import rule_sections
from udd_jax.tokenizers import embedding_tokenizer
from udd_jax.training import further, plan

E, R, K = 32, 3, 8


def config():
    c = tiny.config()
    with c.unlocked():
        c.modalities.summary = {
            "kind": "embedding",
            **{"dimensions": E, "residuals": R, "codes": K, "vectors": 60},
        }
        c.train.mixture = {"summary|text": 0.3, "image|summary,text": 0.5, "any": 0.2}
    c.diffusion.steps, c.sample.steps = 4, 2
    c.evaluate.update({"samples": 4, "batch_size": 4})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The codebooks are those of the trainer."""
    folder, c = tmp_path_factory.mktemp("embedding"), config()
    data = {"train": sources.open_source("shapes", "train", size=80, further=("summary",))}
    further.make_tokenizer(c, "summary", folder, data)
    return tiny.make(folder, c)


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


def test_residual_codes_take_up_what_those_before_them_leave():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 5)).astype(np.float32)
    tokenizer = embedding_tokenizer.fit(vectors, R, K)
    ids = tokenizer.encode(vectors)
    assert ids.shape == (200, R) and tokenizer.codebooks.shape == (R, K, 5)
    errors, rest = [], vectors
    for i, book in enumerate(tokenizer.codebooks):  # a slow twin
        nearest = ((rest[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(ids[:, i], nearest)
        rest = rest - book[nearest]
        errors.append((rest**2).sum(1).mean())
    assert errors[1] < 0.8 * errors[0] and errors[2] < 0.8 * errors[1]
    np.testing.assert_allclose(tokenizer.decode(ids), vectors - rest, atol=1e-5)
    masked = np.concatenate([ids[:, :2], np.full((200, 1), K)], axis=1)
    np.testing.assert_allclose(
        tokenizer.decode(masked),
        tokenizer.decode(ids) - tokenizer.codebooks[2][ids[:, 2]],
        atol=1e-5,
    )


def test_a_tokenizer_of_embeddings_is_a_file_of_the_run_and_of_its_export(run, pipe, tmp_path):
    assert modalities.tokenizer_files(pipe.config)[1] == "summary/tokenizer"
    again = build.load_tokenizers(run)["summary"]
    assert again.hash == pipe.tokenizers["summary"].hash
    pipe.save_pretrained(tmp_path / "out")
    other = pipeline.Pipeline.from_pretrained(tmp_path / "out")
    assert other.vocab == pipe.vocab and other.tokenizers["summary"].hash == again.hash
    (m,) = [m for m in plan.vocab_of(config()).modalities if m.name == "summary"]
    assert (m.length, m.classes) == (R, K)


def test_the_embedding_is_generated_first_and_then_the_picture(pipe):
    asked = {"given": {"text": "a small red circle"}, "num": 3, "seed": 2}
    made = pipe.generate("image,summary|text", begin_with="summary", **asked)
    assert made.values["summary"].shape == (3, E) and len(made.images) == 3
    ids = np.asarray(pipe.vocab.split(made.tokens)["summary"])
    given = {"text": ["a small red circle"] * 3, "summary": ids}
    again = pipe.generate("image|summary,text", given=given, seed=2)
    np.testing.assert_array_equal(made.tokens, again.tokens)


def test_embeddings_are_read_and_written_as_files(run, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    flags = {"task": "summary,image|text", "given": ["text=a red circle"], "out": tmp_path / "a"}
    flags |= {"begin_with": "summary"}
    out = generate.sample(run, types.SimpleNamespace(**test_modalities.DEFAULTS | flags))
    line = json.loads((out / "samples.jsonl").read_text())
    assert line["summary"] == "summary-0000.npy" and line["image"] == "image-0000.png"
    path = str(out / "summary-0000.npy")
    assert np.load(path).shape == (E,)
    made = pipe.generate("image|summary", given={"summary": path}, num=2)
    assert len(made.images) == 2


@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((2, 5)), r"embeddings are float64\[2, 5\], expected float\[B, 32\]"),
        (np.full((1, E), np.nan), "embeddings have numbers that are not finite"),
        ("gone.npy", "gone.npy is not an array of numbers"),
    ],
)
def test_an_embedding_that_does_not_fit_is_one_line(pipe, value, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate("image|summary", given={"summary": value})


def test_a_list_of_numbers_is_an_embedding(pipe):
    for row in (np.linspace(-1, 1, E), np.ones(E, int)):
        expected = pipe.codecs["summary"].encode(row[None], True)
        for given in (row.tolist(), [row.tolist()], tuple(row)):
            np.testing.assert_array_equal(values.ids(pipe, "summary", given), expected)


def test_too_few_embeddings_for_the_codes_are_one_line():
    with pytest.raises(ValueError, match="7 embeddings for 8 codes, expected as many at least"):
        embedding_tokenizer.fit(np.zeros((7, 3)), 1, 8)


def test_summaries_tell_their_scene_and_noise_tells_none(pipe, tmp_path):
    scenes = [r.extra["scene"] for r in shapes.source("test", 30)]
    told = np.stack([shapes.vectors.summary(scene) for scene in scenes])
    assert shapes.vectors.read(told + 0.2) == scenes
    assert shapes.vectors.read(np.full((1, E), 0.4)) == [None]
    measured = pipe.with_config(evaluate={"rules": ("summary|text", "image|summary")})
    items = held_out.read(measured, 4)
    found = rules.measure(measured, items, tmp_path, {})
    assert found["summary|text"]["agreement"]["count"] == 4
    page = rule_sections.show(tmp_path, {"rules": found}, pipe.config.to_dict())
    assert page.count("32 numbers") == 8
