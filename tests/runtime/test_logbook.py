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


def test_a_log_file_gets_lines_while_the_first_step_compiles(monkeypatch):
    file, deadline = io.StringIO(), time.monotonic() + 60
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(logbook.Bar, "every", 0.01)
    with logbook.progress(1000, "diffusion"):
        while file.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        compiling = file.getvalue().splitlines()[:3]
    assert len(compiling) == 3
    assert all(line.startswith("diffusion: 0/1000 steps") for line in compiling)
    assert all(line.endswith("gone, compiling") and "left" not in line for line in compiling)


@pytest.mark.parametrize("steps", [1, 9])
def test_the_time_of_compilation_is_not_taken_for_that_of_a_step(capsys, monkeypatch, steps):
    """By a clock that moves here alone: 32 seconds for the first step, 2 for each of the others."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr(logbook.Bar, "every", 600)
    with logbook.progress(1000, "diffusion") as bar:
        now[0] += 30
        for _ in range(steps):
            now[0] += 2
            bar.update()
        now[0] += 0.1
        about, said = bar.format_dict, capsys.readouterr().err
    assert about["elapsed"] == pytest.approx(30 + 2 * steps + 0.1) and said == ""
    assert about["rate"] == (None if steps == 1 else pytest.approx(1 / 2, rel=0.02))


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
