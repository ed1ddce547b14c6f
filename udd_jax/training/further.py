"""The modalities besides image and text: their tokenizers, and the ids of their values."""

import functools
import itertools

import jax
import numpy as np

from udd_jax import modalities
from udd_jax.data import reading
from udd_jax.errors import UserError
from udd_jax.runtime import files, processes
from udd_jax.tokenizers import codecs, embedding_tokenizer, image_tokenizer
from udd_jax.tokenizers.spectrogram import Spectrogram
from udd_jax.training import train_image_tokenizer


def make_tokenizer(config, name: str, workdir, data: dict):
    """The tokenizer of a modality: loaded, or trained on the split "train" of {split: source}.

    That of a reference is that of the modality it is like.
    """
    row = modalities.rows(config)[name]
    name = row.get("like", name)
    file = modalities.tokenizer_file(config, name)
    if file and not (workdir / file).exists():
        TRAIN[row["kind"]](config, name, workdir / file, data)
    processes.wait_for_all(f"{name} tokenizer")  # process 0 writes it, all read it
    return modalities.KINDS[row["kind"]].load(workdir / file, row)


def _train_sound(config, name: str, path, data: dict) -> None:
    """Trains an image tokenizer on the spectrograms of the sounds, or copies that of `vq.file`."""
    own = modalities.of_sound(config, name)
    settings = Spectrogram.of(modalities.rows(config)[name])

    def show(source, most):
        sounds = itertools.islice(reading.values(source, name), most)
        shown = [settings.picture(sound[None]) for sound in sounds]
        if not shown:
            raise UserError(f"{source.name}: no record has a {name} that can be read")
        return np.concatenate(shown)

    folder, held_out = files.folder(path.parent), data["validation"]
    if next(iter(reading.values(held_out, name)), None) is None:
        held_out = None
    if own.vq.file:
        given, field = image_tokenizer.load(own.vq.file), f"--config.modalities.{name}.vq.file="
        shown = held_out or data["train"]
        train_image_tokenizer.tell_worth(own, given, shown, field + own.vq.file, show, name)
        if jax.process_index() == 0:
            image_tokenizer.save(path, given)
        return
    train_image_tokenizer.train(own, folder, data["train"], held_out, show=show, what=name)


def _train_embedding(config, name: str, path, data: dict) -> None:
    """Residual codebooks of the first `vectors` embeddings of the training."""
    row = modalities.rows(config)[name]
    found = itertools.islice(reading.values(data["train"], name), row.get("vectors", VECTORS))
    found = list(found)
    if not found:
        raise UserError(f"{data['train'].name}: no record has a {name} that can be read")
    if jax.process_index() == 0:
        made = embedding_tokenizer.fit(np.stack(found), row["residuals"], row["codes"], config.seed)
        embedding_tokenizer.save(path, made)


VECTORS = 4096  # most embeddings from which codebooks are made
TRAIN = {
    "sound": _train_sound,
    "embedding": _train_embedding,
}  # {kind: (config, name, file, data) -> writes the file}


def ids(config, tokenizers: dict, extra: list[dict]) -> dict[str, np.ndarray]:
    """{name: int32[n, length]} of each modality; extra: the fields of n records."""
    encode = encoders(config, tokenizers)
    return {name: encode[name]([fields[name] for fields in extra]) for name in encode}


def encoders(config, tokenizers: dict) -> dict:
    """{name: list of n values -> int32[n, length]} of each modality that records have; ids 0 for a
    value None."""
    kinds, found = modalities.kinds(config), {}
    for name in modalities.stored(config):
        codec = codecs.MAKERS[kinds[name]](tokenizers[name], config.text.length)
        length = modalities.KINDS[kinds[name]].shape(tokenizers[name], config)[0]
        length *= modalities.rows(config)[name].get("width", 1)  # numbers of features
        found[name] = functools.partial(_encode, codec, length)
    return found


def _encode(codec, length: int, rows: list) -> np.ndarray:
    there = [row is not None for row in rows]
    ids = np.zeros((len(rows), length), np.int32)
    if any(there):
        ids[there] = codec.encode(np.stack([row for row in rows if row is not None]), False)
    return ids
