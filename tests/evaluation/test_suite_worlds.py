"""Every embedded world is measured by the same suites, and shown on the same page."""

import dataclasses
import re

import pytest

from configs import t2i
from tests.helpers import oracle
from udd_jax.data import sources
from udd_jax.data.sources import glyphs
from udd_jax.evaluation import held_out
from udd_jax.evaluation.report import report
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.evaluation.suites import samplers, tuning
from udd_jax.runtime import files

WRONG = {"t2i": (0,), "i2t": (1, 2), "pair": (3,), "infill": (0, 5), "image": (7,), "text": (1,)}


def run(folder, pipe, suite="main"):
    result = main_suite.run(pipe, folder, suite, say=lambda _: None)
    files.write_json(folder / "config.json", {"config": pipe.config.to_dict()})
    return result, report.write(folder).read_text()


def headline(text):
    return re.search(r'<section id="headline">.*?</section>', text, re.S).group()


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    """(an oracle on glyphs that is sometimes wrong, its folder, its result, its page)"""
    folder, config = tmp_path_factory.mktemp("glyphs"), oracle.config()
    config.data, config.image_size, config.text.length = "glyphs", glyphs.IMAGE_SIZE, 100
    config.data_options = {"size": 40}
    config.evaluate.update({"retrieval": 8, "among": 2, "round_trips": 4, "judged": 2})
    pipe = oracle.make(folder, oracle.Tiles(64), config=config, wrong=WRONG)
    return pipe, folder, *run(folder, pipe, "full")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The same on shapes."""
    folder = tmp_path_factory.mktemp("shapes")
    pipe = oracle.make(folder, wrong=WRONG)
    return pipe, folder, *run(folder, pipe)


def test_glyphs_have_every_number_that_shapes_have(notes, shapes):
    found, other = notes[2], shapes[2]
    assert set(found) == {*other, "full"}
    for task, rates in found["scores"].items():
        assert set(rates) == set(other["scores"][task])
    names = [(row["task"], row["name"]) for row in found["headline"] if row["better"] == "higher"]
    assert names == [(r["task"], r["name"]) for r in other["headline"] if r["better"] == "higher"]


def test_glyphs_are_judged_by_their_own_rules(notes):
    scores = notes[2]["scores"]
    for task, key in (("t2i", "agreement"), ("infill", "image"), ("image", "readable")):
        assert scores[task][key]["rate"] == 1 - len(WRONG[task]) / 8
    assert set(scores["t2i"]["reasons"]) >= {"text", "ink", "paper"}
    assert scores["t2i"]["reasons"]["unreadable image"] == 1 / 8
    assert set(scores["pair"]["variation"]) == {"number", "paper", "template"}
    assert notes[2]["reader"]["pairs"]["rate"] == 0
    scenes = held_out.read(notes[0], 4).scenes
    bits = glyphs.caption_entropy(scenes) / notes[0].text_length
    assert notes[2]["entropy"]["value"] == pytest.approx(bits)
    assert {"one line", "four lines"} <= set(
        notes[2]["full"]["agreement"]["by category"]["agreement"]
    )


def test_the_page_is_about_the_world_that_was_measured(notes, shapes):
    assert "<i>glyphs</i>, a drawn world of notes" in notes[3]
    assert "the test split, each with a line that no training image has" in notes[3]
    assert "<i>shapes</i>, a drawn world of one or two objects" in shapes[3]
    assert "the test split, which show only pairs" in shapes[3]


def test_other_suites_measure_glyphs_too(notes, tmp_path, monkeypatch):
    chain = {"sampler": "ancestral", "steps": notes[0].config.diffusion.steps}
    monkeypatch.setattr(tuning, "grid", lambda: [(1.0, 1.0)])
    monkeypatch.setattr(samplers, "grid", lambda pipe: [chain, chain | {"steps": 5}])
    pipe = dataclasses.replace(notes[0], wrong={"t2i": (0,)}, asked=[])
    result = tuning.run(pipe, tmp_path, count=8, say=lambda _: None)
    assert result["best"]["t2i"]["rate"] == 7 / 8 and result["best"]["i2t"]["rate"] == 1
    result = samplers.run(
        dataclasses.replace(pipe, wrong={}), tmp_path, count=2, say=lambda _: None
    )
    assert result["best"]["full"]["pair"]["rate"] == 1


def test_another_size_cannot_be_read_and_is_not_judged(shapes, tmp_path):
    config = oracle.config()
    config.image_size = 16
    pipe = oracle.make(tmp_path, oracle.Tiles(16), config=config)
    assert held_out.read(pipe, 2).world is None
    assert held_out.read(shapes[0], 2).world is sources.WORLDS["shapes"]
    for suite in (tuning, samplers):
        with pytest.raises(ValueError, match="an embedded world at its own size, not shapes/"):
            suite.run(pipe, tmp_path)


# ---- Aims


def test_aims_are_those_of_the_world(notes, shapes):
    asked = {row["task"]: row["aim"] for row in shapes[2]["headline"] if row["better"] == "higher"}
    aims = sources.WORLDS["shapes"].aims
    assert {t: a for t, a in asked.items() if a} == {t: aims[t] for t in aims if t != "variation"}
    assert "✗" in headline(shapes[3]) and "the tick in a bar" in headline(shapes[3]).lower()
    assert all(row["met"] is None for row in notes[2]["headline"])  # nothing is promised yet
    assert not re.search("✗|✓|aim", headline(notes[3])) and report.NO_AIMS not in notes[3]


def test_a_config_that_is_too_small_to_be_good_is_not_held_to_aims(shapes, tmp_path):
    assert t2i.get_config().evaluate.aims and not t2i.get_config("smoke").evaluate.aims
    pipe, _, full, _ = shapes
    small = pipe.with_config(evaluate={"aims": False})
    result, text = run(tmp_path, small)
    assert all(row["aim"] is row["floor"] is row["met"] is None for row in result["headline"])
    assert [row["value"] for row in result["headline"]] == [r["value"] for r in full["headline"]]
    assert report.NO_AIMS in text and "✗" not in headline(text)
    assert "is asked for" not in text
    # Asked for aims, it is measured again, from the samples that are there.
    small.asked.clear()
    result, text = run(tmp_path, small.with_config(evaluate={"aims": True}))
    assert result["headline"] == full["headline"] and "✗" in headline(text)
    assert small.asked == []


def test_aims_are_no_part_of_what_two_results_must_share(shapes):
    assert "aims" not in shapes[2]["manifest"]["protocol"]["evaluate"]
