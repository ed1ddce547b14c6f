"""UniD3's checkpoints: two networks in one state, and the text vocabulary next to the file.

A file is a Lightning checkpoint with the diffusion network (`_denoise_fn.`) and the image tokenizer
(`image_tokenizer.enc.` and `.dec.`) in one `state_dict`, with a common prefix. All sizes come from
the shapes of the tensors, except the number of heads. By default a head has 64 channels, as
published. The image tokenizer is taming's network (`taming.py`).
"""

import os
import pathlib
import re

import jax
import numpy as np

from udd_jax.convert import names
from udd_jax.diffusion import schedules, vocab
from udd_jax.errors import UserError
from udd_jax.networks import transformer
from udd_jax.tokenizers import text_tokenizer

MERGES = "bpe_simple_vocab_16e6.txt.gz"
NETWORKS = {  # the published networks, and the task that each was trained for
    "joint": "pair",
    "image_from_text": "t2i",
    "text_from_image": "i2t",
}
# The fields that change the function of a network. Our defaults are the published network.
_FUNCTION = (
    "attention",
    "absent",
    "block_attention",
    "time",
    "time_table",
    "given_vector",
    "mutual_gain",
    "rotary",
    "concentrated",
    "length_head",
    "qk_norm",
    "activation",
    "stack",
    "decoder_layers",
)
PUBLISHED = {name: getattr(transformer.Transformer, name) for name in _FUNCTION}
PUBLISHED["mask_padding"] = False
# The parts of a UniD3 state, and the prefix that Lightning adds to all names.
NETWORK, TOKENIZER, PREFIX = "_denoise_fn.", "image_tokenizer.", "model."
HALVES = {  # of the image tokenizer; both have the codebook
    "enc": ("encoder", "quant_conv", "quantize"),
    "dec": ("decoder", "post_quant_conv", "quantize"),
}
# The ten tables of the noise schedule, which follow from T, and the state of the time sampler.
_TABLES = re.compile(r"log_\w+$|Lt_(history|count)$")


def split_state(state: dict, where) -> tuple[dict, dict, dict]:
    """A UniD3 state -> (network, image tokenizer with taming's names, buffers), each {name: array}.

    ValueError if it is another kind of checkpoint, or has unknown tensors.
    """
    anchor = NETWORK + "transformer.embedding.embedding.weight"
    prefix = next((name.removesuffix(anchor) for name in state if name.endswith(anchor)), None)
    if prefix is None:
        other = any(name.endswith("encoder.conv_in.weight") for name in state)
        hint = "it looks like a VQGAN, --from=taming" if other else "expected a UniD3 checkpoint"
        raise UserError(f"{where} has no tensor {anchor!r}: {hint}")
    network, image, buffers = {}, {}, {}
    for name, array in state.items():
        inner = name.removeprefix(prefix)
        if not name.startswith(prefix):
            raise UserError(f"{where} has {name!r}, expected all names to start with {prefix!r}")
        if inner.startswith(NETWORK):
            network[inner.removeprefix(NETWORK)] = array
        elif inner.startswith(TOKENIZER):
            half, _, rest = inner.removeprefix(TOKENIZER).partition(".")
            if rest in image and not np.array_equal(image[rest], array):
                raise UserError(f"{where}: {rest!r} differs between the encoder and the decoder")
            image[rest if half in ("enc", "dec") else f"{half}.{rest}"] = array
        elif _TABLES.match(inner):
            buffers[inner] = array
        else:
            raise UserError(f"{where} has {name!r}, which no UniD3 checkpoint has")
    if not image:
        raise UserError(f"{where} has no image tokenizer ({prefix}{TOKENIZER}...)")
    return network, image, buffers


def join_state(network: dict, image: dict) -> dict:
    """The inverse of `split_state`: the published tensors of both networks -> a UniD3 state."""
    state = {PREFIX + NETWORK + name: array for name, array in network.items()}
    for half, parts in HALVES.items():
        chosen = {name: a for name, a in image.items() if name.split(".")[0] in parts}
        state |= {f"{PREFIX}{TOKENIZER}{half}.{name}": array for name, array in chosen.items()}
    return state


def network_sizes(state: dict, heads: int | None, where) -> dict:
    """The sizes of a UniD3 network, from the shapes of its tensors. ValueError if they do not fit.

    heads: None for 64 channels a head.
    """

    def shape(name, rank):
        found = state.get(name)
        if found is None or found.ndim != rank:
            what = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise UserError(f"{where}: {name!r} {what}, expected a tensor of rank {rank}")
        return found.shape

    width = shape("transformer.embedding.embedding.weight", 2)[1]
    if heads is not None and heads < 1:
        raise UserError(f"--heads={heads}, expected at least 1")
    if heads is None and width % 64:
        raise UserError(
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


def check_schedule(buffers: dict, steps: int, where) -> None:
    """ValueError if a stored noise schedule is not the published one of T = `steps`."""
    schedule = schedules.linear(steps)
    tables = {"log_cumprod_at": schedule.alpha_bar, "log_cumprod_ct": schedule.gamma_bar}
    for name, table in tables.items():
        if name not in buffers:
            continue
        stored = np.exp(buffers[name].astype(np.float64))  # the last entry is clean
        if stored.shape != table.shape or not np.allclose(stored[:-1], table[1:], rtol=1e-4):
            raise UserError(
                f"{where}: {name!r} is not the published linear schedule of T = {steps}, "
                "the only one that is converted"
            )


def read_network(state: dict, sizes: dict, where) -> dict:
    """The tensors of a UniD3 network -> the parameters of our transformer. ValueError: no fit."""
    layout = vocab.image_text(
        sizes["grid"], sizes["image_classes"], sizes["text_classes"], sizes["text_length"]
    )
    fields = {name: sizes[name] for name in ("layers", "width", "heads", "mlp_ratio")}
    model = transformer.Transformer(layout, sizes["steps"], **fields)
    example = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    return names.read(state, example, names.network_name, names.NETWORK_DEAD, where)


def find_text(checkpoint_path, path, classes: int) -> text_tokenizer.Tokenizer:
    """The text vocabulary with `classes` entries: the file `path`, or CLIP's merges.

    Without `path`, the merges are searched at UDD_CLIP_BPE (a file or folder), then in the folder
    of the checkpoint. ValueError if they are missing or have another size.
    """
    places = (
        [path] if path else [os.environ.get("UDD_CLIP_BPE"), pathlib.Path(checkpoint_path).parent]
    )
    files = [pathlib.Path(place) for place in places if place]
    files = [place / MERGES if place.is_dir() else place for place in files]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        where = f"--text={path} does not exist" if path else "the text vocabulary is missing"
        raise UserError(f"{where}, expected {MERGES} beside the checkpoint, or --text=FILE")
    tokenizer = text_tokenizer.load(found)
    if tokenizer.kind == "clip":
        tokenizer = text_tokenizer.load(found, classes)
    if tokenizer.vocab_size != classes:
        raise UserError(
            f"{found} has {tokenizer.vocab_size} entries, the network {classes} text classes: "
            "give the vocabulary that it was trained with, --text=FILE"
        )
    return tokenizer
