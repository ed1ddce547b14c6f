"""The protocol on an oracle whose mistakes are known."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers import oracle, quick, tiny
from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.data.sources import shapes
from udd_jax.evaluation import held_out, manifest, samples
from udd_jax.evaluation.report import report
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.runtime import files

WRONG = {"t2i": (0,), "i2t": (1, 2), "pair": (3,), "infill": (0, 5), "image": (7,), "text": (1,)}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(an oracle that is sometimes wrong, its folder, its result)"""
    folder = tmp_path_factory.mktemp("run")
    pipe = oracle.make(folder, wrong=WRONG)
    return pipe, folder, main_suite.run(pipe, folder, say=lambda _: None)


def copy(pipe, **changes):
    return dataclasses.replace(pipe, asked=[], **changes)


def test_scores_are_the_shares_that_were_made_right(done):
    scores = done[2]["scores"]
    assert scores["t2i"]["agreement"]["rate"] == 7 / 8
    assert scores["i2t"]["agreement"]["rate"] == 6 / 8
    assert scores["pair"]["agreement"]["rate"] == 7 / 8
    assert scores["infill"]["consistency"]["rate"] == 6 / 8
    assert scores["image"]["readable"]["rate"] == 7 / 8
    assert scores["text"]["parsable"]["rate"] == 7 / 8
    assert scores["t2i"]["reasons"]["unreadable image"] == 1 / 8
    assert scores["i2t"]["reasons"]["unparsable caption"] == 2 / 8
    named = scores["t2i"]["by_named"].values()
    assert sum(group["count"] for group in named) == 8
    assert sum(group["rate"] * group["count"] for group in named) == pytest.approx(7)


def test_the_headline_holds_each_rate_against_its_aim(done):
    rows = {(row["task"], row["name"]): row for row in done[2]["headline"]}
    pair = rows["pair", "image and caption agree"]
    assert (pair["value"], pair["aim"], pair["floor"], pair["met"]) == (0.875, 0.9, 0.8, False)
    assert rows["tokenizer", "reconstruction is read right"]["met"]
    place = rows["t2i", "total variation of place"]
    assert place["better"] == "lower" and place["aim"] == 0.1


@pytest.mark.parametrize(("tv", "met"), [(0.1, True), (0.13, True), (0.141, False)])
def test_a_variation_misses_its_aim_by_more_than_chance_can(tv, met):
    rates = {"variation": {"place": {"tv": tv, "noise": 0.03, "error": 0.02, "count": 9}}}
    world = SimpleNamespace(aims={"variation": 0.1}, floors={})
    rows = main_suite.headline({"scores": {"i2t": rates}}, world)
    assert [row["met"] for row in rows] == [met]


@pytest.mark.parametrize(
    ("mixture", "aimed"),
    [
        ({"pair": 1.0}, {"pair"}),
        ({"image|text": 0.5, "text|image": 0.5, "infill": 0.0}, {"t2i", "i2t"}),
        ({"any": 1.0}, {"t2i", "i2t", "pair", "image", "text"}),
        ({"independent": 0.5, "infill": 0.5}, set(samples.TASKS)),
    ],
)
def test_only_what_the_mixture_trains_has_aims(done, mixture, aimed):
    trained = main_suite.trained_tasks(done[0].vocab, mixture)
    assert set(trained) == aimed
    rows = main_suite.headline(done[2], shapes.WORLD, trained)
    asked = {row["task"] for row in rows if row["aim"] is not None or row["floor"] is not None}
    assert asked == (aimed & shapes.WORLD.aims.keys()) | {"tokenizer"}


def test_a_lossless_tokenizer_has_the_noise_for_psnr(done):
    found = done[2]["tokenizer"]
    assert found["psnr"]["value"] == pytest.approx(
        20 * np.log10(255 / shapes.drawing.NOISE), abs=0.3
    )
    assert found["codes"] == 43
    items = held_out.read(done[0], oracle.ITEMS)
    used, counts = np.unique(items.codes, return_counts=True)
    share = counts / counts.sum()
    assert found["codes_used"] == len(used)
    assert found["perplexity"] == pytest.approx(np.prod(share**-share))


def test_bounds_are_bits_over_the_tokens_that_they_are_of(done):
    bounds = done[2]["bounds"]
    assert bounds["pair"]["value"] == pytest.approx((4 * 2 + 16 * 0.5) / 20)
    assert bounds["t2i"]["value"] == bounds["image"]["value"] == pytest.approx(2)
    assert bounds["i2t"]["value"] == pytest.approx(0.5)
    assert list(bounds["i2t"]["modalities"]) == ["text"]
    assert bounds["pair"]["count"] == 4


