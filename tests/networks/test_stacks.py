"""Long skips and encoder-decoders: first the plain network, later what a Python loop computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from udd_jax.diffusion import vocab
from udd_jax.networks import stacks, transformer
from udd_jax.runtime import sharding

VOCAB = vocab.image_text(grid=(2, 3), image_classes=5, text_classes=4, text_length=4)
T, L, D = 7, 10, 8
SLOW = pytest.mark.slow
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# (layers, options, {a block: the block whose output it takes}), by hand.
CASES = {
    "even": (4, {"stack": "long_skips"}, {2: 1, 3: 0}),
    "odd": (3, {"stack": "long_skips"}, {2: 0}),
    "more encoder": (5, {"stack": "encoder_decoder", "decoder_layers": 2}, {3: 1, 4: 0}),
    "more decoder": (5, {"stack": "encoder_decoder", "decoder_layers": 3}, {2: 1, 3: 0, 4: 0}),
}


def make(layers, **options):
    options = {"attention": "self"} | options  # which compiles in half the time
    return transformer.Transformer(VOCAB, T, layers=layers, width=D, heads=2, rezero=1.0, **options)


def shapes(model):
    return jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))


def weights(model):
    """Random parameters, as large as after training."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes(model))


def inputs():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.integers(0, 5, (4, 6)), rng.integers(5, 9, (4, 4))], axis=1)
    x[:, ::3] = VOCAB.mask_id
    return x.astype(np.int32), np.full((4, 2), 3, np.int32), np.ones((4, L), bool)


def one_by_one(sources, seen, block, settings, keep, *, layers, unroll, remat, decoder_layers=0):
    """A stack as a Python loop with a list of outputs; it notes the weights that it uses."""
    whole = stacks.plain(block, settings, keep, layers=layers, unroll=unroll, remat=remat)

    def run(h, time, bias, alone, kept):
        projections = stacks.Skips(len(sources), name="skip")(h.shape[-1])
        if whole.is_initializing():
            return whole(h, time, bias, alone, kept)
        outputs = []
        for i in range(layers):
            if i in sources:
                number = list(sources).index(i)
                kernel = jnp.eye(2 * D, D) + projections["kernel"][number]
                both = jnp.concatenate([h, outputs[sources[i]]], axis=-1)
                h = both @ kernel + projections["bias"][number][None, None]
            params = jax.tree.map(lambda p, i=i: p[i], whole.variables["params"])
            one = block(settings, keep, parent=None)
            h, _ = one.apply({"params": params}, h, time, bias, alone, kept)
            outputs.append(h)
        seen.append(len(outputs))
        return h, None

    return run


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) if name != "odd" else name for name in CASES]
)
def test_at_the_start_skips_change_no_bit_and_no_parameter_of_the_plain_network(name):
    layers, options, sources = CASES[name]
    plain, ours = make(layers), make(layers, **options)
    start, more = (transformer.init(m, jax.random.key(0), fan_in=True) for m in (plain, ours))
    assert more["skip"]["kernel"].shape == (len(sources), 2 * D, D)
    assert {key: p for key, p in more.items() if key != "skip"}.keys() == start.keys()
    jax.tree.map(np.testing.assert_array_equal, {k: more[k] for k in start}, start)
    for a, b in zip(
        *(jax.jit(m.apply)({"params": p}, *inputs()) for m, p in ((plain, start), (ours, more))),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW) if name != "more decoder" else name for name in CASES]
)
def test_a_stack_with_skips_is_a_loop_over_a_list_of_outputs(name):
    layers, options, sources = CASES[name]
    params, seen = weights(make(layers, **options)), []
    slow = make(layers, stack=functools.partial(one_by_one, sources, seen))
    ours, theirs, plain = (
        jit(m.apply)({"params": params}, *inputs())
        for m in (make(layers, **options), slow, make(layers))
    )
    assert seen == [layers]
    for a, b, c in zip(ours, theirs, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
        assert np.abs(a - c).max() > 1e-3  # and the skips matter


@pytest.mark.parametrize(
    "encoder, decoder, sources",
    [(12, 0, ()), (6, 6, (5, 4, 3, 2, 1, 0)), (9, 3, (6, 3, 0)), (2, 4, (1, 1, 0, 0))],
)
def test_a_decoder_takes_the_outputs_of_the_encoder_from_its_end_to_its_beginning(
    encoder, decoder, sources, monkeypatch
):
    monkeypatch.setattr(stacks, "_with_skips", lambda block, settings, keep, skips, **_: skips)
    size = {"layers": encoder + decoder, "unroll": 1, "remat": "none"}
    assert stacks.encoder_decoder(None, None, None, decoder_layers=decoder, **size) == sources
    if encoder == decoder:
        assert stacks.long_skips(None, None, None, **size) == sources


@pytest.mark.parametrize("layers, options, skips", [
    (12, {"stack": "long_skips"}, 6),
    (7, {"stack": "long_skips"}, 3),
    (12, {"stack": "encoder_decoder"}, 0),
    (12, {"stack": "encoder_decoder", "decoder_layers": 6}, 6),
    (12, {"stack": "encoder_decoder", "decoder_layers": 3}, 3),
])  # fmt: skip
def test_each_skip_adds_two_squares_and_a_bias_and_all_of_it_has_a_place(layers, options, skips):
    plain, ours = (shapes(make(layers, **o)) for o in ({}, options))
    added = transformer.count_parameters(ours) - transformer.count_parameters(plain)
    assert added == skips * (2 * D * D + D)
    for name, p in ours.get("skip", {}).items():
        place = sharding.spec(f"opt_state/0/mu/skip/{name}", p.shape)
        assert place == {"kernel": P(None, "data", "model"), "bias": P(None, "model")}[name]


@functools.cache
def gradient(mesh=None, **options):
    """The gradient of the sum of squared logits; with `mesh` on 2 x 2 devices."""
    model, mesh = make(5, stack="long_skips", **options), mesh and sharding.make_mesh(2, 2)
    params = weights(make(5, stack="long_skips"))

    def loss(params, *inputs):
        return sum((y**2).sum() for y in model.apply({"params": params}, *inputs))

    with sharding.use(mesh):
        placed = sharding.shard_tree(mesh, params)
        grads = jit(jax.grad(loss))(placed, *sharding.shard_batch(mesh, inputs()))
    return jax.tree.map(np.asarray, grads)


@SLOW
@pytest.mark.parametrize(
    "option",
    [{"unroll": 2}, {"remat": "dots", "unroll": 4}, {"remat": "full"}, {"mesh": True}],
    ids=str,
)
def test_what_is_unrolled_recomputed_or_split_over_devices_changes_no_gradient(option):
    ours, theirs = gradient(), gradient(**option)
    for a, b in zip(*map(jax.tree.leaves, (ours["skip"], theirs["skip"])), strict=True):
        assert np.abs(a).min() > 0 and np.abs(a - b).max() < 1e-4 * np.abs(a).max()
    for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stack": "skips"}, r"model\.stack = 'skips', expected one of .*'encoder_decoder'"),
        ({"decoder_layers": 1}, r"decoder_layers = 1 with model\.stack = 'plain', expected 0"),
        ({"decoder_layers": 4, "stack": "encoder_decoder"}, "4 of model.layers = 4, expected"),
        ({"decoder_layers": -1, "stack": "encoder_decoder"}, "-1 of model.layers = 4, expected"),
    ],
)
def test_a_stack_that_cannot_be_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        make(4, **options)
    assert "\n" not in str(error.value)
