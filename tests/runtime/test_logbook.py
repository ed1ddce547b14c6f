"""Claims about what a run tells: whole lines, the ones of the run that counts."""

import json
import sys

import pytest

from udd_jax.runtime import logbook


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in logbook.TIMES} for line in lines]


def test_lines_are_on_the_disk_at_once(tmp_path):
    book = logbook.Logbook(tmp_path / "run")
    book.write(20, loss=0.1, skipped=3)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert without_times([json.loads(text)]) == [{"step": 20, "loss": 0.1, "skipped": 3}]
    book.close()


def test_cut_drops_what_a_restart_will_write_again(tmp_path):
    book = logbook.Logbook(tmp_path)
    book.cut(0)
    for step in (20, 40, 60):
        book.write(step, loss=1 / step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 80, "lo')  # killed here
    again = logbook.Logbook(tmp_path)
    again.cut(40)
    again.write(60, loss=7)
    assert without_times(again.lines()) == [
        {"step": 20, "loss": 1 / 20},
        {"step": 40, "loss": 1 / 40},
        {"step": 60, "loss": 7.0},
    ]
    assert again.columns()["loss"] == ([20, 40, 60], [1 / 20, 1 / 40, 7.0])
    book.close(), again.close()


def test_what_is_not_finite_is_null_and_no_broken_json(tmp_path):
    book = logbook.Logbook(tmp_path)
    book.write(1, loss=float("nan"), gradient_norm=float("inf"), bound=2.0)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert book.columns()["bound"] == ([1], [2.0]) and "loss" not in book.columns()
    book.close()


def test_tensorboard_shows_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    book = logbook.Logbook(tmp_path, tensorboard=True)
    book.write(5, loss=0.25)
    book.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


def test_missing_tensorboard_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        logbook.Logbook(tmp_path, tensorboard=True)


def test_progress_without_a_terminal_is_a_few_whole_lines(capsys, monkeypatch):
    monkeypatch.setattr(logbook.Bar, "every", 0.0)
    with logbook.progress(4, "diffusion", start=1) as bar:
        bar.update(2)
        bar.set_postfix(loss=0.5)
        logbook.say("a word")
        bar.update(1)
    out, err = capsys.readouterr()
    assert out == "a word\n"
    assert "\r" not in err and err.endswith("loss=0.5\n")
    assert err.splitlines()[-1].startswith("diffusion: 4/4 steps")


def test_each_gives_every_item(capsys):
    assert list(logbook.each("abc", "letters")) == ["a", "b", "c"]
    assert "letters: 3/3 items" in capsys.readouterr().err
