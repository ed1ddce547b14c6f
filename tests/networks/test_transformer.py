"""What each option of the network changes, and what it leaves alone. Numbers are elsewhere:
`test_published_network.py` has those of the published settings."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from udd_jax import build, pipeline
from udd_jax.diffusion import schedules, time_sampling, transition, vocab
from udd_jax.networks import layers, transformer
from udd_jax.runtime import trees
from udd_jax.training import loss, train_diffusion

VOCAB = vocab.image_text(grid=(2, 3), image_classes=5, text_classes=4, text_length=4)
N, L, T = 6, 10, 7
# Compiling is most of the time here, and nothing runs long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make(**options):
    return transformer.Transformer(VOCAB, T, layers=2, width=8, heads=2, rezero=1.0, **options)


@functools.cache
def weights(**options):
    """Random parameters, as large as after training."""
    model = make(**options)
    init = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), init)


def inputs(seed=0, batch=4):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 5, (batch, N))
    text = rng.integers(5, 9, (batch, L - N))
    x = np.concatenate([image, text], axis=1).astype(np.int32)
    x[:, ::3] = VOCAB.mask_id
    return x, np.full((batch, 2), 3, np.int32), np.ones((batch, L), bool)


@functools.cache
def compiled(**options):
    return jit(make(**options).apply)


def apply(params, x, t, free, bias=None, **options):
    logits = compiled(**options)({"params": params}, x, t, free, bias)
    return [np.asarray(y) for y in logits]


def clock(image, text, batch=4):
    return np.tile(np.int32([image, text]), (batch, 1))


def names(params):
    return set(trees.flatten(params))


def changed(params, layer, function):
    """The parameters, with a function applied to those whose names have this ending."""

    def change(path, p):
        return function(p) if any(part.key.endswith(layer) for part in path[:-1]) else p

    return jax.tree.map_with_path(change, params)


def assert_equal(ours, theirs, atol=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def differ(ours, theirs):
    return max(np.abs(a - b).max() for a, b in zip(ours, theirs, strict=True)) > 1e-3


# Time


def test_a_shared_time_is_the_later_one_and_two_times_are_two():
    params = weights()
    x, _, free = inputs()
    shared = [apply(params, x, t, free) for t in (clock(2, 6), clock(6, 6), clock(6, 2))]
    assert_equal(shared[0], shared[1])
    assert_equal(shared[0], shared[2])
    both = {t: apply(params, x, clock(*t), free, time="per_modality") for t in [(2, 6), (6, 2)]}
    assert differ(both[2, 6], both[6, 2]) and differ(both[2, 6], shared[1])


def test_two_equal_times_are_one_and_the_parameters_are_the_same():
    x, _, free = inputs()
    params = weights(time="per_modality")
    assert names(params) == names(weights())
    assert_equal(
        apply(params, x, clock(4, 4), free, time="per_modality"),
        apply(params, x, clock(4, 4), free),
    )


def test_one_tied_table_is_the_same_table_in_every_layer():
    x, t, free = inputs()
    tied = weights(time_table="tied")
    untied = jax.tree.map(np.copy, weights())
    tables = [n for n in names(weights()) if "/time/" in n]
    assert len(tables) == 3 and names(tied) == names(untied) - set(tables) | {
        "time/table/embedding"
    }
    blocks = {**tied["blocks"]}
    for norm in ("self_norm", "image_from_text_norm", "text_from_image_norm"):
        copies = np.stack([tied["time"]["table"]["embedding"]] * 2)
        blocks[norm] = {**blocks[norm], "time": {"table": {"embedding": copies}}}
    untied = {k: v for k, v in tied.items() if k != "time"} | {"blocks": blocks}
    assert_equal(apply(tied, x, t, free, time_table="tied"), apply(untied, x, t, free))


def test_sinusoids_need_no_table_and_still_tell_the_time():
    x, _, free = inputs()
    params = weights(time_table="sinusoidal")
    assert not [n for n in names(params) if "table" in n]
    assert names(params) - names(weights()) == {
        f"time/{layer}/{p}" for layer in ("in", "out") for p in ("kernel", "bias")
    }
    at = [apply(params, x, clock(t, t), free, time_table="sinusoidal") for t in (0, 1, T)]
    assert differ(at[0], at[1]) and differ(at[1], at[2])


# Attention


def test_query_key_norm_forgets_the_length_of_queries_and_adds_two_scales():
    x, t, free = inputs()
    params = weights(qk_norm=True)
    added = names(params) - names(weights())
    assert {n.split("/")[-2:][0] for n in added} == {"query_norm", "key_norm"}
    assert_equal(
        apply(params, x, t, free, qk_norm=True),
        apply(changed(params, "query", lambda p: 8 * p), x, t, free, qk_norm=True),
        1e-3,
    )
    longer = changed(weights(), "query", lambda p: 8 * p)
    assert differ(apply(weights(), x, t, free), apply(longer, x, t, free))


def test_a_bias_hides_the_padding_of_a_given_text():
    x, t, free = inputs()
    other = np.array(x)
    padding = slice(L - 2, L)
    other[:, padding] = 5 + (x[:, padding] + 1) % 4
    bias = np.zeros((4, 1, L, L), np.float32)
    bias[..., padding] = -1e9
    seen = slice(0, L - 2 - N)  # text positions before the padding
    run = functools.partial(apply, weights(), t=t, free=free)
    hidden, changed = run(x, bias=bias), run(other, bias=bias)
    np.testing.assert_allclose(hidden[0], changed[0], atol=1e-6)
    np.testing.assert_allclose(hidden[1][:, seen], changed[1][:, seen], atol=1e-6)
    assert differ(run(x)[:1], run(other)[:1])
    assert_equal(run(x), run(x, bias=0 * bias))


# Rotary positions


def test_rotated_products_depend_on_the_distance_along_each_axis_alone():
    angles = layers.rotary_angles(VOCAB, pairs=6)
    x, y = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 12)).astype(np.float32)
    everywhere = (1, L, 1, 12)
    q = layers.rotate(jnp.broadcast_to(x, everywhere), angles)[0, :, 0]
    k = layers.rotate(jnp.broadcast_to(y, everywhere), angles)[0, :, 0]
    products = np.asarray(q @ k.T)
    np.testing.assert_allclose(np.linalg.norm(q, axis=-1), np.linalg.norm(x), rtol=1e-5)
    text = products[N:, N:]
    for distance in range(-2, 3):
        assert np.ptp(np.diagonal(text, distance)) < 1e-5
    assert np.ptp(np.diagonal(text, 1)) < 0.01 < abs(text[0, 1] - text[1, 0])
    grid = products[:N, :N].reshape(2, 3, 2, 3)  # row, column of both
    np.testing.assert_allclose(grid[0, 1, 1, 2], grid[0, 0, 1, 1], atol=1e-5)  # one down, one right
    assert abs(grid[0, 0, 0, 1] - grid[0, 0, 1, 0]) > 0.01


def test_rotary_positions_add_no_parameters_and_change_the_logits():
    params = weights()
    assert names(params) == names(weights(rotary=True))
    assert differ(apply(params, *inputs()), apply(params, *inputs(), rotary=True))


@pytest.mark.parametrize("with_bias", [False, True])
def test_every_implementation_of_attention_is_the_same_function(with_bias):
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, n, 3, 4)).astype(np.float32) for n in (5, 7, 7))
    bias = rng.normal(size=(2, 1, 5, 7)).astype(np.float32) if with_bias else None
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / 2 + (bias if with_bias else 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)
    for implementation in ("flat", "xla"):
        attend = functools.partial(layers.dot_product_attention, implementation=implementation)
        np.testing.assert_allclose(jit(attend)(q, k, v, bias), expected, atol=1e-5)
    half = [jnp.asarray(y, jnp.bfloat16) for y in (q, k, v)]
    assert layers.dot_product_attention(*half, bias).dtype == jnp.bfloat16


def test_cudnn_is_asked_for_with_everything_in_one_type(monkeypatch):
    def asked(q, k, v, bias, implementation):
        assert implementation == "cudnn" and {x.dtype for x in (q, k, v, bias)} == {q.dtype}
        return q

    monkeypatch.setattr(jax.nn, "dot_product_attention", asked)
    q, bias = jnp.ones((1, 2, 1, 4), jnp.bfloat16), jnp.zeros((1, 1, 1, 2))
    assert layers.dot_product_attention(q, q, q, bias, "cudnn") is q


def test_cudnn_gets_a_bias_for_each_query_that_its_type_can_hold(monkeypatch):
    found = []
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *_, bias, **__: found.append(bias) or q
    )
    q = jnp.ones((1, 3, 1, 4), jnp.float16)
    layers.dot_product_attention(q, q, q, jnp.array([0.0, -1e9, 0.0])[None, None, None], "cudnn")
    assert found[0].shape == (1, 1, 3, 3) and np.isfinite(found[0]).all()
    assert found[0][0, 0, 2, 1] < -3e4


def test_on_a_gpu_cudnn_attention_is_one_call_forwards_and_one_backwards(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    # Of a machine without one: its version is all that lowering asks for.
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    shape = jax.ShapeDtypeStruct((2, 1152, 16, 64), jnp.bfloat16)

    def total(q, k, v):
        y = layers.dot_product_attention(q, k, v, implementation="cudnn")
        return y.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(total)).trace(shape, shape, shape)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(__cudnn\$\w+)", text)
    assert calls == ["__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"]
    assert "1152x1152" not in text  # no scores


def test_xla_attention_gives_the_logits_of_the_flat_one():
    x, t, free = inputs()
    params = weights()
    assert_equal(apply(params, x, t, free), apply(params, x, t, free, implementation="xla"))


def test_plain_joint_attention_has_no_mutual_weights_and_still_joins():
    x, t, free = inputs()
    params = weights(attention="self")
    assert not [n for n in names(params) if "_from_" in n]
    assert names(params) < names(weights())
    other = np.array(x)
    other[:, N + 1] = 5 + (x[:, N + 1] + 1) % 4
    run = functools.partial(apply, params, t=t, free=free, attention="self")
    assert differ(run(x)[:1], run(other)[:1])


def test_gains_of_the_mutual_results_are_learned_and_at_one_change_nothing():
    x, t, free = inputs()
    params = weights(mutual_gain=0.25)
    gains = {f"blocks/{m}_result/scale" for m in ("image_from_text", "text_from_image")}
    assert names(params) - names(weights()) == gains

    def with_gains(value):
        return changed(params, "_result", lambda p: np.full_like(p, value))

    plain = {k: v for k, v in params.items() if k != "blocks"}
    plain["blocks"] = {k: v for k, v in params["blocks"].items() if not k.endswith("_result")}
    assert_equal(apply(with_gains(1.0), x, t, free, mutual_gain=0.25), apply(plain, x, t, free))
    assert differ(apply(with_gains(0.5), x, t, free, mutual_gain=0.25), apply(plain, x, t, free))


# What is given


PAD = 2  # a local id of the text


def four_texts():
    """The same padded text: given, to be generated, absent, and given but for one position."""
    x = inputs(batch=4)[0]
    x[:, N:] = np.int32([0, 1, PAD, PAD]) + VOCAB.offsets[1]
    free = np.ones((4, L), bool)
    free[[0, 2, 3], N:] = False
    free[3, N] = True
    return x, np.int32([[3, 0], [3, 3], [3, T], [3, 3]]), free


def test_the_padding_of_a_given_text_is_hidden_and_no_other():
    options = {"time": "per_modality"}
    params, (x, t, free) = weights(**options), four_texts()
    assert names(weights(padding=PAD, **options)) == names(params)
    masked = apply(params, x, t, free, padding=PAD, **options)
    plain = apply(params, x, t, free, **options)
    assert_equal([y[1:] for y in masked], [y[1:] for y in plain])
    assert differ([y[:1] for y in masked], [y[:1] for y in plain])
    bias = np.zeros((4, 1, L, L), np.float32)
    bias[0, ..., -2:] = -1e9
    assert_equal(masked, apply(params, x, t, free, bias, **options))
    x[:, N:] = PAD + VOCAB.offsets[1]  # nothing but padding: no division by zero
    for y in apply(params, x, t, free, padding=PAD, **options):
        assert np.isfinite(y).all()


def test_a_learned_vector_is_added_where_a_token_is_given_and_nowhere_else():
    options = {"time": "per_modality"}
    params, (x, t, free) = weights(given_vector=True, **options), four_texts()
    assert names(params) - names(weights(**options)) == {"given"}
    plain = {name: p for name, p in params.items() if name != "given"}
    moved = dict(plain["embedding"])
    moved["text_position"] = moved["text_position"] + params["given"][None]
    moved = plain | {"embedding": moved}  # the same where all of the text is given
    ours = apply(params, x, t, free, given_vector=True, **options)
    without, everywhere = (apply(p, x, t, free, **options) for p in (plain, moved))
    rows = [[y[i : i + 1] for y in ours] for i in range(4)]
    assert_equal(rows[0], [y[:1] for y in everywhere])
    for i in (1, 2):  # to be generated; absent
        assert_equal(rows[i], [y[i : i + 1] for y in without])
    for i, others in ((0, without), (3, without), (3, everywhere)):
        assert differ(rows[i], [y[i : i + 1] for y in others])


def padding_gradient(mask_padding):
    """The gradient of a loss (images given padded texts) by the embedding row of the padding."""
    config = t2i.get_config("smoke")
    config.diffusion.steps = T
    config.model.update({"layers": 1, "width": 8, "mask_padding": mask_padding})
    model = build.make_model(config, VOCAB, PAD)
    kernel = transition.make_kernel(VOCAB, [schedules.linear(T)] * 2)
    options = {"auxiliary": 1.0, "pad_id": PAD, "pad_weight": 1.0}
    loss_fn = loss.make_loss(kernel, model, mixture={"t2i": 1.0}, **options)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes)
    x0 = np.tile(np.int32([0, 1, 2, 3, 4, 0, 5, 6, 5 + PAD, 5 + PAD]), (4, 1))
    grad_fn = jit(jax.grad(loss_fn, has_aux=True))
    grads, _ = grad_fn(params, time_sampling.create(T, 2), jax.random.key(1), x0)
    row = np.asarray(grads["embedding"]["token"])[VOCAB.offsets[1] + PAD]
    words = np.asarray(grads["embedding"]["token"])[VOCAB.offsets[1] : VOCAB.offsets[1] + PAD]
    assert np.abs(words).min() > 0
    return np.abs(row).max()


@pytest.mark.slow
@pytest.mark.parametrize("hides", [True, False])
def test_training_hides_the_padding_of_given_texts_if_the_config_says_so(hides):
    assert (padding_gradient(mask_padding=hides) == 0) == hides


def test_a_run_samples_and_trains_with_the_padding_of_its_own_vocabulary(tiny_run, monkeypatch):
    config = build.read_config(tiny_run)
    parts = build.load_tokenizers(tiny_run), build.load_weights(tiny_run)
    monkeypatch.setattr(parts[0]["text"], "pad_id", 3)
    assert pipeline.Pipeline.assemble(config, *parts).model.padding is None
    config.model.mask_padding = True
    pipe = pipeline.Pipeline.assemble(config, *parts)
    assert pipe.model.padding == 3
    asked = []
    monkeypatch.setattr(build, "make_model", lambda *arguments: asked.append(arguments) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_diffusion.train(config, tiny_run, pipe.vocab, 3, None)
    assert asked == [(config, pipe.vocab, 3)]


# Numbers and memory


def test_bfloat16_computes_roughly_and_answers_in_float32():
    x, t, free = inputs()
    params = weights()
    rough = apply(params, x, t, free, dtype=jnp.bfloat16)
    exact = apply(params, x, t, free)
    for a, b in zip(rough, exact, strict=True):
        assert a.dtype == np.float32
        assert 0 < np.abs(a - b).max() < 0.1 * np.abs(b).max()
    init = jax.eval_shape(
        functools.partial(transformer.init, make(dtype=jnp.bfloat16)), jax.random.key(0)
    )
    assert {p.dtype for p in jax.tree.leaves(init)} == {np.dtype(np.float32)}


@functools.cache
def gradient(**options):
    """The gradient of the sum of squared logits."""
    model = make(**options)
    x, t, free = inputs()

    def loss(params):
        return sum((y**2).sum() for y in model.apply({"params": params}, x, t, free))

    return jit(jax.grad(loss))(weights())


@pytest.mark.slow
@pytest.mark.parametrize("option", [{"remat": "full"}, {"remat": "dots"}, {"unroll": 2}])
def test_what_is_recomputed_or_unrolled_changes_no_gradient(option):
    for a, b in zip(*map(jax.tree.leaves, (gradient(), gradient(**option))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_paper_size_has_the_published_number_of_parameters():
    paper = vocab.image_text((32, 32), 2887, 8192, 128)
    model = transformer.Transformer(paper, steps=500)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rows_of_time_zero = 3 * 20 * 1024
    assert transformer.count_parameters(shapes) == 599_392_072 + rows_of_time_zero


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attention": "cross"}, "model.attention = 'cross', expected one of"),
        ({"network": "image_from_audio"}, "model.network = 'image_from_audio', expected one of"),
        ({"network": "image_from_text", "attention": "self"}, "model.network = 'image_from_text'"),
        ({"time": "none"}, "model.time = 'none'"),
        ({"time_table": "cosine"}, "model.time_table = 'cosine'"),
        ({"remat": "some"}, "model.remat = 'some'"),
        ({"activation": "tanh"}, "model.activation = 'tanh'"),
        ({"implementation": "triton"}, "model.implementation = 'triton'"),
        ({"block_attention": True}, "model.block_attention with model.network = 'joint' and model"),
    ],
)
def test_an_option_that_does_not_exist_is_one_line(option, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**option)
    assert "\n" not in str(error.value)


def test_a_head_that_cannot_be_turned_is_one_line():
    with pytest.raises(ValueError, match=r"model\.rotary turns pairs .* a head has 3: expected an"):
        transformer.Transformer(VOCAB, T, width=6, heads=2, rotary=True)
    transformer.Transformer(VOCAB, T, width=6, heads=2, rotary=False)


def test_a_width_that_heads_do_not_divide_is_one_line():
    with pytest.raises(ValueError, match=r"model\.width = 8 is not a multiple of model\.heads = 3"):
        transformer.Transformer(VOCAB, T, width=8, heads=3)
