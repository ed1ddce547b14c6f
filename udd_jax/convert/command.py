"""Published PyTorch checkpoints become runs of ours, and runs become published checkpoints.

    --mode=convert --from=unid3 --checkpoint=cub.ckpt --out=runs/cub
    --mode=convert --from=taming --checkpoint=vqgan.ckpt --vq_config=vqgan.yaml --out=runs/vqgan
    --mode=convert --to=safetensors --workdir=runs/cub --out=cub.safetensors

A UniD3 file is a Lightning checkpoint with the diffusion network (`_denoise_fn.`) and the image
tokenizer (`image_tokenizer.enc.` and `.dec.`) in one `state_dict`, under some prefix. Every size is
read off the shapes of its tensors but for the number of heads, which they do not show: 64 channels
a head, as published, unless said otherwise. A tokenizer alone is taming's `VQModel` or `GumbelVQ`
with its configuration. The files may be PyTorch's (`torch_files.py`) or `.safetensors`.

Of the image tokenizer's codes UniD3 uses those that a data set has: `full_to_used` maps 8192 codes
to 2887, or 16384 to 974, where code 0 and all unused ones share index 0. These two maps are in
`assets/used_codes.npz` (from microsoft/VQ-Diffusion, MIT), as bits; others can be given.

Nothing is written before everything has been read, and then all of it or nothing.
"""

import contextlib
import json
import mmap
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from udd_jax import build
from udd_jax.convert import published_names, torch_files
from udd_jax.diffusion import vocab
from udd_jax.networks import transformer
from udd_jax.runtime import files, logbook, trees
from udd_jax.tokenizers import image_tokenizer, text_tokenizer, vqgan

MERGES = "bpe_simple_vocab_16e6.txt.gz"
NETWORKS = {  # the published networks, and what each was trained to do
    "joint": "pair",
    "image_from_text": "t2i",
    "text_from_image": "i2t",
}
# What makes a network of given sizes another function. Our defaults are the published network.
_FUNCTION = (
    "attention",
    "block_attention",
    "time",
    "time_table",
    "given_vector",
    "mutual_gain",
    "rotary",
    "qk_norm",
    "activation",
)
PUBLISHED = {name: getattr(transformer.Transformer, name) for name in _FUNCTION}
PUBLISHED["mask_padding"] = False
_ASSETS = pathlib.Path(__file__).parent.parent / "assets"


# ---- Reading ------------------------------------------------------------------------------------


