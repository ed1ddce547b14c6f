"""A run with two references, never trained: from the config to files, weights and the report."""

import copy
import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import weighing
from configs import compose as compose_config
from tests import test_modalities
from tests.helpers import tiny
from udd_jax import build, generate, modalities, pipeline, stages
from udd_jax.data import pixels, sources
from udd_jax.data.sources.shapes import compose
from udd_jax.data.sources.shapes.scenes import Scene
from udd_jax.diffusion import tasks, vocab
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, rules
from udd_jax.evaluation.metrics import agreement
from udd_jax.evaluation.report import rule_sections
from udd_jax.networks import dual_encoder, matching
from udd_jax.runtime import files
from udd_jax.steering import lengths, segments
from udd_jax.training import further, plan

RULE, NAMES = compose_config.RULE, ("first", "image", "second", "text")
TEXT = "the colour of the first and the shape of the second"


def config():
    c = tiny.shrink(compose_config.get_config("smoke"), 4, 2)
    c.evaluate.update({"samples": 4, "batch_size": 4})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("compose"), config())


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


@pytest.fixture(scope="module")
def records():
    return list(sources.open_source("compose", "test", size=4, further=("first", "second")))


def given(records):
    found = {n: np.stack([r.extra[n] for r in records]) for n in ("first", "second")}
    return found | {"text": [r.captions[0] for r in records]}


def test_the_full_config_plans_references_without_classes_of_their_own():
    vocab = plan.vocab_of(compose_config.get_config())
    assert [m.name for m in vocab.modalities] == list(NAMES)
    assert [m.like for m in vocab.modalities] == ["image", "", "image", ""]
    assert vocab.size == vocab.modalities[1].classes + vocab.modalities[3].classes + 1
    assert modalities.token_weights(compose_config.get_config()) == {}


