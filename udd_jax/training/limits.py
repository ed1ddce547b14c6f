"""The range of each number in a config, and the words that others may be; checked before any stage.

Without this, a bad value ends a job after hours, or trains a useless model without a word.
"""

import math

import ml_collections
from flax import traverse_util

from udd_jax import build, modalities, values
from udd_jax.data import pixels, sources
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import settings as sampling
from udd_jax.tokenizers import pyramid, vqgan
from udd_jax.tokenizers.spectrogram import Spectrogram
from udd_jax.training import further

AT_LEAST_ONE = (
    *("views", "vq.steps", "vq.batch_size", "vq.log_every", "vq.save_every", "vq.keep"),
    *("diffusion.steps", "model.layers", "model.width", "model.heads", "model.unroll"),
    *("train.steps", "train.batch_size", "train.accumulate", "train.log_every"),
    *("train.save_every", "train.keep", "evaluate.samples", "evaluate.batch_size"),
    *("evaluate.bound_samples", "evaluate.bound_times", "evaluate.among"),
    *("data_options.size", "data_options.captions_per_image", "train.contrastive.negatives"),
    *("vq.model.embed_dim", "vq.model.z_channels", "vq.model.ch", "vq.model.patch"),
    *("vq.adversarial.channels", "vq.adversarial.layers", "vq.rebuild.steps", "mesh.model"),
    *(f"dual_encoder.{name}" for name in ("width", "layers", "heads", "batch_size", "log_every")),
    *("dual_encoder.save_every", "dual_encoder.group", "dual_encoder.patch"),
)
NOT_BELOW_ZERO = (
    *("workers", "vq.pictures", "vq.learning_rate", "vq.commitment", "vq.merge", "vq.merge_cost"),
    *("vq.perceptual", "vq.above_flat", "vq.adversarial.weight", "vq.rebuild.codes"),
    *("train.learning_rate", "train.final_rate", "train.weight_decay", "train.auxiliary"),
    *("train.pad_weight", "train.image_weight", "train.held_out", "evaluate.pictures"),
    *("train.prefix_steps", "dual_encoder.steps", "dual_encoder.warmup"),
    *(f"train.teacher_guidance.{name}" for name in ("image", "text")),
    *("train.matching", "train.length", "train.end_to_end.weight", "dual_encoder.learning_rate"),
    *("train.adapters.rank", "train.round_trip", "model.decoder_layers", "data_options.seed"),
    *(f"train.contrastive.{a}_{b}" for a in ("step", "sample") for b in ("intra", "inter")),
    *("vq.model.num_res_blocks", "vq.model.beta", "vq.adversarial.learning_rate"),
    *("vq.adversarial.start", "vq.rebuild.learning_rate", "vq.restart.threshold"),
    "vq.restart.factor",
    *("evaluate.retrieval", "evaluate.round_trips", "evaluate.judged", "evaluate.steering"),
    "evaluate.listener",
)
ABOVE_ZERO = ("vq.clip", "train.clip", "model.mlp_ratio")
SHARES = (
    "train.end_to_end.until",
    "train.scattered_text",
    "skip_limit",
    "data_options.validation",
    "data_options.test",
    "vq.restart.until",
)
BELOW_ONE = (
    *("vq.beta1", "vq.beta2", "vq.decay", "train.beta1", "train.beta2", "train.ema"),
    "train.prefix_share",
)
WORDS = {
    "vq.model.quantiser": vqgan.QUANTISERS,
    "vq.loss": ("l1", "l2"),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "train.decay": ("linear", "cosine"),
    "evaluate.split": ("train", "validation", "test"),
}
# What a picture of two levels, a modality of kind coarse, does not have.
LEVELS = {
    "vq.rebuild.codes": "0",
    "dual_encoder.steps": "0",
    "train.end_to_end.weight": "0",
    "model.length_head": "False",
    "evaluate.steering": "0",
}
LEAST_TEXT, LEAST_SIDE, LEAST_VOCABULARY = 2, 8, 320


RANGES = (
    (AT_LEAST_ONE, 1, math.inf, "at least 1"),
    (NOT_BELOW_ZERO, 0, math.inf, "at least 0"),
    (ABOVE_ZERO, math.ulp(0.0), math.inf, "more than 0"),
    (SHARES, 0, 1, "a share from 0 to 1"),
    (BELOW_ONE, 0, math.nextafter(1, 0), "at least 0 and below 1"),
    (("seed", "evaluate.seed"), 0, values.SEEDS - 1, f"0 to {values.SEEDS - 1}"),
    (("text.length",), LEAST_TEXT, math.inf, f"at least {LEAST_TEXT} pieces"),
    (("vq.model.n_embed",), 2, math.inf, "at least 2 codes"),
)


def check_evaluation(config) -> None:
    """UserError, one line, for a bad value of `evaluate` or `data_options` alone.

    A run of another version may have values in its other sections that `check` refuses.
    """
    _check_ranges(config, ("evaluate.", "data_options."))


