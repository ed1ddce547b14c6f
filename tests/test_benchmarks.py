"""The table of `python -m benchmarks`, at a size where everything takes milliseconds."""

import json
import types

import jax
import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import (
    compiling,
    data,
    devices,
    options,
    sizes,
    steering,
    timing,
    training,
    weighing,
    words,
)
from configs import t2i
from udd_jax import pipeline
from udd_jax.data.sources.shapes import compose
from udd_jax.data.sources.shapes.scenes import Object, Scene
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, scores
from udd_jax.evaluation.metrics import agreement
from udd_jax.runtime import provenance
from udd_jax.training import plan


def by_hand(p) -> int:
    """FLOPs of a forward pass of the tiny size for one sample, product by product."""
    assert [(m.length, m.classes) for m in p.vocab.modalities] == [(16, 31), (5, 37)]
    n, m, d = 16, 5, 32
    products = [(n + m, d, d)] * 4 + [(n + m, d, n + m), (n + m, n + m, d)]  # self-attention
    products += [(n, d, d)] * 2 + [(m, d, d)] * 2 + [(n, d, m), (n, m, d)]  # image from text
    products += [(m, d, d)] * 2 + [(n, d, d)] * 2 + [(m, d, n), (m, n, d)]  # text from image
    products += [(n + m, d, 4 * d), (n + m, 4 * d, d), (n, d, 31), (m, d, 37)]  # MLP, heads
    return sum(2 * a * b * c for a, b, c in products)


def test_flops_are_those_of_a_count_by_hand_and_the_bulk_of_what_jax_counts():
    p = sizes.parts(sizes.tiny())
    assert plan.forward_flops(p.config, p.vocab) == by_hand(p)
    step = 3 * by_hand(p) * p.config.train.batch_size
    assert step < training.analysed_flops(p) < 1.25 * step


def test_the_published_sizes_are_those_of_the_paper_and_of_its_small_copy():
    small, paper = (sizes.parts(sizes.SIZES[name]()) for name in ("small", "paper"))
    assert [(m.length, m.classes) for m in small.vocab.modalities] == [(256, 1024), (64, 1024)]
    assert [(m.length, m.classes) for m in paper.vocab.modalities] == [(1024, 2887), (128, 8192)]
    assert (small.model.layers, small.model.width, small.model.heads) == (6, 256, 8)
    assert (small.config.train.batch_size, small.model.dtype) == (4, np.float32)


