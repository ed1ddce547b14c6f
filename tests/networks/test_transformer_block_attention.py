"""Block attention: a modality without free positions attends to itself only. So its keys and values
are constant during a chain, and caching them changes nothing."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.helpers import quick, tiny
from udd_jax import pipeline
from udd_jax.diffusion import denoiser, objective, schedules, tasks, transition, vocab
from udd_jax.networks import transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.sampling import guidance, reverse
from udd_jax.sampling.settings import Settings
from udd_jax.steering import chains

T = 7
PAIR = vocab.image_text(grid=(2, 3), image_classes=5, text_classes=4, text_length=4)
THREE = vocab.Vocab((*PAIR.modalities, vocab.Modality("audio", 3, 6)))
PAD = 3
SLOW = pytest.mark.slow
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FULL = {
    "rotary": True,
    "qk_norm": True,
    "mutual_gain": 0.1,
    "given_vector": True,
    "padding": PAD,
    "time_table": "tied",
}


@functools.cache
def network(layout=PAIR, block_attention=True, **options):
    """A network with random parameters, as large as after training."""
    model = transformer.Transformer(
        layout,
        T,
        layers=2,
        width=8,
        heads=2,
        rezero=1.0,
        time="per_modality",
        block_attention=block_attention,
        **options,
    )
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes)


def batch(layout, closed, seed=0, rows=4):
    """Sequences whose free positions are half masked. The modalities `closed` are given, and absent
    in every other row."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.integers(0, m.classes, (rows, m.length)) + offset
        for m, offset in zip(layout.modalities, layout.offsets, strict=True)
    ]
    x = np.concatenate(parts, axis=1).astype(np.int32)
    closed = np.array([m.name in closed for m in layout.modalities])
    absent = closed & (np.arange(rows) % 2 == 1)[:, None]
    free = np.tile(~closed[layout.modality_of], (rows, 1))
    x[free & (rng.random(x.shape) < 0.5)] = layout.mask_id
    return x, np.where(closed, np.where(absent, T, 0), 3).astype(np.int32), free, absent


def apply(model, params, *inputs, **options):
    return [np.asarray(y) for y in jit(model.apply)({"params": params}, *inputs, **options)]


def test_where_something_of_everything_is_free_it_is_the_plain_network():
    x, t, free, _ = batch(PAIR, ())
    free[:, ::2] = False
    plain, params = network(block_attention=False)
    assert not any(
        np.abs(a - b).max() > 1e-5
        for a, b in zip(
            apply(plain, params, x, t, free),
            apply(network()[0], params, x, t, free),
            strict=True,
        )
    )


@pytest.mark.parametrize("attention", ["mutual", "self"])
@pytest.mark.parametrize("name", ["image", "text"])
def test_what_nothing_is_free_of_does_not_see_the_other(name, attention):
    model, params = network(attention=attention)
    x, t, free, _ = batch(PAIR, (name,))
    here, there = PAIR.index(name), 1 - PAIR.index(name)
    other = batch(PAIR, (name,), seed=1)[0]
    moved = np.where(PAIR.modality_of == there, other, x)
    later = np.where(np.arange(2) == there, 5, t)
    before, after = (apply(model, params, *i, free) for i in ((x, t), (moved, later)))
    np.testing.assert_array_equal(before[here], after[here])
    assert np.abs(before[there] - after[there]).max() > 1e-2
    seen = np.where(PAIR.modality_of == here, other, x)  # and is seen
    assert np.abs(apply(model, params, seen, t, free)[there] - before[there]).max() > 1e-2
    open_, _ = network(attention=attention, block_attention=False)
    before, after = (apply(open_, params, *i, free) for i in ((x, t), (moved, later)))
    assert np.abs(before[here] - after[here]).max() > 1e-2


