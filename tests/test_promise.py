"""The comparison of runs of one config."""

import json
import shutil

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import promise
from udd_jax import pipeline
from udd_jax.errors import UserError


@pytest.mark.parametrize(("truth", "between"), [(0.999, 0.0), (0.95, 0.01)])
def test_one_true_run_in_fifty_is_below_a_floor_that_allows_one(truth, between):
    """Rates with and without a spread between runs; a floor of twelve, then a thirteenth run."""
    rng, tries = np.random.default_rng(0), 4000
    rates = rng.binomial(512, np.clip(rng.normal(truth, between, (tries, 13)), 0, 1)) / 512
    red = [row[12] < promise.floor(list(row[:12]), 512, 0.02) for row in rates]
    assert np.mean(red) < 0.03
    assert between == 0 or np.mean(red) > 0.01


def copies(tmp_path, *names) -> list:
    """Folders of runs with the result of the packaged one."""
    runs = [tmp_path / name for name in names]
    for run in runs:
        run.mkdir()
        shutil.copy(pipeline.PACKAGED / "evaluation.json", run)
    return runs


def test_runs_beside_each_other_are_a_table_floors_and_a_picture(tmp_path, capsys):
    runs = copies(tmp_path, "one", "two", "three")
    for i, run in enumerate(runs):
        found = json.loads((run / "evaluation.json").read_text())
        for row in found["headline"]:
            if row["name"] == "caption agrees with the image":
                row["value"], row["met"] = 0.99 - 0.03 * i, i < 2
        (run / "evaluation.json").write_text(json.dumps(found))
    plot, floors, out = tmp_path / "a.svg", tmp_path / "floors.json", tmp_path / "a.json"
    words = [f"--plot={plot}", f"--floors={floors}", f"--out={out}"]
    assert benchmarks.main(["promise", *map(str, runs), *words]) == 0
    line = next(text for text in capsys.readouterr().out.splitlines() if "i2t: caption" in text)
    assert "| 0.930 | 0.960 | 0.990 | 2 (aim 0.95) |" in line
    rows = json.loads(out.read_text())["rows"]
    row = next(row for row in rows if row["name"] == "caption agrees with the image")
    assert json.loads(floors.read_text())["scores.i2t.agreement.rate"] == row["floor"] < 0.93
    assert "<svg" in plot.read_text() and ">infill<" in plot.read_text()


def test_a_floor_is_of_the_samples_that_the_runs_have_and_mixed_counts_are_refused(tmp_path):
    def read(runs, count):
        for run in runs:
            result = json.loads((run / "evaluation.json").read_text())
            result["scores"]["i2t"]["agreement"]["count"] = count
            (run / "evaluation.json").write_text(json.dumps(result))
        return promise.measures([promise.read(run) for run in runs])

    runs, key = copies(tmp_path, *"abcdefghi"), ("i2t", "caption agrees with the image")
    found = read(runs, 96)
    rates = sum(rows[0]["better"] == "higher" for rows in found.values())
    values = [row["value"] for row in found[key]]
    fewer, more = (promise.floor(values, count, promise.RED / rates) for count in (96, 512))
    floors = {(row["task"], row["name"]): row.get("floor") for row in promise.summary(found)}
    assert floors[key] == fewer < more
    read(runs[1:2], 512)
    with pytest.raises(UserError, match=r"^i2t: .* of 96 samples .* 512 in another, expected"):
        promise.summary(promise.measures([promise.read(run) for run in runs]))


@pytest.mark.parametrize("kept", ["higher", "lower", "nothing"])
def test_runs_without_a_rate_or_a_variation_are_drawn_as_far_as_they_go(tmp_path, capsys, kept):
    """As of a config without an embedded world, or of rules alone; the files come before it."""
    runs, out, picture = copies(tmp_path, "one", "two"), tmp_path / "a.json", tmp_path / "a.svg"
    for run in runs:
        result = json.loads((run / "evaluation.json").read_text())
        result["headline"] = [row for row in result["headline"] if row["better"] == kept]
        (run / "evaluation.json").write_text(json.dumps(result))
    asked = ["promise", *map(str, runs), f"--plot={picture}", f"--out={out}"]
    assert benchmarks.main(asked) == 0 and out.exists()
    assert picture.exists() == (kept != "nothing")
    assert ("a.svg is not written" in capsys.readouterr().out) == (kept == "nothing")


def test_a_folder_without_an_evaluation_is_one_line(tmp_path):
    with pytest.raises(UserError, match="expected the folder of an evaluated run"):
        promise.read(tmp_path)


def test_a_gap_that_is_open_is_filled_in_all_ways_and_what_is_given_stays():
    """Of the packaged run: the law is .8 above and .2 below, and a seventh for each colour."""
    pipe = pipeline.Pipeline.load(pipeline.PACKAGED)
    text = "a small ___ circle ___ a large blue square"
    result = pipe.infill(captions=text, num=128, seed=1, batch_size=128)
    words = [caption.split() for caption in result.captions]
    above = np.mean([row[4] == "above" for row in words])
    assert {row[4] for row in words} == {"above", "below"} and 0.65 < above < 0.95
    assert len({row[2] for row in words}) == 7
    given = {(*row[:2], row[3], *row[5:]) for row in words}
    assert given == {("a", "small", "circle", "a", "large", "blue", "square")}
