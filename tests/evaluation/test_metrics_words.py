"""Kinds of words, and their losses against a table that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import words as benchmark
from udd_jax import build, pipeline
from udd_jax.diffusion import schedules, transition, vocab
from udd_jax.evaluation.metrics import words


class Letters:
    """One id for each word, or two halves of it where `halves` says so."""

    def __init__(self, across=False):
        self.across = across

    def pieces(self, text):
        if self.across:
            return [len(text)]
        return [len(word) for word in text.split()]


def named(caption, tokenizer=None):
    found = words.kinds([caption], tokenizer or Letters(), 14)[0]
    return [words.KINDS[k] for k in found]


def test_each_word_has_its_kind_and_padding_is_other():
    one = "a small red circle in the upper left"
    two = "a blue square with a red triangle upper left of it"
    kinds = ["other", "size", "colour", "shape", "other", "other", "place", "place"]
    assert named(one) == kinds + ["other"] * 6
    kinds = ["other", "colour", "shape"] * 2
    kinds.insert(3, "other")
    assert named(two) == [*kinds, "relation", "relation", "other", "other"] + ["other"] * 3


def test_a_tokenizer_that_joins_words_is_refused():
    with pytest.raises(ValueError, match="not those of the caption"):
        named("a red circle", Letters(across=True))


def setting():
    layout = vocab.Vocab((vocab.Modality("image", 2, 3, None), vocab.Modality("text", 3, 6, None)))
    kernel = transition.make_kernel(layout, schedules.make("linear", 10))
    x0 = layout.fuse({"image": jnp.zeros((4, 2), int), "text": jnp.tile(jnp.arange(3), (4, 1))})
    kind = jnp.tile(jnp.array([0, 1, 4]), (4, 1))
    return layout, kernel, x0, kind


def test_the_loss_of_a_kind_is_that_of_its_hidden_words_alone():
    layout, kernel, x0, kind = setting()
    seen = []

    def denoise_fn(xt, t, free):
        seen.append((np.asarray(xt), np.asarray(t), np.asarray(free)))
        sure = 2.0 * jax.nn.one_hot(jnp.arange(3), 6)[None]  # of the truth, and of shape 0 more
        return jnp.zeros((4, 2, 3)), jnp.broadcast_to(sure, (4, 3, 6)).at[:, 1].set(0)

    found = words.losses(kernel, denoise_fn, jax.random.key(0), x0, kind, noise=(10,))
    assert found["hidden:shape"] == pytest.approx(np.log(6))
    assert found["hidden:relation"] == pytest.approx(np.log(5 + np.e**2) - 2)
    assert np.isnan(found["hidden:size"])
    assert found["noise:10:shape"] == pytest.approx(np.log(6))
    for xt, t, free in seen:
        assert (xt[:, :2] == x0[:, :2]).all() and (t[:, 0] == 0).all()
        assert (free == [False, False, True, True, True]).all()
    shape, relation = seen[words.KINDS.index("shape") - 1], seen[words.KINDS.index("relation") - 1]
    assert ((shape[0] == layout.mask_id) == [False, False, False, True, False]).all()
    assert ((relation[0] == layout.mask_id) == [False, False, False, False, True]).all()


def test_the_benchmark_holds_words_of_every_kind_out():
    """The test split has two objects in a scene; the validation split has one in some."""
    config = build.read_config(pipeline.PACKAGED)
    tokenizers = build.load_tokenizers(pipeline.PACKAGED)
    layout = build.make_vocab(config, tokenizers)
    found, kinds = benchmark.held_out(config, tokenizers["text"], tokenizers["image"], layout, 24)
    assert found.shape[1] == layout.length and len(found) == len(kinds) > 24
    assert set(np.unique(kinds)) == set(range(len(words.KINDS)))
    relation, place = (words.KINDS.index(name) for name in ("relation", "place"))
    assert (kinds[:24] == relation).any(1).all() and not (kinds[24:] == relation).any()
    assert (kinds[24:] == place).any(1).any() and not (kinds[:24] == place).any()
