"""The student: what its teacher says call by call, and a loss that is 0 where both agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import distill
from udd_jax import build
from udd_jax.diffusion import schedules, tasks, time_sampling, transition, vocab
from udd_jax.errors import UserError
from udd_jax.training import distillation, loss, start, train_diffusion

LAYOUT = vocab.image_text((1, 3), image_classes=3, text_classes=4, text_length=2)
STEPS = 10
KERNEL = transition.make_kernel(LAYOUT, schedules.linear(STEPS))
BATCH = 2


class Table:
    """A network without context: a table of logits for each modality."""

    vocab, steps = LAYOUT, STEPS

    def apply(self, variables, xt, t, free):
        return tuple(
            jnp.broadcast_to(table[None], (len(xt), *table.shape)) for table in variables["params"]
        )


class Sees:
    """A network with two tables: one where the other modality is at time T, and one elsewhere."""

    vocab, steps = LAYOUT, STEPS

    def apply(self, variables, xt, t, free):
        alone, there = variables["params"][:2], variables["params"][2:]
        sees = (t[:, ::-1] < STEPS)[:, :, None, None]
        return tuple(jnp.where(sees[:, m], there[m], alone[m]) for m in range(2))


def tables(seed):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(m.length, m.classes)), float) for m in LAYOUT.modalities]


def make_loss(calls, kernel=KERNEL):
    options = {"mixture": {"pair": 1.0}, "auxiliary": 0.0, "pad_id": 0, "pad_weight": 1.0}
    return distillation.make_loss(kernel, Table(), calls=calls, **options)


@pytest.fixture(scope="module")
def gradient():
    """Loss, metrics and gradient of a table of its own teacher, in two calls."""
    loss_fn = distillation.over(make_loss(2), tables(0))
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def inputs():
    x0 = jnp.zeros((BATCH, LAYOUT.length), jnp.int32).at[:, 3:].set(LAYOUT.offsets[1])
    return time_sampling.create(STEPS, 2), jax.random.key(3), x0


def test_a_student_that_says_what_its_teacher_says_has_no_loss_and_no_gradient(gradient):
    (value, (metrics, sampler)), grads = gradient(tables(0), *inputs())
    assert abs(value) < 1e-6 and max(abs(g).max() for g in grads) < 1e-6
    assert metrics["bound"] > 0
    assert all(map(np.array_equal, jax.tree.leaves(sampler), jax.tree.leaves(inputs()[0])))


def test_the_loss_is_the_divergence_at_the_masked_positions(gradient):
    (value, (metrics, _)), _ = gradient(tables(1), *inputs())
    apart = [
        distillation.divergence(a, jax.nn.log_softmax(b))
        for a, b in zip(tables(1), tables(0), strict=True)
    ]
    sampler, key, x0 = inputs()
    noise = jax.jit(lambda *a: loss.noised_batch(KERNEL, *a, {"pair": 1.0}).xt)
    hidden = np.asarray(noise(sampler, key, x0)) == LAYOUT.mask_id
    expected = (hidden * np.concatenate(apart)[None]).sum()
    np.testing.assert_allclose(value, expected / x0.size, rtol=1e-5)
    np.testing.assert_allclose(metrics["apart"], expected / hidden.sum(), rtol=1e-5)


def test_a_teacher_sees_in_its_next_call_what_it_has_revealed_and_says_it_at_an_earlier_time():
    """All is masked. In call j the teacher says class j with certainty; positions whose number is
    even are less certain. Of 3 image positions two are revealed first, of 2 words one."""
    seen = []

    def teach_fn(x, t, free):
        masked = (x == LAYOUT.mask_id).sum(axis=1)[:, None, None]
        jax.debug.callback(lambda *a: seen.append([np.asarray(b) for b in a]), x, t)
        logits = []
        for m in LAYOUT.modalities:
            sure = 6.0 + 9 * (jnp.arange(m.length) % 2)[None, :, None]
            number = jnp.where(masked == LAYOUT.length, 0, 1)
            logits.append(sure * (jnp.arange(m.classes)[None, None] == number))
        return tuple(logits)

    x = jnp.full((1, LAYOUT.length), LAYOUT.mask_id)
    t, masks = jnp.full((1, 2), STEPS), tasks.masks(LAYOUT, "pair", 1)
    noised = loss.Noised(x, t, masks, None, None, None, None)
    said = distillation.targets(KERNEL, teach_fn, jax.random.key(0), noised, 2)
    jax.effects_barrier()
    classes = [np.argmax(a[0], axis=-1) for a in said]
    assert sorted(classes[0]) == [0, 0, 1] and classes[0][1] == 0  # the certain one is first
    assert classes[1].tolist() == [1, 0]
    (_, first), (second, later) = seen
    assert (second[0, :3] == LAYOUT.mask_id).sum() == 1
    assert (first == STEPS).all()
    assert (later == 6).all()  # the first time at which half is masked; .444 is at t = 5


@pytest.mark.parametrize("task", ["t2i", "pair", "image"])
def test_a_guided_teacher_says_the_weighted_sum_of_with_and_without_the_others(task):
    alone, there = tables(3), tables(2)
    masks, rng = tasks.masks(LAYOUT, task, BATCH), np.random.default_rng(0)
    t = tasks.times(LAYOUT, masks, jnp.asarray([[4, 7], [9, 2]]), STEPS)

    def teach_fn(*inputs):
        return Sees().apply({"params": alone + there}, *inputs)

    x = jnp.asarray(rng.integers(0, LAYOUT.mask_id + 1, (BATCH, LAYOUT.length)))
    said = distillation.guided(KERNEL, teach_fn, jax.random.key(0), masks, (3.0, 1.0))
    image, text = said(x, t, masks.free)
    plain = jax.nn.log_softmax(there[1])
    seen = there if task != "image" else alone
    log_with, log_without = (jax.nn.log_softmax(a[0]) for a in (seen, alone))
    expected = jax.nn.log_softmax(3 * log_with - 2 * log_without)
    np.testing.assert_allclose(image, np.broadcast_to(expected, image.shape), atol=1e-5)
    np.testing.assert_allclose(text, np.broadcast_to(plain, text.shape), atol=1e-5)


def test_a_student_is_taught_by_the_guided_teacher_and_only_a_student_has_one():
    same = {"mixture": {"t2i": 1.0}, "auxiliary": 0.0, "pad_id": 0, "pad_weight": 1.0}
    losses = [
        distillation.make_loss(KERNEL, Sees(), calls=1, teacher_guidance={"image": s}, **same)
        for s in (1.0, 3.0)
    ]
    params = tables(1) + tables(2)
    plain, taught = (float(f((params, params), *inputs())[0]) for f in losses)
    assert abs(plain) < 1e-6 < 1e-3 < taught
    config = distill.get_config()
    config.init_from, config.train.teacher_guidance.image = "udd_jax/assets/shapes", 2.0
    start.check(config)
    config.train.loss = ""
    with pytest.raises(UserError, match=r"teacher_guidance = \{'image': 2\.0\} without a teacher"):
        start.check(config)


def test_a_student_takes_sizes_tokenizers_and_data_of_its_teacher(tmp_path):
    config = distill.get_config()
    with pytest.raises(UserError, match=r"needs a teacher.*--config\.init_from="):
        start.check(config)
    config.init_from = "udd_jax/assets/shapes"
    found, teacher = start.student(config), build.read_config(config.init_from)
    assert found.data == teacher.data and found.text.length == teacher.text.length
    assert found.vq.file == "udd_jax/assets/shapes/vq/tokenizer"
    assert found.model.width == teacher.model.width and found.train.steps == config.train.steps
    assert found.begin_with == tuple(teacher.begin_with) == ("image",)
    config.data, config.begin_with = f"folder:{tmp_path}", ("text",)
    own = start.student(config)
    assert (own.data, own.begin_with) == (config.data, ("text",))
    config.train.loss = ""
    assert start.student(config) is config


def test_an_unknown_loss_is_refused_by_its_name():
    config = distill.get_config()
    config.train.loss = "odd"
    with pytest.raises(UserError, match=r"train\.loss = 'odd', expected one of diffusion"):
        train_diffusion.make_objective(config, LAYOUT, pad_id=0)
    with pytest.raises(UserError, match="needs a schedule that masks"):
        uniform = transition.make_kernel(LAYOUT, schedules.uniform(STEPS))
        make_loss(2, uniform)


@pytest.mark.parametrize("kind", train_diffusion.LOSSES)
def test_every_loss_takes_the_options_of_a_config(kind):
    config = distill.get_config()
    config.train.loss = kind
    if kind == "autoregressive":
        config.model.kind = kind
    model, loss_fn = train_diffusion.make_objective(config, LAYOUT, pad_id=0)
    assert callable(loss_fn) and model.vocab is LAYOUT
