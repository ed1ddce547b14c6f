"""A run that was never trained: every file of a finished one, made in a second."""

import pathlib

import jax
import jax.numpy as jnp

from configs import t2i
from udd_jax import build, modalities
from udd_jax.data import sources
from udd_jax.networks import transformer
from udd_jax.runtime import run_folder, trees
from udd_jax.tokenizers import image_tokenizer, text_tokenizer
from udd_jax.training import train_image_tokenizer


def config():
    return shrink(t2i.get_config("smoke"), 6, 3)


def shrink(c, steps: int, calls: int):
    """The config with the smallest networks, T = `steps`, and `calls` steps of sampling."""
    c.vq.model.update({"n_embed": 16, "ch": 8, "embed_dim": 4, "z_channels": 8})
    c.model.update({"layers": 1, "width": 16, "heads": 2})
    c.diffusion.steps, c.sample.steps, c.mesh.data = steps, calls, 1
    return c


def make(directory, c=None) -> pathlib.Path:
    """Writes the run and returns its folder."""
    directory, c = pathlib.Path(directory), c or config()
    run_folder.claim(c, directory)
    records = sources.open_source(c.data, "train", size=200)
    text_tokenizer.train_sentencepiece(
        (record.captions[0] for record in records), directory / build.TEXT, c.text.vocab_size
    )
    module = train_image_tokenizer.make_model(c)
    x = jnp.zeros((1, *module.size, module.channels))
    params = jax.jit(module.init)(jax.random.key(0), x)["params"]
    image = image_tokenizer.ImageTokenizer(module, params, chunk=16)
    image_tokenizer.save(directory / build.IMAGE, image)
    for name in modalities.further(c):
        file = modalities.tokenizer_file(c, name)
        if file and modalities.kinds(c)[name] == "sound" and not (directory / file).exists():
            module = train_image_tokenizer.make_model(modalities.of_sound(c, name))
            params = jax.jit(module.init)(jax.random.key(2), jnp.zeros((1, *module.size, 1)))
            pictures = image_tokenizer.ImageTokenizer(module, params["params"], chunk=4)
            image_tokenizer.save(directory / file, pictures)
    vocab = build.make_vocab(c, build.load_tokenizers(directory, c))
    weights = transformer.init(build.make_model(c, vocab), jax.random.key(1), fan_in=True)
    trees.save_tree(directory / build.WEIGHTS, weights, {"step": c.train.steps})
    return directory