def read_state(path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name: `.safetensors`, or any file of `torch.save`.

    ValueError, one line: no such file, of another kind, damaged, or not to be trusted.
    """
    if pathlib.Path(path).suffix == ".safetensors":
        return _read_safetensors(path)
    return torch_files.load(path)


def _read_safetensors(path) -> dict[str, np.ndarray]:
    """The length of a header, the header in JSON, and the numbers that it describes."""
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        state = {}
        for name, entry in header.items():
            dtype = np.dtype(trees.DTYPES[entry["dtype"]])
            first, last = entry["data_offsets"]
            count = (last - first) // dtype.itemsize
            array = np.frombuffer(content, dtype, count, start + first)
            state[name] = array.reshape(entry["shape"])
    except Exception as error:  # a damaged header fails in every way there is
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{path} is no safetensors file, or is damaged or cut short ({reason})"
        ) from None
    return state


def read_network(state: dict, sizes: dict, where) -> dict:
    """A UniD3 network's tensors -> the parameters of our transformer."""
    layout = vocab.image_text(
        sizes["grid"], sizes["image_classes"], sizes["text_classes"], sizes["text_length"]
    )
    fields = {name: sizes[name] for name in ("layers", "width", "heads", "mlp_ratio")}
    model = transformer.Transformer(layout, sizes["steps"], **fields)
    example = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
    return published_names.read(
        state, example, published_names.network_name, published_names.NETWORK_DEAD, where
    )


# ---- The image tokenizer ------------------------------------------------------------------------


def vq_settings(path) -> dict:
    """The fields of a `vqgan.VQGAN` from a taming configuration, a YAML file; ValueError."""
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
        raise ValueError(
            f"--vq_config={path} is no configuration of a taming VQGAN ({reason})"
        ) from None
    if channels != (3, 3) or dd.get("double_z"):
        raise ValueError(f"--vq_config={path}: expected 3 channels in and out, and no double_z")
    gumbel = target.endswith("GumbelVQ") or "kl_weight" in params
    return fields | {"quantiser": "gumbel" if gumbel else "straight_through"}


def read_tokenizer(
    state: dict, fields: dict, full_to_used, where
) -> image_tokenizer.ImageTokenizer:
    """A taming checkpoint's tensors -> an image tokenizer. ValueError where they do not fit."""
    module = vqgan.VQGAN(**fields)
    size = fields["resolution"]
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def init(images):
        key = jax.random.key(0)
        return module.init(key, images, key)["params"]

    example = jax.eval_shape(init, images)
    params = published_names.read(
        state, example, published_names.vq_name, published_names.VQ_DEAD, where
    )
    return image_tokenizer.ImageTokenizer(module, params, full_to_used)


def used_codes(codes, full: int, used: int | None = None) -> np.ndarray | None:
    """The map from the tokenizer's `full` codes to those in use, int32[full]; None for all.

    codes: a file (`.npy`, or a tensor by `torch.save`), or the name of a published map, "2887" or
    "974"; without it the published map onto `used` codes, if there have to be fewer. ValueError.
    """
    name = str(codes or used or "")
    if not codes and used in (None, full):
        return None
    if name.isdigit():
        with np.load(_ASSETS / "used_codes.npz") as maps:
            bits = maps.get(name)
        if bits is None or 8 * len(bits) != full:
            raise ValueError(
                f"no map of {full} image codes onto {name} is known: give the one that was used, "
                "--codes=FILE (.npy or .pt)"
            )
        keeps = np.unpackbits(bits).astype(bool)
        return np.where(keeps, np.cumsum(keeps), 0).astype(np.int32)
    if name.endswith(".npy"):
        try:
            index = np.load(name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"--codes={name} cannot be read ({error})") from None
    else:
        index = torch_files.load(name).get("")
    count = used or (0 if index is None or not index.size else int(index.max()) + 1)
    if (
        index is None
        or index.shape != (full,)
        or not np.array_equal(np.unique(index), np.arange(count))
    ):
        raise ValueError(
            f"--codes={name}: expected {full} indices that take each value in 0..{count - 1}"
        )
    return index.astype(np.int32)


# ---- The text tokenizer -------------------------------------------------------------------------


def find_text(checkpoint_path, path, classes: int) -> text_tokenizer.Tokenizer:
    """The vocabulary with `classes` entries: at `path`, or CLIP's merges where they usually are.

    That is the file or folder that the variable UDD_CLIP_BPE names, and the checkpoint's folder.
    """
    places = (
        [path] if path else [os.environ.get("UDD_CLIP_BPE"), pathlib.Path(checkpoint_path).parent]
    )
    files = [pathlib.Path(place) for place in places if place]
    files = [place / MERGES if place.is_dir() else place for place in files]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        where = f"--text={path} does not exist" if path else "the text vocabulary is missing"
        raise ValueError(f"{where}, expected {MERGES} beside the checkpoint, or --text=FILE")
    tokenizer = text_tokenizer.load(found)
    if tokenizer.kind == "clip":
        tokenizer = text_tokenizer.load(found, classes)
    if tokenizer.vocab_size != classes:
        raise ValueError(
            f"{found} has {tokenizer.vocab_size} entries, the network {classes} text classes: "
            "give the vocabulary that it was trained with, --text=FILE"
        )
    return tokenizer


# ---- The commands -------------------------------------------------------------------------------


def run(flags, config: ml_collections.ConfigDict | None, default) -> None:
    """What the command line asks for; `default` is the config where the user gives none.

    ValueError, FileNotFoundError, one line; nothing is written then.
    """
    source, to = getattr(flags, "from"), flags.to
    if bool(source) == bool(to):
        raise ValueError("--mode=convert needs either --from=unid3|taming or --to=safetensors")
    if to:
        to_safetensors(flags.workdir or flags.checkpoint, flags.out)
    elif not flags.checkpoint:
        raise ValueError("--checkpoint is missing, expected a PyTorch or safetensors file")
    elif source == "taming":
        from_taming(flags.checkpoint, flags.out, flags.vq_config, codes=flags.codes)
    else:
        from_unid3(
            flags.checkpoint,
            flags.out,
            config or default,
            match=config is not None,
            network=flags.network,
            heads=flags.heads,
            text_file=flags.text,
            codes=flags.codes,
        )
    logbook.say(f"written to {flags.out}")


def from_unid3(
    path,
    out,
    config: ml_collections.ConfigDict,
    *,
    network: str = "joint",
    match: bool = False,
    heads: int | None = None,
    text_file=None,
    codes=None,
) -> None:
    """Writes the run `out` from a UniD3 checkpoint.

    config: where all that the weights do not say comes from. With `match` it is the user's, and
    its network must be that of the weights. ValueError, one line; nothing is written then.
    """
    if network not in NETWORKS:
        raise ValueError(f"--network={network}, expected one of {', '.join(NETWORKS)}")
    _must_be_new(out)
    net_state, vq_state, buffers = published_names.split_state(read_state(path), path)
    if match:
        heads = config.model.heads if heads is None else heads
    sizes = published_names.network_sizes(net_state, heads, path)
    published_names.check_schedule(buffers, sizes["steps"], path)
    levels = len({n.split(".")[2] for n in vq_state if n.startswith("encoder.down.")})
    resolution = sizes["grid"][0] * 2 ** max(levels - 1, 0)
    fields = published_names.vq_sizes(vq_state, resolution, path)
    full_to_used = used_codes(codes, fields["n_embed"], sizes["image_classes"])
    tokenizer = find_text(path, text_file, sizes["text_classes"])
    changes = {
        "image_size": resolution,
        "text": {"length": sizes["text_length"]},
        "diffusion": {"steps": sizes["steps"], "schedule": "linear"},
        "model": {n: sizes[n] for n in ("layers", "width", "heads", "mlp_ratio")} | PUBLISHED,
    }
    if match:
        _must_match(config, changes, path)
    weights = read_network(net_state, sizes, path)
    image = read_tokenizer(vq_state, fields, full_to_used, path)
    if image.grid != sizes["grid"]:
        raise ValueError(f"{path}: grid {sizes['grid']}, expected a square one, {image.grid}")
    config = config.copy_and_resolve_references()
    changes["name"] = pathlib.Path(out).name
    changes["text"] |= {"vocab_size": sizes["text_classes"]}
    changes["diffusion"] |= {"image_schedule": "", "text_schedule": "", "schedule_options": {}}
    changes["model"] |= {"network": network, "dtype": "float32"}
    changes["sample"] = {"steps": min(config.sample.steps, sizes["steps"]), "guidance": 1.0}
    changes["vq"] = {"model": fields | {"patch": 1, "local_encoder": False, "local_decoder": False}}
    with config.unlocked():
        config.update(changes)
        config.train.mixture = ml_collections.ConfigDict({NETWORKS[network]: 1.0})
    origin = {"from": "unid3", "checkpoint": pathlib.Path(path).name, "network": network}
    with _whole(out) as folder:
        stored = json.loads(config.to_json())
        files.write_json(folder / build.CONFIG, {"config": stored, "made_with": origin})
        tokenizer.save(folder / build.TEXT)
        image_tokenizer.save(folder / build.IMAGE, image, origin)
        trees.save_tree(folder / build.WEIGHTS, weights, {"step": 0} | origin)


def from_taming(path, out, vq_config, *, codes=None) -> None:
    """Writes the image tokenizer `out`/vq/tokenizer from a taming VQGAN and its configuration.

    codes: the map to a kept subset, see `used_codes`. ValueError, one line; nothing is written.
    """
    if not vq_config:
        raise ValueError("--vq_config is missing, --from=taming needs the network's YAML file")
    _must_be_new(out)
    fields = vq_settings(vq_config)
    full_to_used = used_codes(codes, fields["n_embed"])
    image = read_tokenizer(read_state(path), fields, full_to_used, path)
    with _whole(out) as folder:
        origin = {"from": "taming", "checkpoint": pathlib.Path(path).name}
        image_tokenizer.save(folder / build.IMAGE, image, origin)


def to_safetensors(workdir, out) -> None:
    """Writes what a converted run holds under its published names, as float32 `.safetensors`.

    A run that is an image tokenizer alone gets taming's names. ValueError, one line, for a network
    or a tokenizer whose options the published ones do not have.
    """
    if not workdir:
        raise ValueError("--workdir is missing, expected the folder of a run")
    _must_be_new(out)
    workdir = pathlib.Path(workdir)
    image = image_tokenizer.load(workdir / build.IMAGE)
    settings = {"patch": 1, "local_encoder": False, "local_decoder": False}
    _must_be_published("vq.model", {k: getattr(image.module, k) for k in settings}, settings)
    vq_state = published_names.write(image.params, published_names.vq_name)
    if not (workdir / build.CONFIG).exists():
        trees.save_tree(out, vq_state)
        return
    model = build.read_config(workdir).model
    _must_be_published("model", model, PUBLISHED)
    network = published_names.write(build.load_weights(workdir), published_names.network_name)
    state = {
        published_names.PREFIX + published_names.NETWORK + name: array
        for name, array in network.items()
    }
    for half, parts in published_names.HALVES.items():
        chosen = {name: a for name, a in vq_state.items() if name.split(".")[0] in parts}
        state |= {
            f"{published_names.PREFIX}{published_names.TOKENIZER}{half}.{name}": array
            for name, array in chosen.items()
        }
    trees.save_tree(out, state)


def _must_be_published(what, ours, wanted) -> None:
    for name, value in wanted.items():
        if ours.get(name, value) != value:
            raise ValueError(
                f"{what}.{name} = {ours[name]!r} has no published counterpart, only {value!r} has"
            )


def _must_match(config, sizes: dict, where) -> None:
    """ValueError, naming the field, where the user's config is of another network."""
    for name, value in sizes.items():
        for field, found in value.items() if isinstance(value, dict) else [("", value)]:
            asked = config[name][field] if field else config[name]
            if asked != found:
                full = f"{name}.{field}".rstrip(".")
                raise ValueError(f"config.{full} = {asked}, but {where} has {found}")


def _must_be_new(out) -> None:
    if not out:
        raise ValueError("--out is missing, expected the name of what is written")
    out = pathlib.Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out={out} exists: choose another name")


@contextlib.contextmanager
def _whole(out):
    """A folder to write to, which takes the name `out` when the block ends without an error."""
    out = pathlib.Path(out)
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
