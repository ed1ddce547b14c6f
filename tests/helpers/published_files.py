"""Small published checkpoints: names and layouts of UniD3's and taming's, random numbers.

What the names and layouts mean is the business of `test_published_network.py` and
`test_published_vq.py`.
"""

import functools

import jax
import numpy as np

from tests.helpers import torch_writer
from udd_jax.convert import names, unid3
from udd_jax.diffusion import schedules, vocab
from udd_jax.networks import transformer
from udd_jax.runtime import trees
from udd_jax.tokenizers import vqgan

SIZES = {"layers": 2, "width": 16, "heads": 2, "mlp_ratio": 4}
VOCAB = vocab.image_text(grid=(2, 2), image_classes=7, text_classes=514, text_length=5)
T = 6
VQ = {"resolution": 8, "n_embed": 9, "embed_dim": 4, "z_channels": 4, "ch": 8}
VQ |= {"ch_mult": (1, 2, 1), "num_res_blocks": 1, "attn_resolutions": (2,), "quantiser": "gumbel"}
FULL_TO_USED = np.array([0, 1, 0, 2, 3, 4, 0, 5, 6])
PREFIX = "model._denoise_fn."


def fill(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype(np.float32), shapes)


@functools.cache
def network():
    """Parameters of our transformer, with zeros for t = 0."""
    model = transformer.Transformer(VOCAB, T, **SIZES)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    params = fill(shapes, 1)
    for name, leaf in trees.flatten(params).items():
        if name.endswith("table/embedding"):
            leaf[:, 0] = 0
    return params


@functools.cache
def vq_state(seed=2, **changes):
    """A taming checkpoint's tensors."""
    module = vqgan.VQGAN(**{**VQ, **changes})
    images = jax.ShapeDtypeStruct((1, module.resolution, module.resolution, 3), np.float32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda x: module.init(key, x, key)["params"], images)
    return names.write(fill(shapes, seed), names.vq_name)


def unid3_state():
    """All that a UniD3 file holds: live weights, dead ones, masks, tables, the tokenizer twice."""
    state = names.write(network(), names.network_name)
    dead = {
        "transformer.embedding.to_logits.0.weight": np.ones(16, np.float32),
        "transformer.embedding.to_logits.1.weight": np.ones((522, 16), np.float32),
        "transformer.blocks.0.image_attn.mask": np.ones((1, 1, 9, 9), np.float32),
        "transformer.blocks.1.text_attn.mask": np.ones((1, 1, 77, 77), np.float32),
    }
    state = {PREFIX + name: array for name, array in {**state, **dead}.items()}
    for half, parts in unid3.HALVES.items():
        for name, array in vq_state().items():
            if name.split(".")[0] in parts:
                state[f"model.image_tokenizer.{half}.{name}"] = array
    schedule = schedules.linear(T)
    with np.errstate(divide="ignore"):
        for name, table in (("at", schedule.alpha_bar), ("ct", schedule.gamma_bar)):
            cumulative = np.log(np.append(table[1:], table[0])).astype(np.float32)
            state[f"model.log_cumprod_{name}"] = cumulative
    state["model.Lt_history"] = np.zeros(T, np.float32)
    return state


def save(path, state):
    """The state as Lightning saves it, among objects of its own."""
    callback = torch_writer.instance("pytorch_lightning.callbacks.ModelCheckpoint")
    torch_writer.save(
        path, {"epoch": 3, "state_dict": state, "callbacks": {"checkpoint": callback}}
    )
    return path


def yaml_of(**changes):
    """A configuration as taming's: a GumbelVQ has a weight of its divergence."""
    v = {**VQ, **changes}
    kind = "GumbelVQ" if v["quantiser"] == "gumbel" else "VQModel"
    lines = [
        "model:",
        f"  target: taming.models.vqgan.{kind}",
        "  params:",
        f"    embed_dim: {v['embed_dim']}",
        f"    n_embed: {v['n_embed']}",
        "    ddconfig:",
        "      double_z: false",
        f"      z_channels: {v['z_channels']}",
        f"      resolution: {v['resolution']}",
        "      in_channels: 3",
        "      out_ch: 3",
        f"      ch: {v['ch']}",
        f"      ch_mult: {list(v['ch_mult'])}",
        f"      num_res_blocks: {v['num_res_blocks']}",
        f"      attn_resolutions: {list(v['attn_resolutions'])}",
        "      dropout: 0.0",
    ]
    return "\n".join(lines) + "\n"


def write(folder):
    """A folder as a user has it: the checkpoints, the merges beside them, the map of used codes."""
    save(folder / "cub.ckpt", unid3_state())
    (folder / unid3.MERGES).write_bytes(b"#version: 0.2\n")  # no merges: 512 bytes, 2 specials
    np.save(folder / "used.npy", FULL_TO_USED)
    return folder