def check_sampling(config, vocab, kernel) -> None:
    """UserError, one line, for a bad setting of `sample`, `sample_rules` or `begin_with`."""
    for rule in config.get("sample_rules", {}):
        tasks.parse(vocab, rule)
    for settings in _chains(config):
        settings.check(kernel, in_order=build.in_order(config))
    able = [m.name for m in vocab.modalities if not m.inputs]
    for name in config.get("begin_with", ()):
        if name not in able:
            raise UserError(f"begin_with names {name!r}, expected some of {', '.join(able)}")


def require_read(config, typed: dict) -> None:
    """UserError, one line, for a typed setting of `sample` that no chain of the run reads.

    typed: {setting: value}, which the config has.
    """
    if not build.only_in_order(config):  # the baseline has one sampler
        sampling.require_read(_chains(config), typed, "--config.sample.")


def _chains(config) -> list[sampling.Settings]:
    """The settings of the run, and those of each of its rules; UserError for a bad one."""
    found = [sampling.Settings(**config.sample)]
    for rule, changes in config.get("sample_rules", {}).items():
        for name in changes:
            if name not in config.sample:
                known = ", ".join(sorted(config.sample))
                raise UserError(
                    f"sample_rules.{rule}.{name} is not a setting, expected one of {known}"
                )
        found.append(sampling.Settings(**{**config.sample, **changes}))
    return found


def check(config) -> None:
    """UserError, one line that names the field, if a value of the config is out of its range.

    Fields that the config lacks, or that are None, are passed over.
    """
    _check_ranges(config)
    if not value(config, "text.file"):
        words = f"at least {LEAST_VOCABULARY}, the room for bytes and an alphabet"
        _within(config, "text.vocab_size", LEAST_VOCABULARY, math.inf, words)
    _check_steps(config)
    _warms_up(config, "train")
    if value(config, "flip") and value(config, "views") == 1:
        raise UserError(
            "flip = True changes nothing with views = 1, which is the picture as it is: set "
            "--config.views=2 or more"
        )
    if value(config, "incomplete") and not config.cache:
        _refuse(config, "incomplete", "False without a token cache (cache = False)")
    if value(config, "incomplete") and value(config, "dual_encoder.steps"):
        _refuse(config, "incomplete", "False with a dual encoder, which learns from pairs")
    if "layout" in modalities.kinds(config).values() and (value(config, "views") or 1) > 1:
        _refuse(config, "views", "1 with a layout, which is not cut and mirrored with its picture")
    if modalities.level(config):
        for name, words in LEVELS.items():
            if value(config, name):
                _refuse(config, name, f"{words} with a picture of two levels")
    loss = value(config, "train.loss") or value(config, "model.kind") or "diffusion"
    if value(config, "train.end_to_end.weight"):
        if loss != "diffusion":
            _refuse(config, "train.end_to_end.weight", f"0 with the loss {loss!r}")
        if value(config, "incomplete"):
            _refuse(config, "train.end_to_end.weight", "0 with incomplete = True")
    if value(config, "dual_encoder.steps"):
        _warms_up(config, "dual_encoder")
    channels = modalities.image_channels(config)
    if value(config, "vq.model.channels") not in (None, channels):
        words = f"{channels}, the channels of pictures, which image_channels sets"
        _refuse(config, "vq.model.channels", words)
    _check_size(config)
    _check_sounds(config)
    _check_embeddings(config)
    _check_senses(config)


def _check_ranges(config, begins: str | tuple[str, ...] = "", prefix: str = "") -> None:
    """UserError for fields out of RANGES and WORDS whose names begin so. prefix: before a name in
    the line."""
    for names, least, most, words in RANGES:
        for name in (name for name in names if name.startswith(begins)):
            _within(config, name, least, most, words, prefix + name)
    for name, known in WORDS.items():
        if name.startswith(begins) and value(config, name) not in (None, *known):
            _refuse(config, name, f"one of {', '.join(known)}", prefix + name)


def _check_steps(config, prefix: str = "") -> None:
    """UserError unless a tokenizer's warm-up and plain steps are a part of its steps."""
    _warms_up(config, "vq", prefix)
    steps, name = value(config, "vq.steps"), "vq.plain_steps"
    words = f"from 0 to less than vq.steps = {steps}"
    _within(config, name, 0, (steps or math.inf) - 1, words, prefix + name)


