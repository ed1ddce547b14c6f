"""Stage experts: copies change no bit, a row has the expert of its time, and only that learns."""

import functools
import json
import math
import shutil

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import quick, tiny
from udd_jax import build, pipeline
from udd_jax.diffusion import schedules, time_sampling, transition, vocab
from udd_jax.networks import experts, transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.runtime import sharding, trees
from udd_jax.training import loss, optimiser, start, train_diffusion

VOCAB = vocab.image_text(grid=(2, 2), image_classes=3, text_classes=4, text_length=3)
T, L, B = 10, 7, 3
OPTIONS = {"layers": 1, "width": 8, "heads": 2, "rezero": 1.0, "attention": "self"}
OPTIONS |= {"time": "per_modality", "block_attention": True}
ENDS = (0.3, 0.6)
jit = functools.partial(jax.jit, compiler_options=quick.EXACT)


@pytest.fixture(scope="module")
def made():
    one = transformer.Transformer(VOCAB, T, **OPTIONS)
    several = experts.Experts(VOCAB, T, **OPTIONS, boundaries=ENDS)
    params = transformer.init(one, jax.random.key(0), fan_in=True)

    def squares(params, x, t, free):
        return sum((y**2).sum() for y in several.apply({"params": params}, x, t, free))

    call = jit(lambda params, *inputs: several.apply({"params": params}, *inputs))
    plain = jit(lambda params, *inputs: one.apply({"params": params}, *inputs))
    return several, params, plain, call, jit(jax.grad(squares))


def inputs(*clock):
    """A text to generate, given an image, at each of these times."""
    x = np.tile(np.array([[0, 1, 2, 0, 3, VOCAB.mask_id, 6]], np.int32), (len(clock), 1))
    free = np.tile(np.arange(L)[None] >= 4, (len(clock), 1))
    return x, np.stack([np.zeros(len(clock)), clock], axis=1).astype(np.int32), free


def test_copies_are_bit_for_bit_one_network(made):
    _, params, plain, call, _ = made
    asked = inputs(2, 5, 9)
    copies = experts.split(params, ENDS)
    for one, several in zip(plain(params, *asked), call(copies, *asked), strict=True):
        np.testing.assert_array_equal(one, several)


def test_each_row_is_answered_by_the_expert_of_its_time(made):
    """At 3 = .3 T still the first one, at 4 the second."""
    _, params, plain, call, _ = made
    scaled = [jax.tree.map(lambda p, f=f: p * f, params) for f in (1.0, 0.5, 2.0)]
    asked = inputs(3, 4, 7)
    found = call(dict(zip(experts.split(params, ENDS), scaled, strict=True)), *asked)
    for row, weights in enumerate(scaled):
        for one, several in zip(plain(weights, *asked), found, strict=True):
            np.testing.assert_array_equal(one[row], several[row])


def test_the_time_of_what_is_free_decides_and_not_that_of_an_absent_picture(made):
    _, params, plain, call, _ = made
    copies = experts.split(params, ENDS)
    copies |= {name: jax.tree.map(lambda p: 2 * p, params) for name in list(copies)[1:]}
    x, t, free = inputs(2, 2, 2)
    t[:, 0] = T
    for one, several in zip(plain(params, x, t, free), call(copies, x, t, free), strict=True):
        np.testing.assert_array_equal(one, several)


def test_a_batch_at_one_time_moves_only_its_expert(made):
    _, params, _, _, gradient = made
    for number, clock in enumerate((1, 5, 8)):
        grads = gradient(experts.split(params, ENDS), *inputs(*[clock] * B))
        moved = [any(np.any(g) for g in jax.tree.leaves(grads[f"expert_{i}"])) for i in range(3)]
        assert moved == [i == number for i in range(3)]


