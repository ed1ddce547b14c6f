"""The examples of the documentation run."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax import pipeline
from udd_jax.data import sources
from udd_jax.diffusion import schedules
from udd_jax.sampling import samplers

DOCS = pathlib.Path(__file__).parents[1] / "docs"
EXTENDING = (DOCS / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n)*)", EXTENDING, re.MULTILINE))
EXAMPLES = {
    heading: code
    for heading, text in SECTIONS.items()
    if (code := "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
}


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
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"
