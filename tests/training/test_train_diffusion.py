"""The train step: what it learns, what it skips, and that a run in pieces is the same run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import t2i
from udd_jax import build
from udd_jax.diffusion import schedules, tasks, transition, vocab
from udd_jax.errors import UserError
from udd_jax.runtime import sharding
from udd_jax.training import loss, optimiser, start, train_diffusion

VOCAB = vocab.image_text((2, 2), 3, 5, 3)


def make_loss(kernel, model, **changes):
    """`train.make_loss` of pairs, but for what changes."""
    usual = {"mixture": {"pair": 1.0}, "auxiliary": 0.1, "pad_id": 0, "pad_weight": 1.0}
    return loss.make_loss(kernel, model, **usual | changes)


@functools.cache
def setting():
    config = t2i.get_config("smoke")
    config.model.update({"layers": 1, "width": 16, "heads": 2})
    config.diffusion.steps = 10
    config.train.update({"steps": 60, "warmup": 5, "learning_rate": 1e-2, "optimiser": "adamw"})
    kernel = transition.make_kernel(VOCAB, build.make_schedules(config, VOCAB))
    model = build.make_model(config, VOCAB)
    tx, rate = optimiser.make_optimiser(config)
    loss_fn = make_loss(kernel, model, mixture=config.train.mixture.to_dict())
    step = jax.jit(train_diffusion.make_step(loss_fn, tx, rate, 0.9, VOCAB))
    return config, kernel, model, tx, loss_fn, step


@functools.cache
def fresh():
    """The state before the first step."""
    _, _, model, tx, _, _ = setting()
    return train_diffusion.create_state(model, tx, jax.random.key(0))


@functools.cache
def loss_of(task):
    """Compiled (x0, weights of padding and of images) -> metrics of `fresh` on one task."""
    (_, kernel, model, *_), state = setting(), fresh()

    @jax.jit
    def metrics(x0, pad_weight=1.0, image_weight=1.0):
        changes = {"pad_weight": pad_weight, "image_weight": image_weight}
        loss_fn = make_loss(kernel, model, mixture={task: 1.0}, **changes)
        return loss_fn(state.params, state.times, jax.random.key(3), x0)[1][0]

    return metrics


def test_the_weight_of_image_tokens_is_that_of_their_part_of_the_loss():
    x0 = VOCAB.fuse(batch(0))
    image, text, pair = (
        np.array([loss_of(task)(x0, 1.0, weight)["loss"] for weight in (0.0, 0.5, 1.0)])
        for task in ("t2i", "i2t", "pair")
    )
    np.testing.assert_allclose(image, [0, image[2] / 2, image[2]], rtol=1e-6)
    np.testing.assert_array_equal(text, text[0])
    assert image[2] > 0 and 0 < pair[0] < pair[2]
    np.testing.assert_allclose(pair[1], (pair[0] + pair[2]) / 2, rtol=1e-6)


def batch(seed, size=16):
    """A world of two pairs: the image says which text."""
    kind = np.random.default_rng(seed).integers(0, 2, size)
    image = np.stack([kind, 2 - kind, kind, kind], axis=1).astype(np.int32)
    text = np.stack([1 + kind, 3 + kind, 0 * kind], axis=1).astype(np.int32)
    return {"image": image, "text": text}


@pytest.mark.slow
def test_the_step_learns_a_small_world():
    *_, step = setting()
    state = fresh()
    losses = []
    for i in range(60):
        state, metrics = step(state, batch(i), jax.random.key(1))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:5])
    assert int(state.step) == 60
    assert int(state.times.seen.sum()) == 60 * 16


def test_a_state_carried_over_a_restart_gives_the_same_steps():
    *_, step = setting()
    state = fresh()
    for i in range(3):
        state, _ = step(state, batch(i), jax.random.key(1))
    stored = jax.device_get(state)
    for i in range(3, 5):
        state, _ = step(state, batch(i), jax.random.key(1))
    again = jax.tree.map(jnp.asarray, stored)
    for i in range(3, 5):
        again, _ = step(again, batch(i), jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(again))


def test_a_step_that_is_not_finite_changes_nothing_but_the_count():
    *_, step = setting()
    state = fresh()
    broken = state.replace(params=state.params | {"rezero": jnp.float32(np.nan)})
    after, metrics = step(broken, batch(0), jax.random.key(1))
    assert float(metrics["skipped"]) == 1
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, after.opt_state, broken.opt_state)
    jax.tree.map(np.testing.assert_array_equal, after.times, broken.times)


def test_given_and_absent_positions_are_not_guessed():
    x0 = VOCAB.fuse(batch(0))
    for task, name in (("t2i", "text"), ("i2t", "image"), ("image", "text")):
        assert np.isnan(loss_of(task)(x0)[f"{name}_nll"])  # of nothing


@functools.cache
def loss_of_present(task):
    """Compiled x0 -> loss of `fresh` on one task, where rows may lack a modality."""
    (_, kernel, model, *_), state = setting(), fresh()
    loss_fn = make_loss(kernel, model, mixture={task: 1.0}, incomplete=True)
    return jax.jit(lambda x0: loss_fn(state.params, state.times, jax.random.key(3), x0)[0])


@pytest.mark.parametrize("has, lacks, task", [("image", "text", "t2i"), ("text", "image", "t2i")])
def test_a_row_that_lacks_a_modality_is_one_of_the_other_alone(has, lacks, task):
    """Whatever its task; a row that lacks nothing is as before."""
    whole, lacking = batch(0), batch(0)
    lacking[lacks] = np.full_like(lacking[lacks], {"image": 3, "text": 5}[lacks])
    for rows, plain in ((lacking, has), (whole, task)):
        expected = loss_of(plain)(VOCAB.fuse(whole))["loss"]
        found = loss_of_present(task)(VOCAB.fuse(rows))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert loss_of(has)(VOCAB.fuse(whole))["loss"] != loss_of(task)(VOCAB.fuse(whole))["loss"]


def test_the_loss_of_a_row_is_its_own_whatever_the_others_lack():
    def loss_without(image=(), text=()):
        rows = batch(0)
        rows["image"][list(image)], rows["text"][list(text)] = 3, 5
        return float(loss_of_present("t2i")(VOCAB.fuse(rows)))

    whole, no_image, no_text = loss_without(), range(5), range(5, 9)
    changes = [loss_without(no_image) - whole, loss_without((), no_text) - whole]
    assert min(map(abs, changes)) > 1e-3
    together = loss_without(no_image, no_text) - whole
    np.testing.assert_allclose(together, sum(changes), rtol=1e-4)


def test_an_absent_text_does_not_reach_the_loss_of_the_image():
    first, second = batch(0), batch(0)
    second["text"] = (second["text"] + 1) % 5
    values = [float(loss_of("image")(VOCAB.fuse(b))["loss"]) for b in (first, second)]
    assert values[0] == values[1]


def test_the_continuous_objective_estimates_the_bound_of_very_many_steps():
    """The network starts out even, so that -log p(x_0 | x_t) is known: log K at every mask."""
    model, state = setting()[2], fresh()
    even = jax.tree.map(jnp.zeros_like, state.params)
    kernel = transition.make_kernel(VOCAB, schedules.absorbing(model.steps))
    losses = {}
    for objective in ("discrete", "continuous"):
        loss_fn = make_loss(kernel, model, auxiliary=0.0, time=objective)
        x0 = VOCAB.fuse(batch(0, 512))
        loss, (metrics, sampler) = jax.jit(loss_fn)(even, state.times, jax.random.key(3), x0)
        losses[objective] = float(loss)
        assert (int(sampler.seen.sum()) == 512) == (objective == "discrete")
        np.testing.assert_allclose(metrics["bound"], loss, rtol=1e-5)
    # Each position is masked once on its way: 4 log 3 + 3 log 5, whatever the number of steps.
    expected = (4 * np.log(3) + 3 * np.log(5)) / 7
    np.testing.assert_allclose(list(losses.values()), expected, rtol=0.1)


@pytest.mark.parametrize(
    "objective, message",
    [
        ("continous", "objective = 'continous', expected one of discrete, continuous"),
        ("continuous", "is for schedules that only mask: expected diffusion.schedule 'absorbing'"),
    ],
)
def test_an_objective_that_does_not_fit_is_an_error(objective, message):
    _, kernel, model, *_ = setting()
    with pytest.raises(ValueError, match=message):
        make_loss(kernel, model, auxiliary=0.0, time=objective)


def test_padding_weighs_what_the_config_says():
    x0 = VOCAB.fuse(batch(0))
    none, one, two = (float(loss_of("i2t")(x0, weight)["loss"]) for weight in (0.0, 1.0, 2.0))
    assert 0 < none < one
    np.testing.assert_allclose(two - one, one - none, rtol=1e-4)


def test_modalities_may_have_schedules_of_their_own():
    config = setting()[0].copy_and_resolve_references()
    config.diffusion.image_schedule = "cosine"
    image, text = build.make_schedules(config, VOCAB)
    assert image.masks_only
    assert not text.masks_only


def test_a_batch_in_parts_gives_the_gradient_and_metrics_of_the_whole():
    def loss_fn(params, sampler, key, x0):
        loss = ((params["w"][None] * x0).sum(axis=1) ** 2).mean()
        return loss, ({"loss": loss}, sampler + x0.shape[0])

    x0 = np.random.default_rng(0).integers(0, 5, (12, 3)).astype(np.int32)
    params, key = {"w": jnp.array([0.5, -1.0, 0.25])}, jax.random.key(0)
    whole, metrics, count = train_diffusion.make_gradient(loss_fn)(params, 0, key, x0)
    parts, more_metrics, more_count = train_diffusion.make_gradient(loss_fn, 4)(params, 0, key, x0)
    assert np.allclose(parts["w"], whole["w"], rtol=1e-6)
    assert np.isclose(more_metrics["loss"], metrics["loss"], rtol=1e-6)
    assert count == more_count == 12
    with pytest.raises(ValueError, match=r"12 is not a multiple of train\.accumulate = 5"):
        train_diffusion.make_gradient(loss_fn, 5)(params, 0, key, x0)


def test_the_parts_of_a_batch_draw_noise_of_their_own():
    def loss_fn(params, sampler, key, x0):
        noise = jax.random.normal(key)
        return params["w"] * noise, ({"noise": noise}, sampler)

    x0, key = np.zeros((4, 3), np.int32), jax.random.key(5)
    grads, metrics, _ = train_diffusion.make_gradient(loss_fn, 2)({"w": jnp.float32(1)}, 0, key, x0)
    drawn = [float(jax.random.normal(jax.random.fold_in(key, i))) for i in range(2)]
    assert np.isclose(metrics["noise"], np.mean(drawn)) and np.isclose(grads["w"], np.mean(drawn))


def test_a_part_without_a_guess_of_a_modality_is_left_out_of_what_is_told_of_it():
    def loss_fn(params, sampler, key, x0):
        guesses = (x0 > 0).sum()
        loss = params["w"] * x0.mean()
        return loss, ({"loss": loss, "text_nll": x0.sum() / guesses}, sampler)

    key, x0 = jax.random.key(0), np.array([[0], [3], [0], [5]], np.int32)  # parts: 0, 0 and 3, 5
    _, metrics, _ = train_diffusion.make_gradient(loss_fn, 2)({"w": jnp.float32(1)}, 0, key, x0)
    assert metrics == {"loss": 2, "text_nll": 4}
    _, metrics, _ = train_diffusion.make_gradient(loss_fn, 2)({"w": jnp.nan}, 0, key, x0)
    assert np.isnan(metrics["loss"])  # so that the step is skipped


@pytest.mark.slow
def test_the_held_out_bound_is_one_number_on_every_mesh_and_falls_with_training():
    *_, loss_fn, step = setting()
    state = fresh()
    pairs = batch(100, 24)  # a batch and a half
    bound = train_diffusion.make_held_out(loss_fn, pairs, 16, VOCAB, None)
    first = bound(state, 0)["held_out_bound"]
    assert first == bound(state, 1)["held_out_bound"]
    counted = state.replace(times=jax.tree.map(lambda x: x + 30, state.times))
    assert first == bound(counted, 1)["held_out_bound"]  # at the same times
    mesh = sharding.make_mesh(4, 1)
    with sharding.use(mesh):
        placed = sharding.shard_tree(mesh, state)
        same = train_diffusion.make_held_out(loss_fn, pairs, 16, VOCAB, mesh)(placed, 0)[
            "held_out_bound"
        ]
    assert abs(same - first) < 1e-5
    for i in range(40):
        state, _ = step(state, batch(i), jax.random.key(1))
    assert bound(state, 40)["held_out_bound"] < 0.7 * first


# ---- Words among masks --------------------------------------------------------------------------


def test_the_words_of_given_texts_stand_in_order_at_random_places_among_masks():
    longer = vocab.image_text((2, 2), 3, 9, 5)
    batch, pad, text = 6000, 0, longer.slices[1]
    local = np.tile(np.array([3, 7, pad, pad, pad]), (batch, 1))
    x = np.asarray(longer.fuse({"image": np.ones((batch, 4), int), "text": local}))
    drawn = tasks.masks(longer, "image|text", batch)
    rows = jax.jit(loss.scattered, static_argnums=(0, 4, 5))
    found = np.asarray(rows(longer, jax.random.key(0), x, drawn, 1.0, pad))
    np.testing.assert_array_equal(found[:, longer.slices[0]], x[:, longer.slices[0]])
    masked = found[:, text] == longer.mask_id
    assert (masked.sum(1) == 3).all()
    assert (found[:, text][~masked].reshape(batch, 2) == x[0, text][:2]).all()
    places = np.unique(masked, axis=0, return_counts=True)[1]
    assert len(places) == 10 and stats.chisquare(places).pvalue > 1e-3  # all pairs of places

    half = np.asarray(rows(longer, jax.random.key(1), x, drawn, 0.5, pad))
    same = (half == x).all(1)
    assert 0.45 < same.mean() < 0.55  # the others have masks
    assert (half[~same][:, text] == longer.mask_id).any(1).all()


@pytest.mark.parametrize("rule", ("image,text", "text|image", "image"))
def test_only_a_given_text_is_scattered(rule):
    local = {"image": np.ones((8, 4), int), "text": np.tile([2, 2, 0], (8, 1))}
    x = jnp.asarray(VOCAB.fuse(local))
    kept = loss.scattered(VOCAB, jax.random.key(0), x, tasks.masks(VOCAB, rule, 8), 1.0, 0)
    np.testing.assert_array_equal(kept, x)


def test_a_loss_with_scattered_texts_sees_them_and_a_share_of_0_changes_no_bit():
    _, kernel, model, *_ = setting()
    local = {"image": np.ones((8, 4), int), "text": np.tile([1, 0, 0], (8, 1))}
    state, x0 = fresh(), np.asarray(VOCAB.fuse(local))

    def value(**changes):
        loss_fn = make_loss(kernel, model, mixture={"t2i": 1.0}, **changes)
        return float(jax.jit(loss_fn)(state.params, state.times, jax.random.key(3), x0)[0])

    assert value() == value(scattered_text=0.0) != value(scattered_text=1.0)


def test_scattered_texts_are_refused_where_the_loss_has_none():
    config = t2i.get_config("smoke")
    config.train.scattered_text = 0.5
    start.check(config)
    config.model.kind = "autoregressive"
    with pytest.raises(UserError, match=r"^train.scattered_text = 0.5 with .* expected 0"):
        start.check(config)