def _check_sounds(config) -> None:
    """UserError unless `vq` of each sound changes fields of `vq` to values in their ranges, and its
    spectrogram is made of cells."""
    for name, row in modalities.own(config).items():
        if row["kind"] != "sound":
            continue
        for field, found in traverse_util.flatten_dict(row.get("vq", {}), sep=".").items():
            _check_changed(config, f"modalities.{name}.vq.{field}", f"vq.{field}", found)
        own = modalities.of_sound(config, name)
        _check_ranges(own, "vq.", f"modalities.{name}.")
        _check_steps(own, f"modalities.{name}.")
        sides, cell = modalities.image_size(own), _cell(own)
        if any(side % cell for side in pixels.both(sides)) and not own.vq.file:
            bands, frames = pixels.both(sides)
            raise UserError(
                f"modalities.{name}: {bands} bands and {frames} frames, expected multiples of "
                f"{cell}, the cell of a code: change its bands, samples or hop"
            )


def _check_embeddings(config) -> None:
    """UserError for codebooks of more codes than vectors, of which they are the means."""
    for name, row in modalities.own(config).items():
        vectors = row.get("vectors", further.VECTORS)
        if row["kind"] == "embedding" and vectors < row["codes"]:
            raise UserError(
                f"modalities.{name}.vectors = {vectors}, expected at least codes = {row['codes']}: "
                f"set --config.modalities.{name}.codes="
            )


def _check_changed(config, where: str, name: str, found) -> None:
    """UserError if the config has no field `name`, or one of another type than `found`."""
    section, _, field = name.rpartition(".")
    known = value(config, section)
    known = known if isinstance(known, ml_collections.ConfigDict) else {}
    if field not in known:
        raise UserError(f"{where} is unknown, expected a field of vq of the config")
    usual, pairs = known[field], (tuple, list)
    kind = (int, float) if isinstance(usual, float) else type(usual)
    kind = pairs if isinstance(usual, pairs) else kind
    flag = isinstance(found, bool) != isinstance(usual, bool)
    if usual is not None and (flag or not isinstance(found, kind)):
        such = (
            "settings"
            if isinstance(usual, ml_collections.ConfigDict)
            else f"a value such as {usual!r}"
        )
        raise UserError(f"{where} = {found!r}, expected {such}")


def _check_senses(config) -> None:
    """UserError unless the rows hold what an embedded world shows of its scenes.

    A row without a sense of its name is refused where the data are opened.
    """
    world, listed = sources.WORLDS.get(value(config, "data")), modalities.rows(config)
    for name in modalities.stored(config):
        sense = world.senses.get(name) if world else None
        for field, needed in (sense.row if sense else {}).items():
            row = listed[name]
            found = row.get(field, getattr(Spectrogram, field, None))  # a sound may leave it out
            found = tuple(found) if isinstance(found, list) else found
            if found == needed or (field == "classes" and found and found > needed):
                continue
            if field == "kind":
                raise UserError(
                    f"modalities.{name} is of kind {found!r}, expected {needed!r}, as the {name} "
                    f"of {config.data!r} is: choose another name for this row"
                )
            where = f"modalities.{row.get('like', name)}.{field}"
            least = "at least " if field == "classes" else ""
            raise UserError(
                f"{where} = {found!r}, expected {least}{needed!r}, as the {name} of "
                f"{config.data!r} has: set --config.{where}="
            )


def _check_size(config) -> None:
    """UserError unless `image_size` is a side or (height, width) of cells, or None."""
    size = modalities.image_size(config)
    if size is None:
        return
    sides = pixels.both(size)
    if min(sides) < LEAST_SIDE:
        _refuse(config, "image_size", f"at least {LEAST_SIDE} pixels")
    cell, name, of = _cell(config), modalities.level(config), "a code"
    if name:
        factor = modalities.coarse(config).get("factor", pyramid.Pyramid.factor)
        cell, of = cell * factor, f"a coarse code (modalities.{name}.factor = {factor})"
    if any(side % cell for side in sides) and not value(config, "vq.file"):
        which = "a multiple" if isinstance(size, int) else "multiples"
        _refuse(config, "image_size", f"{which} of {cell}, the cell of {of}")


def _cell(config) -> int:
    """Pixels along the side of a code."""
    patch, levels = value(config, "vq.model.patch"), value(config, "vq.model.ch_mult")
    return (patch or 1) * 2 ** (len(levels or (1,)) - 1)


def value(config, name: str):
    """The field `name`, with dots, or None if the config lacks it."""
    for part in name.split("."):
        config = config.get(part) if config is not None else None
    return config


def _warms_up(config, part: str, prefix: str = "") -> None:
    steps, name = value(config, f"{part}.steps"), f"{part}.warmup"
    _within(config, name, 0, steps, f"from 0 to {part}.steps = {steps}", prefix + name)


def _within(config, name: str, least, most, words: str, said: str = "") -> None:
    found = value(config, name)
    if isinstance(found, str | tuple | dict):
        _refuse(config, name, words, said)
    if found is not None and not least <= found <= (math.inf if most is None else most):
        _refuse(config, name, words, said)


def _refuse(config, name: str, words: str, said: str = "") -> None:
    """said: how the field is typed, if not as `name`."""
    said = said or name
    raise UserError(f"{said} = {value(config, name)}, expected {words}: set --config.{said}=")
