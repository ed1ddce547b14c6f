"""A training with terms that learn: they are trained, saved, continued, and leave the weights."""

import functools
import json

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from udd_jax import build, pipeline, stages
from udd_jax.errors import UserError
from udd_jax.runtime import trees
from udd_jax.training import end_to_end, terms, train_diffusion

pytestmark = pytest.mark.long


def config():
    c = tiny.config()
    c.train.update({"steps": 4, "warmup": 1, "batch_size": 8, "save_every": 2, "log_every": 1})
    c.train.update({"matching": 0.1, "length": 0.1})
    c.train.end_to_end.update({"weight": 1.0, "until": 1.0})
    c.model.length_head = True
    return c


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(a folder, a function that trains in one and may fail at a step, what it returned)."""
    c, folder = config(), tiny.make(tmp_path_factory.mktemp("learned"), config())
    (folder / build.WEIGHTS).unlink()
    tokenizers = build.load_tokenizers(folder)
    layout, pad = build.make_vocab(c, tokenizers), tokenizers["text"].pad_id

    def batch_at(step, fails):
        if step == fails:
            raise ZeroDivisionError
        rng = np.random.default_rng(step)
        return {
            m.name: rng.integers(0, m.classes, (8, m.length), dtype=np.int32)
            for m in layout.modalities
        }

    def train(where, fails=None):
        learned = end_to_end.from_config(c, layout, tokenizers["image"])
        batches = functools.partial(batch_at, fails=fails)
        return train_diffusion.train(c, where, layout, pad, batches, terms=learned)

    return folder, train, train(folder)


def test_the_terms_are_logged_and_saved_apart_from_the_weights(trained):
    folder, _, params = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("matching", "matching_encoder", "length_nll", "decoder_l1", "frozen_l1"):
        assert np.isfinite([line[name] for line in lines if name in line]).all()
        assert any(name in line for line in lines), name
    own, weights = (trees.load_tree(folder / name)[0] for name in (terms.OWN, build.WEIGHTS))
    assert own.keys() == {"matching", "end_to_end"} and terms.OWN not in weights
    assert "length_head" in weights and weights.keys() == params.keys()


def test_what_was_stopped_goes_on_to_the_same_bits(trained, tmp_path):
    folder, train, params = trained
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, fails=3)
    jax.tree.map(np.testing.assert_array_equal, train(tmp_path), params)
    own = [trees.load_tree(where / terms.OWN)[0] for where in (folder, tmp_path)]
    jax.tree.map(np.testing.assert_array_equal, *own)


def test_samples_are_decoded_by_the_decoder_that_learned(trained):
    folder, _, _ = trained
    first = build.load_tokenizers(folder)["image"]
    painter = stages.make_painter(folder, first)
    pipe = pipeline.Pipeline.load(folder)
    found = pipe.tokenizers["image"].params["decoder"]
    jax.tree.map(np.testing.assert_array_equal, found, painter.params["decoder"])
    codes = np.arange(first.codes, dtype=np.int32)[None].repeat(2, 0)[:, : np.prod(first.grid)]
    assert (painter.decode(codes) != first.decode(codes)).any()
    images, _ = pipe.example(1)
    assert len(pipe.image_to_text(images, num=2, length="drawn").captions) == 2


def test_terms_that_learn_and_adapters_are_refused_together(trained, tmp_path):
    c = config()
    c.train.adapters.rank = 2
    folder, _, params = trained
    tokenizers = build.load_tokenizers(folder)
    layout = build.make_vocab(c, tokenizers)
    with pytest.raises(UserError, match=r"adapters\.rank = 2 with the terms matching"):
        train_diffusion.train(c, tmp_path, layout, 0, None, start=params)