def test_each_batch_of_a_training_moves_one_expert(made):
    several, params, *_ = made
    kernel = transition.make_kernel(VOCAB, schedules.mask_and_replace(T, 0.3))
    options = {"mixture": {"pair": 1.0, "t2i": 1.0}, "auxiliary": 0.5, "pad_id": 0}
    loss_fn = loss.make_loss(kernel, several, pad_weight=1.0, experts=ENDS, **options)
    sampler, x0 = time_sampling.create(T, 2), np.array([[0, 1, 2, 0, 3, 4, 5]] * 4, np.int32)
    gradient = jit(lambda params, key: jax.grad(loss_fn, has_aux=True)(params, sampler, key, x0)[0])
    copies, moved = experts.split(params, ENDS), []
    for seed in range(12):
        grads = gradient(copies, jax.random.key(seed))
        learns = [name for name in copies if any(np.any(g) for g in jax.tree.leaves(grads[name]))]
        moved.append(tuple(learns))
    assert set(moved) == {(name,) for name in copies}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_step_leaves_the_other_experts_as_they_are(made, name):
    """Bit for bit: weights, averages and moments, though these have momentum of earlier steps."""
    several, params, *_ = made
    c = tiny.config()
    c.train.update({"optimiser": name, "weight_decay": 0.1, "learning_rate": 0.01, "warmup": 0})
    tx, rate = optimiser.make_optimiser(c)

    def loss_fn(params, sampler, key, x0):
        """Of the expert whose time the first image token tells."""
        clock = jnp.array([1, 5, 8])[x0[0, 0]] * jnp.ones((len(x0), 2), jnp.int32)
        logits = several.apply({"params": params}, x0, clock, x0 >= 0)
        loss = sum((y**2).mean() for y in logits)
        return loss, ({"loss": loss}, sampler)

    step = jit(train_diffusion.make_step(loss_fn, tx, rate, 0.9, VOCAB))
    state = train_diffusion.create_state(
        several, tx, jax.random.key(0), start=experts.split(params, ENDS)
    )
    for number in (0, 1, 2, 0):
        batch = {"image": np.full((2, 4), number, np.int32), "text": np.ones((2, 3), np.int32)}
        after, _ = step(state, batch, jax.random.key(1))
        moved = {
            name: any(
                np.any(x != y)
                for part in ("params", "ema_params")
                for x, y in zip(
                    *(jax.tree.leaves(getattr(s, part)[name]) for s in (state, after)), strict=True
                )
            )
            for name in state.params
        }
        assert moved == {f"expert_{i}": i == number for i in range(3)}
        olds, news = (trees.flatten(flax.serialization.to_state_dict(s)) for s in (state, after))
        others = [n for n in olds if "expert_" in n and f"expert_{number}" not in n]
        assert any("opt_state" in name for name in others)
        for name in others:
            np.testing.assert_array_equal(olds[name], news[name], name)
        state = after


def test_experts_are_split_further_each_from_the_one_of_its_interval(made):
    _, params, *_ = made
    there = {f"expert_{i}": jax.tree.map(lambda p, i=i: p + i, params) for i in range(2)}
    found = experts.split(there, (0.25, 0.5, 0.75), of=(0.5,))
    for name, parent in {0: 0, 1: 0, 2: 1, 3: 1}.items():
        jax.tree.map(
            np.testing.assert_array_equal, found[f"expert_{name}"], there[f"expert_{parent}"]
        )
    moved = experts.split(there, (0.6,), of=(0.5,))  # the first reaches into the second's half
    jax.tree.map(np.testing.assert_array_equal, moved, there)


def test_the_cache_of_a_chain_holds_every_expert(made):
    several, params, _, call, _ = made
    copies = experts.split(params, ENDS)
    copies["expert_1"] = jax.tree.map(lambda p: 0.5 * p, params)
    x, t, free = inputs(2, 5, 9)

    @jit
    def chain(params):
        start = Denoiser(several, params, "image").prepare(x, 0 * t, free)
        return start(x, t, free)

    for cached, plain in zip(chain(copies)[1:], call(copies, x, t, free)[1:], strict=True):
        np.testing.assert_allclose(cached, plain, rtol=0, atol=1e-5)


def test_every_parameter_of_an_expert_has_a_place(made):
    """The same one as in one network."""
    places = {n: sharding.spec(n, p.shape) for n, p in trees.flatten(made[1]).items()}
    for name, p in trees.flatten(experts.split(made[1], ENDS)).items():
        assert sharding.spec(name, p.shape) == places[name.partition("/")[2]]