def test_times_are_taken_in_turn_and_compared_within_a_round(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(timing, "_now", lambda: np.array([clock[0], 2 * clock[0]]))

    def program(name, seconds):
        def run():
            order.append(name)
            # The machine is three times as slow from the third round on.
            clock[0] += seconds * (3 if order.count("a") > 4 else 1)

        return run

    times = timing.rounds({"a": program("a", 4), "b": program("b", 10)}, program("product", 2), 4)
    assert order == ["product"] * 2 + ["a"] * 2 + ["b"] * 2 + ["product", "a", "product", "b"] * 4
    row = timing.row("b", times["b"])
    assert row["products"] == row["processor_products"] == 5 and row["spread"] > 0.5
    assert timing.row("", times["b"] - times["a"])["products"] == 3
    assert row["seconds"] == 20 and row["processor"] == 40


def run(tmp_path, *arguments) -> dict:
    """The rows of one run, by name."""
    out = tmp_path / "rows.json"
    options = ["--sizes=tiny", "--repeats=1", "--side=64", f"--out={out}"]
    assert benchmarks.main([*options, *arguments]) == 0
    (report,) = json.loads(out.read_text())
    assert report["found"] and report["device"] == "cpu" and report["commit"] == provenance.commit()
    return {row["name"].strip(): row for row in report["rows"]}


KEPT = (("network", "given"), ("the same", "kept"))


@pytest.mark.slow
def test_a_reverse_step_is_split_into_the_network_and_the_rest(tmp_path, capsys):
    rows = run(tmp_path, "--only=reverse")
    steps = ["reverse step, top_r 0.88", "reverse step, not truncated"]
    kept = [f"{a}, {m} {b}" for m in ("image", "text") for a, b in KEPT]
    assert set(rows) == {"matrix product", "network", "the rest", *steps, *kept}
    assert rows[steps[0]]["flops"] == 4 * by_hand(sizes.parts(sizes.tiny()))
    assert abs(rows["network"]["share"] + rows["the rest"]["share"] - 1) < 1e-9
    printed = capsys.readouterr().out
    assert all(f"\n{step}" in printed for step in steps) and "products" in printed


def test_a_train_step_takes_its_batch_in_the_parts_of_the_config():
    c = sizes.tiny()
    c.train.accumulate = 3
    p = sizes.parts(c)
    step, state = training.make_step(p)
    with pytest.raises(
        UserError, match=r"batch_size = 4 is not a multiple of train.accumulate = 3"
    ):
        jax.eval_shape(step, state, p.batch, jax.random.key(0))


@pytest.mark.long
def test_a_train_step_is_split_into_its_parts(tmp_path):
    rows = run(tmp_path, "--only=train")
    parts = ["network forward", "network backward", "loss arithmetic", "optimiser", "data"]
    assert list(rows) == ["matrix product", "train step", *parts]
    step = rows["train step"]
    assert step["seconds"] > 0 and step["flops"] == 12 * by_hand(sizes.parts(sizes.tiny()))
    assert all("share" in rows[part] for part in parts)


def test_what_cannot_be_measured_is_said(capsys):
    with pytest.raises(SystemExit):
        benchmarks.main(["--sizes=huge"])
    assert "expected some of tiny, shapes, small, paper" in capsys.readouterr().err


def test_the_input_pipeline_is_compared_with_pillow_alone():
    rows = {row["name"]: row for row in data.rows(repeats=1, count=4, items=40)}
    assert list(rows)[:2] == ["Pillow alone, images", "reading.examples, images"]
    assert rows["reading.examples, images"]["of_pillow"] > 0
    assert rows["batches of 64, pairs"]["per_core_second"] > 0


def test_rows_are_kept_after_each_and_starts_come_before_jax_starts(tmp_path, monkeypatch):
    order, out, found = [], tmp_path / "rows.json", jax.devices

    def starts(size, platform):
        order.append((size, platform))
        yield {"name": "cold start"}
        if platform == "gpu":
            raise RuntimeError("no such platform")

    def measure(asked, platform, device, begun):
        yield "tiny", begun["tiny"][0]
        raise ValueError("stopped")

    def look(platform):
        order.append(platform)
        if platform == "gpu":
            raise RuntimeError("none")
        return found(platform)

    monkeypatch.setattr(compiling, "rows", starts)
    monkeypatch.setattr(benchmarks, "measure", measure)
    monkeypatch.setattr(jax, "devices", look)
    asked = ["--sizes=tiny", "--only=start", f"--out={out}"]
    with pytest.raises(ValueError, match="stopped"):
        benchmarks.main([*asked, "--on=gpu,cpu"])
    assert order == [("tiny", "gpu"), ("tiny", "cpu"), "gpu", "cpu"]
    missing, report = json.loads(out.read_text())
    assert missing == {"on": "gpu", "found": False}
    assert report["rows"] == [{"of": "tiny", "name": "cold start"}]
    monkeypatch.setattr(jax, "devices", found)
    monkeypatch.setattr(compiling, "rows", lambda size, platform: starts(size, "gpu"))
    with pytest.raises(RuntimeError, match="no such platform"):  # of a platform that is there
        benchmarks.main([*asked, "--on=cpu"])


def test_the_peak_of_a_start_is_counted_as_everywhere(monkeypatch):
    class Compiled:
        def memory_analysis(self):
            return types.SimpleNamespace(argument_size_in_bytes=0, temp_size_in_bytes=0)

        def __call__(self, state, *arguments):
            return state, {}

    step = types.SimpleNamespace(lower=lambda *asked: types.SimpleNamespace(compile=Compiled))
    config = types.SimpleNamespace(train=types.SimpleNamespace(optimiser="muon"))
    p = types.SimpleNamespace(batch={}, config=config)
    monkeypatch.setattr(sizes, "parts", lambda config: p)
    monkeypatch.setattr(training, "make_step", lambda p: (step, 0))
    monkeypatch.setattr(provenance, "peak_gib", lambda: 1.25)
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    assert compiling.start("tiny")["peak_gib"] == 1.25


def test_the_commit_is_that_of_the_package_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: "c0ffee-dirty")
    monkeypatch.chdir(tmp_path)
    assert devices.surroundings(jax.devices()[0])["commit"] == "c0ffee-dirty"


def test_what_a_user_can_mend_is_one_line_of_every_command(tmp_path):
    missing = tmp_path / "missing"
    message = rf"^error: {missing}/evaluation.json does not exist: expected the folder of an ev\S+"
    with pytest.raises(SystemExit, match=message) as end:
        benchmarks.main(["promise", str(missing)])
    assert isinstance(end.value.code, str)  # which Python prints, and exits with 1


