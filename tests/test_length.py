"""A run whose texts have a length as a modality: counted, given, drawn first, shown."""

import json
import types

import jax
import numpy as np
import pytest

from tests import test_modalities
from tests.helpers import tiny
from udd_jax import build, generate, modalities, pipeline
from udd_jax.data import pixels
from udd_jax.data.sources import shapes
from udd_jax.diffusion import tasks
from udd_jax.evaluation import held_out, rules
from udd_jax.evaluation.report import rule_sections
from udd_jax.steering import lengths as cuts
from udd_jax.training import plan, train_diffusion

M = 13


def config():
    c = tiny.config()
    with c.unlocked():
        c.modalities.length = {"kind": "length"}
        c.train.mixture = {"length|image": 0.2, "text|image,length": 0.4, "any": 0.4}
    c.diffusion.steps, c.sample.steps = 4, 2
    c.evaluate.update({"samples": 4, "batch_size": 4})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("length"), config())


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


@pytest.fixture(scope="module")
def images():
    return shapes.arrays("test", 4)[0]


def padding(pipe, result):
    """bool[n, M] of the generated texts."""
    text = np.asarray(pipe.vocab.split(result.tokens)["text"])
    return text == pipe.tokenizers["text"].pad_id


def test_a_length_is_one_position_with_a_class_for_each_length():
    (_, length, _), vocab = plan.vocab_of(config()).modalities, plan.vocab_of(config())
    assert (length.name, length.length, length.classes) == ("length", 1, M + 1)
    assert vocab.index("length") == 1


def test_lengths_are_counted_in_the_text_and_absent_where_it_is(pipe):
    text = pipe.codecs["text"].encode(["a small red circle", "a circle"], True)
    lacking = np.full((1, M), pipe.tokenizers["text"].vocab_size)
    tokens = {"text": np.concatenate([text, lacking]), "image": np.zeros((3, 16), int)}
    found = modalities.complete(pipe.config, pipe.vocab, tokens, pipe.tokenizers["text"].pad_id)
    words = [len(row[row != pipe.tokenizers["text"].pad_id]) for row in text]
    assert found["length"].tolist() == [[words[0]], [words[1]], [M + 1]]
    assert int(pipe.vocab.fuse(found)[2, 16]) == pipe.vocab.mask_id
    assert modalities.stored(pipe.config) == () and modalities.further(pipe.config) == ("length",)
    assert modalities.complete(tiny.config(), pipe.vocab, tokens, 0) == tokens


def test_a_head_and_a_modality_of_one_name_are_one_line(pipe):
    c = config()
    c.model.length_head = True
    with pytest.raises(ValueError, match=r"model.length_head and a modality called length"):
        build.make_model(c, pipe.vocab)


def test_beyond_a_given_length_a_text_is_padding(pipe, images):
    lengths = [3, 0, M, 5]
    made = pipe.generate("text|image,length", given={"image": images, "length": lengths})
    assert made.values["length"].tolist() == lengths
    beyond = np.arange(M)[None] >= np.maximum(lengths, 1)[:, None]
    assert padding(pipe, made)[beyond].all()
    given = {"length": np.array(lengths)[:, None]}
    _, masks = cuts.cut(pipe, given, tasks.masks(pipe.vocab, "text|image,length", 4))
    free = masks.free[:, pipe.vocab.slices[pipe.vocab.index("text")]]
    assert free.sum(axis=1).tolist() == [3, 1, M, 5]
    plain = pipe.generate("text|image", given={"image": images})
    assert not padding(pipe, plain)[beyond].all()


def test_a_length_that_is_drawn_first_is_the_rule_in_two_steps(pipe, images):
    both = pipe.generate(
        "length,text|image", given={"image": images[:2]}, num=2, begin_with="length", seed=5
    )
    lengths = both.values["length"]
    assert lengths.shape == (4,) and set(both.values) == {"image", "length", "text"}
    given = {"image": np.repeat(images[:2], 2, axis=0), "length": lengths}
    again = pipe.generate("text|image,length", given=given, seed=5)
    np.testing.assert_array_equal(both.tokens, again.tokens)
    beyond = np.arange(M)[None] >= np.maximum(lengths, 1)[:, None]
    assert padding(pipe, both)[beyond].all()


def test_both_steps_are_guided_and_weighed(pipe, images):
    """The second step alone may be given what the first one generates."""
    asked = {"negative": {"image": images[:1]}, "weigh": {"image": 2.0}, "guidance": 3.0}
    keys = pipeline.sample_keys(5, 2)
    first = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
    drawn = pipe.generate("length|image", given={"image": images[1:3]}, keys=first, **asked)
    given = {"image": images[1:3], "length": drawn.values["length"]}
    asked["weigh"] = asked["weigh"] | {"length": 0.5}
    rest = pipe.generate("text|image,length", given=given, seed=5, **asked)
    given, task = {"image": images[1:3]}, "length,text|image"
    both = pipe.generate(task, given=given, begin_with="length", seed=5, **asked)
    np.testing.assert_array_equal(both.tokens, rest.tokens)


