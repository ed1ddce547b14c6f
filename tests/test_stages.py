"""The stages of the main job, apart from the command line: what a config turns on and off."""

import json

import numpy as np
import pytest

from configs import t2i
from tests.training.test_train_image_tokenizer import Tiles, make_config
from udd_jax import stages
from udd_jax.data import batches, records
from udd_jax.evaluation import feature_networks
from udd_jax.tokenizers import image_tokenizer, vqgan
from udd_jax.training import train_image_tokenizer


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
    pairs = stages.pairs(config, tmp_path, source, TOKENIZERS, (0, 1))
    for step in range(2, 6):  # goes on, and reads each item once
        batch = pairs(step)
        items = [item + (item == 3) for item in batches.indices(4, step, 40, size)]
        np.testing.assert_array_equal(batch["image"][:, 0], items)
        np.testing.assert_array_equal(batch["text"], np.add(items, 1)[:, None].repeat(2, 1))
    rows = [json.loads(row) for row in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [(row["position"], row["cause"]) for row in rows] == [(3, "broken image")]


def test_too_many_broken_pictures_end_a_run_without_a_cache(tmp_path):
    config = t2i.get_config()
    config.image_size = 12
    config.train.batch_size = 20
    pairs = stages.pairs(config, tmp_path, Spots(20), TOKENIZERS, (0, 1))
    with pytest.raises(ValueError, match="spots: 1 of 20 items cannot be used, more than 1%"):
        pairs(0)
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
