"""`~` is the home folder in every path, and a terminal that knows only ASCII gets escapes."""

import io
import pathlib
import sys

from tests.data.test_sources_cases import fill
from udd_jax.data import sources
from udd_jax.runtime import files, logbook


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "x", 3)
    assert files.folder("~/run") == tmp_path / "run"
    assert files.folder(pathlib.Path("~/run")) == tmp_path / "run"
    assert len(sources.open_source("folder:~/x", "train")) == 3


def test_an_ascii_terminal_gets_escapes_and_no_error(monkeypatch):
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    logbook.say("a caf\xe9 in a box")
    terminal.flush()
    assert written.getvalue() == b"a caf\\xe9 in a box\n"
