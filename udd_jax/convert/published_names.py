"""The names and layouts of the published PyTorch weights, and ours: one table, read both ways.

    ours       blocks/image_from_text/query/kernel                 [layers, in, out]
    published  transformer.blocks.{i}.image_attn.query.weight      [out, in], i < layers

`read` collects published tensors into a tree of ours, `write` is its inverse, bit for bit. Arrays
are NumPy, and nothing is computed. The layouts differ in this:

- the blocks of the transformer are stacked on a leading axis; kernels are transposed (a
  convolution's OIHW becomes HWIO); a scalar of ours is a vector of one there;
- published time t is our t + 1: our time tables have a row more, that of t = 0, which the
  published network never sees. It is zeros here, and is dropped on the way back.
"""

import re
from collections.abc import Callable

import jax
import numpy as np

from udd_jax.diffusion import schedules
from udd_jax.runtime import trees

_TIME = "time/table/embedding"

# The parts of a UniD3 state, and what Lightning puts before all its names.
NETWORK, TOKENIZER, PREFIX = "_denoise_fn.", "image_tokenizer.", "model."
HALVES = {  # of its image tokenizer; the codebook is in both
    "enc": ("encoder", "quant_conv", "quantize"),
    "dec": ("decoder", "post_quant_conv", "quantize"),
}

# A component of our name -> the published one; those that are not here are equal.
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

# What the files hold and no computation uses: a head of the embedding that nothing calls, and
# causal masks that nothing applies.
NETWORK_DEAD = re.compile(r"transformer\.(embedding\.to_logits\.|blocks\.\d+\.\w+_attn\.mask$)")
# The noise schedule in ten tables, which follow from T, and the memory of the time sampler.
_TABLES = re.compile(r"log_\w+$|Lt_(history|count)$")
# The losses of a tokenizer's training, a painter of label maps, a list of used codes.
VQ_DEAD = re.compile(r"loss\.|colorize$|quantize\.used$")


def network_name(leaf: str) -> str:
    """Our leaf of the transformer -> the published name, "{}" in place of the block's number."""
    for ours, theirs in (("mlp/in", "mlp/0"), ("mlp/out", "mlp/2"), (_TIME, "emb/weight")):
        leaf = leaf.replace(ours, theirs)
    parts = leaf.split("/")
    return ".".join(_NETWORK.get(part, part) for part in parts)


def vq_name(leaf: str) -> str:
    """Our leaf of the VQGAN -> taming's: `down_0_block_1` is `down.0.block.1` there."""
    leaf = re.sub(r"\b(down|up)_(\d+)_(block|attn)_(\d+)", r"\1.\2.\3.\4", leaf)
    leaf = re.sub(r"\b(down|up)_(\d+)_(down|up)sample", r"\1.\2.\3sample", leaf)
    leaf = re.sub(r"\bmid_", "mid.", leaf)
    return ".".join(_VQ.get(part, part) for part in leaf.split("/"))


def to_ours(leaf: str, array: np.ndarray) -> np.ndarray:
    """One published tensor in the layout of our leaf (of one block, where it is stacked)."""
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
    """Published tensors -> a tree like `example` (arrays or ShapeDtypeStructs).

    state: by published name; name: `network_name` or `vq_name`. The dtype is the example's.
    ValueError, one line, for a tensor that is missing, has another shape, or is neither wanted nor
    one of the `dead`.
    """
    wanted = trees.flatten(example)
    names = {leaf: _names(name(leaf), struct) for leaf, struct in wanted.items()}
    known = {n for group in names.values() for n in group}
    missing = sorted(known - state.keys())
    extra = sorted(n for n in state.keys() - known if not dead.match(n))
    if missing or extra:
        which = [f"has no {missing[0]!r} ({len(missing)} missing)"] if missing else []
        which += [f"has {extra[0]!r} ({len(extra)} unexpected)"] if extra else []
        raise ValueError(f"{where} {' and '.join(which)}: is it a checkpoint of this kind?")
    leaves = []
    for leaf, struct in wanted.items():
        stacked = "{}" in name(leaf)
        shape = struct.shape[1:] if stacked else struct.shape
        expected = to_theirs(leaf, np.broadcast_to(np.zeros(()), shape)).shape
        parts = []
        for published in names[leaf]:
            if state[published].shape != expected:
                raise ValueError(
                    f"{where}: {published!r} is {list(state[published].shape)}, "
                    f"expected {list(expected)}: the settings do not match the weights"
                )
            parts.append(to_ours(leaf, np.asarray(state[published], struct.dtype)))
        leaves.append(np.stack(parts) if stacked else np.array(parts[0], order="C"))
    return jax.tree.unflatten(jax.tree.structure(example), leaves)


def write(tree, name: Callable[[str], str]) -> dict[str, np.ndarray]:
    """The inverse of `read`: our tree -> published names and layouts, contiguous."""
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


# ---- What a state is ----------------------------------------------------------------------------


