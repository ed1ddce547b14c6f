"""Ways to sample by what a classifier recognises: an untrained run, real pictures beside it."""

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import recognised
from tests.helpers import drawings, tiny
from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, recognition

SIDE, NAMES, STEPS = 16, 24, 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained run of drawings that can be recognised."""
    c = tiny.config()
    folder = drawings.patterns(tmp_path_factory.mktemp("drawings"), SIDE, NAMES)
    c.data, c.image_size, c.text.vocab_size = f"folder:{folder}", SIDE, 320
    return tiny.make(tmp_path_factory.mktemp("run") / "run", c)


@pytest.mark.slow
def test_real_pictures_stand_above_the_ways_to_sample(run):
    ways = [{"steps": 2}, {"steps": 1, "temperature": 0.5}]
    rows = recognised.run(run, "image|text", "test", 20, 1, ways, STEPS)
    assert [row["what"] for row in rows] == [
        "real pictures",
        "read back from their codes",
        "image|text steps=2",
        "image|text steps=1 temperature=0.5",
    ]
    assert [row["items"] for row in rows] == [20] * 4
    assert [row.get("calls") for row in rows] == [None, None, 2.0, 1.0]
    pipe = pipeline.Pipeline.load(run)
    found, items = recognition.obtain(pipe, run, STEPS), held_out.read(pipe, 20, "test")
    truth = np.array([found.name(texts[0]) for texts in items.references])
    made = pipe.text_to_image(items.captions, seed=1, **ways[0]).images
    for row, pictures in ((rows[0], items.images), (rows[2], made)):
        share = recognition.recognised(found, pixels.as_rgb(pictures), truth)["among 20"]
        assert row["among 20"] == [share.value, share.standard_error]
    assert rows[0]["among 20"][0] > 0.9 > rows[2]["among 20"][0]
    assert recognised.table(rows).splitlines()[4].startswith("| image\\|text steps=2 | 0.")

    told = recognised.run(run, "text|image", "test", 5, 1, ways[:1], STEPS)[-1]
    captions = pipe.image_to_text(items.images[:5], seed=1, **ways[0]).captions
    right = np.mean([found.name(text) == t for text, t in zip(captions, truth, strict=False)])
    assert told["the name"][0] == right and told["items"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["image", "image,text", "text"])
def test_a_rule_that_makes_no_picture_of_a_text_is_refused(run, rule):
    with pytest.raises(UserError, match="expected a picture from a text such as"):
        recognised.run(run, rule, "test", 4, 1, [{}], STEPS)
    with pytest.raises(SystemExit, match=r"^error: --rule='"):
        benchmarks.main(["recognised", f"--run={run}", f"--rule={rule}"])


@pytest.mark.slow
def test_captions_that_are_not_names_are_refused_with_the_reason_alone(run, monkeypatch):
    monkeypatch.setattr(recognition, "LEAST", 4.5)
    with pytest.raises(UserError, match=r"^captions are not names: 24 of them for 9\d training"):
        recognised.run(run, "image|text", "test", 4, 1, [{}], STEPS)


def test_one_sample_has_a_share_without_an_error():
    row = {"what": "one", "among 20": [1.0, None], "calls": 3}
    assert recognised.line(row) == "one: among 20 1.000 ± 0.000"
    assert recognised.table([row]).splitlines()[2] == "| one | 1.000 ± 0.000 | 3 |"
