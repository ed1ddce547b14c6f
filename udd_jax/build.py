"""From a config, or the folder of a run, to its parts: vocabulary, schedules, network, weights.

What `pipeline`, the trainers and the evaluation of a run all need, so that a config is read in one
place. A run's folder has the files named here, and samples, metrics and a report.
"""

import pathlib

import jax.numpy as jnp
import ml_collections

from udd_jax.diffusion import schedules, vocab
from udd_jax.diffusion.vocab import Vocab
from udd_jax.networks import transformer
from udd_jax.runtime import files, run_folder, trees
from udd_jax.tokenizers import text_tokenizer, vqgan

TEXT, IMAGE, WEIGHTS = "text.model", "vq/tokenizer", "weights"
CONFIG = run_folder.CONFIG


def make_vocab(config, text, image) -> Vocab:
    """The layout of a run from its two tokenizers."""
    return vocab.image_text(image.grid, image.codes, text.vocab_size, config.text.length)


def make_schedules(config, vocab: Vocab) -> list[schedules.Schedule]:
    """`config.diffusion` -> one noise schedule a modality."""
    return [
        schedules.make(
            config.diffusion.get(f"{m.name}_schedule") or config.diffusion.schedule,
            config.diffusion.steps,
            **config.diffusion.schedule_options,
        )
        for m in vocab.modalities
    ]


def make_model(config, vocab: Vocab, pad_id: int = 0) -> transformer.Transformer:
    """`config.model` -> the network; `pad_id`, the text's padding, matters to `mask_padding`."""
    options = dict(config.model)
    options["dtype"] = jnp.dtype(options.get("dtype", "float32"))
    options["padding"] = pad_id if options.pop("mask_padding", False) else None
    return transformer.Transformer(vocab, config.diffusion.steps, **options)


# ---- A run's folder -----------------------------------------------------------------------------


def read_config(directory) -> ml_collections.ConfigDict:
    """The config that a run was made with; FileNotFoundError where it is not the folder of one."""
    path = pathlib.Path(directory) / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no {CONFIG}: it is not the folder of a run")
    return ml_collections.ConfigDict(files.read_json(path)["config"])


def load_tokenizers(directory) -> tuple[text_tokenizer.Tokenizer, vqgan.ImageTokenizer]:
    """Text tokenizer and image tokenizer of a run."""
    directory = pathlib.Path(directory)
    return text_tokenizer.load(directory / TEXT), vqgan.load(directory / IMAGE)


def load_weights(directory) -> dict:
    """The averaged weights of a finished run."""
    path = pathlib.Path(directory) / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"{directory} has no file {WEIGHTS!r}: its training is not finished; run the main job"
        )
    return trees.load_tree(path)[0]
