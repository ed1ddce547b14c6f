"""Converts published PyTorch checkpoints to runs, and runs to published checkpoints.

    --mode=convert --from=unid3 --checkpoint=cub.ckpt --out=runs/cub
    --mode=convert --from=taming --checkpoint=vqgan.ckpt --vq_config=vqgan.yaml --out=runs/vqgan
    --mode=convert --to=safetensors --workdir=runs/cub --out=cub.safetensors

`unid3.py` and `taming.py` know the contents of the files, `names.py` the names and layouts of the
tensors. A file may be PyTorch's (`torch_files.py`) or `.safetensors`.

Everything is read and checked before anything is written. The output is complete or does not exist.
"""

import contextlib
import json
import pathlib

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from udd_jax import build, modalities
from udd_jax.convert import names, taming, tensor_files, unid3
from udd_jax.errors import UserError
from udd_jax.runtime import files, logbook, trees
from udd_jax.tokenizers import image_tokenizer


def run(
    flags, config: ml_collections.ConfigDict | None, default, typed: dict | None = None
) -> None:
    """Runs `--mode=convert`. config: the user's, or None; then `default` is used.

    typed: {field: value} of the fields that the user typed, which the run must get.

    Raises:
        ValueError, FileNotFoundError: one line; then nothing is written.
    """
    source, to = getattr(flags, "from"), flags.to
    if bool(source) == bool(to):
        raise UserError("--mode=convert needs either --from=unid3|taming or --to=safetensors")
    if to:
        to_safetensors(flags.workdir or flags.checkpoint, flags.out)
    elif not flags.checkpoint:
        raise UserError("--checkpoint is missing, expected a PyTorch or safetensors file")
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
            typed=typed,
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
    typed: dict | None = None,
) -> None:
    """Writes the run `out` from a UniD3 checkpoint.

    Args:
        path: the checkpoint.
        out: the folder of the new run.
        config: the source of all settings that the weights do not determine.
        network: "joint", or the conditional network of the checkpoint (`unid3.NETWORKS`).
        match: `config` is the user's: its network must be the network of the weights.
        heads: attention heads; None for 64 channels a head.
        text_file: the text vocabulary (`unid3.find_text`).
        codes: the map of used image codes (`taming.used_codes`).
        typed: {field: value} of `config` that the run must have.

    Raises:
        ValueError: one line; then nothing is written.
    """
    if network not in unid3.NETWORKS:
        raise UserError(f"--network={network}, expected one of {', '.join(unid3.NETWORKS)}")
    _must_be_new(out)
    net_state, vq_state, buffers = unid3.split_state(tensor_files.read(path), path)
    if match:
        heads = config.model.heads if heads is None else heads
    sizes = unid3.network_sizes(net_state, heads, path)
    unid3.check_schedule(buffers, sizes["steps"], path)
    levels = len({n.split(".")[2] for n in vq_state if n.startswith("encoder.down.")})
    resolution = sizes["grid"][0] * 2 ** max(levels - 1, 0)
    fields = taming.vq_sizes(vq_state, resolution, path)
    full_to_used = taming.used_codes(codes, fields["n_embed"], sizes["image_classes"])
    tokenizer = unid3.find_text(path, text_file, sizes["text_classes"])
    changes = {
        "image_size": resolution,
        "image_channels": 3,
        "text": {"length": sizes["text_length"]},
        "diffusion": {"steps": sizes["steps"], "schedule": "linear"},
        "model": {n: sizes[n] for n in ("layers", "width", "heads", "mlp_ratio")} | unid3.PUBLISHED,
    }
    if match:
        _must_match(config, changes, path)
    weights = unid3.read_network(net_state, sizes, path)
    image = taming.read_tokenizer(vq_state, fields, full_to_used, path)
    if image.grid != sizes["grid"]:
        raise UserError(f"{path}: grid {sizes['grid']}, expected a square one, {image.grid}")
    config = config.copy_and_resolve_references()
    changes["name"] = pathlib.Path(out).name
    changes["text"] |= {"vocab_size": sizes["text_classes"]}
    changes["diffusion"] |= {"image_schedule": "", "text_schedule": "", "schedule_options": {}}
    changes["model"] |= {"network": network, "dtype": "float32"}
    changes["sample"] = {"steps": min(config.sample.steps, sizes["steps"]), "guidance": 1.0}
    changes["vq"] = {"model": fields | {"patch": 1, "local_encoder": False, "local_decoder": False}}
    with config.unlocked():
        config.update(changes)
        config.train.mixture = ml_collections.ConfigDict({unid3.NETWORKS[network]: 1.0})
    there = traverse_util.flatten_dict(config.to_dict(), sep=".")
    for name, asked in (typed or {}).items():
        if there.get(name) != asked:
            raise UserError(
                f"--config.{name}={asked} does nothing, the run has {name} = {there.get(name)}: "
                "leave it out"
            )
    origin = {"from": "unid3", "checkpoint": pathlib.Path(path).name, "network": network}
    with files.whole(out) as folder:
        stored = json.loads(config.to_json())
        files.write_json(folder / build.CONFIG, {"config": stored, "made_with": origin})
        tokenizer.save(folder / build.TEXT)
        image_tokenizer.save(folder / build.IMAGE, image, origin)
        trees.save_tree(folder / build.WEIGHTS, weights, {"step": 0} | origin)


