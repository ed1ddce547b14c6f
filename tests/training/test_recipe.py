"""Open fields of a config are chosen from the data and the minutes, and kept in the run."""

import io
import json
import tarfile

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import own, t2i
from tests.data.test_sources_cases import fill
from udd_jax import build, stages
from udd_jax.data import pixels
from udd_jax.runtime import run_folder
from udd_jax.training import limits, recipe, start

EMOJI = {"pictures": 7000, "side": 64, "aspect": 1.0, "captions": 7000, "pieces": 16}


def config_of(path, **changes):
    c = own.get_config()
    c.data = f"folder:{path}"
    c.update_from_flattened_dict(changes)
    return c


def test_the_choice_for_emoji_and_an_hour_is_the_config_emoji():
    chosen, emoji = recipe.choose(own.get_config(), EMOJI), t2i.get_config("emoji")
    longer = {"vq.steps": 2.5, "train.steps": 1.1, "train.prefix_steps": 1.1}  # at most
    assert set(chosen) == set(recipe.FIELDS)
    for name, value in chosen.items():
        most = longer.get(name, 1)
        assert 1 / most <= (value + 1e-9) / (limits.value(emoji, name) + 1e-9) <= most, name


def test_a_typed_cell_of_4_pixels_has_the_codes_of_fine_emoji_and_steps_for_its_minutes():
    config, fine = own.get_config(), t2i.get_config("emoji_fine")
    config.vq.model.patch = 4
    chosen = recipe.choose(config, EMOJI)
    same = ("vq.model.patch", "vq.model.n_embed", "train.batch_size", "train.image_weight")
    for name in (*same, "sample.steps", "dual_encoder.patch"):
        assert chosen[name] == limits.value(fine, name), name
    assert chosen["train.steps"] < recipe.choose(own.get_config(), EMOJI)["train.steps"]


@pytest.mark.parametrize(
    ("sizes", "shape", "size"),
    [
        ([(640, 480)] * 7 + [(480, 640)], 4 / 3, (64, 88)),  # photographs, one of them upright
        ([(400, 600)], 2 / 3, (96, 64)),
        ([(300, 100)], 2.0, (64, 128)),  # longer ones are cut
        ([(100, 100)] * 6 + [(130, 100)] * 6, 1.0, 64),  # a square cuts off little
        ([(200, 100), (100, 200)] * 4, 1.0, 64),  # pictures that agree on no shape
    ],
)
def test_pictures_that_agree_on_a_shape_keep_it(sizes, shape, size):
    found = recipe.aspect(np.array(sizes, float))
    assert found == pytest.approx(shape)
    config = own.get_config()
    assert recipe.choose(config, EMOJI | {"side": 400, "aspect": found})["image_size"] == size


def test_the_facts_of_a_folder_tell_its_shape(tmp_path):
    for i in range(30):
        picture = np.full((32, 48, 3), 8 * i, np.uint8)
        pixels.write_png(tmp_path / f"{i}.png", picture)
        (tmp_path / f"{i}.txt").write_text(f"a picture number {i}")
    found = recipe.facts(config_of(tmp_path))
    assert (found["side"], found["aspect"]) == (32, 1.5)
    filled = recipe.fill(config_of(tmp_path, minutes=2.0))
    assert tuple(filled.image_size) == (32, 48)


