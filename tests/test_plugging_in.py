"""What is one's own goes in from outside the package, without touching a file of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax import build, pipeline
from udd_jax.sampling import guidance, reverse
from udd_jax.sampling.samplers import SAMPLERS, Sampler


@pytest.fixture(scope="module")
def pipe(tiny_run):
    return pipeline.Pipeline.load(tiny_run)


def test_a_sampler(pipe, monkeypatch):
    """One place a call from the left: after k of L calls the first places are filled."""

    def leftmost(reveal):
        return reveal.reveal_first(-jnp.arange(reveal.masked.shape[1])[None])

    monkeypatch.setitem(SAMPLERS, "leftmost", Sampler("order", leftmost))
    result = pipe.pairs(2, sampler="leftmost", trace=pipe.vocab.length)
    assert (result.calls == pipe.vocab.length).all()
    for k, state in enumerate(result.states):
        filled = state != pipe.vocab.mask_id
        assert filled[:, : k + 1].all() and not filled[:, k + 1 :].any()


def test_a_guide(pipe):
    """The network's answer at weight 1 is the plain one; with no text at all it is that of images
    alone, whatever the prompt."""

    def plain(scene, x, t):
        now = pipeline.tasks.times(scene.kernel.vocab, scene.masks, t, scene.kernel.steps)
        return [guidance.Branch(x, now, scene.masks.free, jnp.ones((len(x), 2)))]

    given = pipe.codecs["text"].encode(["a red circle", "a small blue square"], strict=False)
    asked = {"seed": 1, "sampler": "ancestral", "given": {"text": given}}
    bare, guided = (pipe.generate("t2i", guide=g, **asked).tokens for g in (None, plain))
    np.testing.assert_array_equal(bare, guided)

    def blind(scene, x, t):
        text = scene.kernel.vocab.modality_of == 1
        here = jnp.stack([t, jnp.full_like(t, scene.kernel.steps)], axis=1)
        x = jnp.where(text[None], scene.prior, x)
        return [guidance.Branch(x, here, scene.masks.free, jnp.ones((len(x), 2)))]

    same = [
        pipe.generate("t2i", guide=blind, **asked | {"given": {"text": ids}}).tokens[:, :16]
        for ids in (given, given[::-1])
    ]
    np.testing.assert_array_equal(*same)


def test_a_scorer(pipe):
    """One that asks for code 3 and nothing else; and one that has nothing to say changes no bit."""

    def threes(x, t, log_p):
        return jnp.full_like(log_p[0], -1e4).at[..., 3].set(0), None

    def silent(x, t, log_p):
        return None, None

    result = pipe.images(2, scorers=[threes], sampler="first_hitting")
    assert (result.tokens[:, pipe.vocab.slices[0]] == 3).all()
    bare, quiet = (pipe.pairs(2, scorers=s, seed=4).tokens for s in ((), (silent,)))
    np.testing.assert_array_equal(bare, quiet)


def test_a_generator_of_another_kind(pipe, monkeypatch):
    """One without a network: every free token is drawn evenly, and costs log K."""

    class Even(NamedTuple):
        kernel: Any
        model: Any

        def sample(
            self, params, keys, x, free, absent, settings, negative, trace, still, guide, scorers
        ):
            classes = np.array([m.classes for m in self.kernel.vocab.modalities])
            at, first = self.kernel.vocab.modality_of, np.array(self.kernel.vocab.offsets)
            even = jax.vmap(lambda key: jax.random.randint(key, (x.shape[1],), 0, classes[at]))
            tokens = jnp.where(free, even(keys) + first[at][None], x)
            return reverse.Sample(tokens, jnp.ones(len(x), int), tokens[None][:trace])

        def bound(self, params, keys, x0, masks, times, calls, still):
            parts = zip(self.kernel.vocab.slices, self.kernel.vocab.modalities, strict=True)
            return jnp.stack([masks.free[:, w].sum(1) * np.log(m.classes) for w, m in parts], 1)

    monkeypatch.setitem(build.GENERATORS, "even", Even)
    other = pipe.with_config(model={"kind": "even"})
    captions = ["a red circle", "a blue square"]
    result = other.text_to_image(captions, seed=1)
    assert result.captions == captions and len(set(result.tokens[0, :16].tolist())) > 4
    bits = other.score(dict(other.vocab.split(result.tokens)), task="image")
    np.testing.assert_allclose(-bits, [[16 * np.log2(other.vocab.modalities[0].classes), 0]] * 2)
    with pytest.raises(ValueError, match=r"model.kind = 'odd', expected one of diffusion, even"):
        pipe.with_config(model={"kind": "odd"}).pairs(2)
