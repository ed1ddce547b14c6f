"""The contest: recipes that fit the config, a table with intervals; once, all of it for real."""

import re

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import contest, sizes, standings, training
from configs import any as any_from_any
from configs import own, t2i
from tests.helpers import drawings, tiny
from udd_jax import build, pipeline, stages
from udd_jax.errors import UserError
from udd_jax.runtime import files, run_folder
from udd_jax.training import train_diffusion


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
    head, _, first, second = standings.table(rows).splitlines()
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
    plain = standings.values(result)
    found = standings.values(result | {"full": full})
    assert {name: cell for name, cell in found.items() if name not in plain} == {
        "image of a caption: first 1": [0.8, 0.01, 1.0],
        "text to image: among 20": [0.7, 0.01, 1.0],
        "image to text: without broken words": [0.97, 0.01, 1.0],
    }
    unmeasured = {"recognition": {"unmeasured": "too few names"}}
    assert standings.values(result | {"full": unmeasured}) == plain


def test_what_an_evaluation_could_not_measure_is_left_out_of_the_table():
    """One item has no error; an image that is never recognised, or no dual encoder, no rate."""
    unmeasured, one = {"unmeasured": "too few"}, {"value": 0.5, "standard_error": None}
    result = {
        "headline": [],
        "bounds": {"pair": one, "t2i": unmeasured},
        "speed": {"samples_a_second": 9.0, "calls_a_sample": {}, "peak_memory_gib": 1.5},
        "full": {
            "retrieval": {"image of a caption": {"first 1": unmeasured}},
            "recognition": {"text to image": {"among 20": one}},
        },
    }
    found = standings.values(result)
    assert found["pair: bits a token"] == [0.5, 0.0, None]
    assert found["text to image: among 20"] == [0.5, 0.0, 1.0]
    assert set(found) == {*list(found)[:2], "samples a second", "memory, GiB"}
    assert standings.cell([[0.5, None, 1.0]]) == "0.5"  # of an older contest.json


def test_runs_that_are_measured_by_rules_alone_have_these_rows():
    """As of recordings of speech: its headline names the rules, and its speed has no samples."""
    rate = {"rate": 0.75, "error": 0.1, "count": 16}
    row = {"task": "sound|text", "name": "sound and text have one name", "better": "higher"}
    result = {
        "headline": [row | {"value": 0.75, "error": 0.1}],
        "bounds": {},
        "rules": {"sound|text": {"agreement": rate}, "text": {"count": 16}},
        "speed": {"seconds": {}, "total_seconds": 3.0},
    }
    own = {"sound|text: sound and text have one name": [0.75, 0.1, 1.0]}
    assert standings.values(result) == own
    result["rules"]["text|sound"] = {"agreement": rate}
    assert standings.values(result) == own | {"text|sound: agreement": [0.75, 0.1, 1.0]}


def test_an_unknown_field_is_refused_before_any_work(tmp_path):
    asked = ["contest", "--minutes=1", "--set=train.stepz=3", f"--workdir={tmp_path / 'new'}"]
    with pytest.raises(SystemExit, match=r"^error: --set=train.stepz is not a field of the config"):
        benchmarks.main(asked)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def quick(monkeypatch):
    """Nothing is trained; a list gets the config of each run."""
    seen = []

    def one(configs, steps, folder, shared):
        seen.append(configs[-1])
        values = {"a": [float(steps[0]), 0.0, None]}
        return {"steps": sum(steps), "training_seconds": 1.0, "values": values}

    monkeypatch.setattr(contest.stages, "run", lambda config, folder, until: seen.append(config))
    monkeypatch.setattr(contest, "paces", lambda *asked: {n: [1.0, 1.0] for n in asked[-1]})
    monkeypatch.setattr(contest, "one", one)
    return seen


def test_rows_of_other_recipes_and_seeds_stay(quick, tmp_path):
    def numbers():
        rows = files.read_json(tmp_path / "contest.json")["rows"]
        return [(row["recipe"], row["seed"]) for row in rows]

    contest.run(t2i.get_config(), 1, tmp_path, ("ours", "muse"), 2)
    first = numbers()
    assert first == [("ours", 0), ("muse", 0), ("ours", 1), ("muse", 1)]
    rows = contest.run(t2i.get_config(), 1, tmp_path, ("masked", "ours"), 1)
    assert numbers() == [(row["recipe"], row["seed"]) for row in rows] == [*first, ("masked", 0)]
    table = (tmp_path / "table.md").read_text().splitlines()
    assert [line[:8] for line in table[2:]] == ["| ours |", "| muse |", "| masked"]


def test_open_fields_are_chosen_once_for_all_recipes(quick, tmp_path):
    c = own.get_config()
    (tmp_path / "in").mkdir()
    c.data = f"folder:{drawings.patterns(tmp_path / 'in', 16, 6)}"
    contest.run(c, 1, tmp_path / "contest", ("ours", "masked"), 1)
    sides = {found.image_size for found in quick}
    assert len(quick) == 3 and sides == {32} and c.image_size is None
    assert all(found.train.batch_size > 0 and found.text.length > 0 for found in quick)


