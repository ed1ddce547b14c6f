"""The length head: what it is asked, what it may not know, and captions of its lengths."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from udd_jax import pipeline
from udd_jax.diffusion import schedules, tasks, transition, vocab
from udd_jax.errors import UserError
from udd_jax.networks import transformer
from udd_jax.steering import lengths
from udd_jax.training import length, terms

VOCAB = vocab.image_text(grid=(1, 2), image_classes=3, text_classes=4, text_length=3)
T, PAD = 4, 0
KERNEL = transition.make_kernel(VOCAB, schedules.make("absorbing", T))
# A text given an image, a text alone, an image given a text; each is asked, and three rows not.
FREE = np.array([[0, 0, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]], bool)
ABSENT = np.array([[0, 0], [1, 0], [0, 0]], bool)
X0 = np.array([[0, 1, 5, 4, 3], [2, 2, 6, 3, 3], [1, 0, 4, 5, 6]], np.int32)
LENGTHS = np.array([2, 1, 3])
FREE, ABSENT, X0 = (np.repeat(rows, length.EVERY, axis=0) for rows in (FREE, ABSENT, X0))
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def made():
    options = {"layers": 1, "width": 8, "heads": 2, "attention": "self", "time": "per_modality"}
    model = transformer.Transformer(VOCAB, T, length_head=True, **options)
    params = transformer.init(model, jax.random.key(0), fan_in=True)

    def value(params, x0):
        def denoise_fn(xt, t, free, **how):
            return model.apply({"params": params}, xt, t, free, **how)

        masks = tasks.Masks(jnp.asarray(FREE), jnp.asarray(ABSENT))
        outcome = terms.Outcome(x0, None, None, masks, None, None, None)
        return length.guess(KERNEL, PAD, denoise_fn, outcome, jax.random.key(1))

    total = lambda params, x0: (value(params, x0)[0].sum(), value(params, x0))  # noqa: E731
    return model, params, jit(jax.value_and_grad(total, has_aux=True))


def test_the_term_is_the_heads_surprise_at_the_length_and_ignores_the_words(made):
    model, params, of = made
    (_, (value, logged)), gradient = of(params, X0)
    every = slice(None, None, length.EVERY)
    images = jnp.asarray(X0[every, :2])
    asked = length.asked(KERNEL, jax.random.key(1), images, ABSENT[every, 0])
    assert asked[1].tolist() == [[0, T], [T, T], [0, T]]
    logits = model.apply({"params": params}, *asked, method="lengths")
    assert logits.shape == (3, 4)
    wanted = -np.asarray(jax.nn.log_softmax(logits))[np.arange(3), LENGTHS]
    np.testing.assert_allclose(value[every], length.EVERY * wanted * [1, 1, 0], rtol=1e-5)
    assert np.count_nonzero(value) == 2
    np.testing.assert_allclose(logged["length_nll"], wanted[:2].mean(), rtol=1e-5)
    assert np.abs(gradient["length_head"]["kernel"]).sum() > 0
    other = X0.copy()
    other[0, 2:4], other[4, 2] = (6, 6), 4  # other words, as many
    np.testing.assert_array_equal(of(params, other)[0][1][0], value)


def test_lengths_are_drawn_from_the_head_and_lie_in_the_masks(made):
    model, params, _ = made
    text, image = types.SimpleNamespace(pad_id=PAD), np.int32([[1, 0]])
    pipe = types.SimpleNamespace(
        model=model, kernel=KERNEL, params=params, vocab=VOCAB, tokenizers={"text": text}, kinds={}
    )
    drawn = lengths.draw(pipe, np.repeat(image, 2000, axis=0), seed=3)
    log_p = np.asarray(lengths._log_p(model, KERNEL, params, jnp.asarray(image)))[0, 1:]
    p = np.exp(log_p) / np.exp(log_p).sum()
    found = np.bincount(drawn, minlength=4)[1:] / 2000
    assert drawn.min() >= 1 and (abs(found - p) <= 4 * np.sqrt(p * (1 - p) / 2000)).all()


def test_a_caption_has_the_asked_length_and_a_run_without_a_head_says_so(tiny_run):
    pipe = pipeline.Pipeline.load(tiny_run)
    images, _ = pipe.example(1)
    where, pad = pipe.vocab.slices[1], pipe.tokenizers["text"].pad_id + pipe.vocab.offsets[1]
    text = np.asarray(pipe.image_to_text(images, num=2, length=3).tokens)[:, where]
    assert text.shape[0] == 2 and (text[:, 3:] == pad).all() and not (text[:, :3] == pad).all()
    for bad, message in ((0, "length = 0"), (99, "length = 99"), ("drawn", "has no head")):
        with pytest.raises(UserError, match=message):
            pipe.image_to_text(images, length=bad)


def test_it_is_off_at_0_and_needs_the_head():
    c = t2i.get_config("smoke")
    assert length.from_config(c, KERNEL, PAD) == {}
    c.train.length = 0.1
    with pytest.raises(UserError, match="length_head=true"):
        length.from_config(c, KERNEL, PAD)
    c.model.length_head = True
    assert list(length.from_config(c, KERNEL, PAD)) == ["length"]
