"""A user's own parts are added from outside the package, without changing any of its files."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import oracle
from udd_jax import build, pipeline
from udd_jax.data import sources
from udd_jax.data.sources import worlds
from udd_jax.diffusion import schedules, transition
from udd_jax.evaluation.report import report
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.evaluation.suites import samplers as samplers_suite
from udd_jax.runtime import files
from udd_jax.sampling import guidance, reverse
from udd_jax.sampling.samplers import SAMPLERS, Sampler
from udd_jax.sampling.settings import Settings


def test_a_sampler(pipe, monkeypatch):
    """One position a call from the left: after k of L calls the first k positions are filled."""

    def leftmost(reveal):
        return reveal.reveal_first(-jnp.arange(reveal.masked.shape[1])[None])

    monkeypatch.setitem(SAMPLERS, "leftmost", Sampler("order", leftmost))
    result = pipe.pairs(2, sampler="leftmost", trace=pipe.vocab.length)
    assert (result.calls == pipe.vocab.length).all()
    for k, state in enumerate(result.states):
        filled = state != pipe.vocab.mask_id
        assert filled[:, : k + 1].all() and not filled[:, k + 1 :].any()


def test_a_sampler_has_the_settings_that_it_names(pipe, monkeypatch):
    def sure(reveal):  # all at once if the bar is low
        bar = jnp.where(reveal.settings.threshold < 0.5, reveal.masked.shape[1], 1)
        return reveal.reveal_first(jnp.zeros((1, reveal.masked.shape[1])), bar)

    monkeypatch.setitem(SAMPLERS, "sure", Sampler("order", sure, reads=("threshold",)))
    calls = [pipe.pairs(2, sampler="sure", threshold=t).calls.tolist() for t in (0.1, 0.9)]
    assert calls == [[1, 1], [pipe.vocab.length] * 2]
    with pytest.raises(ValueError, match=r"group = 2 changes nothing, sampler sure does not read"):
        pipe.pairs(2, sampler="sure", group=2)
    monkeypatch.setitem(SAMPLERS, "again", Sampler("time", max, remasks=True))
    replacing = transition.make_kernel(pipe.vocab, schedules.make("mask_and_replace", 9))
    with pytest.raises(ValueError, match="sampler = 'again' masks tokens again"):
        Settings(sampler="again").check(replacing)


def test_the_suite_of_samplers_tries_a_new_one(pipe, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "leftmost", Sampler("order", max))
    assert {"sampler": "leftmost"} in samplers_suite.grid(pipe)
    assert {one["sampler"] for one in samplers_suite.grid(pipe)} == {*SAMPLERS}


def test_a_guide(pipe):
    """One branch of weight 1 gives the samples without guidance. A branch whose text is absent
    gives the same images for any prompt."""

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
    """A scorer can force code 3 everywhere; a scorer that returns None changes no bit."""

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
    with pytest.raises(ValueError, match=r"model.kind = 'odd', expected one of diffusion, .*even"):
        pipe.with_config(model={"kind": "odd"}).pairs(2)


TONES = ("dark", "light")
GREYS = worlds.World(
    name="greys",
    about="a world of dark and light",
    image_size=8,
    draw=lambda split, rng: int(rng.integers(2)),
    caption=lambda scene, rng: f"it is {TONES[scene]}",
    render=lambda scene, rng=None: np.full((8, 8, 3), 50 + 150 * scene, np.uint8),
    read_images=lambda images: [{50: 0, 200: 1}.get(int(i.mean())) for i in images],
    parse_caption={f"it is {tone}": i for i, tone in enumerate(TONES)}.get,
    difference=lambda scene, meaning: None if scene == meaning else "tone",
    reasons={"tone": "the <other> tone"},
    residual=100.0,
    entropy=lambda scenes: 0.0,
    laws={"pair": {"tone": lambda scene, _: (None, {0: 0.5, 1: 0.5}, scene)}},
    aims={"t2i": 0.9},
)


def test_a_world(tmp_path, monkeypatch):
    """Its pictures and captions are opened by name, and judged by its own rules."""
    monkeypatch.setitem(sources.WORLDS, "greys", GREYS)
    config = oracle.config()
    config.data, config.image_size = "greys", 8
    pipe = oracle.make(tmp_path, oracle.Tiles(8), config=config, wrong={"t2i": (0,), "text": (2,)})
    result = main_suite.run(pipe, tmp_path, say=lambda _: None)
    assert result["scores"]["t2i"]["agreement"]["rate"] == 7 / 8
    assert result["scores"]["text"]["parsable"]["rate"] == 7 / 8
    assert result["scores"]["infill"]["consistency"]["rate"] == 1
    assert result["scores"]["t2i"]["reasons"] == {
        "unreadable image": 1 / 8,
        "unparsable caption": 0,
        "tone": 0,
    }
    drawn = [GREYS.draw("validation", np.random.default_rng((1, 0, i))) for i in range(8)]
    off = abs(np.mean(drawn) - 0.5)
    assert result["scores"]["pair"]["variation"]["tone"]["tv"] == pytest.approx(off)
    assert [row["met"] for row in result["headline"] if row["aim"]] == [False]
    assert result["reader"]["pairs"]["rate"] == 0 and result["entropy"]["value"] == 0
    files.write_json(tmp_path / "config.json", {"config": config.to_dict()})
    text = report.write(tmp_path).read_text()
    assert "<i>greys</i>, a world of dark and light, whose images" in text
    assert "the &lt;other&gt; tone" in text and "✗" in text
