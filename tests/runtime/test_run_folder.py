"""Claims about a run's folder: what its record says, and which config may go on in it."""

import pathlib
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import t2i
from tests.helpers import tiny
from udd_jax import build, pipeline
from udd_jax.runtime import files, provenance, run_folder

EARLIER = pathlib.Path(__file__).parents[1] / "fixtures" / "earlier_config.json"  # of version 0


def record(folder):
    return files.read_json(folder / build.CONFIG)


def test_a_record_says_config_seed_versions_devices_and_commit(tmp_path):
    config = tiny.config()
    run_folder.claim(config, tmp_path)
    stored = record(tmp_path)
    assert stored["config"]["seed"] == config.seed and "before" not in stored
    made = stored["made_with"]
    assert made["jax"] == jax.__version__ and made["devices"] == [str(d) for d in jax.devices()]
    root = pathlib.Path(__file__).parents[2]
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


def test_a_run_that_began_before_a_field_goes_on_with_what_it_did_and_with_nothing_else(tmp_path):
    config = tiny.config()
    run_folder.claim(config, tmp_path)
    stored = record(tmp_path)
    del stored["config"]["model"]["stack"], stored["config"]["model"]["decoder_layers"]
    del stored["config"]["train"]["contrastive"]
    files.write_json(tmp_path / build.CONFIG, stored)
    config.model.stack = "long_skips"
    with pytest.raises(ValueError, match=r"model\.stack: 'plain' there, 'long_skips' here"):
        run_folder.claim(config, tmp_path)
    config.model.stack = "plain"
    config.train.contrastive.step_inter = 0.5
    with pytest.raises(
        ValueError, match=r"\(train\.contrastive\.step_inter: None there, 0\.5 here"
    ):
        run_folder.claim(config, tmp_path)
    config.train.contrastive.step_inter = 0.0
    run_folder.claim(config, tmp_path)
    assert record(tmp_path)["config"]["model"]["stack"] == "plain"


def test_a_carried_run_of_an_earlier_version_goes_on_with_the_config_that_it_has_today(tmp_path):
    packaged = tmp_path / "packaged"
    packaged.mkdir()
    shutil.copy(pipeline.PACKAGED / build.CONFIG, packaged)
    run_folder.claim(t2i.get_config(), packaged)
    stored = files.read_json(EARLIER)
    files.write_json(tmp_path / build.CONFIG, stored)
    config = t2i.get_config()
    config.train.prefix_steps = 0  # that came with another recipe
    run_folder.claim(config, tmp_path)
    stored["config"]["train"]["init_from"] = "runs/first"  # a field that is gone, and was not off
    files.write_json(tmp_path / build.CONFIG, stored)
    with pytest.raises(ValueError, match=r"train\.init_from: 'runs/first' there, None here"):
        run_folder.claim(config, tmp_path)


def test_an_image_without_a_checkout_says_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "udd_jax" / "runtime" / "a.py"))
    assert "commit" not in provenance.provenance()
    monkeypatch.setenv("UDD_COMMIT", "abc")
    assert provenance.provenance()["commit"] == provenance.commit(12) == "abc"


def test_the_time_of_a_stage_that_was_stopped_counts(tmp_path):
    with pytest.raises(SystemExit), run_folder.timed(tmp_path, "diffusion"):
        time.sleep(0.02)
        raise SystemExit(75)
    with run_folder.timed(tmp_path, "diffusion"):
        pass
    assert files.read_json(tmp_path / "stages.json")["diffusion"] >= 0.02


def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it():
    held = np.ones(10**8)  # 800 MB
    code = "from udd_jax.runtime import provenance; print(provenance._own_peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1e7 < int(done.stdout) < held.nbytes
