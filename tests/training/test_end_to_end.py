"""A decoder that is trained with the diffusion: its gradient, its gain, its place in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import t2i
from udd_jax import build, pipeline
from udd_jax.diffusion import tasks, vocab
from udd_jax.tokenizers import image_tokenizer, vqgan
from udd_jax.training import end_to_end, terms

T = 10
# The network is sure, in doubt, in doubt at a large time, and is not asked.
FREE = np.array([[1, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
TIMES = np.array([1, 2, 9, 2])


@pytest.fixture(scope="module")
def tokenizer():
    module = vqgan.VQGAN(
        resolution=4, n_embed=6, embed_dim=3, z_channels=3, ch=4, ch_mult=(1,), num_res_blocks=0,
        attn_resolutions=(), quantiser="ema", patch=2, local_encoder=True, local_decoder=False,
    )  # fmt: skip
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))["params"]
    params["quantize"]["embedding"] = jax.random.normal(jax.random.key(1), (6, 3))
    return image_tokenizer.ImageTokenizer(module, params, np.int32([0, 1, 1, 2, 3, 4]))


@pytest.fixture(scope="module")
def made(tokenizer):
    """(term's own parameters, logits, a jitted function of both: value, logged, gradients)."""
    tokens = vocab.image_text((2, 2), tokenizer.codes, text_classes=3, text_length=1)
    config = t2i.get_config("smoke")
    config.diffusion.steps, config.train.end_to_end.weight = T, 1.0
    ((weight, learned),) = end_to_end.from_config(config, tokens, tokenizer).values()
    assert weight == 1.0
    own = terms.own({"end_to_end": (weight, learned)}, jax.random.key(0))["end_to_end"]
    x0 = np.array([[0, 1, 2, 3, 5], [4, 4, 0, 1, 6], [2, 1, 0, 3, 7], [0, 2, 4, 1, 5]], np.int32)
    free = np.concatenate([FREE, np.zeros((4, 1), bool)], axis=1)
    logits = 40.0 * jax.nn.one_hot(x0[:, :4], tokenizer.codes)
    logits = jnp.where((np.arange(4) > 0)[:, None, None], logits / 30, logits)

    def value(own, logits):
        masks = tasks.Masks(jnp.asarray(free), jnp.zeros((4, 2), bool))
        t = jnp.asarray(np.stack([TIMES, 0 * TIMES], axis=1))
        outcome = terms.Outcome(jnp.asarray(x0), None, t, masks, (logits, None), None, None)
        return learned.term(own, None, outcome, None)

    def all_of(own, logits):
        total = lambda own, logits: value(own, logits)[0].sum()  # noqa: E731
        return *value(own, logits), *jax.grad(total, (0, 1))(own, logits)

    return own, logits, jax.jit(all_of)


def test_what_is_sure_costs_nothing_and_the_gradient_reaches_the_network(made):
    own, logits, all_of = made
    value, logged, _, reached = all_of(own, logits)
    assert value[0] < 1e-5 < 1e-2 < value[1] and not value[2:].any()
    np.testing.assert_array_equal(np.abs(np.asarray(reached)).sum(-1)[1] > 0, FREE[1])
    assert not np.asarray(reached)[2:].any()
    assert logged["decoder_l1"] == logged["frozen_l1"] > 0


def test_the_decoder_learns_what_is_predicted_and_becomes_better_than_the_frozen_one(made):
    own, logits, all_of = made
    tx = optax.adam(3e-3)
    state = tx.init(own)
    update = jax.jit(tx.update)
    for _ in range(60):
        _, logged, gradient, _ = all_of(own, logits)
        updates, state = update(gradient, state)
        own = optax.apply_updates(own, updates)
    assert logged["decoder_l1"] < 0.7 * logged["frozen_l1"]


def test_a_run_decodes_with_it_and_keeps_its_codes(made, tokenizer, tmp_path):
    own = jax.tree.map(lambda p: p + 0.1, made[0])
    path = tmp_path / build.PAINTER
    end_to_end.save(path, tokenizer, {})
    assert not path.exists()
    end_to_end.save(path, tokenizer, {"end_to_end": own})
    image_tokenizer.save(tmp_path / build.IMAGE, tokenizer)
    for name in (build.TEXT, build.CONFIG):
        (tmp_path / name).write_bytes((pipeline.PACKAGED / name).read_bytes())
    found = build.load_tokenizers(tmp_path)["image"]
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    codes = tokenizer.encode(pictures)
    np.testing.assert_array_equal(found.encode(pictures), codes)
    assert (found.decode(codes) != tokenizer.decode(codes)).any()
    assert found.code_hash == tokenizer.code_hash == tokenizer.hash != found.hash
    end_to_end.save(path, found, {"end_to_end": own})  # trained further
    assert image_tokenizer.load(path).code_hash == tokenizer.hash
    jax.tree.map(np.testing.assert_array_equal, found.params["decoder"], own["decoder"])


def test_it_is_off_at_0():
    config = t2i.get_config("smoke")
    assert end_to_end.from_config(config, None, None) == {}
    del config.train.end_to_end  # a run from before
    assert end_to_end.from_config(config, None, None) == {}