def test_references_have_the_tokenizer_of_the_image_and_no_file(run, pipe, records, tmp_path):
    assert pipe.tokenizers["first"] is pipe.tokenizers["second"] is pipe.tokenizers["image"]
    assert modalities.tokenizer_files(pipe.config) == [build.IMAGE, build.TEXT]
    encode = further.encoders(pipe.config, pipe.tokenizers)
    pictures = [r.extra["first"] for r in records]
    np.testing.assert_array_equal(
        encode["first"](pictures), pipe.codecs["image"].encode(np.stack(pictures))
    )
    again = further.make_tokenizer(pipe.config, "first", run, {})
    assert again.hash == pipe.tokenizers["image"].hash
    pipe.save_pretrained(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*tokenizer*"))) == 1
    assert pipeline.Pipeline.from_pretrained(tmp_path / "out").vocab == pipe.vocab


def test_references_get_the_tokenizer_of_the_image(pipe):
    mine = copy.copy(pipe.tokenizers["image"])
    found = pipe.with_tokenizer("image", mine).tokenizers
    assert all(found[name] is mine for name in ("image", "first", "second"))
    assert found["text"] is pipe.tokenizers["text"]


def test_weights_of_1_are_off_bit_for_bit_and_of_0_leave_the_references_out(pipe, records):
    asked = given(records)
    make = lambda asked, **options: pipe.generate(RULE, given=asked, **options)  # noqa: E731
    plain, one = make(asked), make(asked, weigh={"first": 1.0, "text": [1, 1, 1, 1]})
    np.testing.assert_array_equal(plain.tokens, one.tokens)
    masks = tasks.masks(pipe.vocab, RULE, 4)  # the programs are the same: no bias at all
    assert segments.read(pipe, {"first": 1.0, "text": [1, 1, 1, 1]}, masks, 4, 4) is None
    assert plain.images.shape == (4, 32, 32, 3)
    other = asked | {n: 255 - asked[n] for n in ("first", "second")}
    none = {"first": 0, "second": 0}
    a, b = make(asked, weigh=none), make(other, weigh=none)
    image = pipe.vocab.slices[1]
    np.testing.assert_array_equal(a.tokens[:, image], b.tokens[:, image])
    half = make(asked, weigh={"first": [0, 1, 1, 1], "second": 3.0})
    assert (half.tokens[:, pipe.vocab.slices[0]] == plain.tokens[:, pipe.vocab.slices[0]]).all()


def test_guidance_and_weights_go_together_and_references_are_free_if_asked(pipe, records):
    asked = given(records[:2])
    found = pipe.generate(RULE, given=asked, weigh={"second": 0.5}, guidance=2.0)
    assert found.branches == 2 and len(found.images) == 2
    both = pipe.generate("first,image|second", given={"second": asked["second"]})
    assert both.values["first"].shape == both.images.shape


@pytest.mark.parametrize(
    "weigh, message",
    [
        ({"smell": 1.0}, "weigh 'smell': it is not given in the task, expected first, second, t"),
        ({"image": 0.5}, "weigh 'image': it is not given"),
        ({"first": -1}, "weigh 'first': -1, expected finite numbers, at least 0"),
        ({"first": "much"}, "weigh 'first': 'much', expected finite"),
        ({"first": [1, 0.5]}, "weigh 'first': 2 weights, and 4 values are given"),
        ({"first": [1, 0.5, 1]}, "weigh 'first': 3 weights, and 4 values are given: exp"),
    ],
)
def test_a_bad_weight_is_one_line(pipe, records, weigh, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate(RULE, given=given(records), weigh=weigh)


def sample(run, out, **typed):
    defaults = test_modalities.DEFAULTS | {"out": out, "task": RULE} | typed
    return generate.sample(run, types.SimpleNamespace(**defaults))


def test_references_and_weights_are_typed_as_flags(run, pipe, records, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    paths = {n: tmp_path / f"{n}.png" for n in ("first", "second")}
    for name, path in paths.items():
        pixels.write_png(path, records[0].extra[name])
    typed = [*(f"{n}={path}" for n, path in paths.items()), f"text={TEXT}"]
    out = sample(run, tmp_path / "a", given=typed, weigh=["first=0.5", "second=2"], num=2)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["image-0000.png", "image-0001.png"]
    assert lines[0]["given"] == {n: str(p) for n, p in paths.items()} | {"text": TEXT}
    assert lines[0]["weigh"] == ["first=0.5", "second=2"]
    ours = {n: pixels.read(p) for n, p in paths.items()} | {"text": TEXT}
    same = pipe.generate(RULE, given=ours, num=2, weigh={"first": 0.5, "second": 2})
    np.testing.assert_array_equal(pixels.read(out / "image-0001.png"), same.images[1])
    for weigh, message in (
        (["first"], "--weigh=first, expected NAME=WEIGHT such as text=0.5"),
        (["first=.5", "second=1", "first=3"], "--weigh=first=3: first has a weight already, expec"),
        (["third=1"], "weigh 'third': it is not given"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(run, tmp_path / "b", given=typed, weigh=weigh)
    with pytest.raises(ValueError, match="--given first= means nothing for --task=infill"):
        sample(run, tmp_path / "b", task="infill", given=[typed[0], "text=a ___"])
    assert not (tmp_path / "b").exists()


def test_the_report_shows_references_and_counts_what_the_law_allows(pipe, tmp_path):
    items = held_out.read(pipe, 4)
    measured = pipe.with_config(evaluate={"rules": (RULE,)})
    found = rules.measure(measured, items, tmp_path, {})[RULE]
    assert found["count"] == 4 and found["given_tokens_changed"] == 0
    page = rule_sections.show(tmp_path, {"rules": {RULE: found}}, pipe.config.to_dict())
    assert page.count("first, given") == page.count("image, generated") == 4
    read = {name: rules._truth(pipe, items, name, 4) for name in NAMES}
    assert rules._agree(items.world, read) == [True] * 4
    read["first"] = read["second"]
    assert not all(rules._agree(items.world, read))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"like": "smell"}, "modalities.first.like = 'smell', expected one of image, text"),
        ({"like": "second"}, "modalities.first.like = 'second', expected one of image, text"),
        ({"like": "image", "grid": 3}, "modalities.first.grid with like: expected some of like, s"),
        ({"like": "image", "segment": "A"}, "modalities.first.segment = 'A': expected small"),
    ],
)
def test_a_reference_to_nothing_is_one_line(row, message):
    c = config().to_dict()
    c["modalities"]["first"] = row
    with pytest.raises(ValueError, match=message):
        modalities.rows(c)


def test_shared_positions_are_refused_where_each_modality_has_its_own_attention():
    c = config()
    with c.unlocked():
        for name in ("first", "second"):
            c.modalities[name].segment = "seen"
    vocab = plan.vocab_of(c)
    assert build.make_model(c, vocab).vocab.modalities[0].place == "seen"
    c.model.attention = "mutual"
    with pytest.raises(ValueError, match=r"model.attention = .mutual. has weights of its own"):
        build.make_model(c, vocab)


def test_the_shares_of_a_weight_count_only_what_differs(records):
    """Pictures of the first reference have all of the first; what is equal counts for none. One
    picture is one share."""
    scenes = [r.extra["scene"] for r in records]
    first = [compose.Composition(Scene((scene.references[0],))) for scene in scenes]
    found = weighing.shares(scenes, first)
    differ = sum(scene.references[0] != scene.references[1] for scene in scenes)
    assert found["first"] == agreement.rate([True] * differ)
    assert found["second"] == agreement.rate([False] * differ)
    found = weighing.shares(scenes, [None] * len(scenes))
    assert found["first"]["rate"] == found["second"]["rate"] == found["readable"]["rate"] == 0
    assert found["first"]["count"] == differ


def test_a_row_for_each_weight_is_written(run, tmp_path, capsys):
    more = ["--weights=0,2", "--count=3", f"--out={tmp_path}/rows.json"]
    benchmarks.main(["weighing", f"--run={run}", *more])
    rows = files.read_json(tmp_path / "rows.json")
    assert [row["weight"] for row in rows] == [0, 2] and rows[1]["readable"]["count"] == 3
    assert capsys.readouterr().out.startswith("weight 0: first 0.")
    with pytest.raises(UserError, match="expected one of first, second"):
        weighing.run(run, RULE, [1], "third", 3, 0)


@pytest.mark.slow
def test_the_main_job_learns_from_references_from_data_to_report(tmp_path):
    c = config()
    c.data_options.size = 32
    c.vq.update({"steps": 4, "plain_steps": 1, "warmup": 1, "pictures": 32, "batch_size": 8})
    c.train.update({"steps": 4, "warmup": 1, "batch_size": 8, "held_out": 4, "save_every": 2})
    c.evaluate.bound_samples = 4
    stages.run(c, tmp_path)
    result = files.read_json(tmp_path / "evaluation.json")
    assert set(result["rules"]) == set(c.evaluate.rules) and result["errors"] == []
    assert result["rules"][RULE]["given_tokens_changed"] == 0
    assert "Any from any" in (tmp_path / "report.html").read_text()

    # From the checkpoint after half of the steps, the training ends with the same weights.
    weights = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "000000004")
    assert (tmp_path / "checkpoints" / "000000002").exists()
    stages.run(c, tmp_path)
    assert (tmp_path / "weights").read_bytes() == weights