def test_pictures_without_any_caption_are_one_line_that_says_what_was_not_used(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(4):
            pixels.write_png(tmp_path / "a.png", np.full((8, 8, 3), 40 * i, np.uint8))
            for name, content in (
                (f"{i}.png", (tmp_path / "a.png").read_bytes()),
                (f"{i}.cls", b"3"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    c = own.get_config()
    c.data = f"webdataset:{tmp_path}/a.tar"
    with pytest.raises(ValueError, match=r"none of \d pictures has a caption.*cls: a member that"):
        recipe.fill(c)


SIZES = [16, 28, 30, 32, 48, 64, (64, 96), (96, 64), 100, 128, 180, 224, 256, 300, (480, 640), 512]


def test_few_pictures_get_few_epochs_of_the_image_tokenizer():
    """180 drawings: 3.3 dB above one colour a cell after 450 steps, 2.3 after 1668."""
    config = own.get_config()
    config.minutes = 8.0
    chosen = {n: recipe.choose(config, EMOJI | {"pictures": n}) for n in (10, 180, 5000)}
    steps = [chosen[n]["vq.steps"] for n in chosen]
    assert steps[:2] == [400, 450] and steps[2] > 800 and chosen[180]["vq.model.n_embed"] == 512


@pytest.mark.parametrize("size", SIZES)
def test_any_size_has_few_codes_and_regions_of_the_dual_encoder_that_fit(size):
    config = own.get_config()
    with config.ignore_type():
        config.image_size = size
    chosen = recipe.choose(config, EMOJI)
    short = min(pixels.both(size))
    assert min(8, short // 5) <= short // chosen["vq.model.patch"] <= 12
    for side in pixels.both(size):
        grid, left = divmod(side, chosen["vq.model.patch"])
        assert left == 0 and grid % chosen["dual_encoder.patch"] == 0
        assert grid // chosen["dual_encoder.patch"] >= 4
    # Operations of a picture in a step of the image tokenizer, in 1e9 (`cost_analysis`).
    operations = {64: 3.55 / 8, 128: 1.4 / 2, 256: 1.7, 512: 5.7}
    if size in operations:
        seconds = 0.1 * 3600 / (chosen["vq.steps"] * chosen["vq.batch_size"])
        assert abs(seconds / (0.067 / 8 * operations[size] / operations[64]) - 1) < 0.05


def test_what_the_baseline_does_not_have_begins_without_it():
    for change in (
        {"model.concentrated": True},
        {"experts": (0.5,)},
        {"train.objective": "continuous"},
        {"init_from": "udd_jax/assets/shapes"},
    ):
        config = own.get_config()
        config.update_from_flattened_dict(change)
        assert recipe.choose(config, EMOJI)["train.prefix_steps"] == 0, change


def test_from_an_older_run_what_is_absent_stays_as_it_was_there():
    config = own.get_config()
    config.init_from, config.model.absent = "udd_jax/assets/shapes", "left_out"
    assert start.settings(config)["model.absent"] == "noise"


@pytest.mark.parametrize("count", [1, 3, 10, 200, 5000, 500_000])
@pytest.mark.parametrize("minutes", [1.0, 60.0, 6000.0])
def test_every_choice_is_complete_in_range_and_in_time(count, minutes):
    config = own.get_config()
    config.minutes = minutes
    found = {"pictures": count, "side": 30 if count == 10 else 500, "captions": count, "pieces": 40}
    found["aspect"] = 1.0
    config.update_from_flattened_dict(recipe.choose(config, found))
    assert not recipe.open_fields(config)
    limits.check(config)
    codes = (config.image_size // config.vq.model.patch) ** 2
    tokens = config.train.batch_size * (codes + 40)
    seconds = config.vq.steps * config.vq.batch_size * codes
    seconds *= recipe.vq_seconds(config.vq.model.patch)
    seconds += config.train.steps * tokens * recipe.SECONDS
    assert seconds < 60 * minutes or config.vq.steps == config.train.steps == 100
    if count <= 10:  # learned by heart: more would not help
        assert config.train.steps <= recipe.MOST_EPOCHS


def test_more_minutes_give_more_steps_and_a_typed_field_enters_the_others():
    few, many = own.get_config(), own.get_config()
    many.minutes = 600.0
    for part, times in (("vq.steps", 3), ("train.steps", 5)):
        assert recipe.choose(many, EMOJI)[part] > times * recipe.choose(few, EMOJI)[part]
    few.image_size = 128
    chosen = recipe.choose(few, EMOJI)
    assert (chosen["image_size"], chosen["vq.model.patch"], chosen["vq.batch_size"]) == (128, 16, 8)


@pytest.mark.filterwarnings("ignore:the load_module")
def test_the_open_fields_are_filled_from_the_data_printed_and_what_is_typed_stays(
    tmp_path, capsys, monkeypatch
):
    fill(tmp_path, 60, text="a small box with the number {}")
    for n in range(6):  # 10 % long captions: 98 % must stay whole
        (tmp_path / f"{n}.txt").write_text("a box and another box " * 5)
    command = ["job", "--config=configs/own.py", f"--config.data=folder:{tmp_path}"]
    command += ["--config.minutes=30", "--config.train.steps=123", "--config.train.mixture.t2i=0.9"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.setattr("sys.argv", command)
    values(command)
    config = recipe.fill(values.config)
    assert not recipe.open_fields(config)
    assert (config.train.steps, config.train.mixture.t2i, config.minutes) == (123, 0.9, 30.0)
    assert config.image_size == 32  # pictures of 16 pixels
    said = capsys.readouterr().out
    assert "pictures of about 16 pixels and 30 minutes of two cores: --config.image_size=32" in said
    assert f"--config.text.length={config.text.length}" in said
    assert "--config.train.steps=" not in said and "--config.train.mixture.pair=0.08" in said
    stages.check(config)
    assert values.config.train.batch_size is None  # the command's own config is left alone


def test_the_chosen_text_length_keeps_98_percent_of_the_captions_whole(tmp_path, capsys):
    fill(tmp_path, 60, text="a small box with the number {}")
    for n in range(6):
        (tmp_path / f"{n}.txt").write_text("a box and another box " * 5)
    stages.describe_data(config_of(tmp_path, **{"skip_limit": 0.5}))
    (said,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("text.length=")]
    cut, captions = (int(said.split()[i]) for i in (2, 4))
    assert cut <= 0.02 * captions and captions == 60


def test_a_run_keeps_what_was_chosen_also_when_the_data_have_grown(tmp_path):
    fill(tmp_path / "data", 30)
    config = config_of(tmp_path / "data")
    first = recipe.fill(config, tmp_path)
    (tmp_path / run_folder.CONFIG).write_text(json.dumps({"config": json.loads(first.to_json())}))
    fill(tmp_path / "data", 200)
    assert recipe.fill(config, tmp_path).to_dict() == first.to_dict()
    assert recipe.fill(config).to_dict() != first.to_dict()


def test_a_finished_run_is_measured_with_the_config_that_it_was_made_with(tiny_run, monkeypatch):
    """`--mode=evaluate --config=configs/own.py`: what is open there is as the run has it."""
    measured = []
    monkeypatch.setattr(stages.samplers_suite, "run", lambda pipe, _: measured.append(pipe.config))
    monkeypatch.setattr(stages.report, "write", lambda _: "report")
    asked = own.get_config()
    asked.sample.top_r = 0.5
    stages.evaluate_run(tiny_run, "samplers", asked)
    there = build.read_config(tiny_run)
    assert measured[0].sample.steps == there.sample.steps and measured[0].sample.top_r == 0.5
    assert asked.sample.steps is None


@pytest.mark.slow
def test_a_job_with_open_fields_runs_twice_with_the_same_fields(tmp_path, capsys):
    fill(tmp_path / "data", 40)
    small = {"vq.steps": 12, "vq.warmup": 2, "vq.plain_steps": 4, "vq.batch_size": 8}
    small |= {"vq.model.ch": 8, "vq.model.embed_dim": 4, "vq.model.z_channels": 8}
    config = config_of(tmp_path / "data", **{"vq.above_flat": 0.0, "mesh.data": 1}, **small)
    stages.run(config, tmp_path / "run", until="token cache")
    kept = json.loads((tmp_path / "run" / run_folder.CONFIG).read_text())["config"]
    assert kept["vq"]["steps"] == 12 and kept["text"]["length"] >= 4 and kept["image_size"] == 32
    assert None not in (kept["train"]["steps"], *kept["train"]["mixture"].values())
    capsys.readouterr()
    stages.run(config, tmp_path / "run", until="token cache")
    assert "chosen for" not in capsys.readouterr().out


def test_configs_without_open_fields_are_left_alone_and_bad_minutes_refused(tmp_path):
    config = t2i.get_config()
    assert recipe.fill(config) is config
    with pytest.raises(ValueError, match=r"data is missing, expected --config.data="):
        recipe.fill(own.get_config())
    with pytest.raises(ValueError, match=r"minutes = 0\.0, expected more than 0"):
        recipe.fill(config_of(tmp_path, minutes=0.0))
