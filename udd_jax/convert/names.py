"""The names and layouts of the published PyTorch weights and of ours: one table, used both ways.

    ours       blocks/image_from_text/query/kernel                 [layers, in, out]
    published  transformer.blocks.{i}.image_attn.query.weight      [out, in], i < layers

`read` collects published tensors into a tree of ours. `write` is its inverse, bit for bit. Arrays
are NumPy, and no value is computed. The layouts differ:

- our transformer blocks are stacked on a leading axis; our kernels are transposed (OIHW of a
  convolution becomes HWIO); our scalars are vectors of length 1 in the published files;
- published time t is our t + 1. Our time tables have one more row, for t = 0, which the published
  network never sees. `read` fills it with zeros, and `write` drops it.
"""

import re
from collections.abc import Callable

import jax
import numpy as np

from udd_jax.errors import UserError
from udd_jax.runtime import trees

_TIME = "time/table/embedding"

# A component of our name -> the published one; all others are equal.
_NETWORK = {
    "embedding": "transformer.embedding",
    "token": "embedding.weight",
    "image_row": "height_emb.weight",
    "image_column": "width_emb.weight",
    "text_position": "length_emb.weight",
    "blocks": "transformer.blocks.{}",
    "self_norm": "ln1",
    "image_from_text_norm": "ln1_1",
    "text_from_image_norm": "ln1_2",
    "mlp_norm": "ln2",
    "modulation": "linear",
    "self_attention": "attn1",
    "image_from_text": "image_attn",
    "text_from_image": "text_attn",
    "out": "proj",
    "norm": "transformer.norm",
    "image_head": "transformer.to_logits_img",
    "text_head": "transformer.to_logits_txt",
    "rezero": "rezero.alpha",
    "kernel": "weight",
    "scale": "weight",
}
_VQ = {
    "kernel": "weight",
    "scale": "weight",
    "embed": "embed.weight",
    "embedding": "embedding.weight",
}

# Tensors in the files that the published code never uses: a head of the embedding, causal masks.
NETWORK_DEAD = re.compile(r"transformer\.(embedding\.to_logits\.|blocks\.\d+\.\w+_attn\.mask$)")
# The loss networks of a tokenizer's training, a colour map for labels, a list of used codes.
VQ_DEAD = re.compile(r"loss\.|colorize$|quantize\.used$")


def network_name(leaf: str) -> str:
    """Our leaf of the transformer -> the published name, with "{}" for the number of the block."""
    for ours, theirs in (("mlp/in", "mlp/0"), ("mlp/out", "mlp/2"), (_TIME, "emb/weight")):
        leaf = leaf.replace(ours, theirs)
    parts = leaf.split("/")
    return ".".join(_NETWORK.get(part, part) for part in parts)


def vq_name(leaf: str) -> str:
    """Our leaf of the VQGAN -> taming's name: `down_0_block_1` becomes `down.0.block.1`."""
    leaf = re.sub(r"\b(down|up)_(\d+)_(block|attn)_(\d+)", r"\1.\2.\3.\4", leaf)
    leaf = re.sub(r"\b(down|up)_(\d+)_(down|up)sample", r"\1.\2.\3sample", leaf)
    leaf = re.sub(r"\bmid_", "mid.", leaf)
    return ".".join(_VQ.get(part, part) for part in leaf.split("/"))


def to_ours(leaf: str, array: np.ndarray) -> np.ndarray:
    """A published tensor in the layout of our leaf (of one block if the leaf is stacked)."""
    if leaf == "rezero":
        return array.reshape(())
    if leaf.endswith(_TIME):
        return np.concatenate([np.zeros_like(array[:1]), array])
    if leaf.endswith("kernel"):
        return array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return array


def to_theirs(leaf: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `to_ours`."""
    if leaf == "rezero":
        return array.reshape(1)
    if leaf.endswith(_TIME):
        return array[1:]
    if leaf.endswith("kernel"):
        return array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    return array


def read(
    state: dict[str, np.ndarray],
    example,
    name: Callable[[str], str],
    dead: re.Pattern,
    where: str = "the checkpoint",
):
    """Published tensors -> a tree like `example` (arrays or ShapeDtypeStructs), with its dtypes.

    Args:
        state: {published name: array}.
        example: our tree.
        name: `network_name` or `vq_name`.
        dead: names of unused tensors, which are ignored.
        where: the name of the checkpoint in messages.

    Raises:
        ValueError: one line; a tensor is missing, unexpected, or has the wrong shape.
    """
    wanted = trees.flatten(example)
    names = {leaf: _names(name(leaf), struct) for leaf, struct in wanted.items()}
    known = {n for group in names.values() for n in group}
    missing = sorted(known - state.keys())
    extra = sorted(n for n in state.keys() - known if not dead.match(n))
    if missing or extra:
        which = [f"has no {missing[0]!r} ({len(missing)} missing)"] if missing else []
        which += [f"has {extra[0]!r} ({len(extra)} unexpected)"] if extra else []
        raise UserError(f"{where} {' and '.join(which)}: is it a checkpoint of this kind?")
    leaves = []
    for leaf, struct in wanted.items():
        stacked = "{}" in name(leaf)
        shape = struct.shape[1:] if stacked else struct.shape
        expected = to_theirs(leaf, np.broadcast_to(np.zeros(()), shape)).shape
        parts = []
        for published in names[leaf]:
            if state[published].shape != expected:
                raise UserError(
                    f"{where}: {published!r} is {list(state[published].shape)}, "
                    f"expected {list(expected)}: the settings do not match the weights"
                )
            parts.append(to_ours(leaf, np.asarray(state[published], struct.dtype)))
        leaves.append(np.stack(parts) if stacked else np.array(parts[0], order="C"))
    return jax.tree.unflatten(jax.tree.structure(example), leaves)


def write(tree, name: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The inverse of `read`: our tree -> {published name: array}, contiguous."""
    state = {}
    for leaf, array in trees.flatten(tree).items():
        array = np.asarray(array)
        names = _names(name(leaf), array)
        for published, part in zip(names, array if "{}" in name(leaf) else [array], strict=True):
            state[published] = np.array(to_theirs(leaf, part), order="C")
    return state


def _names(published: str, struct) -> list[str]:
    if "{}" not in published:
        return [published]
    return [published.format(i) for i in range(struct.shape[0])]
