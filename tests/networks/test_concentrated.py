"""Concentrated attention: what a masked text token holds reaches no other text token."""

import functools

import jax
import numpy as np
import pytest

from udd_jax.diffusion import vocab
from udd_jax.networks import transformer

VOCAB = vocab.image_text(grid=(1, 2), image_classes=3, text_classes=4, text_length=4)
T, MASK = 5, VOCAB.mask_id
X = np.array([[0, 2, 4, MASK, 5, MASK], [1, 0, MASK, 3, 6, MASK]], np.int32)
FREE = np.tile(np.arange(6)[None] >= 2, (2, 1))
TIMES = np.array([[0, 3], [0, 3]], np.int32)  # captions of given images


@pytest.fixture(scope="module")
def made():
    """(parameters, the network with concentrated attention, the one without)."""
    options = {"layers": 2, "width": 8, "heads": 2, "rezero": 1.0, "mutual_gain": 0.5}
    options |= {"time": "per_modality", "block_attention": True}
    plain = transformer.Transformer(VOCAB, T, **options)
    params = transformer.init(plain, jax.random.key(0), fan_in=True)
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    models = (plain.clone(concentrated=True), plain)
    return params, *(
        jit(lambda params, x, model=model: model.apply({"params": params}, x, TIMES, FREE)[1])
        for model in models
    )


def changed(params, place):
    """The parameters with another vector for a place of the text."""
    table = params["embedding"]["text_position"].at[place].add(1.0)
    return params | {"embedding": params["embedding"] | {"text_position": table}}


def test_a_masked_token_reaches_its_own_logits_only(made):
    """A visible one reaches all; without concentrated attention a masked one does, too."""
    params, network, plain = made
    before = np.asarray(network(params, X))
    for place in range(4):
        after = np.asarray(network(changed(params, place), X))
        same = (before == after).all(-1)
        for row in range(2):
            others = np.arange(4) != place
            hidden = X[row, 2 + place] == MASK
            assert not same[row, place] and (same[row, others] == hidden).all()
    moved = np.asarray(plain(changed(params, 3), X)) != np.asarray(plain(params, X))
    assert moved[:, :3].any((1, 2)).all()


def test_with_nothing_masked_it_changes_no_bit(made):
    params, network, plain = made
    x = np.where(X == MASK, 4, X)
    np.testing.assert_array_equal(network(params, x), plain(params, x))