def test_a_bound_below_the_truth_is_an_error(done, tmp_path):
    # Two objects: template, order, whether sizes and whether colours are named.
    each = [-p * np.log2(p) for p in shapes.grammar.TWO_TEMPLATES.values()]
    shares = (shapes.grammar.READING_ORDER, shapes.grammar.SIZE_NAMED, shapes.grammar.COLOUR_NAMED)
    named = [-p * np.log2(p) for q in shares for p in (q, 1 - q)]
    truth = (sum(each) + sum(named)) / 16
    assert done[2]["entropy"] == {"value": pytest.approx(truth), "undercut": False}
    said = []
    low = copy(done[0], bits={"image": 2.0, "text": 0.9 * truth})
    result = main_suite.run(low, tmp_path, say=said.append)
    assert result["entropy"]["undercut"] and "undercuts" in result["errors"][0]
    assert said == [f"evaluation: {error}" for error in result["errors"]]


def test_a_changed_given_token_is_an_error(done, tmp_path):
    class Careless(oracle.Oracle):
        def generate(self, task, count, **options):
            pairs = super().generate(task, count, **options)
            pairs.tokens[1, 0 if task == "i2t" else 4] += 1
            return pairs

    fields = {f.name: getattr(done[0], f.name) for f in dataclasses.fields(done[0])}
    result = main_suite.run(Careless(**fields | {"wrong": {}}), tmp_path, say=lambda _: None)
    changed = {t: s.get("given_tokens_changed") for t, s in result["scores"].items()}
    assert changed["t2i"] == changed["i2t"] == 1 and changed["pair"] is None
    assert "t2i: given tokens were changed in 1 samples" in result["errors"]


def test_infilling_hides_a_half_of_the_image_and_half_of_the_words(done):
    kept = samples.load(done[1] / "samples" / "infill.npz")
    assert (kept.free_pixels.mean((1, 2)) == 0.5).all()
    halves = kept.free_pixels[:, ::31, ::31].reshape(8, 4)
    assert set(map(tuple, halves.tolist())) <= {
        (True, True, False, False),
        (False, False, True, True),
        (True, False, True, False),
        (False, True, False, True),
    }
    items = held_out.read(done[0], 8)
    for blanked, caption in zip(kept.given_captions, items.captions, strict=True):
        pairs = list(zip(blanked.split(), caption.split(), strict=True))
        assert all(a in (b, "___") for a, b in pairs)
        assert sum(a == "___" for a, _ in pairs) == (len(pairs) + 1) // 2