def split_state(state: dict, where) -> tuple[dict, dict, dict]:
    """A UniD3 state -> the network's, the image tokenizer's (in taming's names), the buffers.

    ValueError if it is another kind of checkpoint, or holds what has no place.
    """
    anchor = NETWORK + "transformer.embedding.embedding.weight"
    prefix = next((name.removesuffix(anchor) for name in state if name.endswith(anchor)), None)
    if prefix is None:
        other = any(name.endswith("encoder.conv_in.weight") for name in state)
        hint = "it looks like a VQGAN, --from=taming" if other else "expected a UniD3 checkpoint"
        raise ValueError(f"{where} has no tensor {anchor!r}: {hint}")
    network, image, buffers = {}, {}, {}
    for name, array in state.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            raise ValueError(f"{where} has {name!r}, expected all names to start with {prefix!r}")
        if inner.startswith(NETWORK):
            network[inner.removeprefix(NETWORK)] = array
        elif inner.startswith(TOKENIZER):
            half, _, rest = inner.removeprefix(TOKENIZER).partition(".")
            if rest in image and not np.array_equal(image[rest], array):
                raise ValueError(f"{where}: {rest!r} differs between the encoder and the decoder")
            image[rest if half in ("enc", "dec") else f"{half}.{rest}"] = array
        elif _TABLES.match(inner):
            buffers[inner] = array
        else:
            raise ValueError(f"{where} has {name!r}, which no UniD3 checkpoint has")
    if not image:
        raise ValueError(f"{where} has no image tokenizer ({prefix}{TOKENIZER}...)")
    return network, image, buffers


def network_sizes(state: dict, heads: int | None, where) -> dict:
    """The sizes of a UniD3 network from the shapes of its tensors; ValueError for a strange one."""

    def shape(name, rank):
        found = state.get(name)
        if found is None or found.ndim != rank:
            what = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise ValueError(f"{where}: {name!r} {what}, expected a tensor of rank {rank}")
        return found.shape

    width = shape("transformer.embedding.embedding.weight", 2)[1]
    if heads is not None and heads < 1:
        raise ValueError(f"--heads={heads}, expected at least 1")
    if heads is None and width % 64:
        raise ValueError(
            f"{where} has width {width}, no multiple of 64, so that the number of heads cannot be "
            "guessed: give --heads"
        )
    return {
        "layers": len({n.split(".")[2] for n in state if n.startswith("transformer.blocks.")}),
        "width": width,
        "heads": width // 64 if heads is None else heads,
        "mlp_ratio": shape("transformer.blocks.0.mlp.0.weight", 2)[0] // width,
        "steps": shape("transformer.blocks.0.ln1.emb.weight", 2)[0],
        "grid": (
            shape("transformer.embedding.height_emb.weight", 2)[0],
            shape("transformer.embedding.width_emb.weight", 2)[0],
        ),
        "image_classes": shape("transformer.to_logits_img.weight", 2)[0],
        "text_classes": shape("transformer.to_logits_txt.weight", 2)[0],
        "text_length": shape("transformer.embedding.length_emb.weight", 2)[0],
    }


def vq_sizes(state: dict, resolution: int, where) -> dict:
    """The fields of a `vqgan.VQGAN` from the shapes of a taming checkpoint's tensors."""
    gumbel = "quantize.proj.weight" in state
    rows = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"

    def blocks(level):
        prefix = f"encoder.down.{level}.block."
        return len({n.split(".")[4] for n in state if n.startswith(prefix)})

    def attends(level):
        return any(n.startswith(f"encoder.down.{level}.attn.") for n in state)

    try:
        levels = len({n.split(".")[2] for n in state if n.startswith("encoder.down.")})
        ch = state["encoder.conv_in.weight"].shape[0]
        widths = [state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
        return {
            "resolution": resolution,
            "n_embed": state[rows].shape[0],
            "embed_dim": state[rows].shape[1],
            "z_channels": state["encoder.conv_out.weight"].shape[0],
            "ch": ch,
            "ch_mult": tuple(width // ch for width in widths),
            "num_res_blocks": blocks(0),
            "attn_resolutions": tuple(resolution // 2**i for i in range(levels) if attends(i)),
            "quantiser": "gumbel" if gumbel else "straight_through",
        }
    except KeyError as error:
        raise ValueError(f"{where} has no {error}: it is no taming VQGAN") from None


def check_schedule(buffers: dict, steps: int, where) -> None:
    """ValueError unless the stored noise schedule, if any, is the published one of T = `steps`."""
    schedule = schedules.linear(steps)
    tables = {"log_cumprod_at": schedule.alpha_bar, "log_cumprod_ct": schedule.gamma_bar}
    for name, table in tables.items():
        if name not in buffers:
            continue
        stored = np.exp(buffers[name].astype(np.float64))  # the last entry is clean
        if stored.shape != table.shape or not np.allclose(stored[:-1], table[1:], rtol=1e-4):
            raise ValueError(
                f"{where}: {name!r} is not the published linear schedule of T = {steps}, "
                "the only one that is converted"
            )
