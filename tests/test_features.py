"""A run that is given features: numbers that are not tokens, and never generated."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_modalities
from tests.helpers import tiny
from udd_jax import build, generate, modalities, pipeline
from udd_jax.data import pixels, sources, token_cache
from udd_jax.data.reading import Views
from udd_jax.data.sources import readers, shapes
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, rules
from udd_jax.evaluation.report import rule_sections
from udd_jax.networks.denoiser import Denoiser
from udd_jax.runtime import sharding, trees
from udd_jax.steering import candidates
from udd_jax.tokenizers.feature_tokenizer import FeatureTokenizer
from udd_jax.training import further, train_diffusion

SHAPE = shapes.vectors.SHAPE


def config():
    c = tiny.config()
    with c.unlocked():
        c.modalities.vectors = {"kind": "features", "count": SHAPE[0], "width": SHAPE[1]}
        c.train.mixture = {"image|vectors": 0.5, "any": 0.3, "infill": 0.2}
    c.train.prefix_steps = 0
    c.diffusion.steps, c.sample.steps = 4, 2
    c.evaluate.update({"samples": 4, "batch_size": 4})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("features"), config())


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


@pytest.fixture(scope="module")
def records():
    return list(sources.open_source("shapes", "test", size=4, further=("vectors",)))


@pytest.fixture(scope="module")
def vectors(records):
    return np.stack([record.extra["vectors"] for record in records])


def test_features_keep_half_precision_and_say_what_they_expect():
    tokenizer = FeatureTokenizer(2, 3)
    values = np.random.default_rng(0).normal(0, 30, (4, 2, 3)).astype(np.float32)
    bits = tokenizer.encode(values)
    assert bits.shape == (4, 6) and bits.min() >= 0 and bits.max() < 2**16
    np.testing.assert_array_equal(tokenizer.decode(bits), values.astype(np.float16))
    for bad, message in (
        (values[:, :1], r"float32\[4, 1, 3\], expected float\[B, 2, 3\]"),
        (np.full((1, 2, 3), 1e5), "features beyond 65504 or not finite"),
        (np.full((1, 2, 3), np.nan), "not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(bad)


def test_vectors_of_shapes_tell_the_scene(records, vectors):
    assert shapes.vectors.read(vectors) == [record.extra["scene"] for record in records]
    assert vectors.shape == (4, *SHAPE) and set(np.unique(vectors)) == {0, 1}


def test_features_have_a_linear_map_and_no_classes_head_or_mask(pipe):
    (m,) = [m for m in pipe.vocab.modalities if m.inputs]
    assert (m.name, m.length, m.inputs, m.dropped) == ("vectors", 2, 16, build.DROPPED)
    names = {n: leaf.shape for n, leaf in trees.flatten(pipe.params).items() if "vectors" in n}
    own = {n: shape for n, shape in names.items() if n.startswith("embedding")}
    assert own == {"embedding/vectors_in/kernel": (16, 16), "embedding/vectors_position": (2, 16)}
    assert "vectors_head/kernel" not in names
    for name, leaf in trees.flatten(pipe.params).items():
        assert sharding.spec(name, leaf.shape) is not None


@pytest.mark.parametrize(
    "task, message",
    [
        ("vectors|image", r"generates 'vectors', which are features: put them behind the bar"),
        ("image,vectors", "which are features: put them behind the bar"),
    ],
)
def test_a_rule_that_generates_features_is_one_line(pipe, task, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate(task, 2)


def test_training_never_frees_features_and_drops_them_in_their_share(pipe):
    vocab = pipe.vocab
    m, where = vocab.index("vectors"), vocab.slices[vocab.index("vectors")]
    mixture = {"image|vectors": 0.5, "any": 0.3, "infill": 0.2}
    free = jax.jit(lambda key: tasks.draw(key, vocab, mixture, 4000).masks.free)(jax.random.key(0))
    assert not np.asarray(free[:, where]).any() and np.asarray(free).any(axis=1).all()
    one = jax.jit(lambda key: tasks.draw(key, vocab, {"image|vectors": 1.0}, 4000).masks)
    share = np.asarray(one(jax.random.key(1)).absent[:, m]).mean()
    assert abs(share - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 4000)
    present = jnp.ones((6, 3), bool).at[:, vocab.index("image")].set(False)
    masks = tasks.of_present(vocab, tasks.masks(vocab, "image|vectors", 6), present)
    assert not np.asarray(masks.free[:, where]).any()


def test_only_given_features_change_the_logits(pipe, vectors):
    vocab = pipe.vocab
    m = vocab.index("vectors")
    x = jnp.full((4, vocab.length), vocab.mask_id).at[:, vocab.slices[m]].set(vocab.offsets[m])
    free = jnp.broadcast_to(jnp.asarray(vocab.modality_of == 0)[None], x.shape)
    times = jnp.full((4, 3), 4).at[:, 0].set(2)

    @jax.jit
    def logits(values, t):
        features = tuple(values if modality.inputs else None for modality in vocab.modalities)
        return Denoiser(pipe.model, pipe.params, features=features)(x, t, free)

    given, absent = times.at[:, m].set(0), times
    plain = pipe.model.apply({"params": pipe.params}, x, absent, free)
    for other in (vectors, 1 - vectors):
        np.testing.assert_allclose(logits(other, absent)[0], plain[0], atol=1e-6)
    np.testing.assert_array_equal(logits(vectors, absent)[0], logits(1 - vectors, absent)[0])
    assert np.abs(logits(vectors, given)[0] - logits(1 - vectors, given)[0]).max() > 1e-4
    assert logits(vectors, given)[m].shape == (4, 2, 1)


def test_features_are_given_as_arrays_or_files_with_guidance_and_in_two_steps(
    run, pipe, vectors, tmp_path, monkeypatch
):
    one = pipe.generate("image|vectors", given={"vectors": vectors[0]}, num=2)
    assert len(one.images) == 2
    assert set(one.values) == {"image"}
    np.save(tmp_path / "a.npy", vectors[0])
    path = str(tmp_path / "a.npy")
    again = pipe.generate("image|vectors", given={"vectors": path}, num=2)
    np.testing.assert_array_equal(one.tokens, again.tokens)
    guided = pipe.generate("image|vectors", given={"vectors": vectors}, guidance=3.0)
    assert len(guided.images) == 4 and guided.branches == 2
    steps = pipe.generate("text,image|vectors", given={"vectors": vectors}, begin_with="text")
    assert len(steps.captions) == 4
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    flags = {"out": tmp_path / "out", "task": "image|vectors", "given": [f"vectors={path}"]}
    flags |= {"num": 2}
    out = generate.sample(run, types.SimpleNamespace(**test_modalities.DEFAULTS | flags))
    line = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert line["given"] == {"vectors": path} and line["image"] == "image-0000.png"


@pytest.mark.parametrize(
    "call, message",
    [
        ({"given": {"vectors": np.zeros((3, 3))}}, r"expected float\[B, 2, 16\]"),
        ({"given": {"vectors": "none.npy"}}, "none.npy is not an array of numbers"),
        (
            {"negative": {"vectors": np.zeros(SHAPE)}, "guidance": 2.0},
            "'vectors' are features, expected them in",
        ),
    ],
)
def test_features_that_do_not_fit_are_one_line(pipe, vectors, call, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate("image|vectors", **{"given": {"vectors": vectors}} | call)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"count": 2}, "modalities.vectors: count and width are missing, such as 1 and 512"),
        ({"count": 2, "width": 3, "rate": 1}, "modalities.vectors.rate is unknown"),
    ],
)
def test_a_bad_row_of_features_is_one_line(row, message):
    listed = {"image": {"kind": "image"}, "text": {"kind": "text"}}
    listed["vectors"] = {"kind": "features", **row}
    with pytest.raises(ValueError, match=message):
        modalities.rows({"modalities": listed, "text": {"length": 3}})


def test_stored_features_beyond_half_precision_are_a_fault_of_their_record():
    read = readers.of_features({"count": 2, "width": 3}, None).read
    assert read(np.full((2, 3), 60000.0)).shape == (2, 3)
    with pytest.raises(UserError, match="features beyond 65504 or not finite: scale them"):
        read(np.full((2, 3), 1e5))


def test_networks_that_do_not_take_features_are_one_line(pipe):
    c = config()
    c.model.block_attention = True
    with pytest.raises(ValueError, match=r"features with model.kind = .diffusion."):
        build.make_model(c, pipe.vocab)
    with pytest.raises(ValueError, match=r"score: task .* gives 'vectors', features"):
        pipe.score({"image": np.zeros((2, 16), int)}, task="image|vectors")


def test_the_cache_the_evaluation_and_the_report_keep_features(pipe, vectors, tmp_path):
    source = sources.open_source("shapes", "test", size=4, further=("vectors",))
    cache = token_cache.write_cache(
        source,
        pipe.codecs["image"].encode,
        lambda texts: pipe.codecs["text"].encode(texts, False),
        tmp_path / "tokens",
        settings={},
        views=Views(32),
        encode_further=further.encoders(pipe.config, pipe.tokenizers),
    )
    rows = cache.pairs([2, 0], [0, 0], [0, 0])
    whole = modalities.complete(pipe.config, pipe.vocab, rows, pipe.tokenizers["text"].pad_id)
    np.testing.assert_array_equal(whole["vectors"], vectors[[2, 0]])
    measured = pipe.with_config(evaluate={"rules": ("image|vectors",)})
    items = held_out.read(measured, 4)
    found = rules.measure(measured, items, tmp_path, {})
    assert found["image|vectors"]["agreement"]["count"] == 4
    page = rule_sections.show(tmp_path, {"rules": found}, pipe.config.to_dict())
    assert page.count("2 x 16 numbers") == 4


@pytest.mark.slow
def test_training_reaches_the_linear_map_and_accumulates(run, pipe, vectors, tmp_path):
    c = config()
    c.train.update({"steps": 2, "warmup": 1, "batch_size": 4, "accumulate": 2})
    c.train.update({"weight_decay": 0.0, "mixture": {"image|vectors": 1.0}})
    text = pipe.codecs["text"].encode(["a small red circle"] * 4, True)
    batch = {"image": np.zeros((4, 16), np.int32), "text": text}
    batch["vectors"] = pipe.codecs["vectors"].encode(vectors, True)
    given = (pipe.vocab, pipe.tokenizers["text"].pad_id, lambda step: batch)
    start = jax.device_get(pipe.params)
    params = train_diffusion.train(c, tmp_path, *given, held_out=batch, start=start)
    before = start["embedding"]["vectors_in"]["kernel"]
    assert np.abs(params["embedding"]["vectors_in"]["kernel"] - before).max() > 0


def test_rows_without_features_are_masks_and_carry_no_numbers(pipe, vectors):
    bits = pipe.codecs["vectors"].encode(vectors, True)
    bits[1] = 1  # the mask of a modality of one class, as batches write it
    tokens = {"image": np.zeros((4, 16), int), "text": np.zeros((4, 13), int), "vectors": bits}
    found = modalities.complete(pipe.config, pipe.vocab, tokens, 0)
    x = np.asarray(pipe.vocab.fuse(found))[:, pipe.vocab.slices[pipe.vocab.index("vectors")]]
    assert ((x == pipe.vocab.mask_id).all(axis=1) == [False, True, False, False]).all()
    values = next(v for v in pipe.vocab.features(found) if v is not None)
    np.testing.assert_array_equal(values, vectors * np.array([1, 0, 1, 1])[:, None, None])


def test_stored_data_have_references_and_features_as_files_with_their_names(vectors, tmp_path):
    c = config()
    with c.unlocked():
        c.modalities.first = {"like": "image"}
    c.data = f"folder:{tmp_path}"
    np.save(tmp_path / "a.vectors.npy", vectors[0])
    readers = modalities.source_options(c)["further"]
    assert set(readers) == {"first", "vectors"}
    np.testing.assert_array_equal(
        readers["vectors"].read((tmp_path / "a.vectors.npy").read_bytes()), vectors[0]
    )
    picture = shapes.arrays("test", 1)[0][0]
    pixels.write_png(tmp_path / "a.first.png", picture)
    read = readers["first"].read((tmp_path / "a.first.png").read_bytes())
    np.testing.assert_array_equal(read, picture)


def test_a_rule_that_is_given_features_has_no_other_direction(pipe):
    for rule in ("image|text,vectors", "image|vectors"):
        with pytest.raises(ValueError, match="has no other direction to rank candidates by"):
            candidates.directions(pipe, rule)


def test_features_that_are_absent_are_no_absent_condition(pipe):
    only = dict.fromkeys(pipe.config.train.mixture, 0.0)
    assert not pipe.with_config(train={"mixture": only | {"image,text": 1.0}}).guidable
    assert pipe.with_config(train={"mixture": only | {"image": 1.0}}).guidable
