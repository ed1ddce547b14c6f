"""The autoregressive network: exact causality, and a cache that changes nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.diffusion import vocab
from udd_jax.networks import autoregressive, layers, transformer

VOCAB = vocab.image_text(grid=(2, 2), image_classes=3, text_classes=4, text_length=3)
T, L = 5, 7
OPTIONS = {"layers": 2, "width": 8, "heads": 2, "rezero": 1.0, "time": "per_modality"}
OPTIONS |= {"rotary": True, "qk_norm": True, "given_vector": True, "mutual_gain": 0.5}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Pairs, a text of an image, an image of a text, two infillings (one of both), an image alone.
FREE = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 0],
        [1, 0, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 0, 0, 0],
    ],
    bool,
)
TIMES = np.array([[3, 3], [0, 3], [3, 0], [3, 0], [3, 3], [3, T]], np.int32)
ORDER = [4, 5, 6, 0, 1, 2, 3]
PAD = 2  # a local id of the text


@pytest.fixture(scope="module", params=["self", "mutual"])
def predict(request):
    """The network with weights as large as after training; both of its calls are compiled once."""
    model = autoregressive.Autoregressive(VOCAB, T, attention=request.param, **OPTIONS)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes)
    predictor = autoregressive.Predictor(model, params)

    return predictor, jit(predictor), jit(functools.partial(fill, predictor))


def fill(predictor, x):
    """Logits of one position after another, as the sampler gets them: float[L, B, 1, K]."""
    cache = predictor.start(jnp.where(FREE, VOCAB.mask_id, x), TIMES, FREE)
    at = jnp.broadcast_to(jnp.array(ORDER)[:, None], (L, len(x)))

    def one(state, here):
        cache, seen = state
        logits, cache = predictor.next(cache, seen, here)
        rows = jnp.arange(len(x))
        return (cache, seen.at[rows, here].set(x[rows, here])), logits

    return jax.lax.scan(one, (cache, jnp.where(FREE, VOCAB.mask_id, x)), at)[1]


def by_position(filled):
    """What `fill` gives, as a whole pass gives it: float[B, length, K] a modality."""
    turned = [np.asarray(y)[np.argsort(ORDER), :, 0].swapaxes(0, 1) for y in filled]
    return [y[:, where] for y, where in zip(turned, VOCAB.slices, strict=True)]


def tokens():
    rng = np.random.default_rng(1)
    image, text = rng.integers(0, 3, (6, 4)), rng.integers(3, 7, (6, 3))
    return np.concatenate([image, text], axis=1).astype(np.int32)


def in_order(logits):
    """{(row, position): logits} of the free positions."""
    parts = [np.asarray(y) for y in logits]
    where = [(row, i) for row in range(6) for i in ORDER if FREE[row, i]]
    return {(row, i): parts[0][row, i] if i < 4 else parts[1][row, i - 4] for row, i in where}


def test_a_token_changes_later_logits_only(predict):
    """And a token that is absent changes none, a token that is given all of its row."""
    x, network = tokens(), predict[1]
    before, moved = in_order(network(x, TIMES, FREE)), 0
    for j in range(L):
        other = x.copy()
        other[:, j] = np.where(x[:, j] < 3, (x[:, j] + 1) % 3, 3 + (x[:, j] - 2) % 4)
        for (row, i), logits in in_order(network(other, TIMES, FREE)).items():
            same = (logits == before[row, i]).all()
            absent = row == 5 and j >= 4
            if absent or (FREE[row, j] and ORDER.index(i) <= ORDER.index(j)):
                assert same, (row, i, j)
            else:
                assert not same, (row, i, j)
                moved += 1
    assert moved == 21 + (3 + 12) + (6 + 12) + (1 + 10) + (10 + 10) + 6


def test_the_cache_gives_the_logits_of_the_whole_pass(predict):
    x, (_, network, filled) = tokens(), predict
    cached = in_order(by_position(filled(x)))
    for at, logits in in_order(network(x, TIMES, FREE)).items():
        np.testing.assert_allclose(cached[at], logits, rtol=0, atol=2e-5, err_msg=f"{at}")


def test_where_all_is_given_it_is_the_transformer(predict):
    """The same parameters, the same function: the blocks are those of the diffusion."""
    predictor, network, _ = predict
    model = transformer.Transformer(VOCAB, T, attention=predictor.model.attention, **OPTIONS)
    x, t, free = tokens(), np.zeros((6, 2), np.int32), np.zeros((6, L), bool)
    plain = jit(lambda x: model.apply({"params": predictor.params}, x, t, free))(x)
    for ours, other in zip(network(x, t, free), plain, strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=2e-5)


def test_the_padding_of_a_given_text_is_hidden_and_no_other(predict):
    """In the whole pass and from the cache; not that of a free, a partly given or an absent one."""
    predictor, network, _ = predict
    padded = dataclasses.replace(predictor, model=predictor.model.clone(padding=PAD))
    x, hidden = tokens(), np.zeros((6, 1, L, L), np.float32)
    x[:, 5:] = PAD + VOCAB.offsets[1]
    hidden[2:4, ..., 5:] = layers.HIDDEN  # the rows with a given text
    apply = jit(lambda x, *bias: predictor.model.apply({"params": predictor.params}, x, *bias))
    expected, plain, ours, cached = (
        in_order(logits)
        for logits in (
            apply(x, TIMES, FREE, hidden),
            network(x, TIMES, FREE),
            jit(padded)(x, TIMES, FREE),
            by_position(jit(functools.partial(fill, padded))(x)),
        )
    )
    for at, logits in expected.items():
        np.testing.assert_allclose(ours[at], logits, rtol=0, atol=2e-5)
        np.testing.assert_allclose(cached[at], logits, rtol=0, atol=2e-5)
        assert (np.abs(ours[at] - plain[at]).max() > 1e-4) == (at[0] in (2, 3)), at


def test_the_order_is_text_then_image_and_each_token_follows_the_free_one_before():
    assert autoregressive.order(VOCAB).tolist() == ORDER
    before = autoregressive.previous(VOCAB, jnp.asarray(FREE))
    assert before[0].tolist() == [6, 0, 1, 2, -1, 4, 5]
    assert before[4, [5, 6, 0, 2, 3]].tolist() == [-1, 5, 6, 0, 2]


def test_what_it_cannot_do_is_refused():
    for options in ({"block_attention": True}, {"network": "text_from_image"}):
        with pytest.raises(ValueError, match=r"model\.kind = 'autoregressive' with"):
            autoregressive.Autoregressive(VOCAB, T, **OPTIONS | options)
