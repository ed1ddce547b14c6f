"""The autoregressive baseline is a run like any other: loaded, sampled, scored, passed on."""

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from udd_jax import build, pipeline, stages, values
from udd_jax.demo import steering
from udd_jax.diffusion import transition
from udd_jax.evaluation.suites import samplers
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


def test_it_is_not_steered_and_the_page_does_not_offer_to(pipe):
    half = np.arange(32)[:, None] * np.ones(32) < 16
    with pytest.raises(ValueError, match=r"model\.kind = 'autoregressive' goes without .* out$"):
        pipe.text_to_image("a red circle", paint=[("red circle", half)])
    assert not {"paint", "prompts", "weigh"} & {*steering.ways(pipe, "t2i")}


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


@pytest.fixture(scope="module")
def in_both(tiny_run):
    """A diffusion that has learned prefixes, too, and the baseline of the same weights."""
    tokenizers, params = build.load_tokenizers(tiny_run), build.load_weights(tiny_run)
    pipes = []
    for change in ({"train.prefix_share": 0.5}, {"model.kind": "autoregressive"}):
        c = build.read_config(tiny_run)
        with c.unlocked():
            c.update_from_flattened_dict(change)
        pipes.append(pipeline.Pipeline.assemble(c, tokenizers, params))
    return pipes


@pytest.mark.parametrize("task", ["t2i", "i2t", "pair", "infill", "text"])
def test_a_diffusion_that_knows_prefixes_draws_what_the_baseline_draws_bit_for_bit(in_both, task):
    asked = {"temperature": 0.9, "top_r": 0.95, "guidance": 2.0 if task == "t2i" else 1.0}
    given = {"text": ["a red circle", "a small square"], "image": np.zeros((2, 32, 32, 3), "uint8")}
    options = {"seed": 3, **asked}
    if task == "infill":
        mask = np.arange(32)[:, None] < 16 + np.zeros((32, 32))
        given, masks = in_both[0].infilling(given["image"], mask, ["a ___ circle", "a ___ square"])
        options |= {"given": given, "masks": masks}
    elif (name := {"t2i": "text", "i2t": "image"}.get(task)) is not None:
        options["given"] = {name: given[name]}
    else:
        options["count"] = 2
    ours = in_both[0].generate(task, sampler="autoregressive", **options)
    baseline = in_both[1].generate(task, **options)
    np.testing.assert_array_equal(ours.tokens, baseline.tokens)
    np.testing.assert_array_equal(ours.calls, baseline.calls)
    chain = in_both[0].generate(task, sampler="ancestral", **options)
    assert (chain.tokens != ours.tokens).any()


def test_one_token_after_another_is_refused_where_it_was_not_learned_or_is_steered(in_both, pipe):
    never = in_both[0].with_config(train={"prefix_share": 0.0})
    with pytest.raises(ValueError, match=r"'autoregressive', but train\.prefix_share = 0: the"):
        never.texts(1, sampler="autoregressive")
    c = tiny.config()
    with c.unlocked():
        c.sample_rules["i2t"] = {"sampler": "autoregressive"}
    with pytest.raises(ValueError, match=r"train\.prefix_share = 0"):
        stages.check(c)
    c.train.prefix_share = 0.5
    stages.check(c)
    for steered in (
        {"scorers": [(lambda p: p["text"].sum(), 1.0)]},
        {"guide": lambda scene, x, t: None},
        {"prompts": [("a red circle", 1.0), ("a square", 1.0)]},
        {"weigh": {"text": 0.5}},
    ):
        given = {} if "prompts" in steered else {"given": {"text": ["a red circle"]}}
        with pytest.raises(ValueError, match="goes without prompts, guide, paint, weigh, scorers"):
            in_both[0].generate("t2i", sampler="autoregressive", **given, **steered)


def test_the_comparison_of_samplers_has_it_where_it_was_learned(in_both):
    asked = {"sampler": "autoregressive"}
    never = in_both[0].with_config(train={"prefix_share": 0.0})
    assert [asked in samplers.grid(pipe) for pipe in (*in_both, never)] == [True, True, False]


def test_the_baseline_has_one_sampler_and_refuses_another(in_both):
    baseline = in_both[1].with_config(sample={"sampler": "maskgit"})
    assert baseline.settings("t2i").sampler == "autoregressive"
    for changes, message in (
        ({"sampler": "maskgit"}, r"'maskgit' changes nothing, model\.kind = 'autoregressive'"),
        ({"steps": 4}, r"steps = 4 changes nothing, model\.kind = 'autoregressive' draws one"),
        ({"bound": 0.3}, "bound = 0.3 changes nothing, sampler autoregressive does not read it"),
    ):
        with pytest.raises(ValueError, match=message):
            baseline.texts(1, **changes)
    recorded = vars(in_both[0].settings("t2i", sampler="maskgit"))  # a whole line of samples.jsonl
    assert len(baseline.with_config(begin_with=("image",)).pairs(2, **recorded).tokens) == 2
    noisy = in_both[1].config.copy_and_resolve_references()
    noisy.diffusion.schedule = "uniform"
    noisy.sample.update({"sampler": "ancestral", "correct": 1})
    tokenizers = dict(in_both[1].tokenizers)
    other = pipeline.Pipeline.assemble(noisy, tokenizers, in_both[1].params)
    assert len(other.texts(2).captions) == 2
