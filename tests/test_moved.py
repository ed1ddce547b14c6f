"""Data that moved: a run goes on with them, and is measured on them, from their new place."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.helpers import shell, tiny
from udd_jax import build, pipeline, stages
from udd_jax.data import pixels, survey
from udd_jax.evaluation import held_out
from udd_jax.runtime import files

SHARES = {"validation": 0.2, "test": 0.2}


def pictures(folder: pathlib.Path, count: int = 30, word: str = "spot"):
    """A folder of small pictures, each with its caption."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels.write_png(folder / f"{i}.png", rng.integers(0, 256, (32, 32, 3), np.uint8))
        (folder / f"{i}.txt").write_text(f"a {word} of number {i}")


def config(data: str):
    c = tiny.config()
    c.data, c.data_options = data, {"size": None, **SHARES}
    return c


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_run):
    """A folder with pictures, `old`, and `run`, a finished run that has learned from them."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "old")
    asked = config(f"folder:{tmp_path / 'old'}")

    def survey_alone(config, workdir, here, until, data, found, **options):
        tokenizer = stages.make_text_tokenizer(config, here, data["train"])
        stages.tell(config, data, found, tokenizer, workdir)

    monkeypatch.setattr(stages, "_run_stages", survey_alone)
    stages.run(asked, tmp_path / "run")
    for name in (build.TEXT, build.IMAGE, build.WEIGHTS):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        shutil.copy(tiny_run / name, tmp_path / "run" / name)
    return tmp_path


def test_a_run_goes_on_with_data_that_moved_by_an_absolute_and_by_a_relative_path(place):
    (place / "old").rename(place / "new")
    with pytest.raises(
        ValueError, match=r"is not a folder, .*name the new place in --config.data="
    ):
        stages.run(config(f"folder:{place / 'old'}"), place / "run")
    for data in (f"folder:{place / 'new'}", "folder:new", "folder:./new"):
        stages.run(config(data), place / "run")
        assert files.read_json(place / "run" / "config.json")["config"]["data"] == data


def test_a_run_of_a_relative_path_goes_on_from_another_folder(place, monkeypatch):
    stages.run(config("folder:old"), place / "run")
    (place / "below").mkdir()
    monkeypatch.chdir(place / "below")
    with pytest.raises(ValueError, match="old is not a folder"):
        stages.run(config("folder:old"), place / "run")
    stages.run(config("folder:../old"), place / "run")


def test_a_run_does_not_go_on_with_other_data_at_another_place(place):
    pictures(place / "other", word="dot")
    with pytest.raises(ValueError, match=r"belongs to another config .*other"):
        stages.run(config("folder:other"), place / "run")


def test_an_evaluation_reads_data_that_moved_and_refuses_others(place):
    pipe = pipeline.Pipeline.load(place / "run")
    before = held_out.read(pipe, 4)
    (place / "old").rename(place / "new")
    with pytest.raises(
        ValueError, match=r"is not a folder, .*name the new place in --config.data="
    ):
        held_out.read(pipe, 4)
    moved = held_out.typed(pipe, place / "run", {"data": "folder:new", "evaluate.samples": 3})
    assert held_out.read(moved, 4).hash == before.hash and moved.config.evaluate.samples == 3
    pictures(place / "other", word="dot")
    for fields in ({"data": "folder:other"}, {"data": "folder:new", "data_options.test": 0.5},
                   {"data": "shapes", "data_options.size": 9, "data_options.validation": None,
                    "data_options.test": None}):  # fmt: skip
        with pytest.raises(ValueError, match="are other data than those of this run") as caught:
            held_out.typed(pipe, place / "run", fields)
        flags = " ".join(f"--config.{name}={value}" for name, value in fields.items())
        assert str(caught.value).startswith(flags) and "\n" not in str(caught.value)


def test_a_run_that_does_not_know_its_data_says_that_they_cannot_be_compared(place, capsys):
    (place / "run" / survey.FILE).unlink()
    pipe = pipeline.Pipeline.load(place / "run")
    (place / "old").rename(place / "new")
    held_out.typed(pipe, place / "run", {"data": "folder:new"})
    said = " ".join(capsys.readouterr().out.split())
    assert f"--config.data=folder:new: no {survey.FILE} in the run says if it knows them" in said


def test_a_run_of_an_embedded_world_is_not_measured_on_other_data(place, tiny_run):
    pipe = pipeline.Pipeline.load(tiny_run)
    with pytest.raises(ValueError, match="are other data than those of this run"):
        held_out.typed(pipe, tiny_run, {"data": "folder:old"})


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--config.sample.eta=.3", r"--config.sample.eta = 0.3 changes nothing, sampler"),
        ("--config.begin_with=('foo',)", "begin_with names 'foo', expected some of image, text"),
    ],
)
def test_an_evaluation_refuses_what_it_would_not_read_before_it_draws(place, typed, message):
    with pytest.raises(ValueError, match=message):
        shell.run("--mode=evaluate", "--workdir=run", typed)


@pytest.mark.parametrize("typed", [("--config.data=folder:new",), ("--config=configs/t2i.py:smoke",
                                   "--config.data=folder:new")])  # fmt: skip
def test_the_command_takes_the_new_place_with_and_without_a_config(place, monkeypatch, typed):
    (place / "old").rename(place / "new")
    seen = []
    monkeypatch.setattr(stages.main_suite, "run", lambda pipe, *_, **__: seen.append(pipe))
    monkeypatch.setattr(stages.report, "write", lambda folder: folder)
    shell.run("--mode=evaluate", "--workdir=run", *typed, "--config.evaluate.samples=3")
    (pipe,) = seen
    assert pipe.config.data == "folder:new" and pipe.config.evaluate.samples == 3
    for bad in ("--config.evaluate.seed=-1", "--config.evaluate.split=tset"):
        with pytest.raises(ValueError, match=rf"^{bad[9:].partition('=')[0]} = .*: set --config"):
            shell.run("--mode=evaluate", "--workdir=run", *typed, bad)


def test_vectors_are_written_of_the_data_that_are_typed(place, monkeypatch):
    from udd_jax import embed

    seen = []
    monkeypatch.setattr(embed.vectors, "write", lambda data, *_, **__: seen.append(data) or {})
    encoder = type("Encoder", (), {"hash": "", "model": type("Model", (), {"width": 4})})
    monkeypatch.setattr(pipeline.Pipeline, "dual_encoder", encoder)
    (place / "old").rename(place / "new")
    shell.run("--mode=embed", "--workdir=run", "--out=out", "--config.data=folder:new")
    assert sum(map(len, seen[0].values())) == 30
    assert json.loads((place / "run" / "config.json").read_text())["config"]["data"] != "folder:new"


def test_the_data_are_described_without_a_config_from_any_folder(place, capsys):
    shell.run("--mode=data", "--config.data=folder:old", "--config.data_options.test=.2")
    said = capsys.readouterr().out
    assert "chosen for " in said and "data folder:old" in said and "20.0% by a hash" in said
    with pytest.raises(ValueError, match=r"--config.data= is missing, expected folder:DIR"):
        shell.run("--mode=data")