def test_the_dual_encoder_of_another_run_steers_the_image_and_no_reference(pipe, records):
    two = vocab.Vocab(tuple(pipe.vocab.modalities[pipe.vocab.index(n)] for n in ("image", "text")))
    model = dual_encoder.DualEncoder(
        two, pipe.config.diffusion.steps, pipe.tokenizers["text"].pad_id, width=8, layers=1
    )
    hashes = {n: pipe.tokenizers[n].hash for n in ("image", "text")}
    matcher = matching.Matcher(model, dual_encoder.init(model, jax.random.key(0)), hashes)
    score = dataclasses.replace(pipe, matcher=matcher).scorer("match", TEXT)
    tokens = tuple(
        jax.nn.one_hot(np.zeros((1, m.length), int), m.classes) for m in pipe.vocab.modalities
    )
    grads = jax.grad(lambda x: score(x, None, np.ones(1)).sum())(tokens)
    moved = {m.name: bool(np.any(g)) for m, g in zip(pipe.vocab.modalities, grads, strict=True)}
    assert moved == {name: name == "image" for name in moved}


def test_a_drawn_length_is_read_from_the_image_wherever_it_stands(pipe, records, monkeypatch):
    headed = dataclasses.replace(pipe, model=pipe.model.clone(length_head=True))
    seen, length = [], pipe.vocab.modalities[pipe.vocab.index("text")].length
    log_p = lambda *asked: seen.append(asked[3]) or np.zeros((len(asked[3]), length + 1))  # noqa: E731
    monkeypatch.setattr(lengths, "_log_p", log_p)
    codes = pipe.tokenizers["image"].encode(np.stack([record.image for record in records]))
    drawn = lengths.draw(headed, codes, seed=0)
    assert drawn.shape == (len(records),) and 1 <= drawn.min() <= drawn.max() <= length
    found = pipe.vocab.local(pipe.vocab.index("image"), seen[0])
    np.testing.assert_array_equal(found, codes)


def test_a_weight_for_each_given_value_counts_in_both_steps(pipe, records):
    asked, options = given(records), {"num": 2, "seed": 4}
    weights = jnp.asarray([0.25, 1, 2, 0.5])
    begun = pipe.generate(
        "image,text|first,second",
        given={n: asked[n] for n in ("first", "second")},
        begin_with=["image"],
        weigh={"first": weights},
        **options,
    )
    plain = pipe.generate(
        "image,text|first,second",
        given={n: asked[n] for n in ("first", "second")},
        begin_with=["image"],
        **options,
    )
    assert len(begun.images) == 8 and (begun.tokens != plain.tokens).any()
    assert (begun.tokens[2:4] == plain.tokens[2:4]).all()  # a weight of 1
