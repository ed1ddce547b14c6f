"""The stages of the main job, apart from the command line: what a config turns on and off,
what is refused before the first, and one's own pictures through all of them.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import any as any_config
from configs import t2i
from tests.helpers import tiny
from tests.training.test_train_image_tokenizer import Tiles, make_config
from udd_jax import build, modalities, pipeline, stages
from udd_jax.data import batches, pixels, records, sources
from udd_jax.evaluation import feature_networks, held_out
from udd_jax.runtime import files, trees
from udd_jax.tokenizers import image_tokenizer, vqgan
from udd_jax.training import further, pairs, train_image_tokenizer
from udd_jax.training import pictures as pictures_of


class Tokenizer:
    """Codes are an image's first red pixel, pieces the length of a caption."""

    def encode(self, batch, length=1):
        if isinstance(batch, list):
            return np.array([[len(caption)] * length for caption in batch], np.int32)
        return batch[:, :1, 0, 0].astype(np.int32)


TOKENIZERS = {"image": Tokenizer(), "text": Tokenizer()}


class Spots(Tiles):
    name = "spots"

    def __getitem__(self, index):
        picture = np.full((12, 12, 3), index, np.uint8)
        captions = ("x" * (index + 1), "y" * (index + 1))
        return records.Record(str(index), b"broken" if index == 3 else picture, captions)


def test_pairs_come_straight_from_pictures_and_what_is_broken_is_listed(tmp_path):
    config = t2i.get_config()
    config.update({"image_size": 12, "seed": 4})
    config.train.update({"batch_size": 40, "steps": 6})
    config.text.length = 2
    source, size = Spots(200), 200
    batch_at = pairs.straight(config, tmp_path, source, TOKENIZERS, (0, 1), stages.views(config))
    for step in range(2, 6):  # goes on, and reads each item once
        batch = batch_at(step)
        items = [item + (item == 3) for item in batches.indices(4, step, 40, size)]
        np.testing.assert_array_equal(batch["image"][:, 0], items)
        np.testing.assert_array_equal(batch["text"], np.add(items, 1)[:, None].repeat(2, 1))
    rows = [json.loads(row) for row in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(row["position"], row["cause"]) for row in rows] == [(3, "broken image")]


def test_too_many_broken_pictures_end_a_run_without_a_cache(tmp_path):
    config = t2i.get_config()
    config.image_size = 12
    config.train.batch_size = 20
    batch_at = pairs.straight(config, tmp_path, Spots(20), TOKENIZERS, (0, 1), stages.views(config))
    with pytest.raises(ValueError, match="spots: 1 of 20 items cannot be used, more than 1%"):
        batch_at(0)
    assert (tmp_path / "skipped.jsonl").exists()


def test_lpips_is_off_without_a_weight_or_files_and_is_the_users_own(monkeypatch, capsys):
    monkeypatch.setattr(feature_networks, "perceptual", lambda folder: ("function", folder))
    config = make_config(weights="here")
    assert stages.perceptual(config) is None
    config.vq.perceptual = 1.0
    assert stages.perceptual(config) == ("function", "here")
    config.vq.weights = ""
    assert stages.perceptual(config) is None
    assert "no perceptual loss, vq.weights names no folder" in capsys.readouterr().out


@pytest.mark.slow
def test_a_codebook_is_rebuilt_after_training_where_the_config_says_so(tmp_path):
    config = make_config(rebuild={"codes": 7, "steps": 4, "learning_rate": 1e-6}, merge=0.0)
    data = {"train": Tiles(), "validation": Tiles(seed=1)}
    tokenizer = stages.make_image_tokenizer(config, tmp_path, data)
    first = image_tokenizer.load(tmp_path / "vq" / "first" / train_image_tokenizer.FILE)
    assert (first.codes, tokenizer.codes) == (12, 7)
    assert stages.make_image_tokenizer(config, tmp_path, data).hash == tokenizer.hash
    with np.testing.assert_raises(AssertionError):
        np.testing.assert_array_equal(vqgan.rows(first.params)[:7], vqgan.rows(tokenizer.params))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.activation", "tanh", r"model\.activation = 'tanh'"),
        ("train.optimiser", "sgd", r"train\.optimiser = 'sgd'"),
        ("train.objective", "hinge", "hinge"),
        ("diffusion.schedule", "sine", "schedule 'sine'"),
        ("sample.steps", 7, r"sample\.steps = 7 is more than the T = 6"),
        ("sample_rules", {"sound": {"top_r": 0.5}}, "names 'sound'"),
        ("sample_rules", {"text": {"top": 0.5}}, r"sample_rules\.text\.top is not a setting"),
        ("sample_rules", {"text": {"steps": 7}}, r"sample\.steps = 7 is more than the T = 6"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_before_the_first(
    tmp_path, field, value, message
):
    config = tiny.config()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message) as error:
        stages.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_the_first_stage(tmp_path):
    config = tiny.config()
    config.mesh.data, config.vq.batch_size = 8, 12
    with pytest.raises(
        ValueError, match=r"^vq\.batch_size = 12 is not a multiple of mesh.data = 8"
    ):
        stages.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.vq.file, config.train.batch_size = "given", 12
    with pytest.raises(ValueError, match=r"^train\.batch_size = 12 is not a multiple"):
        stages.check_batches(config, tmp_path)
    (tmp_path / build.WEIGHTS).touch()
    stages.check_batches(config, tmp_path)  # nothing is trained any more


