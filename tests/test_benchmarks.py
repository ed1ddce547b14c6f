"""The table of `python -m benchmarks`, at a size where everything takes milliseconds."""

import json

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import data, sizes, timing, training
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
    assert report["found"] and report["device"] == "cpu" and len(report["commit"]) == 40
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
