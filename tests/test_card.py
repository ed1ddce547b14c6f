"""`python -m benchmarks card`, `table` and `calls`: rows, what goes wrong, once all of it."""

import dataclasses
import os
import subprocess
import sys
import time

import jax
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import calls, card, card_parts, tables
from configs import t2i
from tests.helpers import quick
from udd_jax import build, pipeline
from udd_jax.errors import UserError
from udd_jax.runtime import files

FINE = {"ms": 2.0}
ABOUT = {"size": "toy", "commit": "c0ffee", "device": "cpu", "data": ""}
SHARES = {"numerics": 8, "train": 2, "sampling": 5, "data": 5}


def begin(part, asked):
    """Parts that fail in every way, and one that does not."""
    folder = asked.out

    def measured(name):
        (folder / name).write_text(f"{time.time()}")
        return dict(FINE)

    def failing():
        if (folder / "mended").exists():
            return dict(FINE)
        raise ValueError("too large\nfor this machine")

    return {
        "numerics": lambda: {"good": lambda: measured("good"), "bad": failing},
        "train": lambda: {"first": lambda: measured("first"), "long": lambda: time.sleep(60)},
        "sampling": lambda: {"dead": lambda: os._exit(3)},
        "data": lambda: 1 / 0,
    }[part]()


@pytest.mark.filterwarnings("ignore:os.fork")
def test_what_fails_is_recorded_the_others_go_on_and_good_rows_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(card_parts, "begin", begin)
    monkeypatch.setattr(card, "LEAST", 0.01)
    asked = card_parts.Asked("toy", tmp_path, "")
    report = card.run(tmp_path, 0.3, SHARES, asked, ABOUT)
    assert report == files.read_json(tmp_path / card.FILE)
    parts = report["parts"]
    assert parts["numerics"]["good"].pop("took") >= 0 and parts["numerics"]["good"] == FINE
    assert parts["numerics"]["bad"]["failed"] == "ValueError: too large"
    assert set(parts["train"]) == {"first", "long"} and parts["train"]["first"]["ms"] == 2.0
    assert parts["train"]["long"]["failed"].startswith("ran out of its")
    assert parts["sampling"] == {"dead": {"failed": "the process ended with code 3"}}
    assert parts["data"]["all"]["failed"] == "ZeroDivisionError: division by zero"

    (tmp_path / "mended").write_text("")
    before = (tmp_path / "good").read_text()
    again = card.run(tmp_path, 0.3, {"numerics": 1}, asked, ABOUT)["parts"]
    assert again["numerics"]["bad"]["ms"] == 2.0 and (tmp_path / "good").read_text() == before
    assert again["sampling"] == parts["sampling"]  # what was not asked for stays
    for name, value in ABOUT.items():
        message = f"is of {name} {value}, and here it is other: choose another --out"
        with pytest.raises(UserError, match=message):
            card.run(tmp_path, 1, SHARES, asked, ABOUT | {name: "other"})


def test_a_card_is_of_one_commit_device_and_data(monkeypatch):
    monkeypatch.setattr(card.provenance, "commit", lambda: "c0ffee")
    asked = card_parts.Asked("toy", None, "folder:drawings")
    found = {"size": "toy", "commit": "c0ffee", "device": "cpu", "data": "folder:drawings"}
    assert card.origin(asked) == found
    monkeypatch.setattr(card, "KIND", "raise RuntimeError('no such platform')")
    with pytest.raises(UserError, match=r"^JAX finds no device: RuntimeError: no such platform$"):
        card.origin(asked)


def test_no_part_is_started_without_time(tmp_path):
    report = card.run(tmp_path, 1e-4, {"train": 1}, card_parts.Asked("toy", tmp_path, ""), ABOUT)
    assert "of the minutes were left" in report["parts"]["train"]["start"]["failed"]


