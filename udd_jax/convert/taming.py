"""Image tokenizers of taming-transformers: a `VQModel` or `GumbelVQ` with its configuration.

UniD3 uses only the codes that occur in a data set. `full_to_used` maps 8192 codes to 2887, or 16384
to 974; code 0 and all unused codes share index 0. `assets/used_codes.npz` has these two maps as
bits (from microsoft/VQ-Diffusion, MIT); the user may give another map.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.convert import names, torch_files
from udd_jax.data import arrays
from udd_jax.errors import UserError
from udd_jax.runtime import logbook
from udd_jax.tokenizers import image_tokenizer, vqgan

_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


def vq_sizes(state: dict, resolution: int, where) -> dict:
    """The fields of a `vqgan.VQGAN`, from the tensor shapes of a taming checkpoint.

    resolution: S, pixels of a side, which the shapes do not show. ValueError for another kind of
    checkpoint.
    """
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
        raise UserError(f"{where} has no {error}: it is not a taming VQGAN") from None


def vq_settings(path) -> dict:
    """The fields of a `vqgan.VQGAN`, from a YAML file of taming. ValueError if it does not fit."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            model = yaml.safe_load(file)["model"]
        params, target = model["params"], str(model.get("target", ""))
        dd = params["ddconfig"]
        fields = {
            "resolution": int(dd["resolution"]),
            "n_embed": int(params["n_embed"]),
            "embed_dim": int(params["embed_dim"]),
            "z_channels": int(dd["z_channels"]),
            "ch": int(dd["ch"]),
            "ch_mult": tuple(int(m) for m in dd["ch_mult"]),
            "num_res_blocks": int(dd["num_res_blocks"]),
            "attn_resolutions": tuple(int(r) for r in dd["attn_resolutions"]),
        }
        channels = (int(dd.get("in_channels", 3)), int(dd.get("out_ch", 3)))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"--vq_config={path} is not a configuration of a taming VQGAN ({reason})"
        ) from None
    if channels != (3, 3) or dd.get("double_z"):
        raise UserError(f"--vq_config={path}: expected 3 channels in and out, and no double_z")
    gumbel = target.endswith("GumbelVQ") or "kl_weight" in params
    return fields | {"quantiser": "gumbel" if gumbel else "straight_through"}


def tensors(state: dict, where) -> dict:
    """The tensors of the VQGAN in a checkpoint, under taming's names.

    Other trainers put a prefix before them ("first_stage_model.", "module.", ...) and add averages
    ("model_ema."), which are not used. Prints a line about both. ValueError if several networks
    have these names.
    """
    mark = "encoder.conv_in.weight"
    found = [name.removesuffix(mark) for name in state if name.endswith(mark)]
    found = [prefix for prefix in found if not prefix.endswith(("ema.", "loss."))]
    if len(found) > 1:
        raise UserError(
            f"{where} has {len(found)} VQGANs, under {' and '.join(map(repr, found))}, expected "
            "one: save the one that you want"
        )
    prefix = found[0] if found else ""
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.", "loss.")
    own = {n.removeprefix(prefix): array for n, array in state.items() if n.startswith(prefix)}
    averages = [name for name in own if name.startswith("model_ema.")]
    averages += [name for name in state if name.startswith("model_ema.") and prefix]
    if prefix:
        own = {name: array for name, array in own.items() if name.startswith(parts)}
        logbook.say(f"{where}: the VQGAN is under {prefix!r}, {len(own)} of {len(state)} tensors")
    if averages:
        own = {name: array for name, array in own.items() if name not in averages}
        logbook.say(
            f"{where}: {len(averages)} tensors of averaged weights (model_ema) are not used"
        )
    return own


def read_tokenizer(
    state: dict, fields: dict, full_to_used, where
) -> image_tokenizer.ImageTokenizer:
    """Tensors of a taming checkpoint -> an image tokenizer. ValueError if they do not fit."""
    module = vqgan.VQGAN(**fields)
    size = fields["resolution"]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def init(images):
        key = jax.random.key(0)
        return module.init(key, images, key)["params"]

    example = jax.eval_shape(init, images)
    params = names.read(state, example, names.vq_name, names.VQ_DEAD, where)
    return image_tokenizer.ImageTokenizer(module, params, full_to_used)


def used_codes(codes, full: int, used: int | None = None) -> np.ndarray | None:
    """The map from all `full` codes of the tokenizer to the used ones, int32[full]; None for all.

    codes: a file (`.npy`, or a tensor of `torch.save`), or the name of a published map, "2887" or
    "974". If None and `used` < `full`, it is the published map onto `used` codes. ValueError if no
    map fits.
    """
    name = str(codes or used or "")
    if not codes and used in (None, full):
        return None
    if name.isdigit():
        with np.load(_ASSETS / "used_codes.npz") as maps:
            bits = maps.get(name)
        if bits is None or 8 * len(bits) != full:
            raise UserError(
                f"no map of {full} image codes onto {name} is known: give the one that was used, "
                "--codes=FILE (.npy or .pt)"
            )
        keeps = np.unpackbits(bits).astype(bool)
        return np.where(keeps, np.cumsum(keeps), 0).astype(np.int32)
    if name.endswith(".npy"):
        try:
            index = arrays.read(name)
        except UserError as error:
            raise UserError(f"--codes={error}") from None
    else:
        index = torch_files.load(name).get("")
    count = used or (0 if index is None or not index.size else int(index.max()) + 1)
    if (
        index is None
        or index.shape != (full,)
        or not np.array_equal(np.unique(index), np.arange(count))
    ):
        raise UserError(
            f"--codes={name}: expected {full} indices that take each value in 0..{count - 1}"
        )
    return index.astype(np.int32)
