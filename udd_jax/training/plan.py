"""The cost of a config before anything starts: parameters, FLOPs, memory, tokens, hours.

The numbers are counted, not measured. A matrix product [a, b] x [b, c] is 2abc FLOPs, and a
backward pass is twice a forward pass. The parameters are counted on the network's shapes, without
allocating it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax import build, modalities
from udd_jax.data import pixels
from udd_jax.diffusion.vocab import Vocab
from udd_jax.networks import transformer
from udd_jax.training import train_image_tokenizer, turns

# Dense bfloat16 FLOP/s and memory in GiB of one chip, from the makers' data sheets.
CHIPS = {
    "TPU v4": (275e12, 32),
    "TPU v5e": (197e12, 16),
    "TPU v5p": (459e12, 95),
    "TPU v6e": (918e12, 32),
    "A100 80GB": (312e12, 80),
    "H100": (989e12, 80),
    "H200": (989e12, 141),
}
UTILISATION = 0.4  # share of the peak FLOP/s, an assumption


def vocab_of(config) -> Vocab:
    """The vocabulary of a config before its tokenizers exist (text size as in the config)."""
    planned = {}
    for name, row in modalities.rows(config).items():
        planned[name] = PLANNED[row["kind"]](config, name, row)
    return build.make_vocab(config, planned)


class Planned(NamedTuple):
    """What is known of a tokenizer before it is trained."""

    grid: tuple[int, int] | None
    codes: int
    residuals: int = 0

    @property
    def vocab_size(self) -> int:
        return self.codes


def _planned_codes(config) -> Planned:
    model = train_image_tokenizer.make_model(config)
    return Planned(model.grid, model.n_embed)


PLANNED = {  # {kind: (config, name, row) -> what is known of its tokenizer}
    "image": lambda config, name, row: _planned_codes(config),
    "text": lambda config, name, row: Planned(None, config.text.vocab_size),
    "sound": lambda config, name, row: _planned_codes(modalities.of_sound(config, name)),
    "layout": lambda config, name, row: Planned(tuple(row["grid"]), row["classes"]),
    "length": lambda config, name, row: Planned(None, row["most"] + 1),
    "embedding": lambda config, name, row: Planned(None, row["codes"], row["residuals"]),
    "features": lambda config, name, row: modalities.KINDS["features"].load(None, row),
    "coarse": lambda config, name, row: Planned(
        *train_image_tokenizer.make_model(config).levels[0]
    ),
}


def forward_flops(config, vocab: Vocab, without: tuple[str, ...] = ()) -> int:
    """FLOPs of the matrix products in a forward pass of the network, for one sample.

    without: names of modalities that are not computed."""
    d, c = config.model.width, config.model
    computed = [m for m in vocab.modalities if m.name not in without]
    lengths = [m.length for m in computed]
    total = sum(lengths)
    dense = 4 * d * d + 2 * c.mlp_ratio * d * d  # weights per token in a block
    attention = total * total  # query-key pairs
    if c.attention == "mutual":
        for here in lengths:
            attention += here * (total - here)
        # Each token is a query once and context (modalities - 1) times.
        dense += 2 * d * d + 2 * d * d * (len(lengths) - 1)
    block = 2 * total * dense + 4 * attention * d
    heads = sum(2 * m.length * m.classes * d for m in computed)
    skips = c.layers // 2 if c.get("stack") == "long_skips" else c.get("decoder_layers", 0)
    return c.layers * block + skips * 4 * total * d * d + heads


def time_rows(config, vocab: Vocab) -> int:
    """The number of parameters in the rows for t = 0. The published tables lack these rows."""
    tables = 1
    if config.model.time_table == "untied":
        mutual = len(vocab.modalities) if config.model.attention == "mutual" else 0
        tables = config.model.layers * (1 + mutual)
    elif config.model.time_table == "sinusoidal":
        tables = 0
    return tables * config.model.width


def memory(config, vocab: Vocab, count: int) -> dict[str, float]:
    """Bytes of a train step: of the state, the kept activations, the logits and their gradient.

    count: of the parameters, each of which has two moments, an average and a gradient, in float32.
    """
    batch, c = config.train.batch_size, config.model
    kept = {"none": 34 * c.layers, "dots": 14 * c.layers, "full": c.layers}[c.remat]
    token = kept * c.width * jnp.dtype(c.dtype).itemsize
    logits = sum(m.length * m.classes for m in vocab.modalities) * 4
    return {
        "state": 5 * 4 * count,
        "activations": batch * vocab.length * token,
        "logits": 2 * batch * logits,
    }


def a_row(config, vocab: Vocab) -> tuple[float, float]:
    """(FLOPs of a forward pass, tokens) of a row in training, the mean over the mixture."""
    rows, weights = [], []
    for names, part in turns.parts(config, vocab).items():
        tokens = sum(m.length for m in vocab.modalities if m.name not in names)
        rows.append((forward_flops(config, vocab, names), tokens))
        weights.append(sum(part.values()))
    return tuple(np.average(rows, axis=0, weights=weights).tolist())


def describe(config) -> str:
    """The plan as text, several lines."""
    vocab = vocab_of(config)
    model = build.make_model(config, vocab)
    shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    count, rows = transformer.count_parameters(shapes), time_rows(config, vocab)
    batch, steps = config.train.batch_size, config.train.steps
    flops, tokens = (batch * mean for mean in a_row(config, vocab))
    flops *= 3
    state, activations, logits = memory(config, vocab, count).values()
    gib = 2**30
    lines = [
        f"config      {config.name}: {config.data}, image {config.image_size}"
        f"{pixels.SAID[modalities.image_channels(config)]}, batch {batch}",
        f"sequence    {' + '.join(f'{m.length} {m.name}' for m in vocab.modalities)} tokens,"
        f" {vocab.size} classes",
        f"parameters  {count - rows:,} and {rows:,} in the time tables' rows for t = 0",
        f"a step      {flops:.3e} FLOPs, {tokens:,.0f} tokens",
        f"training    {steps:,} steps, {steps * batch:,} pairs, {flops * steps:.3e} FLOPs",
        f"memory      {state / gib:.2f} GiB state, about {activations / gib:.2f} GiB activations"
        f" ({config.model.remat} recomputed), {logits / gib:.2f} GiB logits and gradient",
    ]
    for chip, (peak, room) in CHIPS.items():
        hours = flops * steps / (peak * UTILISATION) / 3600
        need = (state + activations + logits) / gib
        fits = "fits one" if need < 0.9 * room else f"needs {int(need / (0.9 * room)) + 1} or more"
        lines.append(f"  {chip:10s} {hours:10.1f} chip hours at {UTILISATION:.0%}, {fits}")
    return "\n".join(lines)
