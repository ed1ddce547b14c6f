"""Claims about what a run tells: whole lines, the ones of the run that counts."""

import io
import json
import sys
import time

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


def test_progress_without_a_terminal_is_a_few_whole_lines(capsys):
    with logbook.progress(4, "diffusion", start=1) as bar:
        bar.update(2)
        bar.set_postfix(loss=0.5)
        logbook.say("a word")
        bar.update(1)
    out, err = capsys.readouterr()
    assert out == "a word\n"
    assert "\r" not in err and err.endswith("loss=0.5\n")
    assert err.splitlines()[-1].startswith("diffusion: 4/4 steps")


def lines_during(capsys, seconds, steps=0):
    """The lines of a bar of 1000 steps, of which each takes `seconds`, the first one ten times."""
    with logbook.progress(1000, "diffusion") as bar:
        time.sleep(10 * seconds)
        compiling = capsys.readouterr().err.splitlines()
        for _ in range(steps):
            bar.update()
            time.sleep(seconds)
        return compiling, capsys.readouterr().err.splitlines(), bar.format_dict


def test_a_log_file_gets_lines_while_the_first_step_compiles(capsys, monkeypatch):
    monkeypatch.setattr(logbook.Bar, "every", 0.05)
    compiling, _, _ = lines_during(capsys, 0.03)
    assert len(compiling) >= 3
    assert all(line.startswith("diffusion: 0/1000 steps") for line in compiling)
    assert all(line.endswith("gone, compiling") and "left" not in line for line in compiling)


def test_the_time_of_compilation_is_not_taken_for_that_of_a_step(capsys, monkeypatch):
    monkeypatch.setattr(logbook.Bar, "every", 60)
    *_, about = lines_during(capsys, 0.05, steps=8)
    assert about["elapsed"] > 10 * 0.05
    # 20 steps a second; 8 in .9 s with the compilation.
    assert about["rate"] > 1.5 * 8 / 0.9
    _, none, about = lines_during(capsys, 0.01, steps=1)
    assert about["rate"] is None and none == []


def test_a_terminal_says_compiling_and_no_time_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with logbook.progress(5000, "diffusion") as bar:
        first = terminal.getvalue()
        monkeypatch.setattr(bar, "_time", lambda: time.time() + 32)
        bar.update()
        after = terminal.getvalue()[len(first) :]
    assert first.endswith("compiling]") and "<?" in first
    assert "00:32<?" in after and "compiling" not in after


def test_each_gives_every_item(capsys):
    assert list(logbook.each("abc", "letters")) == ["a", "b", "c"]
    assert "letters: 3/3 items" in capsys.readouterr().err
