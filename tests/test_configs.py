"""The configs: they load, they fit together, and the paper's sizes are the paper's."""

import jax
import jax.numpy as jnp
import pytest

from configs import any as any_config
from configs import i2t, pair, sound, t2i
from udd_jax import build, modalities, stages
from udd_jax.tokenizers import spectrogram
from udd_jax.training import optimiser, plan, train_image_tokenizer

ARGUMENTS = [
    "",
    "smoke",
    "emoji",
    "emoji_fine",
    "emoji_levels",
    "cub",
    "coco",
    "pyramid",
    "pyramid_flat",
    "pyramid_smoke",
]


@pytest.mark.parametrize("arg", ARGUMENTS)
def test_every_config_makes_a_network_and_an_optimiser(arg):
    config = t2i.get_config(arg)
    vocab = plan.vocab_of(config)
    assert build.make_model(config, vocab).vocab == vocab
    optimiser.make_optimiser(config)
    assert len(build.make_schedules(config, vocab)) == len(vocab.modalities)


def test_the_vectors_of_shapes_are_an_embedding_features_and_a_length():
    config = any_config.get_config("vectors")
    stages.check(config)
    assert sum(config.train.mixture.values()) == pytest.approx(1)
    kinds = {m.name: (m.length, m.classes) for m in plan.vocab_of(config).modalities}
    assert kinds["summary"] == (4, 64) and kinds["vectors"] == (2, 1) and kinds["length"] == (1, 14)
    assert set(config.evaluate.rules) >= {"summary|text", "image|summary", "text|vectors"}


def test_an_unknown_argument_names_the_known_ones():
    with pytest.raises(ValueError, match="expected one of smoke, emoji, cub, coco"):
        t2i.get_config("mnist")


@pytest.mark.parametrize("module", [i2t, pair])
def test_the_other_tasks_share_the_run_of_t2i(module):
    ours, theirs = module.get_config("smoke").to_dict(), t2i.get_config("smoke").to_dict()
    differ = {name for name in ours if ours[name] != theirs[name]}
    assert differ == {"task"}


def test_get_config_returns_a_fresh_config():
    t2i.get_config().train.steps = 1
    assert t2i.get_config().train.steps > 1


@pytest.mark.parametrize("arg", ["cub", "coco"])
def test_the_plan_counts_the_published_parameters(arg):
    text = plan.describe(t2i.get_config(arg))
    assert "599,392,072 and 61,440 in the time tables' rows for t = 0" in text
    assert "1024 image + 128 text tokens, 11080 classes" in text


def test_a_sound_of_ten_seconds_is_5_by_53_codes_of_256_in_the_plan_and_its_tokenizer():
    config = sound.get_config()
    (planned,) = (m for m in plan.vocab_of(config).modalities if m.name == "sound")
    assert (planned.grid, planned.length, planned.classes) == ((5, 53), 265, 256)
    settings = spectrogram.Spectrogram.of(config.modalities.sound.to_dict())
    assert settings.rate == 22_050 and settings.shape == (80, 848)
    assert 9.8 < settings.samples / settings.rate < 10
    model = train_image_tokenizer.make_model(modalities.of_sound(config, "sound"))
    pictures, key = jnp.zeros((1, 80, 848, 1)), jax.random.key(0)
    found, _ = jax.eval_shape(lambda: model.init_with_output(key, pictures, key))
    assert found.codes.shape == (1, 5, 53) and found.images.shape == pictures.shape
    assert "1 image + 265 sound + 77 text tokens" in plan.describe(config)


def test_counted_flops_are_those_of_the_matrix_products():
    config = t2i.get_config("smoke")
    config.model.update({"layers": 1, "width": 8, "heads": 2, "mlp_ratio": 2})
    vocab = plan.vocab_of(config)
    n, m = (modality.length for modality in vocab.modalities)
    self_attention = 2 * (n + m) * 4 * 64 + 4 * (n + m) ** 2 * 8
    mutual = 2 * (n + m) * 4 * 64 + 4 * (2 * n * m) * 8
    mlp = 2 * (n + m) * 2 * 2 * 64
    heads = 2 * 8 * sum(modality.length * modality.classes for modality in vocab.modalities)
    assert plan.forward_flops(config, vocab) == self_attention + mutual + mlp + heads
    config.model.update({"layers": 3, "stack": "encoder_decoder", "decoder_layers": 2})
    block, skip = self_attention + mutual + mlp, 2 * (n + m) * 2 * 64
    assert plan.forward_flops(config, vocab) == 3 * block + 2 * skip + heads
    config.model.update({"stack": "long_skips", "decoder_layers": 0})
    assert plan.forward_flops(config, vocab) == 3 * block + skip + heads


def test_the_plan_counts_no_modality_that_the_network_leaves_out():
    config = t2i.get_config("smoke")
    vocab = plan.vocab_of(config)
    whole, alone = (plan.forward_flops(config, vocab, names) for names in ((), ("image",)))
    text = vocab.modalities[vocab.index("text")].length
    assert alone < 0.7 * whole
    config.train.mixture = {"pair": 1.0, "text": 3.0}
    assert plan.a_row(config, vocab) == (whole, vocab.length)
    config.model.absent = "left_out"
    assert plan.a_row(config, vocab) == ((whole + 3 * alone) / 4, (vocab.length + 3 * text) / 4)