@pytest.mark.parametrize(
    ("suite", "folder"), [("tuning", "runs/t2i"), ("samplers", "runs/t2i"), ("main", "gs://b/run")]
)
def test_what_processes_do_not_share_is_refused(monkeypatch, suite, folder):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=f"--suite={suite} .* with 2 processes: only the suites"):
        stages.evaluate_run(folder, suite)


def _poor(folder):
    """The file of a tokenizer that has learned nothing, and the config that names it."""
    config = make_config(above_flat=3.0)
    module = train_image_tokenizer.make_model(config)
    params = module.init(jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))["params"]
    image_tokenizer.save(folder / "poor", image_tokenizer.ImageTokenizer(module, params))
    config.vq.file = str(folder / "poor")
    return config


def test_a_given_tokenizer_that_shows_the_pictures_badly_is_told_and_taken(tmp_path, capsys):
    config, data = _poor(tmp_path), {"train": Tiles(), "validation": Tiles(seed=1)}
    tokenizer = stages.make_image_tokenizer(config, tmp_path / "run", data)
    said = " ".join(capsys.readouterr().out.split())
    assert tokenizer.hash == image_tokenizer.load(tmp_path / "run" / build.IMAGE).hash
    assert f"warning: the image tokenizer of --config.vq.file={tmp_path}/poor shows tiles" in said
    assert "dB better than one colour a cell, expected at least 3" in said
    stages.make_image_tokenizer(config, tmp_path / "run", data)  # told once
    config.vq.above_flat = 0.0  # asked for
    stages.make_image_tokenizer(config, tmp_path / "again", data)
    assert capsys.readouterr().out == ""


def test_a_tokenizer_of_another_run_is_told_by_the_flag_that_names_the_run(tmp_path, capsys):
    config, data = _poor(tmp_path), {"train": Tiles(), "validation": Tiles(0)}
    config.init_from = str(tmp_path)
    stages.make_image_tokenizer(config, tmp_path / "run", data)
    assert f"tokenizer of --config.init_from={tmp_path} shows tiles" in capsys.readouterr().out


def test_a_given_tokenizer_that_is_good_enough_says_nothing(tmp_path, capsys, monkeypatch):
    config, data = _poor(tmp_path), {"train": Tiles(), "validation": Tiles(seed=1)}
    monkeypatch.setattr(image_tokenizer.ImageTokenizer, "decode", lambda self, codes: shown(data))
    stages.make_image_tokenizer(config, tmp_path / "run", data)
    assert capsys.readouterr().out == ""


def shown(data):
    config = make_config()
    return pictures_of.Pictures(data["validation"], config).sample(64)


def test_a_training_and_a_job_stop_on_a_tokenizer_that_shows_little(tmp_path, pictures):
    few = {"steps": 2, "plain_steps": 1, "warmup": 1}
    message = r"better than one colour a cell, expected at least 3: .*--config.vq.above_flat=0"
    with pytest.raises(ValueError, match=message):
        config = make_config(above_flat=3.0, **few)
        train_image_tokenizer.train(config, tmp_path / "vq", Tiles(), Tiles(seed=1))
    assert not (tmp_path / "vq" / train_image_tokenizer.FILE).exists()
    c = tiny.config()
    c.data, c.data_options.size = f"folder:{pictures}", None
    c.vq.update({**few, "above_flat": 3.0, "pictures": 8, "batch_size": 8})
    with pytest.raises(ValueError, match=message):
        stages.run(c, tmp_path / "run")
    assert not (tmp_path / "run" / build.IMAGE).exists()
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.parametrize("stored", [True, False])
def test_a_given_tokenizer_of_sounds_is_told_by_its_own_flag(tmp_path, capsys, stored):
    config = any_config.get_config("smoke")
    config.vq.above_flat = 3.0
    tiny.make(tmp_path / "run", tiny.shrink(config, 6, 3))
    file = tmp_path / "run" / modalities.tokenizer_file(config, "sound")
    with config.unlocked():
        config.modalities.sound.vq.file = str(file)
    world = sources.open_source("shapes", "validation", size=8, further=["sound"])
    source = Listed(world[i] for i in range(8)) if stored else world
    data = {"train": source, "validation": source}
    made = further.make_tokenizer(config, "sound", tmp_path / "new", data)
    said = capsys.readouterr().out
    assert ("warning: the sound tokenizer of --config.modalities.sound.vq.file=" in said) == stored
    assert made.hash == further.make_tokenizer(config, "sound", tmp_path / "run", data).hash