def test_the_tables_have_the_best_row_the_aim_and_what_was_not_measured(tmp_path, capsys):
    rows = {
        "cudnn, batch 64": {"ms": 100.0, "pairs_a_second": 640.0, "mfu": 0.41},
        "cudnn, batch 128": {"ms": 190.0, "pairs_a_second": 674.0, "mfu": 0.43, "plan_gib": 9.5},
        "cudnn, batch 256": {"failed": "RESOURCE_EXHAUSTED"},
    }
    data = {"batches of 64, pairs": {"per_second": 1348.0}}
    report = {"size": "paper", "parts": {"train": rows, "data": data, "emoji": {}}}
    files.write_json(tmp_path / card.FILE, report)
    assert benchmarks.main(["table", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "| | ms | pairs a second | mfu | plan gib |" in text
    assert "| cudnn, batch 64 | 100 | 640 | 41.0% |  |" in text
    assert "- cudnn, batch 256: not measured (RESOURCE_EXHAUSTED)" in text
    assert "- best: cudnn, batch 128, MFU 43.0% (aim 50%)" in text
    assert "Token cache: 2.0 times what the fastest step takes." in text
    assert text.strip() == tables.markdown(report).strip()


def test_bad_arguments_are_refused_before_any_work(tmp_path, capsys):
    for asked in (["--minutes=0"], ["--only=everything"], ["--size=huge"]):
        with pytest.raises(SystemExit):
            benchmarks.main(["card", f"--out={tmp_path / 'new'}", *asked])
    assert "expected some of machine, numerics, train" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def toy(folder, cache, *parts) -> dict:
    """The parts of the card at toy size, without cuDNN and PyTorch, which is recorded."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "benchmarks", "card", "--size=toy", f"--out={folder}"]
    command += ["--minutes=20", f"--only={','.join(parts)}"]
    subprocess.run(command, env=quick.environment(**settings), check=True, timeout=1300)
    found = files.read_json(folder / card.FILE)["parts"]
    assert list(found) == list(parts) and (folder / "tables.md").exists()
    failed = {
        f"{p}: {n}" for p, rows in found.items() for n, row in rows.items() if "failed" in row
    }
    assert all("cudnn" in name or name == "published: train step" for name in failed), failed
    return found


@pytest.mark.slow
def test_parts_run_at_toy_size(tmp_path, compiled):
    found = toy(tmp_path, compiled, "machine", "train", "attention", "published", "data")
    step = found["train"]["flat, batch 2"]
    assert step["program_gib"] > 0 and step["plan_gib"] > 0 and step["cudnn_calls"] == 0
    assert found["attention"]["flat, self"]["largest_error"] < 0.05
    assert found["data"]["batches of 64, pairs"]["per_second"] > 0


@pytest.mark.long
def test_all_parts_run_at_toy_size(tmp_path, compiled):
    found = toy(tmp_path, compiled, *card_parts.PARTS)
    assert found["numerics"]["float32, default products"]["gradient_cosine"] > 0.9999
    assert 0.9 < found["numerics"]["bfloat16, flat"]["gradient_cosine"] < 1
    assert found["sampling"]["decoding, batch 2"]["pairs_a_second"] > 0
    assert found["emoji"]["training"]["steps"] == 2 and (tmp_path / "emoji.png").exists()


# ---- Quality against calls ----------------------------------------------------------------------


def test_the_plot_of_quality_has_a_line_for_each_run_sampler_and_task():
    variety = {"pair": {"place": 0.1, "number": 0.3}, "i2t": {}, "t2i": {"place": 0.2}}
    rows = [
        {"run": run, **point, "calls": {task: {"mean": n - 0.5, "most": n} for task in calls.TASKS}}
        | {task: {"rate": n / 10, "error": 0.01} for task in calls.TASKS}
        | {"variation": variety}
        for n, point in (
            (1, {"sampler": "maskgit", "steps": 1}),
            (4, {"sampler": "maskgit", "steps": 4}),
            (3, {"sampler": "entropy_bounded", "bound": 0.3}),
        )
        for run in ("teacher", "a <student>")
    ]
    drawn = calls.plot(rows)
    assert drawn.count("<polyline") == 4 * len(calls.TASKS)
    assert "a &lt;student&gt;, entropy_bounded" in drawn
    assert drawn.count("<svg") == drawn.count("</svg>") == 1 and "var(" not in drawn
    lines = calls.table(rows).splitlines()
    cells = "0.100 ± 0.010; 0.30 | 0.100 ± 0.010 | 0.100 ± 0.010; 0.20 |"
    assert lines[2] == f"| maskgit, 1 calls | teacher | {cells}"
    assert lines[6].startswith(
        "| entropy_bounded, 0.3 nats | teacher | 0.300 ± 0.010; 0.30 (2.5, 3) |"
    )


class Run:
    """A run as far as `calls` looks at it before it draws; `moved` is a part of its image tokenizer
    that is not that of the packaged one."""

    text_length = 13

    def __init__(self, moved=""):
        self.tokenizers = build.load_tokenizers(pipeline.PACKAGED)
        own = self.tokenizers["image"]
        params = dict(own.params)
        if moved:
            params[moved] = jax.tree.map(lambda x: x + 1, params[moved])
        coded_by = own.hash if moved == "decoder" else ""
        self.tokenizers["image"] = dataclasses.replace(own, params=params, coded_by=coded_by)


def test_runs_whose_codes_are_of_other_tokenizers_are_refused(tmp_path, monkeypatch):
    encoder, decoder, same = Run("encoder"), Run("decoder"), Run()
    assert calls.tokenizing(decoder) == calls.tokenizing(same) != calls.tokenizing(encoder)
    found = {"a": same, "b": decoder, "c": encoder}
    monkeypatch.setattr(calls.pipeline.Pipeline, "load", found.get)
    message = r"^error: other \(c\) has other tokenizers than teacher, whose tokens all runs are gi"
    with pytest.raises(SystemExit, match=message):
        benchmarks.main(["calls", "teacher=a", "student=b", "other=c", f"--out={tmp_path}"])


@pytest.mark.slow
def test_a_run_is_as_good_as_itself(tiny_run, tmp_path):
    asked = ["calls", f"a={tiny_run}", f"b={tiny_run}", f"--out={tmp_path}", "--calls=1"]
    assert benchmarks.main([*asked, "--bounds=1e9", "--count=2"]) == 0
    first, second, *rest = files.read_json(tmp_path / "calls.json")
    assert [first[task] for task in calls.TASKS] == [second[task] for task in calls.TASKS]
    one = {"mean": 1, "most": 1}
    assert first["steps"] == 1 and first["calls"] == dict.fromkeys(calls.TASKS, one)
    # Of nothing the entropy is above no bound: all is drawn at once, a pair in its two steps.
    assert [row["bound"] for row in rest] == [1e9] * 2 and rest[0]["calls"]["t2i"] == one
    assert (tmp_path / "calls.svg").exists() and (tmp_path / "table.md").exists()


@pytest.mark.parametrize("size", card_parts.SCALES)
def test_a_training_of_unknown_length_is_all_diffusion(size):
    config = t2i.get_config("emoji")
    card_parts.SCALES[size].drawing(config)
    assert config.train.prefix_steps == config.train.prefix_share == 0