@pytest.mark.parametrize(
    ("layout", "still", "options"),
    [
        (PAIR, "image", FULL),
        (PAIR, "text", {"attention": "self", "stack": "long_skips"}),
        (THREE, "image", {"rotary": True, "remat": "full"}),
        pytest.param(PAIR, "text", FULL, marks=SLOW),
        pytest.param(PAIR, "text", {}, marks=SLOW),
        pytest.param(PAIR, "image", {"attention": "self", "remat": "dots"}, marks=SLOW),
        pytest.param(PAIR, "text", {"implementation": "xla", "padding": PAD}, marks=SLOW),
        pytest.param(THREE, "text", {}, marks=SLOW),
    ],
    ids=lambda value: str(len(value.modalities)) if value in (PAIR, THREE) else None,
)
def test_kept_keys_and_values_give_the_logits_of_the_whole_network(layout, still, options):
    model, params = network(layout, **options)
    x, t, free, _ = batch(layout, (still,))
    if still == "text":
        x[0, layout.slices[1]][-2:] = PAD + layout.offsets[1]
    denoise_fn = Denoiser(model, params, still)
    begun = jit(lambda *i: denoiser.prepare(denoise_fn, *i))(x, t, free)
    for seed in (1, 2):  # later in the chain
        later = batch(layout, (still,), seed)[0]
        later = np.where(layout.modality_of == layout.index(still), x, later)
        now = np.where(np.arange(t.shape[1]) == layout.index(still), t, 3 - seed)
        whole = apply(model, params, later, now, free)
        kept = jit(lambda f, *i: f(*i))(begun, later, now, free)
        for m, (ours, theirs) in enumerate(zip(kept, whole, strict=True)):
            if m == layout.index(still):
                assert not np.asarray(ours).any()
            else:
                np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_with_kept_keys_another_modality_that_is_given_looks_at_itself_too():
    """In some rows: the audio is kept, and the second row generates the image alone."""
    model, params = network(THREE)
    x, t, free, _ = batch(THREE, ("audio",))
    free[1, THREE.slices[THREE.index("text")]] = False
    begun = jit(lambda *i: denoiser.prepare(Denoiser(model, params, "audio"), *i))(x, t, free)
    kept = jit(lambda f, *i: f(*i))(begun, x, t, free)
    for ours, theirs in zip(kept[:2], apply(model, params, x, t, free)[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


@functools.partial(jax.jit, static_argnames=("still", "settings"), compiler_options=quick.EXACT)
def draw(params, x, free, absent, negative, still, settings):
    kernel = transition.make_kernel(PAIR, schedules.linear(T))
    denoise_fn = Denoiser(network(**FULL)[0], params, still)
    key = jax.random.key(3)
    return reverse.sample(kernel, denoise_fn, key, x, free, absent, settings, negative)


@pytest.mark.parametrize(
    ("still", "sampler", "guidance"),
    [
        ("image", "ancestral", 2.0),
        ("text", "first_hitting", 2.0),
        pytest.param("image", "ancestral", 1.0, marks=SLOW),
        pytest.param("image", "first_hitting", 1.0, marks=SLOW),
        pytest.param("image", "first_hitting", 2.0, marks=SLOW),
        pytest.param("text", "ancestral", 1.0, marks=SLOW),
        pytest.param("text", "ancestral", 2.0, marks=SLOW),
        pytest.param("text", "first_hitting", 1.0, marks=SLOW),
    ],
)
def test_a_chain_with_kept_keys_and_values_draws_the_same(still, sampler, guidance):
    x, _, free, absent = batch(PAIR, (still,), rows=32)
    negative = None
    if guidance > 1:
        other = batch(PAIR, (still,), seed=1, rows=32)[0]
        negative = np.where(PAIR.modality_of == PAIR.index(still), other, PAIR.mask_id)
    settings = Settings(sampler=sampler, guidance=guidance, top_r=0.95)
    inputs = (network(**FULL)[1], x, free, absent, negative)
    ours, theirs = (np.asarray(draw(*inputs, name, settings)) for name in (still, None))
    np.testing.assert_array_equal(ours, theirs)
    assert (ours[0] != ours[2]).any()


def test_the_bound_with_kept_keys_and_values_is_the_bound():
    model, params = network(**FULL)
    kernel = transition.make_kernel(PAIR, schedules.linear(T))
    masks, keys = tasks.masks(PAIR, "i2t", 4), jax.random.split(jax.random.key(0), 4)
    x0 = batch(PAIR, ("image", "text"))[0]

    def bound(still):
        denoise_fn = Denoiser(model, params, still)
        run = jit(lambda k, x: objective.bound(kernel, denoise_fn, k, x, *masks, times=5))
        return np.asarray(run(keys, x0))

    np.testing.assert_allclose(bound("image"), bound(None), rtol=1e-5)
    assert bound("image")[:, 1].min() > 0


def test_a_call_with_kept_keys_and_values_computes_the_generated_part_alone():
    model, params = network(**FULL)
    x, t, free, _ = batch(PAIR, ("image",))
    denoise_fn = Denoiser(model, params, "image")
    begun = jax.eval_shape(lambda *i: denoiser.prepare(denoise_fn, *i), x, t, free)

    def flops(function, *inputs):
        return jax.jit(function).lower(*inputs).cost_analysis()["flops"]

    whole = flops(denoise_fn, x, t, free)
    assert flops(lambda f, *i: f(*i), begun, x, t, free) < 0.5 * whole  # 4 of 10 positions


def test_nothing_is_kept_of_a_network_without_block_attention():
    model, params = network(block_attention=False)
    x, t, free, _ = batch(PAIR, ("text",))
    begun = Denoiser(model, params, "text").prepare(x, t, free)
    assert jax.tree.leaves(begun) == []
    with pytest.raises(ValueError, match=r"with model\.block_attention only"):
        model.apply({"params": params}, x, t, free, "text", method="cache")


@pytest.mark.slow
def test_a_run_keeps_what_a_task_leaves_as_it_is(tmp_path, monkeypatch):
    config = tiny.config()
    config.model.block_attention = True
    pipe = pipeline.Pipeline.load(tiny.make(tmp_path / "run", config))
    images, captions = pipe.example(4)
    still = {task: chains.still(pipe, tasks.masks(pipe.vocab, task, 4)) for task in tasks.ALIASES}
    kept = {"t2i": "text", "i2t": "image", "image": "text", "text": "image"}
    assert {task: name for task, name in still.items() if name} == kept

    def results():
        given = pipe.image_to_text(images), pipe.text_to_image(captions), pipe.texts(4)
        bits = pipe.log_likelihood(images, captions, task="i2t", times=3)
        return [r.tokens for r in given], bits

    def late(scene, x, t):
        """A guide in which another caption is given from the middle of the chain on."""
        now = tasks.times(scene.kernel.vocab, scene.masks, t, scene.kernel.steps)
        text = scene.kernel.vocab.modality_of == 1
        here = (t < scene.kernel.steps // 2)[:, None] & text[None]
        seen = jax.numpy.where(here, jax.numpy.roll(x, 1, axis=0), x)
        return [guidance.Branch(seen, now, scene.masks.free, jax.numpy.ones((len(x), 2)))]

    led = pipe.text_to_image(captions, guide=late).tokens
    tokens, bits = results()
    mesh = pipeline.sharding.make_mesh(4, 1)
    spread = dataclasses.replace(pipe, mesh=mesh).image_to_text(images)
    np.testing.assert_array_equal(spread.tokens, tokens[0])
    monkeypatch.setattr(chains, "still", lambda pipe, masks: None)
    whole, expected = results()
    np.testing.assert_array_equal(tokens, whole)
    np.testing.assert_array_equal(pipe.text_to_image(captions, guide=late).tokens, led)
    np.testing.assert_allclose(bits, expected, rtol=1e-5)
