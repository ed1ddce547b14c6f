"""References: modalities that are like another, and the weights of what is given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.diffusion import objective, schedules, transition
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.networks import layers, transformer
from udd_jax.runtime import sharding, trees
from udd_jax.sampling import weights

T, GRID = 7, (2, 3)
IMAGE, TEXT = Modality("image", 6, 5, GRID), Modality("text", 3, 4)
PLAIN = Vocab((IMAGE, TEXT))
SHARED = [Modality(name, 6, 5, GRID, "image", "seen") for name in ("one", "two")]
WITH = Vocab((IMAGE, *SHARED, TEXT))
ORDERED = Vocab((IMAGE, *(Modality(name, 6, 5, GRID, "image") for name in ("one", "two")), TEXT))
MASKED = np.where(np.isin(WITH.modality_of, [1, 2]), weights.NEVER, 0.0)[None, None, None]
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_the_padding_of_each_given_text_is_hidden_by_its_own_state():
    pad, vocab = 1, Vocab((Modality("question", 3, 4, like="text"), TEXT))
    network = model(vocab, padding=pad)
    x = np.full((3, 6), vocab.offsets[1] + pad)
    free, t = np.zeros((3, 6), bool), np.zeros((3, 2), int)
    free[0, 3:] = free[1, :3] = True  # text|question, question|text, and both given
    t[2, 0] = T  # the question is absent
    hidden = np.asarray(network._padded(x, t, free))
    assert hidden.reshape(3, 2, 3).all(-1).tolist() == [[True, False], [False, True], [False, True]]


def model(vocab, **options):
    options = {"attention": "self", "time": "per_modality", "qk_norm": True, **options}
    return transformer.Transformer(vocab, T, layers=1, width=8, heads=2, rezero=1.0, **options)


@functools.cache
def params(vocab, **options):
    init = functools.partial(transformer.init, model(vocab, **options))
    rng = np.random.default_rng(0)
    shapes = trees.flatten(jax.eval_shape(init, jax.random.key(0)))
    drawn = {n: rng.normal(0, 0.4, s.shape).astype(np.float32) for n, s in sorted(shapes.items())}
    return trees.nest(drawn)


def apply(vocab, *inputs, given=None, **options):
    bias = inputs[3] if len(inputs) > 3 else None
    found = params(vocab, **options) if given is None else given
    return run(vocab, tuple(options.items()))({"params": found}, *inputs[:3], bias)


@functools.cache
def run(vocab, options):
    return jit(model(vocab, **dict(options)).apply)


def batch(vocab=WITH, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {m.name: rng.integers(0, m.classes, (2, m.length)) for m in vocab.modalities}
    x = np.array(vocab.fuse(sizes))
    x[:, :6:2] = vocab.mask_id
    free = np.broadcast_to(vocab.modality_of == 0, x.shape)
    return x, np.array([[3] + [0] * (len(vocab.modalities) - 1)] * 2, np.int32), free


def part(x, *names):
    return np.concatenate([x[:, WITH.slices[WITH.index(n)]] for n in names], axis=1)


def test_a_reference_adds_its_positions_and_no_table_head_or_class():
    ours, theirs = (trees.flatten(params(v)) for v in (ORDERED, PLAIN))
    added = set(ours) - set(theirs)
    assert added == {f"embedding/{n}_{a}" for n in ("one", "two") for a in ("row", "column")}
    assert all(ours[name].shape == theirs[name].shape for name in theirs)
    shared = set(trees.flatten(params(WITH))) - set(theirs)
    assert shared == {"embedding/seen_row", "embedding/seen_column"}
    assert WITH.size == PLAIN.size == 10 and WITH.offsets == (0, 0, 0, 5)
    assert all(sharding.spec(name, leaf.shape) is not None for name, leaf in ours.items())


def test_equal_states_of_a_modality_and_its_reference_get_equal_logits():
    """The same tokens, times and positions: the head and the table are the same."""
    found = trees.flatten(params(WITH))
    for axis in ("row", "column"):
        found[f"embedding/seen_{axis}"] = found[f"embedding/image_{axis}"]
    x, _, free = batch()
    x[:, 6:12] = x[:, :6]
    logits = apply(WITH, x, np.full((2, 4), 3, np.int32), free, given=trees.nest(found))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)
    assert np.abs(logits[0] - logits[2]).max() > 0.01  # other tokens


def test_ids_of_a_reference_fuse_split_and_noise_as_those_of_its_modality():
    x, _, _ = batch()
    split = WITH.split(jnp.asarray(x))
    assert int(split["one"].max()) < 5 and np.array_equal(WITH.fuse(split), x)
    kernel = transition.make_kernel(WITH, schedules.make("uniform", T))
    noise = transition.prior_sample(kernel, jax.random.key(0), 200)
    for m, modality in enumerate(WITH.modalities):
        local = np.asarray(WITH.local(m, noise[:, WITH.slices[m]]))
        assert (np.bincount(local.reshape(-1)) > 0).sum() == modality.classes


def test_masked_out_references_leave_logits_and_losses_as_without_them():
    x, t, free = batch()
    other = x.copy()
    other[:, 6:18] = (x[:, 6:18] + 1) % 5
    ours = apply(WITH, x, t, free, MASKED)
    again = apply(WITH, other, t, free, MASKED)
    bare = {n: p for n, p in trees.flatten(params(WITH)).items() if "seen" not in n}
    small = part(x, "image", "text"), t[:, [0, 3]], part(free, "image", "text")
    theirs = apply(PLAIN, *small, given=trees.nest(bare))
    for mine, changed, alone in zip((ours[0], ours[3]), (again[0], again[3]), theirs, strict=True):
        np.testing.assert_array_equal(mine, changed)
        # A program of other shapes: without AVX-512 its sums are in another order.
        np.testing.assert_allclose(mine, alone, rtol=1e-5, atol=1e-6)
    # What changes where it is not masked out: the references are keys of everything.
    assert np.abs(apply(WITH, x, t, free)[0] - ours[0]).max() > 0.01

    def losses(vocab, logits, inputs):
        kernel = transition.make_kernel(vocab, schedules.make("linear", T))
        x, t, free = inputs
        x0 = jnp.where(x == vocab.mask_id, 1, x)
        return objective.loss_terms(kernel, logits, x0, jnp.asarray(x), t, jnp.asarray(free))

    whole, alone = losses(WITH, ours, (x, t, free)), losses(PLAIN, theirs, small)
    for mine, other in zip(whole, alone, strict=True):
        mine_alone = part(np.asarray(mine), "image", "text")
        np.testing.assert_allclose(mine_alone, other, rtol=1e-5, atol=1e-6)
        assert (np.asarray(mine)[:, 6:18] == 0).all()


def weighed(vocab, *inputs, **each):
    row = [each.get(m.name, 1.0) for m in vocab.modalities]
    bias = weights.attention(vocab, jnp.asarray([row] * 2, jnp.float32))
    return apply(vocab, *inputs, bias(*inputs))


@pytest.mark.parametrize("attention", ["self", "mutual"])
def test_a_weight_of_0_equals_absent_keys_and_1_changes_nothing(attention):
    x, t, free = batch(ORDERED)
    other = x.copy()
    other[:, 6:18] = (x[:, 6:18] + 1) % 5

    def logits(x, **each):
        row = [each.get(m.name, 1.0) for m in ORDERED.modalities]
        bias = weights.attention(ORDERED, jnp.asarray([row] * 2, jnp.float32))(x, t, free)
        return apply(ORDERED, x, t, free, bias, attention=attention)

    none = {"one": 0.0, "two": 0.0}
    np.testing.assert_array_equal(logits(x, **none)[0], logits(other, **none)[0])
    np.testing.assert_allclose(
        logits(x)[0], apply(ORDERED, x, t, free, None, attention=attention)[0], atol=1e-6
    )
    assert np.abs(logits(x, one=0.5)[0] - logits(x)[0]).max() > 1e-3


def test_with_weights_of_0_the_network_is_that_without_the_references():
    x, t, free = batch()
    bare = {n: p for n, p in trees.flatten(params(WITH)).items() if "seen" not in n}
    small = part(x, "image", "text"), t[:, [0, 3]], part(free, "image", "text")
    alone = apply(PLAIN, *small, given=trees.nest(bare))
    ours = weighed(WITH, x, t, free, one=0.0, two=0.0)
    for mine, theirs in zip((ours[0], ours[3]), alone, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert np.abs(weighed(WITH, x, t, free, one=0.0)[0] - alone[0]).max() > 1e-3


def test_references_of_one_segment_may_be_swapped_with_their_weights():
    x, t, free = batch()
    swapped = np.concatenate([x[:, :6], x[:, 12:18], x[:, 6:12], x[:, 18:]], axis=1)
    image = lambda *a, **w: np.asarray(weighed(*a, **w)[0])  # noqa: E731
    for rotary in (False, True):
        ours = apply(WITH, x, t, free, rotary=rotary)
        theirs = apply(WITH, swapped, t, free, rotary=rotary)
        np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    angles = layers.rotary_angles(WITH, 10)
    np.testing.assert_array_equal(angles[6:12], angles[12:18])
    assert angles[6:12].any() and (angles[6:12] != layers.rotary_angles(ORDERED, 10)[12:18]).any()
    a = image(WITH, x, t, free, one=0.3, two=2.0)
    np.testing.assert_allclose(a, image(WITH, swapped, t, free, one=2.0, two=0.3), atol=1e-5)
    assert np.abs(a - image(WITH, x, t, free, one=2.0, two=0.3)).max() > 1e-3
    ours, theirs = apply(ORDERED, x, t, free)[0], apply(ORDERED, swapped, t, free)[0]
    assert np.abs(ours - theirs).max() > 1e-3


def test_a_weight_of_2_counts_each_key_twice_and_only_where_it_is_given():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 3, 2, 4)), jnp.float32) for _ in range(3))
    vocab = Vocab((Modality("a", 2, 3), Modality("b", 1, 3)))
    make = weights.attention(vocab, jnp.asarray([[1.0, 2.0]]))
    bias = make(None, jnp.asarray([[3, 0]]), None)
    twice = [jnp.concatenate([y, y[:, 2:]], axis=1) for y in (k, v)]
    ours = layers.dot_product_attention(q, k, v, bias)
    np.testing.assert_allclose(ours, layers.dot_product_attention(q, *twice), atol=1e-6)
    for t in ([3, 3], [0, T]):  # generated, absent
        assert (np.asarray(make(None, jnp.asarray([t]), None))[..., 2] == 0).all()


@pytest.mark.parametrize(
    "rows, message",
    [
        ((IMAGE, Modality("one", 6, 4, GRID, "image")), "4 classes is like 'image' with 5"),
        ((IMAGE, SHARED[0], Modality("x", 6, 5, GRID, "one")), "that is like no other"),
        ((IMAGE, Modality("x", 6, 5, GRID, "smell")), "'smell' is not one of image, x"),
        ((IMAGE, Modality("x", 6, 5, (3, 2), "image", "image")), "share the positions 'image'"),
    ],
)
def test_a_reference_that_fits_nothing_is_one_line(rows, message):
    with pytest.raises(ValueError, match=message):
        Vocab(rows)
