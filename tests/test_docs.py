"""The documents: their commands are commands, their Python runs, and the site builds strictly."""

import functools
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from udd_jax import command_line, pipeline
from udd_jax.data import sources
from udd_jax.diffusion import schedules
from udd_jax.sampling import samplers

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXTENDING = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", EXTENDING, re.MULTILINE))
EXAMPLES = {
    heading: code
    for heading, text in SECTIONS.items()
    if (code := "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
}
START = re.compile(r"(?:^|&& )(?:python -m udd_jax\.main|udd_jax) (--.*)")


def commands():
    for path in PAGES:
        whole = re.sub(r"\\\n +", "", path.read_text())  # commands of several lines
        for line in whole.splitlines():
            found = START.search(line.strip()) if line.startswith("    ") else None
            if found:
                yield pytest.param(found[1], id=f"{path.name}: {found[1][:60]}")


@pytest.fixture
def typed(monkeypatch):
    """Parses words as the command line does. Afterwards every flag is as before."""

    def parse(words):
        monkeypatch.setattr(sys, "argv", ["udd_jax", *words])
        for name in command_line.TAKES:
            command_line.FLAGS[name].unparse()
        for name in [name for name in command_line.FLAGS if name.startswith("config.")]:
            delattr(command_line.FLAGS, name)
        rest = command_line.parse(sys.argv)
        command_line.check(command_line.FLAGS.mode)
        return rest[1:]

    command_line.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver():
        yield parse


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("line", [*commands()])
def test_a_command_of_the_documents_is_a_command(typed, line):
    words = shlex.split(re.sub(r"\[.*?\]|\.\.\.", "", line), comments=True)
    rest = typed([word.replace("folder:/path", "shapes") for word in words])
    assert rest == (["runs/b"] if "--compare" in words else [])


@pytest.fixture(scope="module")
def pipe(tiny_run):
    return pipeline.Pipeline.load(tiny_run)


@pytest.fixture
def tables():
    """The tables that the examples add to; they are put back."""
    every = (samplers.SAMPLERS, schedules.MAKERS, sources.WORLDS)
    before = [dict(table) for table in every]
    yield
    for table, entries in zip(every, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_of_how_to_extend_runs(heading, pipe, tables):
    names = {"pipe": pipe, "jax": jax, "jnp": jnp, "np": np, "functools": functools}
    exec(compile(EXAMPLES[heading], heading, "exec"), names)


def test_links_between_the_pages_lead_to_files():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "text_to_image" in text and "from_pretrained" in text
    for path in (tmp_path / "site").rglob("index.html"):
        page = path.read_text()
        assert 'src="http' not in page and 'rel="stylesheet" href="http' not in page, path