def test_every_sample_is_kept_with_its_verdict(done):
    lines = [json.loads(x) for x in (done[1] / "samples/samples.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * oracle.ITEMS
    wrong = {task: [] for task in WRONG}
    for line in lines:
        if not line["right"]:
            wrong[line["task"]].append(line["index"])
            assert line["reason"]
        assert line["seed"] == 1 and line["settings"]["steps"] == 5
    assert wrong == {task: list(rows) for task, rows in WRONG.items()}
    assert (done[1] / "samples/sheet.png").exists() and (done[1] / "samples/t2i-000.png").exists()


def test_the_trace_ends_in_the_pair_and_starts_from_masks(done):
    with np.load(done[1] / "samples/trace.npz") as trace:
        images, pieces = trace["images"], trace["pieces"]
    kept = samples.load(done[1] / "samples/pair.npz")
    assert np.array_equal(images[-1], kept.images[: samples.TRACED])
    assert [" ".join(filter(None, row)) for row in pieces[-1]] == kept.captions[: samples.TRACED]
    assert (pieces[0] == "_").all() and (images[0, :, 31, 31] == 160).all()


def test_later_settings_that_are_off_leave_the_protocol_as_it_was(done):
    config = done[0].config
    assert config.evaluate.listener == 0 and config.evaluate.rules == ()
    found = manifest.protocol(done[0], "main")
    assert not {"listener", "rules"} & set(found["evaluate"]) and "begin_with" not in found
    assert manifest.protocol(done[0].with_config(begin_with=("image",)), "main") != found


def test_a_finished_evaluation_is_not_made_again(done):
    pipe = copy(done[0])
    assert main_suite.run(pipe, done[1]) == done[2]
    assert pipe.asked == []


def test_a_stopped_evaluation_makes_only_what_is_missing(done):
    pipe, folder = copy(done[0]), done[1]
    (folder / "evaluation.json").unlink()
    (folder / "samples" / "pair.npz").write_bytes(b"half a file")
    result = main_suite.run(pipe, folder, say=lambda _: None)
    assert pipe.asked == ["pair"]
    assert result["headline"] == done[2]["headline"]


def test_a_task_that_was_stopped_between_its_parts_goes_on_with_the_next(done, tmp_path):
    class Stopped(oracle.Oracle):
        def generate(self, task, count, *, first=0, **options):
            if first >= 6 and self.wrong.get("stop"):
                raise KeyboardInterrupt
            return super().generate(task, count, first=first, **options)

    fields = {f.name: getattr(done[0], f.name) for f in dataclasses.fields(done[0])}
    pipe = Stopped(**fields | {"wrong": {"stop": True}, "asked": []})
    items = held_out.read(pipe, 8)
    asked = {"count": 8, "batch_size": 3, "seed": 0, "made_of": {"weights": "a"}}
    with pytest.raises(KeyboardInterrupt):
        samples.obtain(pipe, items, "t2i", tmp_path / "t2i.npz", **asked)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["t2i-00000.npz", "t2i-00001.npz"]
    again = copy(pipe, wrong={})
    made = samples.obtain(again, items, "t2i", tmp_path / "t2i.npz", **asked)
    assert again.asked == ["t2i"] and len(made) == 8  # the third part alone
    whole = samples.obtain(copy(pipe, wrong={}), items, "t2i", tmp_path / "b/t2i.npz", **asked)
    assert np.array_equal(made.tokens, whole.tokens) and made.captions == whole.captions


@pytest.mark.slow
def test_an_evaluation_that_was_killed_comes_to_the_same_numbers(tiny_run, tmp_path):
    env = quick.environment(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))

    def start(folder):
        command = [sys.executable, "-m", "udd_jax.main", "--mode=evaluate"]
        command += ["--config=configs/t2i.py:smoke", f"--workdir={folder}"]
        command += ["--config.evaluate.samples=48", "--config.evaluate.batch_size=4"]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)

    for name in ("killed", "whole"):
        shutil.copytree(tiny_run, tmp_path / name)
    job, part = start(tmp_path / "killed"), tmp_path / "killed/samples/i2t-00002.npz"
    while job.poll() is None and not part.exists():
        time.sleep(0.0005)
    job.kill()
    job.communicate()
    assert not (tmp_path / "killed/evaluation.json").exists()
    kept = samples.load(tmp_path / "killed/samples/i2t-00001.npz").tokens
    results = []
    for name in ("killed", "whole"):
        job = start(tmp_path / name)
        assert job.wait() == 0, job.communicate()[1]
        job.communicate()
        results.append(files.read_json(tmp_path / name / "evaluation.json"))
    for field in ("scores", "bounds", "tokenizer", "headline", "reader"):
        assert results[0][field] == results[1][field]
    made = [samples.load(tmp_path / name / "samples/i2t.npz") for name in ("killed", "whole")]
    assert np.array_equal(made[0].tokens, made[1].tokens)
    assert np.array_equal(made[0].tokens[4:8], kept)


@pytest.mark.parametrize("change", ["weights", "seed", "steps"])
def test_samples_of_other_weights_or_settings_are_made_again(done, tmp_path, change):
    pipe = copy(done[0])
    items = held_out.read(pipe, 4)

    def obtain(pipe, seed=0, made_of=None):
        samples.obtain(
            pipe, items, "t2i", tmp_path / "t2i.npz", count=4, batch_size=4, seed=seed,
            made_of=made_of or {"weights": "a"},
        )  # fmt: skip

    obtain(pipe)
    obtain(pipe)
    assert pipe.asked == ["t2i"]
    if change == "weights":
        obtain(pipe, made_of={"weights": "b"})
    elif change == "seed":
        obtain(pipe, seed=3)
    else:
        config = oracle.config()
        config.sample.steps = 7
        obtain(dataclasses.replace(pipe, config=config))
    assert pipe.asked == ["t2i", "t2i"]