def test_a_run_writes_its_decoder_beside_the_tokenizer_and_not_into_what_is_shared(tmp_path):
    c, shared = t2i.get_config(), tmp_path / "shared"
    run_folder.claim(c, shared)
    for name in ("text.model", "vq/tokenizer", "tokens/manifest.json"):
        files.write_bytes(shared / name, name.encode())
    for name in ("end_to_end-0", "old-0"):
        here = tmp_path / name
        here.mkdir()
        if name == "old-0":  # an older contest linked the whole folder
            (here / "vq").symlink_to(shared / "vq")
            (here / "tokens").symlink_to(shared / "tokens")
        for _ in range(2):  # also when it goes on
            contest.link(c, shared, here)
            files.write_bytes(here / build.PAINTER, b"decoder")
        assert not (shared / build.PAINTER).exists() and (here / build.PAINTER).exists()
        assert (here / build.IMAGE).resolve() == shared / build.IMAGE
        assert (here / build.IMAGE).read_bytes() == b"vq/tokenizer"
        assert (here / "tokens" / "manifest.json").exists()


def test_a_linked_tokenizer_is_taken_for_done(tmp_path):
    (tmp_path / "vq").mkdir()
    (tmp_path / build.IMAGE).symlink_to(pipeline.PACKAGED / build.IMAGE)
    found = stages.make_image_tokenizer(t2i.get_config(), tmp_path, data=None)
    assert found.hash == build.load_tokenizers(pipeline.PACKAGED)["image"].hash


@pytest.mark.parametrize(("seconds", "prefixes"), [(1200.0, 1000), (120.0, 1000), (600.0, 0)])
def test_the_steps_take_the_time_with_those_on_prefixes_at_their_own_pace(seconds, prefixes):
    c = t2i.get_config()
    c.train.prefix_steps = prefixes
    later, first = 0.2, 0.1
    count = contest.number_of_steps(c, seconds, [later, first])
    of = contest.for_steps(c, count).train.prefix_steps
    assert of * first + (count - of) * later == pytest.approx(seconds, abs=0.3)
    assert contest.number_of_steps(c, 0.01, [later, first]) == 1


@pytest.mark.parametrize(
    ("changes", "pace"),
    [
        ({}, (3.0, 2.0)),
        ({"prefix_share": 0.25}, (2.75, 2.0)),
        ({"prefix_steps": 0}, (3.0, 3.0)),
    ],
)
def test_steps_on_prefixes_are_timed_apart(monkeypatch, changes, pace):
    clock, c = [0.0], t2i.get_config()
    c.train.update(changes)

    def make_step(p, terms, prefixes, **options):
        def step(state, batch, key):
            clock[0] += 2.0 if prefixes else 3.0
            return state, {}

        return step, 0

    monkeypatch.setattr(training, "make_step", make_step)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    assert training.step_seconds(c, pipeline.PACKAGED) == pace


def test_a_step_on_prefixes_has_their_loss(monkeypatch):
    def make(config, vocab, pad_id, **asked):
        raise LookupError(f"of {asked}")

    monkeypatch.setattr(train_diffusion, "make_prefix_objective", make)
    with pytest.raises(LookupError, match=r"of {'without': 'image'}"):
        training.make_step(sizes.parts(sizes.tiny()), prefixes=True, without="image")


def test_features_are_numbers_in_a_batch():
    p = sizes.parts(any_from_any.get_config("vectors"))
    found = p.batch["vectors"]
    assert (found.shape, found.dtype) == ((32, 2, 16), np.float32)
    assert train_diffusion.sequence(p.vocab, p.batch)[1] is not None


def test_an_unknown_recipe_is_refused_before_any_work(tmp_path):
    asked = ["contest", "--minutes=1", "--recipes=odd", f"--workdir={tmp_path / 'new'}"]
    with pytest.raises(SystemExit, match=r"^error: recipe 'odd' does not exist, expected one of o"):
        benchmarks.main(asked)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "steps, warmup, prefixes", [(3066, 150, 1000), (1042, 104, 347), (9, 0, 3)]
)
def test_a_recipe_of_fewer_steps_has_a_shorter_beginning(steps, warmup, prefixes):
    found = contest.for_steps(t2i.get_config(), steps).train
    assert (found.steps, found.warmup, found.prefix_steps) == (steps, warmup, prefixes)


@pytest.mark.long
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
    assert (tmp_path / "table.md").read_text() == standings.table(rows)
    steps = {row["recipe"]: row["steps"] for row in rows}
    paces = files.read_json(tmp_path / "paces.json")["step_seconds"]
    whole, half = (
        {n: contest.number_of_steps(contest.recipe(c, n, 0), t, pace) for n, pace in paces.items()}
        for t in (0.12, 0.06)
    )
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
        (t2i.get_config(), 1, 3, ["text.model", "vq/tokenizer", "tokens"]),
        (t2i.get_config(), 4, 0, ["text.model", "vq/tokenizer", "tokens"]),
        (t2i.get_config(), 4, 3, ["text.model", "vq/tokenizer"]),  # other crops: a cache of its own
        (
            any_from_any.get_config(),
            1,
            3,
            ["text.model", "vq/tokenizer", "sound/tokenizer", "tokens"],
        ),
    ],
)
def test_every_seed_has_the_tokenizers_and_if_its_crops_are_the_same_the_cache(
    tmp_path, base, views, seed, parts
):
    base.views = views
    run_folder.claim(base, tmp_path)
    found = contest.shared_parts(contest.recipe(base, "ours", seed), tmp_path)
    assert sorted(found) == sorted(parts)
