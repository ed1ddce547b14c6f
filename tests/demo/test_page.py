"""The page's own handlers without a browser: which fields a run has, and what becomes of them."""

import asyncio
import contextlib
import gc

import numpy as np
import pytest

from tests.helpers import tiny
from udd_jax import pipeline
from udd_jax.data import layouts, pixels
from udd_jax.demo import painter
from udd_jax.errors import NotFound

pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[demo]'")
from udd_jax.demo import fields, page, server

# Gradio leaves event loops unclosed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ANY = next(tab for tab in page.TABS if tab.task == "any")
SETTINGS = {"fresh": False, "seed": 3, "count": 2}


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """The page of a run with a reference, a second text, a length and a layout, and that run."""
    c = tiny.config()
    with c.unlocked():
        c.modalities.first, c.modalities.second = {"like": "image"}, {"like": "text"}
        c.modalities.length = {"kind": "length"}
        c.modalities.map = {"kind": "layout", "grid": (4, 4), "classes": 3}
        c.train.mixture = {"any": 1.0}
    c.diffusion.steps, c.sample.steps = 3, 2
    pipe = pipeline.Pipeline.load(tiny.make(tmp_path_factory.mktemp("rich"), c))
    made = page.Page(pipe)
    yield made
    made.close()
    del made
    gc.collect()  # what Gradio left is found here, and not in a later test


def test_a_folder_without_a_run_is_one_line_and_no_name_of_a_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Pipeline, "from_pretrained", None)
    with contextlib.chdir(tmp_path), pytest.raises(NotFound, match=r"^runs/gone has no config"):
        server.start("runs/gone", tmp_path)


def test_every_kind_of_modality_that_can_be_given_has_a_field(rich):
    with fields.gr.Blocks():
        found = fields.FIELDS["rule"](rich, ANY)
    given = {"text", "image", "given_first", "given_second", "given_length", "given_map"}
    assert set(found) == {"made", *given}
    assert set(fields.GIVEN) | {"coarse"} == set(pipeline.modalities.KINDS)


def test_what_the_fields_hold_is_given_and_the_recipe_makes_the_same(rich, tmp_path, monkeypatch):
    pipe, picture = rich.pipe, np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    layouts.write(tmp_path / "map.json", np.arange(16).reshape(4, 4) % 3)
    asked = {
        "made": ["image"], "text": "", "image": painter.value(), "given_length": 4,
        "given_first": painter.value(picture), "given_second": " a red circle ",
        "given_map": str(tmp_path / "map.json"),
    }  # fmt: skip
    submit, futures = rich.service.submit, []
    monkeypatch.setattr(
        rich.service, "submit", lambda request: futures.append(submit(request)) or futures[-1]
    )
    found = asyncio.run(rich.generate_rule(ANY, asked | SETTINGS))
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory="": pipe)
    pixels.write_png(tmp_path / "first.png", picture)
    for word in ("--given=length=4", "'--given=second=a red circle'", "--given=first=first.png"):
        assert word in found["command"].value
    with contextlib.chdir(tmp_path):
        exec(found["python"], names := {})
    np.testing.assert_array_equal(names["result"].tokens, futures[0].result().tokens)
    held = asked | {"given_length": None, "given_map": None, "given_second": "  "}
    other = asyncio.run(rich.generate_rule(ANY, held | SETTINGS))
    assert other["command"].value.count("--given=") == 1
    assert "Without effect" not in found["note"]
    assert len(futures[1].result().images) == 2


def test_what_changes_nothing_is_said_beside_the_result(rich):
    steps = {"sampler": "first_hitting", "steps": 1, "temperature": 0.9}
    asked = {"text": "a red circle", "image": painter.value(), "negative": "blue", "guidance": 1.0}
    found = asyncio.run(rich.generate(page.TABS[0], asked | steps | SETTINGS))
    said = "2 samples, seed 3. Without effect here: negative prompt, steps."
    assert said in found["note"]
    found = asyncio.run(rich.generate(page.TABS[0], asked | steps | SETTINGS | {"guidance": 2.0}))
    assert "Without effect here: steps." in found["note"]
