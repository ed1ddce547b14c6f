"""A training that starts from a finished run (`init_from`): its settings and its weights.

check      the run exists, before anything is trained                  ValueError
student    the config of a student, with what its teacher decides      -> config
settings   the fields of a config that the run decides                 -> {field: value}
weights    parameters for a new training                               -> dict
"""

import functools
import pathlib

import jax
import numpy as np
from flax import traverse_util

from udd_jax import build
from udd_jax.errors import UserError
from udd_jax.networks import experts, transformer
from udd_jax.runtime import files, logbook, run_folder, trees
from udd_jax.training import adapters, distillation

_SAME = ("image_size", "image_channels", "diffusion.", "model.", "text.", "vq.model.")
_OWN = ("model.implementation", "model.unroll", "model.remat")


def check(config, workdir=None) -> None:
    """UserError if `init_from` is not a finished run or does not fit, or something needs one.

    workdir: of the new run; if it is finished already, nothing is asked for.
    """
    rank = adapters.rank_of(config)
    if rank and not config.init_from:
        raise UserError(
            f"train.adapters.rank = {rank} changes a finished run: name one with "
            "--config.init_from=, or set --config.train.adapters.rank=0"
        )
    if rank and distilled(config):
        raise UserError(
            f"train.adapters.rank = {rank} with train.loss = {distillation.NAME!r}, which trains "
            "all weights: set --config.train.adapters.rank=0"
        )
    if distilled(config) and not config.init_from:
        raise UserError(
            f"train.loss = {config.train.loss!r} needs a teacher: name the folder of a finished "
            "run with --config.init_from="
        )
    guided = {k: w for k, w in config.train.get("teacher_guidance", {}).items() if w != 1}
    if guided and not distilled(config):
        raise UserError(
            f"train.teacher_guidance = {guided} without a teacher: expected 1, or "
            f"--config.train.loss={distillation.NAME}; --config.sample.guidance= guides a run"
        )
    if config.train.get("scattered_text") and (
        distilled(config) or config.model.kind != "diffusion"
    ):
        raise UserError(
            f"train.scattered_text = {config.train.scattered_text} with train.loss = "
            f"{config.train.loss!r} and model.kind = {config.model.kind!r}, expected 0 for these"
        )
    if not config.init_from or (workdir and (workdir / build.WEIGHTS).exists()):
        return
    if files.in_bucket(config.init_from):
        raise UserError(f"init_from = {config.init_from!r} is in a bucket: copy the run to a disk")
    run = pathlib.Path(config.init_from).expanduser()
    for name in (build.CONFIG, build.WEIGHTS):
        if not (run / name).exists():
            raise UserError(
                f"init_from = {config.init_from!r} has no file {name!r}, expected the folder of a "
                "finished run: set --config.init_from= to one"
            )
    there = tuple(build.read_config(run).get("experts", ()))
    if there and not config.get("experts"):
        raise UserError(
            f"init_from = {config.init_from!r} has experts = {there} and the config none: set "
            f'--config.experts="{there}", or finer ones'
        )


def distilled(config) -> bool:
    """Whether the run `init_from` is a teacher."""
    return config.train.get("loss") == distillation.NAME


def student(config):
    """The config with its teacher's sizes, tokenizers and, if it names none, data and `begin_with`.

    Any other config is returned as it is.
    """
    if not distilled(config):
        return config
    config = config.copy_and_resolve_references()
    old = build.read_config(pathlib.Path(config.init_from).expanduser())
    config.begin_with = config.begin_with or tuple(old.get("begin_with", ()))
    if not config.data:
        config.data = old.data
        given = {name for name, value in config.data_options.items() if value is not None}
        there = {k: v for k, v in old.data_options.items() if v is not None and k not in given}
        config.data_options.update(there)
    with config.ignore_type():  # a side may become (height, width)
        config.update_from_flattened_dict(settings(config))
    return config


def settings(config) -> dict:
    """The fields of `config` that must be those of the run `init_from`: sizes and tokenizers."""
    run = pathlib.Path(config.init_from).expanduser()
    old, new = (
        traverse_util.flatten_dict(c.to_dict(), sep=".") for c in (build.read_config(run), config)
    )
    same = {
        name: value
        for name, value in (run_folder.LATER | old).items()
        if name.startswith(_SAME) and name in new and name not in _OWN
    }
    return same | {"text.file": str(run / build.TEXT), "vq.file": str(run / build.IMAGE)}


def weights(config, vocab) -> dict | None:
    """Parameters for a new training; those that `init_from` has with the same shape are taken.

    Each of `config.experts` takes those of the run, or of its expert for these times. None without
    `init_from`.
    UserError if there are adapters or a teacher, and not all parameters fit.
    """
    if not config.init_from:
        return None
    run = pathlib.Path(config.init_from).expanduser()
    there = build.load_weights(run)
    if config.get("experts"):
        there = experts.split(there, config.experts, build.read_config(run).get("experts", ()))
    model = build.make_model(config, vocab)
    fresh = functools.partial(
        transformer.init, model, jax.random.key(config.seed), config.train.fan_in
    )
    shapes = jax.eval_shape(fresh)
    names, other = trees.flatten(shapes), trees.flatten(there)
    fits = {n for n, p in names.items() if n in other and other[n].shape == p.shape}
    lacking = sorted(set(names) - fits)
    if lacking and adapters.rank_of(config):
        raise UserError(
            f"train.adapters.rank needs the sizes and tokenizers of {config.init_from}, but "
            f"{len(lacking)} arrays differ (the first: {lacking[0]}): use --config=configs/own.py, "
            f"which takes them, or set --config.vq.file={config.init_from}/{build.IMAGE} "
            f"--config.text.file={config.init_from}/{build.TEXT} and the sizes of that run"
        )
    if lacking and distilled(config):
        raise UserError(
            f"the student is not like its teacher {config.init_from}: {len(lacking)} arrays differ "
            f"(the first: {lacking[0]}), expected its model and modalities in the config"
        )
    for name in lacking:
        found = f"shape {other[name].shape}" if name in other else "nothing"
        logbook.say(f"init_from: {name} {names[name].shape} starts fresh, there is {found}")
    logbook.say(f"init_from: {len(fits)} of {len(names)} arrays reused")
    new = trees.flatten(jax.device_get(fresh())) if lacking else {}  # to be compiled
    leaves = [np.asarray(other[n]) if n in fits else new[n] for n in names]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
