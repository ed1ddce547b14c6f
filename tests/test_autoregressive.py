"""The autoregressive baseline is a run like any other: loaded, sampled, scored, passed on."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from udd_jax import build, pipeline, stages, values
from udd_jax.diffusion import transition
from udd_jax.networks import transformer
from udd_jax.training import train_diffusion


@pytest.fixture(scope="module")
def pipe(tiny_run, tmp_path_factory):
    c = tiny.config()
    c.model.kind, c.model.attention = "autoregressive", "self"
    tokenizers = build.load_tokenizers(tiny_run)
    vocab = build.make_vocab(c, tokenizers)
    model = build.make_model(c, vocab, tokenizers["text"].pad_id)
    params = transformer.init(model, jax.random.key(0), fan_in=True)
    return pipeline.Pipeline.assemble(c, tokenizers, params)


def test_it_generates_scores_and_infills(pipe, tmp_path):
    """In every direction; a copy from a saved folder gives the same tokens and bits."""
    images, captions = np.zeros((2, 32, 32, 3), np.uint8), ["a red circle", "a small blue square"]
    mask = np.zeros((32, 32), bool)
    mask[:16] = True
    pipe.save_pretrained(tmp_path / "saved")
    asked = {"seed": 1, "temperature": 1.0, "top_r": 1.0}
    found = []
    for one in (pipe, pipeline.Pipeline.from_pretrained(tmp_path / "saved")):
        assert one.config.model.kind == "autoregressive"
        drawn = one.text_to_image(captions, **asked)
        assert drawn.captions == captions and (drawn.calls == 16).all()
        told = one.image_to_text(images, **asked)
        assert (told.calls == one.text_length).all()
        filled = one.infill(images, mask, ["a ___ circle", "a small ___ square"], **asked)
        assert (filled.calls == 8 + 1).all()
        given, masks = one.infilling(images, mask, ["a ___ circle", "a small ___ square"])
        kept = ~np.asarray(masks.free)
        before = values.fuse(one.vocab, given, 2, 0)
        np.testing.assert_array_equal(filled.tokens[kept], before[kept])
        bits = one.log_likelihood(images, captions, task="pair")
        tokens = one.log_likelihood(images, captions, task="pair", each=True)
        np.testing.assert_allclose(tokens.sum(1), bits.sum(1), rtol=1e-5)
        text = one.log_likelihood(images, captions, task="text")
        np.testing.assert_allclose(bits[:, 1], text[:, 1], rtol=1e-5)  # it comes first
        found.append([drawn.tokens, told.tokens, filled.tokens, bits])
    for first, again in zip(*found, strict=True):
        np.testing.assert_array_equal(first, again)


def test_its_loss_is_the_mean_surprise_of_free_tokens(pipe):
    """Of captions given images: the likelihood of `score`, per token of the whole sequence."""
    c = pipe.config.copy_and_resolve_references()
    c.train.mixture = {"i2t": 1.0}
    _, loss_fn = train_diffusion.make_objective(c, pipe.vocab, pad_id=0)
    rng = np.random.default_rng(0)
    tokens = {m.name: rng.integers(0, m.classes, (4, m.length)) for m in pipe.vocab.modalities}
    loss, (metrics, _) = jax.jit(loss_fn)(
        pipe.params, None, jax.random.key(0), pipe.vocab.fuse(tokens)
    )
    nats = -pipe.score(tokens, task="i2t")[:, 1] * np.log(2)
    assert loss == pytest.approx(nats.mean() / pipe.vocab.length, rel=1e-5)
    assert metrics["bound"] == pytest.approx(nats.mean() / pipe.text_length, rel=1e-5)


def test_what_needs_a_diffusion_is_refused_before_any_stage():
    for change, told in (
        ({"train.objective": "continuous", "diffusion.schedule": "absorbing"}, "has no time"),
        ({"train.contrastive.sample_intra": 1e-4}, "the loss terms contrastive_sample_intra with"),
        ({"model.kind": "odd"}, "model.kind = 'odd', expected one of diffusion, autoregressive"),
        ({"model.block_attention": True}, "model.block_attention = True"),
    ):
        c = tiny.config()
        c.model.kind = "autoregressive"
        c.update_from_flattened_dict(change)
        with pytest.raises(ValueError, match=told):
            stages.check(c)


def test_a_run_from_before_is_a_diffusion(tiny_run):
    c = build.read_config(tiny_run)
    del c.model["kind"]
    vocab = build.make_vocab(c, build.load_tokenizers(tiny_run))
    kernel = transition.make_kernel(vocab, build.make_schedules(c, vocab))
    model = build.make_model(c, vocab)
    assert type(model) is transformer.Transformer
    assert type(build.make_generator(c, kernel, model)) is build.Diffusion