def test_other_data_are_sampled_and_said_to_be_unmeasured(done, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        folder = tmp_path / ("test" if i < 3 else "train")
        folder.mkdir(exist_ok=True)
        pixels.write_png(folder / f"{i}.png", rng.integers(0, 255, (40, 32, 3), np.uint8))
        (folder / f"{i}.txt").write_text("a small red circle")
    config = oracle.config()
    config.data = f"folder:{tmp_path}"
    config.data_options = {"validation": 0.0}
    pipe = copy(done[0], config=config)
    result = main_suite.run(pipe, tmp_path / "run", say=lambda _: None)
    assert result["scores"]["t2i"] == {"count": 3, "given_tokens_changed": 0}
    assert result["scores"]["pair"] == {"count": 8}
    assert "in an embedded world only" in result["unmeasured"]["agreement"]
    assert "entropy" not in result and result["bounds"]["pair"]["count"] == 3


@pytest.mark.parametrize("lacks", ["absent modalities", "the image"])
def test_what_a_network_cannot_do_is_said_and_the_rest_is_measured(tmp_path, lacks):
    """One shared time, as published, has no bound of a modality alone. A conditional network
    generates its own modality only."""
    c = tiny.config()
    c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4, "bound_times": 1})
    c.model.time = "shared"
    pipe = pipeline.Pipeline.load(tiny.make(tmp_path, c))
    if lacks == "the image":
        pipe = pipe.with_network(network="text_from_image", time="per_modality")
    result = main_suite.run(pipe, tmp_path, say=lambda _: None)
    said = {name for name in result["unmeasured"] if name.startswith(("bound:", "samples:"))}
    if lacks == "the image":
        assert set(result["bounds"]) == set(result["scores"]) == {"i2t"}
        assert len(said) == 9 and {row["task"] for row in result["headline"]} >= {"i2t"}
        with pytest.raises(ValueError, match="this network cannot do t2i, pair, infill"):
            main_suite.run(pipe, tmp_path, "full")
    else:
        assert set(result["bounds"]) == {"pair", "t2i", "i2t"}
        assert set(result["scores"]) == set(samples.TASKS)
        assert said == {"bound: image", "bound: text"}
    report.write(tmp_path)


def test_the_manifest_holds_all_that_a_number_depends_on(done):
    pipe, _, result = done
    about = result["manifest"]
    protocol, items = about["protocol"], held_out.read(pipe, oracle.ITEMS)
    assert protocol["split"] == "test" and about["item_ids"] == items.keys
    assert protocol["items"] == items.hash and protocol["item_count"] == oracle.ITEMS
    assert about["samples"] == dict.fromkeys(samples.TASKS, oracle.ITEMS)
    assert (protocol["crop"], protocol["filter"]) == ("centre square", "lanczos")
    asked = {"sampler": "first_hitting", "steps": 5, "guidance": 1.0}
    asked |= {"top_r": 0.75, "top_k": 0, "temperature": 1.15}
    assert asked.items() <= protocol["settings"].items() and protocol["evaluate"]["seed"] == 1
    assert about["run"] == {
        "weights": manifest.made_of(pipe)["weights"],
        "image_tokenizer": "templates",
        "text_tokenizer": pipe.tokenizers["text"].hash[:16],
    }
    assert {"python", "jax", "flax", "numpy", "scipy", "pillow"} <= about["versions"].keys()
    assert all(about["versions"][name] for name in ("python", "jax", "numpy", "pillow"))
    assert about["hardware"]["devices"] == 8 and about["hardware"]["cores"] >= 1
    assert about["seconds"] == result["speed"]["total_seconds"] > 0


def test_the_filter_of_the_manifest_is_the_one_that_pictures_go_through():
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    square = {"box": (10, 0, 60, 50), "resample": Image.Resampling[pixels.FILTER.upper()]}
    fitted = Image.fromarray(image).resize((32, 32), **square)
    assert np.array_equal(pixels.fit(image, 32), np.asarray(fitted))


def test_other_weights_have_another_hash(done):
    weights = jax.tree.map(np.copy, done[0].params)
    weights["layer"]["kernel"][1, 2] += 1e-6
    changed = manifest.made_of(copy(done[0], params=weights))
    assert changed["weights"] != manifest.made_of(done[0])["weights"]


def test_samples_a_second_are_of_tasks_without_compilation_where_there_are_some():
    drawn = SimpleNamespace(about={"seconds": 2.0, "task": "t2i"}, calls=[3])
    assert "samples_a_second" not in main_suite.speed({"t2i": drawn}, {"t2i": 2.0})
