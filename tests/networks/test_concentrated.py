"""Concentrated attention: what a masked text token holds reaches no other token."""

import functools
import itertools

import jax
import numpy as np
import pytest

from tests.helpers import quick
from udd_jax.diffusion import vocab
from udd_jax.networks import transformer

VOCAB = vocab.image_text(grid=(1, 2), image_classes=3, text_classes=4, text_length=4)
T, MASK, N = 5, VOCAB.mask_id, 2
X = np.array([[0, 2, 4, MASK, 5, MASK], [1, 0, MASK, MASK, MASK, MASK]], np.int32)
TASKS = {  # {task: (free, times)}
    "i2t": (np.tile(np.arange(6) >= N, (2, 1)), np.array([[0, 3], [0, 4]], np.int32)),
    "pair": (X >= 0, np.array([[3, 3], [3, 4]], np.int32)),
}
OPTIONS = {"layers": 2, "width": 8, "heads": 2, "rezero": 1.0, "mutual_gain": 0.5}
OPTIONS |= {"time": "per_modality"}
KINDS = list(itertools.product(("mutual", "self"), (False, True)))
jit = functools.partial(jax.jit, compiler_options=quick.EXACT)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def made(request):
    """(parameters, the network with concentrated attention, the one without): logits of each."""
    attention, block = request.param
    options = OPTIONS | {"attention": attention, "block_attention": block}
    plain = transformer.Transformer(VOCAB, T, **options)
    params = transformer.init(plain, jax.random.key(0), fan_in=True)

    def network(model, params, x, t, free):
        return [y.sum(axis=-1) ** 2 for y in model.apply({"params": params}, x, t, free)]

    models = (plain.clone(concentrated=True), plain)
    return params, *(jit(functools.partial(network, model)) for model in models)


def joined(logits):
    return np.concatenate([np.asarray(y) for y in logits], axis=1)


def changed(params, place):
    """The parameters with another vector for a place of the text."""
    table = params["embedding"]["text_position"]
    other = jax.random.normal(jax.random.key(place), table.shape[1:])
    table = table.at[place].set(other)
    return params | {"embedding": params["embedding"] | {"text_position": table}}


@pytest.mark.parametrize("task", TASKS)
def test_a_masked_word_reaches_its_own_logits_only(made, task):
    """A visible one reaches others; without concentrated attention a masked one does, too."""
    params, network, plain = made
    asked = (X, *TASKS[task][::-1])
    before, usual = joined(network(params, *asked)), joined(plain(params, *asked))
    for place in range(4):
        same = before == joined(network(changed(params, place), *asked))
        others = np.arange(6) != N + place
        for row in range(2):
            assert not same[row, N + place]
            if X[row, N + place] == MASK:
                assert same[row, others].all()
            else:
                assert not same[row, others & (np.arange(6) >= N)].any()
        assert (usual != joined(plain(changed(params, place), *asked)))[:, others].any(1).all()


@pytest.mark.parametrize("task", TASKS)
def test_with_nothing_masked_it_changes_no_bit(made, task):
    params, network, plain = made
    x = np.where(X == MASK, 4, X)
    asked = (x, *TASKS[task][::-1])
    np.testing.assert_array_equal(joined(network(params, *asked)), joined(plain(params, *asked)))


def test_a_masked_word_sees_itself_and_all_that_is_visible():
    """After one attention the only masked word has the logits of a network without it."""
    plain = transformer.Transformer(VOCAB, T, **OPTIONS | {"attention": "self", "layers": 1})
    params = transformer.init(plain, jax.random.key(0), fan_in=True)
    x, (free, t) = X.copy(), TASKS["pair"]
    x[:, 2:] = 4, MASK, 5, 5
    one, other = (
        jit(lambda params, model=model: model.apply({"params": params}, x, t, free)[1])(params)
        for model in (plain.clone(concentrated=True), plain)
    )
    np.testing.assert_array_equal(one[:, 1], other[:, 1])
    assert (np.asarray(one)[:, [0, 2, 3]] != np.asarray(other)[:, [0, 2, 3]]).any(-1).all()