def from_taming(path, out, vq_config, *, codes=None) -> None:
    """Writes the image tokenizer `out`/vq/tokenizer from a taming VQGAN and its configuration.

    vq_config: taming's YAML file. codes: the map to a subset of the codes (`taming.used_codes`).
    ValueError, one line; then nothing is written.
    """
    if not vq_config:
        raise UserError("--vq_config is missing, --from=taming needs the network's YAML file")
    _must_be_new(out)
    fields = taming.vq_settings(vq_config)
    full_to_used = taming.used_codes(codes, fields["n_embed"])
    state = taming.tensors(tensor_files.read(path), path)
    image = taming.read_tokenizer(state, fields, full_to_used, path)
    with files.whole(out) as folder:
        origin = {"from": "taming", "checkpoint": pathlib.Path(path).name}
        image_tokenizer.save(folder / build.IMAGE, image, origin)


def to_safetensors(workdir, out) -> None:
    """Writes the weights of a run with their published names, as float32 `.safetensors`.

    A run that has only an image tokenizer gets taming's names. A map of image codes that is not
    published is written beside, as OUT.codes.npy. ValueError, one line, if the network or the
    tokenizer has options that the published ones lack.
    """
    if not workdir:
        raise UserError("--workdir is missing, expected the folder of a run")
    _must_be_new(out)
    workdir = pathlib.Path(workdir)
    image = image_tokenizer.load(workdir / build.image_file(workdir))
    settings = {"patch": 1, "local_encoder": False, "local_decoder": False, "channels": 3}
    _must_be_published("vq.model", {k: getattr(image.module, k) for k in settings}, settings)
    vq_state = names.write(_first_decodes(image), names.vq_name)
    if not (workdir / build.CONFIG).exists():
        _save(out, vq_state, image.full_to_used)
        return
    config = build.read_config(workdir)
    _must_be_published("model", config.model, {"kind": "diffusion", **unid3.PUBLISHED})
    noise = {"schedule": "linear", "image_schedule": "", "text_schedule": ""}
    _must_be_published("diffusion", config.diffusion, noise)
    rows = ", ".join(modalities.rows(config))
    _must_be_published("config", {"modalities": rows}, {"modalities": "image, text"})
    _must_be_published("config", {"experts": tuple(config.get("experts", ()))}, {"experts": ()})
    network = names.write(build.load_weights(workdir), names.network_name)
    found, codes = None, image.full_to_used
    with contextlib.suppress(UserError):  # as `from_unid3` finds it
        found = taming.used_codes(None, image.module.n_embed, image.codes)
    published = codes is not None and np.array_equal(codes, found)
    _save(out, unid3.join_state(network, vq_state), None if published else codes)


def _first_decodes(image: image_tokenizer.ImageTokenizer) -> dict:
    """The weights with joined codes in another order: what an index decodes to is the first of
    those that share it, as it is where a map is published."""
    if image.decoded_to is None:
        return image.params
    order = np.arange(image.module.n_embed)
    first = np.unique(image.full_to_used, return_index=True)[1]
    order[first], order[image.decoded_to] = image.decoded_to, first
    codes_last = lambda leaf: leaf.ndim != 2  # of logits; codebooks have rows  # noqa: E731
    swapped = jax.tree.map(
        lambda leaf: np.take(np.asarray(leaf), order, axis=-1 if codes_last(leaf) else 0),
        image.params["quantize"],
    )
    return image.params | {"quantize": swapped}


def _save(out, state: dict, codes: np.ndarray | None) -> None:
    """Writes the tensors and, unless it is None, the map of image codes beside them."""
    if codes is not None:
        beside = f"{out}.codes.npy"
        _must_be_new(beside)
        with files.open_atomic(beside) as file:
            np.save(file, codes)
        logbook.say(f"the map of image codes is {beside}: --codes={beside} takes it back")
    trees.save_tree(out, state)


def _must_be_published(what, ours, wanted) -> None:
    for name, value in wanted.items():
        if ours.get(name, value) != value:
            raise UserError(
                f"{what}.{name} = {ours[name]!r} has no published counterpart, only {value!r} has"
            )


def _must_match(config, sizes: dict, where) -> None:
    """ValueError, with the name of the field, if the user's config has another network."""
    for name, value in sizes.items():
        for field, found in value.items() if isinstance(value, dict) else [("", value)]:
            asked = config[name][field] if field else config[name]
            if asked != found:
                full = f"{name}.{field}".rstrip(".")
                raise UserError(f"config.{full} = {asked}, but {where} has {found}")


def _must_be_new(out) -> None:
    if not out:
        raise UserError("--out is missing, expected the name of what is written")
    out = pathlib.Path(out)
    here = out.exists() and out.samefile(".")  # it would be replaced below one's feet
    if here or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UserError(f"--out={out} exists: choose another name")
