"""An image decoder that is trained with the diffusion: it learns to paint what is predicted.

    z = sum_k p(x_0 = k | x_t) e_k                   the expected vector of a free cell
    L = mean |decode(z) - decode_0(x_0)|             at t <= `until` T

decode_0 is the decoder as the training of the image tokenizer left it, decode starts as that and
learns. Through p the gradient reaches the network as well. At larger times a prediction is many
pictures at once, and their mean is none. The idea is that of ERNIE-ViLG (arXiv 2112.15283), which
trains its decoder on the hidden states of a transformer; this form is ours.

The finished tokenizer is the file `vq/end_to_end` in the folder of the run: the same encoder and
codes, so the token cache stays what it is. Sampling decodes with it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from udd_jax import build
from udd_jax.diffusion.vocab import Vocab
from udd_jax.runtime import processes, trees
from udd_jax.tokenizers import image_tokenizer
from udd_jax.training import terms

PARTS = ("decoder", "post_quant_conv")  # what learns


def from_config(config, vocab: Vocab, tokenizer: image_tokenizer.ImageTokenizer) -> dict:
    """{name: (weight, term)}, empty if `config.train.end_to_end.weight` is 0."""
    c = config.train.get("end_to_end", {"weight": 0.0})
    if not c["weight"]:
        return {}
    most = c["until"] * config.diffusion.steps
    paints = functools.partial(paint, vocab, tokenizer, most)
    start = {part: jax.tree.map(jnp.asarray, tokenizer.params[part]) for part in PARTS}
    return {"end_to_end": (c["weight"], terms.Learned(lambda key: start, paints))}


def paint(vocab: Vocab, tokenizer, most: float, own: dict, denoise_fn, outcome, key):
    """A loss term (`terms.Learned`), float[B]: the L1 in [-1, 1], 0 at times above `most`.

    Logs it with the decoder that learns (`decoder_l1`) and with the first one (`frozen_l1`).
    """
    x0, t, free, logits = outcome.x0, outcome.t, outcome.masks.free, outcome.logits
    m = vocab.index("image")
    here = free[:, vocab.slices[m]]
    rows = jnp.asarray(tokenizer.vectors)
    true = rows[vocab.local(m, x0[:, vocab.slices[m]])]
    soft = jnp.where(here[..., None], jax.nn.softmax(logits[m]) @ rows, true)

    def decode(parts, z):
        z = z.reshape(len(z), *tokenizer.grid, -1)
        return tokenizer.module.apply({"params": parts}, z, method="decode")

    first = {part: tokenizer.params[part] for part in PARTS}
    target = decode(first, true)
    asked = here.any(axis=1) & (t[:, m] <= most)

    def error(parts, z):
        distance = jnp.abs(decode(parts, z) - target).mean(axis=(1, 2, 3))
        return jnp.where(asked, distance, 0)

    value, frozen = error(own, soft), error(first, jax.lax.stop_gradient(soft))
    count = asked.sum()  # what is told is NaN where there is none
    return value, {"decoder_l1": value.sum() / count, "frozen_l1": frozen.sum() / count}


def finish(workdir, tokenizer) -> image_tokenizer.ImageTokenizer:
    """The image tokenizer that decodes samples of a run: another one if its decoder was trained."""
    path, learned = workdir / build.PAINTER, workdir / terms.OWN
    if not path.exists() and learned.exists() and jax.process_index() == 0:
        save(path, tokenizer, trees.load_tree(learned)[0])
    processes.wait_for_all("end to end")
    return image_tokenizer.load(path) if path.exists() else tokenizer


def save(path, tokenizer, learned: dict) -> None:
    """Writes the tokenizer with the decoder among `learned`; nothing if there is none.

    learned: {name of a term: what it learned}.
    """
    if own := learned.get("end_to_end"):
        changed = {"params": tokenizer.params | own, "coded_by": tokenizer.code_hash}
        image_tokenizer.save(path, dataclasses.replace(tokenizer, **changed))