@pytest.mark.slow
def test_on_a_mesh_experts_answer_and_learn_as_on_one_device(made):
    """2 x 2 devices: rows of all three experts, logits and gradients."""
    _, params, _, call, gradient = made
    copies = experts.split(params, ENDS)
    copies["expert_1"] = jax.tree.map(lambda p: 0.5 * p, params)
    asked, mesh = inputs(2, 5, 9, 6), sharding.make_mesh(2, 2)
    with sharding.use(mesh):
        placed = sharding.shard_tree(mesh, copies)
        parts = sharding.shard_batch(mesh, asked)
        found = call(placed, *parts), gradient(placed, *parts)
    assert any(not p.sharding.is_fully_replicated for p in jax.tree.leaves(placed["expert_1"]))
    expected = call(copies, *asked), gradient(copies, *asked)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max() + 1e-6)


def test_boundaries_ascend_between_0_and_1():
    for ends in ((), (0.5, 0.5), (0.6, 0.3), (0.0,), (1.0,)):
        with pytest.raises(ValueError, match="expected shares of T that ascend"):
            experts.Experts(VOCAB, T, **OPTIONS, boundaries=ends)
    c = tiny.config()
    c.experts, c.model.kind = (0.5,), "autoregressive"
    with pytest.raises(ValueError, match=r"experts = \(0.5,\) with model.kind = 'autoregressive'"):
        build.make_model(c, VOCAB)


@pytest.fixture
def split(tiny_run):
    """(a run, the same one split: each copy has its weights)."""
    before = pipeline.Pipeline.load(tiny_run)
    c = tiny.config()
    c.experts, c.init_from = ENDS, str(tiny_run)
    params = start.weights(c, before.vocab)
    return before, pipeline.Pipeline.assemble(c, before.tokenizers, params)


def test_a_finished_run_is_split_saved_and_read(split, tmp_path):
    before, after = split
    after.save_pretrained(tmp_path / "saved")
    again = pipeline.Pipeline.from_pretrained(tmp_path / "saved")
    one = trees.flatten(before.params)
    for name, p in trees.flatten(again.params).items():
        np.testing.assert_array_equal(p, one[name.partition("/")[2]])
    assert len(trees.flatten(again.params)) == 3 * len(one)


def test_a_run_that_was_split_is_split_again_and_not_joined(split, tiny_run, tmp_path):
    before, after = split
    folder = tmp_path / "run"
    shutil.copytree(tiny_run, folder)
    written = json.loads((folder / build.CONFIG).read_text())
    written["config"]["experts"] = ENDS
    (folder / build.CONFIG).write_text(json.dumps(written))
    params = {
        name: jax.tree.map(lambda p, n=n: p + n, tree)
        for n, (name, tree) in enumerate(after.params.items())
    }
    trees.save_tree(folder / build.WEIGHTS, params, {"step": 1})
    c = tiny.config()
    c.experts, c.init_from = (0.1, *ENDS), str(folder)
    again = start.weights(c, before.vocab)
    for name, of in enumerate((0, 0, 1, 2)):
        jax.tree.map(np.testing.assert_array_equal, again[f"expert_{name}"], params[f"expert_{of}"])
    start.check(c)
    c.experts = ()
    with pytest.raises(ValueError, match=r"has experts = \(0.3, 0.6\) and the config none"):
        start.check(c)


@pytest.mark.slow
def test_a_run_that_was_split_samples_as_before(split):
    asked = {"seed": 1, "sampler": "ancestral", "steps": 3}
    tokens = [pipe.text_to_image(["a red circle"], **asked).tokens for pipe in split]
    np.testing.assert_array_equal(*tokens)


def test_experts_have_no_head_of_lengths():
    with pytest.raises(ValueError, match=r"model\.length_head = True with experts"):
        experts.Experts(VOCAB, T, **OPTIONS, boundaries=ENDS, length_head=True)


def test_the_held_out_loss_is_of_all_times_and_so_of_all_experts(split):
    """A training step is of one interval; what is measured is not."""
    _, after = split
    vocab, pad = after.vocab, after.tokenizers["text"].pad_id
    loss_at = train_diffusion.objectives(after.config, vocab, pad)[1]
    sampler = time_sampling.create(after.config.diffusion.steps, 2)
    x0 = np.asarray(vocab.fuse({m.name: np.zeros((32, m.length), int) for m in vocab.modalities}))

    def moved(step):
        loss = lambda params: loss_at(step)(params, sampler, jax.random.key(0), x0)[0]  # noqa: E731
        grads = jit(jax.grad(loss))(after.params)
        return sum(any(np.any(g) for g in jax.tree.leaves(grads[name])) for name in grads)

    assert moved(math.inf) == 3 and moved(0) == 1
