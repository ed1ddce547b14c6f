"""Claims about a work folder: its record, one's own pictures in it, a start from another run."""

import json
import pathlib
import subprocess

import jax
import numpy as np
import pytest

from configs import t2i
from tests.helpers import tiny
from udd_jax import build, stages
from udd_jax.data import pixels
from udd_jax.runtime import files, provenance, run_folder, trees


def record(folder):
    return files.read_json(folder / build.CONFIG)


def test_a_record_says_config_seed_versions_devices_and_commit(tmp_path):
    config = tiny.config()
    run_folder.claim(config, tmp_path)
    stored = record(tmp_path)
    assert stored["config"]["seed"] == config.seed and "before" not in stored
    made = stored["made_with"]
    assert made["jax"] == jax.__version__ and made["devices"] == [str(d) for d in jax.devices()]
    root = pathlib.Path(__file__).parent.parent
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        assert made["commit"] in (commit, f"{commit}-dirty")


def test_a_run_that_goes_on_elsewhere_keeps_what_it_began_with(tmp_path, monkeypatch):
    for version in ("1", "1", "2", "2", "3"):
        monkeypatch.setattr(provenance, "provenance", lambda version=version: {"jax": version})
        run_folder.claim(tiny.config(), tmp_path)
    assert record(tmp_path)["made_with"] == {"jax": "3"}
    assert record(tmp_path)["before"] == [{"jax": "1"}, {"jax": "2"}]


def test_another_config_is_refused_by_field_and_leaves_the_record(tmp_path):
    config = tiny.config()
    run_folder.claim(config, tmp_path)
    before = record(tmp_path)
    config.train.steps += 1
    run_folder.claim(config, tmp_path)
    config.model.width = 64
    with pytest.raises(ValueError, match=r"another config \(model.width: 16 there, 64 here\)"):
        run_folder.claim(config, tmp_path)
    assert record(tmp_path)["config"]["model"] == before["config"]["model"]


def test_a_run_goes_on_where_the_config_has_a_new_field_that_is_off(tmp_path):
    config = tiny.config()
    run_folder.claim(config, tmp_path)
    config.model.added = False
    run_folder.claim(config, tmp_path)
    assert record(tmp_path)["config"]["model"]["added"] is False
    config.model.other = 3
    with pytest.raises(ValueError, match=r"model\.other: None there, 3 here"):
        run_folder.claim(config, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.activation", "tanh", r"model\.activation = 'tanh'"),
        ("train.optimiser", "sgd", r"train\.optimiser = 'sgd'"),
        ("train.objective", "hinge", "hinge"),
        ("diffusion.schedule", "sine", "schedule 'sine'"),
        ("sample.steps", 7, r"sample\.steps = 7 is more than the T = 6"),
    ],
)
def test_what_a_late_stage_would_refuse_is_refused_before_the_first(
    tmp_path, field, value, message
):
    config = tiny.config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message) as error:
        stages.run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_an_image_without_a_checkout_says_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "udd_jax" / "runtime" / "a.py"))
    assert "commit" not in provenance.provenance()
    monkeypatch.setenv("UDD_COMMIT", "abc")
    assert provenance.provenance()["commit"] == provenance.commit(12) == "abc"


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
def test_ones_own_pictures_go_through_all_stages_and_start_from_another_run(
    pictures, tmp_path, capsys
):
    def config(**model):
        c = t2i.get_config("smoke")
        c.data, c.data_options = f"folder:{pictures}", {}
        c.train.update({"steps": 4, "save_every": 4, "log_every": 2})
        c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4})
        c.model.update(model)
        return c

    stages.run(config(), tmp_path / "first")
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