def test_image_to_text_draws_its_length_from_the_modality(pipe, images):
    made = pipe.image_to_text(images, length="drawn", seed=3)
    first = pipe.generate("length|image", given={"image": images}, seed=3).values["length"]
    beyond = np.arange(M)[None] >= np.maximum(first, 1)[:, None]
    assert padding(pipe, made)[beyond].all() and len(made.captions) == 4


def test_lengths_of_the_last_pictures_are_those_of_the_whole_call(pipe, images):
    whole = pipe.image_to_text(images, length="drawn", seed=3)
    last = pipe.image_to_text(images[2:], length="drawn", seed=3, first=2)
    np.testing.assert_array_equal(last.tokens, whole.tokens[2:])


def test_each_picture_can_have_a_length_of_its_own(pipe, images):
    each = np.array([3, 1, 13, 5])
    made = pipe.image_to_text(images, length=each.tolist(), num=2, seed=3)
    beyond = np.arange(M)[None] >= np.repeat(each, 2)[:, None]
    np.testing.assert_array_equal(padding(pipe, made) & beyond, beyond)
    alike = pipe.image_to_text(images, length=5, num=2, seed=3)
    np.testing.assert_array_equal(made.tokens[6:], alike.tokens[6:])
    weighed = {"image": [0.5, 1.0, 2.0, 1.0]}
    made = pipe.image_to_text(images, length=5, num=2, seed=3, weigh=weighed)
    np.testing.assert_array_equal(made.tokens[6:], alike.tokens[6:])
    assert (made.tokens[:2] != alike.tokens[:2]).any() and (
        made.tokens[4:6] != alike.tokens[4:6]
    ).any()


@pytest.mark.parametrize("length", [0, 14, 2.5, None, "long", [3, 4], [3, 4, 5, 14], []])
def test_a_length_for_captions_of_pictures_that_cannot_be_is_one_line(pipe, images, length):
    with pytest.raises(ValueError, match=r"length = .*, expected 1 to 13 tokens, one number"):
        cuts.inputs(pipe, images, length)


@pytest.mark.parametrize(
    "call, message",
    [
        ({"given": {"length": 14}}, "lengths are 14 to 14, expected 0 to 13 tokens"),
        ({"given": {"length": [3, float("inf")]}}, "length .*, expected whole numbers of tokens"),
        ({"given": {"length": [True]}}, "length .*, expected whole numbers of tokens"),
        ({"given": {"length": "long"}}, "length str 'long', expected whole numbers"),
        ({"given": {"length": [3, 2.5]}}, r"length list '\[3, 2.5\]', expected whole numbers"),
        (
            {"begin_with": "length"},
            r"begin_with 'length': task 'text\|length' can begin with image",
        ),
        ({"begin_with": "text"}, "begin_with 'text': expected some, and not all"),
    ],
)
def test_a_length_that_cannot_be_is_one_line(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate("text|length", **{"given": {"length": 3}} | call)


def test_lengths_are_typed_and_written(run, pipe, images, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    pixels.write_png(tmp_path / "a.png", images[0])

    def sample(**typed):
        flags = types.SimpleNamespace(**test_modalities.DEFAULTS | {"out": tmp_path / "a"} | typed)
        lines = (generate.sample(run, flags) / "samples.jsonl").read_text().splitlines()
        return json.loads(lines[-1])

    line = sample(task="text|length", given=["length=4"])
    assert line["given"] == {"length": "4"} and isinstance(line["caption"], str)
    given = [f"image={tmp_path}/a.png"]
    line = sample(task="length,text|image", given=given, begin_with="length")
    assert 0 <= line["length"] <= M and line["begin_with"] == "length"


def test_the_evaluation_and_the_report_know_lengths(pipe, tmp_path):
    items = held_out.read(pipe, 4)
    pad_id = pipe.tokenizers["text"].pad_id
    np.testing.assert_array_equal(items.tokens["length"][:, 0], (items.ids != pad_id).sum(1))
    asked = ("length|image", "text|image,length")
    measured = pipe.with_config(evaluate={"rules": asked})
    found = rules.measure(measured, items, tmp_path, {})
    assert "agreement" not in found[asked[0]] and found[asked[1]]["agreement"]["count"] == 4
    page = rule_sections.show(tmp_path, {"rules": found}, pipe.config.to_dict())
    assert page.count(" tokens</p>") == 8


@pytest.mark.slow
def test_the_training_counts_the_lengths_of_its_batches(run, pipe, tmp_path):
    c = config()
    c.train.update({"steps": 2, "warmup": 1, "batch_size": 4, "prefix_steps": 0})
    text = pipe.codecs["text"].encode(["a small red circle"] * 4, True)
    batch = {"image": np.zeros((4, 16), np.int32), "text": text}
    params = train_diffusion.train(
        c, tmp_path, pipe.vocab, pipe.tokenizers["text"].pad_id, lambda step: batch, held_out=batch
    )
    assert params["length_head"]["kernel"].shape == (16, M + 1)
    assert build.load_tokenizers(run)["length"].codes == M + 1
