"""What is absent is left out: nobody sees it, and where no row has it, it is not computed."""

import functools
import math

import jax
import numpy as np
import pytest

from tests.helpers import tiny
from tests.networks.test_transformer_block_attention import FULL, PAIR, THREE, T, apply, batch
from udd_jax import build, pipeline
from udd_jax.diffusion import tasks
from udd_jax.networks import autoregressive, transformer
from udd_jax.steering import chains
from udd_jax.training import loss as losses
from udd_jax.training import train_diffusion

MIXTURE = {"pair": 0.3, "t2i": 0.3, "i2t": 0.1, "image": 0.1, "text": 0.2}


@functools.cache
def network(layout=PAIR, absent="left_out", **options):
    """A network with random parameters, as large as after training."""
    options = {"layers": 2, "width": 8, "heads": 2, "rezero": 1.0} | options
    model = transformer.Transformer(layout, T, time="per_modality", absent=absent, **options)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes)


def without(layout, names):
    """A batch all of whose rows lack the modalities `names`."""
    x, t, free, _ = batch(layout, names)
    absent = np.array([m.name in names for m in layout.modalities])
    return x, np.where(absent, T, t).astype(np.int32), free


@pytest.mark.parametrize("options", [FULL, {"attention": "self"}, {"stack": "long_skips"}])
@pytest.mark.parametrize(
    ("layout", "names"),
    [(PAIR, ("image",)), (PAIR, ("text",)), (THREE, ("text",)), (THREE, ("image", "audio"))],
)
def test_nobody_sees_what_is_absent_and_leaving_it_out_changes_nothing(layout, names, options):
    model, params = network(layout, **options)
    x, t, free = without(layout, names)
    there = [layout.index(name) for name in names]
    hidden = np.isin(layout.modality_of, there)
    whole = apply(model, params, x, t, free)
    other = apply(model, params, np.where(hidden, layout.mask_id, x), t, free)
    part = jax.jit(functools.partial(model.apply, without=names))({"params": params}, x, t, free)
    for m, (a, b, c) in enumerate(zip(whole, other, part, strict=True)):
        if m in there:
            assert not np.asarray(c).any()
        else:
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, atol=2e-5)
    noise, _ = network(layout, "noise", **options)
    before, after = (apply(noise, params, y, t, free) for y in (x, np.where(hidden, 0, x)))
    seen = [m for m in range(len(layout.modalities)) if m not in there]
    assert max(np.abs(before[m] - after[m]).max() for m in seen) > 1e-2


@pytest.mark.parametrize("attention", ["mutual", "self"])
@pytest.mark.parametrize("names", [("text",), ("image", "audio")])
def test_the_baseline_leaves_out_what_nothing_sees_there(names, attention):
    """And computes the logits of the free positions without it."""
    options = {"attention": attention, "rotary": True, "given_vector": True}
    _, params = network(THREE, **options)
    size = {"layers": 2, "width": 8, "heads": 2, "rezero": 1.0, "time": "per_modality"}
    model = autoregressive.Autoregressive(THREE, T, **size, **options)
    x, t, free = without(THREE, names)
    x = np.where(x == THREE.mask_id, 0, x)
    whole = apply(model, params, x, t, free)
    part = jax.jit(functools.partial(model.apply, without=names))({"params": params}, x, t, free)
    for m, (a, b) in enumerate(zip(whole, part, strict=True)):
        if THREE.modalities[m].name in names:
            assert not np.asarray(b).any()
        else:
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_where_nothing_is_absent_it_is_the_plain_network():
    x, t, free, _ = batch(PAIR, ())
    t[:, 1], free[:, PAIR.slices[1]] = 0, False  # a given one
    (ours, params), (plain, _) = network(**FULL), network(absent="noise", **FULL)
    for a, b in zip(apply(ours, params, x, t, free), apply(plain, params, x, t, free), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_it_needs_a_time_for_each_modality_and_is_asked_of_no_other_network():
    for options in ({"time": "shared"}, {"block_attention": True}, {"network": "text_from_image"}):
        options = {"time": "per_modality"} | options
        with pytest.raises(ValueError, match=r"model\.absent = 'left_out' with"):
            transformer.Transformer(PAIR, T, absent="left_out", **options)
    model, params = network(absent="noise")
    with pytest.raises(ValueError, match=r"model\.absent = 'left_out' only"):
        model.apply({"params": params}, *without(PAIR, ("text",)), without=("text",))


def config_with(folder):
    config = build.read_config(folder)
    with config.unlocked():
        config.model.absent = "left_out"
    config.train.mixture = MIXTURE
    return config


@pytest.fixture(scope="module")
def left_out(tiny_run):
    """The config of a small run that leaves out what is absent, its vocabulary and a batch."""
    config = config_with(tiny_run)
    vocab = build.make_vocab(config, build.load_tokenizers(tiny_run))
    rng = np.random.default_rng(0)
    rows = [
        rng.integers(0, m.classes, (4, m.length)) + offset
        for m, offset in zip(vocab.modalities, vocab.offsets, strict=True)
    ]
    return config, vocab, np.concatenate(rows, axis=1).astype(np.int32)


@pytest.mark.parametrize(
    "make", [train_diffusion.make_objective, train_diffusion.make_prefix_objective]
)
def test_a_part_of_the_mixture_has_the_loss_and_gradient_of_the_whole_network(left_out, make):
    config, vocab, x0 = left_out
    model, _ = train_diffusion.objectives(config, vocab, 0)
    state = train_diffusion.create_state(model, train_diffusion.optax.sgd(1.0), jax.random.key(0))
    params = jax.tree.map(lambda p: p + 0.1, state.params)
    found = []
    for names in (("image",), ()):
        _, loss_fn = make(config, vocab, 0, mixture={"text": 1.0}, without=names)
        gradient = jax.jit(train_diffusion.make_gradient(loss_fn))
        found.append(gradient(params, state.times, jax.random.key(3), x0))
    (apart, said, _), (whole, expected, _) = found
    np.testing.assert_allclose(said["loss"], expected["loss"], rtol=1e-5)
    assert np.isnan(said["image_nll"])
    largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(whole))
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * largest)


