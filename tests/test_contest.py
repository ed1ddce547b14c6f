"""The contest: recipes that fit the config, a table with intervals; once, all of it for real."""

import re

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import contest
from configs import any as any_from_any
from configs import t2i
from tests.helpers import tiny
from udd_jax import build, stages
from udd_jax.errors import UserError
from udd_jax.runtime import files, run_folder


@pytest.mark.parametrize("name", contest.RECIPES)
def test_a_recipe_changes_the_config_and_fits_it(name):
    for base in (t2i.get_config(), t2i.get_config("emoji")):
        c = contest.recipe(base, name, seed=2)
        stages.check(c)
        fields = (set(c.train.mixture), c.seed, c.name)
        changed = c.to_dict() | {"seed": 0, "name": base.name} != base.to_dict()
        assert changed == (name != "ours"), fields


def test_the_table_has_the_mean_of_the_seeds_and_its_interval():
    """By hand: 1, 2, 3 have mean 2 and standard error 3 ** -.5; t = 4.303 for two degrees. Nothing
    measured here is below 0, and no rate is above 1."""
    rows = [
        {
            "recipe": "ours",
            "steps": 10,
            "values": {"a": [float(k), 0.1, None], "b": [4.0, 0.0, None]},
        }
        for k in (1, 2, 3)
    ]
    rows += [{"recipe": "muse", "steps": 30, "values": {"a": [0.99, 0.1, 1.0]}}]
    head, _, first, second = contest.table(rows).splitlines()
    assert head == "| recipe | seeds | steps | a | b |"
    assert first == "| ours | 3 | 10 | 2 [0, 4.48] | 4 |"
    assert second == "| muse | 1 | 30 | 0.99 [0.794, 1] | - |"


def test_drawings_are_measured_by_retrieval_and_recognition():
    rate = lambda value: {"value": value, "standard_error": 0.01}  # noqa: E731
    result = {
        "headline": [],
        "bounds": {"pair": rate(2.0)},
        "speed": {"samples_a_second": 9.0, "calls_a_sample": {"t2i": 16}, "peak_memory_gib": 1.5},
    }
    full = {
        "retrieval": {"image of a caption": {"first 1": rate(0.8), "first 5": rate(0.9)}},
        "recognition": {
            "text to image": {"among 20": rate(0.7), "among 100": rate(0.5)},
            "image to text": {"without broken words": rate(0.97)},
        },
    }
    full["retrieval"]["among"] = 20
    plain = contest.values(result)
    found = contest.values(result | {"full": full})
    assert {name: cell for name, cell in found.items() if name not in plain} == {
        "image of a caption: first 1": [0.8, 0.01, 1.0],
        "text to image: among 20": [0.7, 0.01, 1.0],
        "image to text: without broken words": [0.97, 0.01, 1.0],
    }
    unmeasured = {"recognition": {"unmeasured": "too few names"}}
    assert contest.values(result | {"full": unmeasured}) == plain


def test_an_unknown_recipe_is_refused_before_any_work(tmp_path, capsys):
    asked = ["contest", "--minutes=1", "--recipes=odd", f"--workdir={tmp_path / 'new'}"]
    with pytest.raises(SystemExit):
        benchmarks.main(asked)
    assert "recipe 'odd' does not exist, expected one of ours" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "steps, warmup, prefixes", [(3066, 150, 1000), (1042, 104, 347), (9, 0, 3)]
)
def test_a_recipe_of_fewer_steps_has_a_shorter_beginning(steps, warmup, prefixes):
    found = contest.for_steps(t2i.get_config(), steps).train
    assert (found.steps, found.warmup, found.prefix_steps) == (steps, warmup, prefixes)


@pytest.mark.slow
def test_recipes_share_a_cache_and_a_finished_run_is_not_repeated(tmp_path, capsys):
    c = tiny.config()
    c.vq.update({"steps": 20, "warmup": 2, "plain_steps": 5})
    c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4, "bound_times": 1})
    asked = (c, 0.002, tmp_path, ("ours", "autoregressive", "experts"), 1)
    rows, said = contest.run(*asked), capsys.readouterr().out
    assert [row["recipe"] for row in rows] == ["ours", "autoregressive", "experts"]
    assert all(row["values"]["pair: bits a token"][0] > 0 for row in rows)
    assert rows[1]["values"]["t2i: network calls"] == [16.0, 0.0, None]
    for name in ("ours-0", "autoregressive-0"):
        assert (tmp_path / name / "tokens").resolve() == tmp_path / "shared" / "tokens"
    before = (tmp_path / "ours-0" / "weights").stat().st_mtime_ns
    assert contest.run(*asked) == rows
    assert (tmp_path / "ours-0" / "weights").stat().st_mtime_ns == before
    assert len(files.read_json(tmp_path / "contest.json")["rows"]) == 3
    assert (tmp_path / "table.md").read_text() == contest.table(rows)
    steps = {row["recipe"]: row["steps"] for row in rows}
    paces = files.read_json(tmp_path / "paces.json")["step_seconds"]
    whole = {name: max(1, round(0.12 / paces[name])) for name in paces}
    half = {name: max(1, round(0.06 / paces[name])) for name in paces}
    assert steps == whole | {"experts": half["ours"] + half["experts"]}
    assert re.search(r"^init_from: (\d+) of \1 arrays reused$", said, re.MULTILINE)
    parts = [build.read_config(tmp_path / "experts-0" / name) for name in ("part0", "")]
    assert [tuple(c.experts) for c in parts] == [(), (0.5,)]
    assert [c.train.steps for c in parts] == [half["ours"], half["experts"]]
    with pytest.raises(UserError, match=r"minutes = 1, but .* has a contest of 0.002: choose"):
        contest.run(c, 1, tmp_path, ("ours",), 1)


@pytest.mark.parametrize(
    ("base", "views", "seed", "parts"),
    [
        (t2i.get_config(), 1, 3, ["text.model", "vq", "tokens"]),
        (t2i.get_config(), 4, 0, ["text.model", "vq", "tokens"]),
        (t2i.get_config(), 4, 3, ["text.model", "vq"]),  # other crops: a cache of its own
        (any_from_any.get_config(), 1, 3, ["text.model", "vq", "sound", "tokens"]),
    ],
)
def test_every_seed_has_the_tokenizers_and_if_its_crops_are_the_same_the_cache(
    tmp_path, base, views, seed, parts
):
    base.views = views
    run_folder.claim(base, tmp_path)
    found = contest.shared_parts(contest.recipe(base, "ours", seed), tmp_path)
    assert sorted(found) == sorted(parts)