class Listed(list):
    """Stored records."""

    name = "stored"


SPOTS = {"red spot": (220, 25, 25), "blue spot": (25, 25, 220), "green spot": (25, 220, 25)}


def test_a_place_where_no_folder_can_be_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        stages.run(t2i.get_config("smoke"), tmp_path / "file" / "run")


@pytest.fixture
def pictures(tmp_path):
    """Sixty small pictures of a coloured spot, and their captions."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    lines = []
    for i in range(60):
        name, colour = list(SPOTS.items())[i % len(SPOTS)]
        picture = np.full((40, 48, 3), 240, np.uint8)
        top, left = rng.integers(0, 20, 2)
        picture[top : top + 16, left : left + 16] = colour
        pixels.write_png(folder / f"{i}.png", picture)
        lines.append(json.dumps({"file": f"{i}.png", "caption": f"a {name}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long), 10]
)
def test_a_handful_of_pictures_goes_through_all_stages_and_is_said_to_be_overfitted(
    pictures, tmp_path, capsys, count
):
    few = tmp_path / "few"
    few.mkdir()
    for i in range(count):
        (pictures / f"{i}.png").rename(few / f"{i}.png")
        (few / f"{i}.txt").write_text("a spot")
    c = tiny.config()
    c.data, c.data_options.size = f"folder:{few}", None
    c.vq.model.n_embed = 64
    c.train.update({"steps": 2, "warmup": 1, "save_every": 2, "log_every": 1})
    c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4})
    stages.run(c, tmp_path / "run")
    assert image_tokenizer.load(tmp_path / "run" / build.IMAGE).codes >= 2
    result = files.read_json(tmp_path / "run" / "evaluation.json")
    assert "overlap with training" in result["unmeasured"]
    assert "it has learned from" in (tmp_path / "run" / "report.html").read_text()
    said = capsys.readouterr().out
    assert f"{count} pictures are few: expect them to be learned by heart" in said
    assert "no validation" in said and "those of the training are measured" in said


def test_where_nothing_is_held_out_the_training_is_measured_and_that_is_said(
    pictures, tiny_run, capsys
):
    pipe = pipeline.Pipeline.load(tiny_run)
    assert held_out.measurable(pipe) is pipe  # shapes have a test split
    config = pipe.config.copy_and_resolve_references()
    config.data = f"folder:{pictures}"
    for test, split in ((0.5, "test"), (0.0, "train")):
        config.data_options.test = test
        own = dataclasses.replace(pipe, config=config.copy_and_resolve_references())
        assert held_out.split_of(held_out.measurable(own)) == split
    assert "the numbers say how well they are remembered" in capsys.readouterr().out


@pytest.mark.slow
def test_ones_own_pictures_go_through_all_stages_and_start_from_another_run(
    pictures, tmp_path, capsys
):
    def config(**model):
        c = t2i.get_config("smoke")
        c.data, c.data_options = f"folder:{pictures}", {}
        c.train.update({"steps": 4, "warmup": 2, "save_every": 4, "log_every": 2})
        c.train.prefix_steps = 2
        c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4})
        c.model.update(model)
        return c

    def own(denoise_fn, outcome, key):
        return outcome.t[:, 0] * 0.0, {"own": jnp.float32(7)}

    stages.run(config(), tmp_path / "first", terms={"own": (1.0, own)})
    lines = (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line).get("own") for line in lines if "text_nll" in line]
    assert told == [None, 7.0]  # prefixes have no terms
    for name in ("evaluation.json", "report.html", "samples/samples.jsonl"):
        assert (tmp_path / "first" / name).exists(), name
    first, _ = trees.load_tree(tmp_path / "first" / build.WEIGHTS)

    # The same tokenizers, a wider MLP: all else starts from the first run.
    second = config(mlp_ratio=3)
    second.init_from = str(tmp_path / "first")
    second.vq.file, second.text.file = (
        str(tmp_path / "first" / name) for name in (build.IMAGE, build.TEXT)
    )
    second.train.update({"steps": 1, "warmup": 1, "learning_rate": 0.0})
    capsys.readouterr()
    stages.run(second, tmp_path / "second", until="diffusion")
    said = capsys.readouterr().out
    assert "blocks/mlp/in/kernel" in said and "starts fresh" in said
    weights, _ = trees.load_tree(tmp_path / "second" / build.WEIGHTS)
    old, new = trees.flatten(first), trees.flatten(weights)
    same = {
        n for n in new if old[n].shape == new[n].shape and np.allclose(old[n], new[n], atol=1e-5)
    }
    fresh = set(new) - same
    assert fresh and all("/mlp/" in name for name in fresh)