def test_each_part_of_the_mixture_has_its_share_of_the_steps(left_out, monkeypatch):
    config, vocab, _ = left_out
    made = []
    make = losses.make_loss
    monkeypatch.setitem(
        train_diffusion.LOSSES, "diffusion", lambda *a, **o: made.append(o) or make(*a, **o)
    )
    _, loss_at = train_diffusion.objectives(config, vocab, 0)
    whole, *parts = made
    assert "without" not in whole
    assert whole["mixture"] == MIXTURE
    assert {o["without"]: o["mixture"] for o in parts} == {
        (): {"pair": 0.3, "t2i": 0.3, "i2t": 0.1},
        ("text",): {"image": 0.1},
        ("image",): {"text": 0.2},
    }
    functions = [loss_at(step) for step in range(config.train.prefix_steps, 1000)]
    shares = sorted(functions.count(f) / len(functions) for f in set(functions))
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.01)
    assert loss_at(math.inf) not in functions


def test_with_incomplete_records_every_step_has_all(left_out):
    config, vocab, _ = left_out
    config = config.copy_and_resolve_references()
    config.incomplete = True
    _, loss_at = train_diffusion.objectives(config, vocab, 0)
    assert len({loss_at(step) for step in range(config.train.prefix_steps, 60)}) == 1


@pytest.mark.slow
def test_a_run_samples_and_bounds_the_same_with_less_work(tmp_path, monkeypatch):
    pipe = pipeline.Pipeline.load(tiny.make(tmp_path / "run", _tiny()))
    images, captions = pipe.example(4)

    def results():
        drawn = pipe.texts(4), pipe.images(4), pipe.text_to_image(captions, guidance=2.0)
        bits = pipe.log_likelihood(images, captions, task="text", times=3)
        return [r.tokens for r in drawn], bits

    tokens, bits = results()
    monkeypatch.setattr(chains, "without", lambda *_: ())
    pipe = pipeline.Pipeline.load(tmp_path / "run")
    whole, expected = results()
    for ours, theirs in zip(tokens, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(bits, expected, rtol=1e-5)


def _tiny():
    config = tiny.config()
    config.model.absent = "left_out"
    return config


def test_a_negative_prompt_for_what_is_absent_is_computed(tiny_run):
    """It is there in the other branch of guidance, so nothing is left out of the network."""
    before = pipeline.Pipeline.load(tiny_run)
    pipe = pipeline.Pipeline.assemble(config_with(tiny_run), before.tokenizers, before.params)
    masks = tasks.masks(pipe.vocab, "image", 2)
    unused = dict.fromkeys(("prompts", "guide", "paint", "weigh")) | {"scorers": ()}
    settings = vars(pipe.settings(guidance=3.0))  # all of them: guidance alone would be refused
    options = {"num": 1, "options": settings, "masks": masks, **unused}
    for negative, without in (({"text": "a red circle"}, ()), (None, ("text",))):
        made = chains.prepare(pipe, "image", 2, {}, **options, negative=negative)
        assert made.without == without