def test_a_field_that_the_config_does_not_have_is_named():
    c = t2i.get_config()
    options.change(c, ["train.steps=7", "data=folder:x"])
    assert (c.train.steps, c.data) == (7, "folder:x")
    for text, message in (
        ("train.stepz=7", "^--set=train.stepz is not a field of the config: configs/base.py has"),
        ("trian.steps=7", "^--set=trian.steps is not a field"),
        ("train.steps=many", "^--set=train.steps='many': "),
    ):
        with pytest.raises(UserError, match=message):
            options.change(c, [text])


def test_the_attributes_of_one_picture_are_one_share():
    """Of two pictures one has all four attributes of the first reference, the other two of each."""
    a, b = Object("circle", "red", "small", 0), Object("square", "blue", "large", 3)
    scene = compose.Composition(Scene((a,)), references=(a, b))
    mixed = Object("circle", "red", "large", 3)
    seen = [compose.Composition(Scene((thing,))) for thing in (a, mixed)]
    found = weighing.shares([scene, scene], seen)
    assert found["first"] | {"error": None} == {"rate": 0.75, "error": None, "count": 2}
    # The variance of 1 and .5 is .25^2; Wilson's error, as of `agreement.rate`.
    assert found["first"]["error"] == pytest.approx((0.25**2 / 2 + 1 / 16) ** 0.5 / 1.5)
    assert found["second"]["rate"] == 0.25
    assert weighing.mean([1.0, 0.0, 1.0]) == agreement.rate([True, False, True])


@pytest.mark.parametrize("count", [1, 3])
def test_upscaling_asks_for_as_many_pictures_as_a_large_one_shows(monkeypatch, count):
    items = [None] * count
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda folder: None)
    monkeypatch.setattr(held_out, "read", lambda pipe, count: items)
    monkeypatch.setattr(scores, "require_world", lambda items, name: None)
    with pytest.raises(SystemExit, match=f"^error: --count={count}: {count} held-out pictures, ex"):
        benchmarks.main(["upscaling", "--run=somewhere", f"--count={count}"])


def test_words_of_any_number_of_pairs_are_measured_and_hardly_any_left_out():
    for count in (1, 7, 63, 64, 65, 192, 250, 301):
        size = words.batch_size(count)
        assert 1 <= size <= 64 and count % size < -(-count // 64)
    assert words.learned({"hidden:relation": 0.05}, 0.1)
    assert not words.learned({"hidden:relation": 0.2}, 0.1)
    assert not words.learned({}, 0.1)  # no pair has a relation


def test_steering_without_a_world_is_a_line_for_each_part(tmp_path, monkeypatch, capsys):
    def match(pipe, items):
        raise UserError("this run has no dual encoder")

    monkeypatch.setattr(pipeline.Pipeline, "load", lambda folder: None)
    monkeypatch.setattr(steering.suite, "match", match)
    best = lambda pipe, items, *rest: ({"agrees": 1.0}, {})  # noqa: E731
    monkeypatch.setattr(steering.suite, "best_of", best)
    out, picture = tmp_path / "a.json", tmp_path / "a.svg"
    for world in (None, types.SimpleNamespace(name="drawn", steering=None)):
        items = types.SimpleNamespace(world=world)
        monkeypatch.setattr(held_out, "read", lambda pipe, count, items=items: items)
        asked = ["steering", "--run=x", f"--plot={picture}", f"--out={out}"]
        assert benchmarks.main(asked) == 0
        found, said = json.loads(out.read_text()), capsys.readouterr().out
        unknown = {"unmeasured": steering.KNOWN}
        assert [found[name] for name in ("edits", "painted", "scorers")] == [unknown] * 3
        assert found["best_of"] == ({"agrees": 1.0} if world else unknown)
        assert found["match"] == {"unmeasured": "this run has no dual encoder"}
        assert not picture.exists() and "a.svg is not written: no scorer was measured" in said


@pytest.mark.long
def test_pairs_are_counted_and_a_warm_start_hardly_compiles(tmp_path, tiny_run, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # of the processes that it starts
    options = ["--only=pairs,start", f"--run={tiny_run}", "--samplers=,maskgit:2", "--count=3"]
    rows = run(tmp_path, *options)
    assert rows["3 pairs, maskgit:2"]["calls"] == 2
    assert rows["3 pairs, as the run does it"]["pairs_a_second"] > 0
    cold, warm = rows["cold start"], rows["warm start"]
    assert warm["compile_seconds"] < 0.5 * cold["compile_seconds"]
    assert cold["peak_gib"] > cold["state_gib"] >= cold["counted_gib"] > 0
