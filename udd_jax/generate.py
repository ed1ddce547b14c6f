"""`--mode=sample`: generates with `Pipeline` what the flags ask for, and writes files.

What they are is said in `sample_files.py`. Each batch is written as soon as it is finished. READ
has, for each kind of modality, the function that reads the given values.
"""

import dataclasses
import os
import pathlib
import shlex

import numpy as np

from udd_jax import hints, pipeline, sample_files, values
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.runtime import files, logbook
from udd_jax.sampling import settings as sampling
from udd_jax.steering import edits, infilling, lengths, stepwise, upscaling
from udd_jax.steering import flags as steering_flags

SHORT = {"text": "prompt", "image": "image"}  # short flags for `--given NAME=`


def sample(workdir, flags, changes: dict | None = None) -> pathlib.Path:
    """Generates what the flags ask for with the run in `workdir`; returns the output folder.

    changes: the settings of the sampler that were typed.

    Raises:
        ValueError, FileNotFoundError: one line; the flags do not fit the task or the run. Then
            nothing is written.
    """
    asked, changes = _asked(flags), changes or {}
    pipe = pipeline.Pipeline.load(workdir)
    if flags.dual_encoder:
        pipe = pipe.with_dual_encoder(flags.dual_encoder)
    _check(flags, asked, pipe.vocab)
    out = _folder(flags.out or _home(workdir) / "generated")
    # A few samples take less time than compilation, and one block compiles faster than all of them.
    pipe = pipe.with_network(unroll=1)
    if flags.task == "edit" and pipe.guidable:
        changes = {"guidance": edits.GUIDANCE, **changes}
    settings = pipe.settings(_rule(pipe, flags, asked), **changes)
    steps = _check_settings(pipe, flags, settings, changes)
    num = flags.num or 1
    most = 1 if flags.weight else max((len(rows) for rows in asked.values()), default=1)
    ids, more, paste = _inputs(pipe, flags, asked, most)
    options = {"seed": flags.seed, "batch_size": flags.batch_size, **_options(pipe, flags)}
    options |= changes | more
    if flags.task in EDITS:
        results = EDITS[flags.task](pipe, flags, ids, {"num": num, **options})
    else:  # the rows of a length are as many as the samples
        count, repeat = (None, 1 if flags.length else num) if ids or flags.weight else (num, 1)
        results = pipe.stream(flags.task, count, given=ids, num=repeat, **options)
    out.mkdir(parents=True, exist_ok=True)
    logbook.begin()
    run = str(getattr(flags, "workdir", None) or workdir)
    common = {"run": run if files.in_bucket(run) else os.path.abspath(run), **_typed(flags)}
    # Of several steps, each has settings of its own: what was typed is what they share.
    common["settings"] = dataclasses.asdict(settings) if steps == 1 else changes
    if flags.weight:
        asked["text"] = [asked["text"]]
    asked = {
        n: list(map(os.path.abspath, rows)) if pipe.kinds[n] not in TYPED else rows
        for n, rows in asked.items()
    }
    told = {
        name: [v for v in _each(rows, most) for _ in range(num)] for name, rows in asked.items()
    }
    total = most * num
    sample_files.write(out, pipe, flags, told, common, results, total, paste)
    _finish(pipe, workdir, out, flags, total, asked)
    return out


def _options(pipe, flags) -> dict:
    """The keywords of the call that the flags mean, beside settings, seed and batch size."""
    found = {"best_of": flags.best_of, "by": flags.by} if flags.best_of > 1 else {}
    if flags.negative_prompt:
        found["negative"] = {"text": [flags.negative_prompt]}
    if flags.paint:
        found["paint"] = steering_flags.painted(flags.paint, pipe.tokenizers["image"].image_size)
    if flags.begin_with is not None:
        found["begin_with"] = _begun(flags)
    if flags.begin_steps is not None:
        found["begin_steps"] = flags.begin_steps
    if flags.weigh:
        found["weigh"] = steering_flags.weights(flags.weigh)
    if flags.scorer:
        found["scorers"] = steering_flags.scorers(pipe, flags.scorer, flags.weights)
    return found


def _inputs(pipe, flags, asked, most: int) -> tuple[dict, dict, tuple | None]:
    """What is given, {modality: values or ids} of `most` rows; more keywords of the call; and the
    image and mask of an infilling."""
    if flags.task in AS_THEY_ARE:
        return {n: _each(rows, most) for n, rows in asked.items()}, {}, None
    if flags.task == "infill":
        image = mask = None
        if asked.get("image"):
            image, mask = _hidden(asked["image"][0], flags.mask, pipe.tokenizers["image"])
        ids, masks = pipe.infilling(image, mask, asked.get("text"), flags.blank_tokens)
        return ids, {"masks": masks}, None if image is None else (image, mask)
    if flags.length:
        images = _read(pipe, "image", asked["image"])
        rows = lengths.inputs(pipe, images, flags.length, flags.num or 1, flags.seed)
        return rows[0], {"masks": rows[1]}, None
    if flags.weight:  # all prompts are one condition
        prompts = steering_flags.prompts(asked["text"], flags.weight)
        others = {n: _read(pipe, n, rows) for n, rows in asked.items() if n != "text"}
        return others, {"prompts": prompts}, None
    return {n: _each(_read(pipe, n, rows), most) for n, rows in asked.items()}, {}, None


def _typed(flags) -> dict:
    """The flags that change a sample, in addition to the given values and the settings."""
    names = ("negative_prompt", "mask", "weight", "extend", "share", "rounds", "length")
    names += ("paint", "scorer", "dual_encoder", "weights", "weigh", "begin_with", "begin_steps")
    names += ("factor",)
    found = {name: getattr(flags, name) for name in names}
    found = {name: value for name, value in found.items() if value not in (None, [])}
    if flags.task == "infill":
        found["blank_tokens"] = flags.blank_tokens
    if flags.best_of > 1:
        found |= {"best_of": flags.best_of, "by": flags.by}
    return found | ({"mask": os.path.abspath(flags.mask)} if flags.mask else {})


def _edit(pipe, flags, ids, options):
    """`--task=edit`: see `Pipeline.edit`."""
    chosen = {name: getattr(flags, name) for name in ("share", "rounds")}
    options |= {name: value for name, value in chosen.items() if value is not None}
    return [pipe.edit(ids["image"], ids["text"], **options)]


def _outpaint(pipe, flags, ids, options):
    """`--task=outpaint`: see `Pipeline.outpaint`."""
    options["extend"] = steering_flags.extended(flags.extend)
    images = pipe.outpaint(ids["image"], ids.get("text"), **options)
    return [values.Result.of(images)]


def _upscale(pipe, flags, ids, options):
    """`--task=upscale`: see `Pipeline.upscale`."""
    options["factor"] = flags.factor
    return [values.Result.of(pipe.upscale(ids["image"], ids.get("text"), **options))]


# Tasks that are not rules: {name: (pipe, flags, {modality: values}, options) -> results}
EDITS = {"edit": _edit, "outpaint": _outpaint, "upscale": _upscale}
NEEDS = {"edit": ("image", "text"), "outpaint": ("image",), "upscale": ("image",)}
AS_THEY_ARE = ("upscale",)  # tasks that take pictures of any size
# Flags of one task.
OWN = {"share": "edit", "rounds": "edit", "extend": "outpaint", "length": "i2t"}
OWN |= {"factor": "upscale"}


def _rule(pipe, flags, asked) -> str | None:
    """The rule whose settings hold: that of the task, or the one by which it draws."""
    if flags.task == "upscale":
        return upscaling.rule(pipe, "text" in asked)
    return "infill" if flags.task in EDITS else flags.task


def _begun(flags) -> list[str]:
    """The names in `--begin_with=`."""
    return [name for name in map(str.strip, flags.begin_with.split(",")) if name]


def _folder(path) -> pathlib.Path:
    """The output folder, not made yet. ValueError if it is a file or cannot be made."""
    files.require_disk(path)
    out = pathlib.Path(path).expanduser()
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise UserError(f"--out={out} cannot be a folder, since {there} {why}: name another")
    return out


def _home(workdir) -> pathlib.Path:
    """The folder of the results: that of the run, or the current one for a run of the package,
    which stays as it is."""
    packaged = pipeline.PACKAGED.parent.resolve() in pathlib.Path(workdir).resolve().parents
    return pathlib.Path() if packaged else pathlib.Path(workdir)


def _finish(pipe, workdir, out, flags, count, asked) -> None:
    """Prints what was made, and what to try next with the files that were written or given."""
    command = f"udd_jax --mode=sample --workdir={shlex.quote(str(workdir))}"
    if _home(workdir) != pathlib.Path(workdir):
        command = "udd_jax --mode=sample"
    there = {}
    for name, kind in pipe.kinds.items():
        written = out / f"{name}-0000{hints.ENDINGS.get(kind, '')}"
        paths = [written] if written.exists() else asked.get(name, ()) if kind not in TYPED else ()
        there |= {kind: str(paths[0])} if paths and kind not in there else {}
    done = None if flags.task in EDITS else flags.task
    tries = hints.tries(pipe, command, done, there)
    made = f"{count} sample{'s' * (count > 1)} of {flags.task}, listed in samples.jsonl"
    logbook.finish(made, out, *tries)


def _asked(flags) -> dict[str, list[str]]:
    """{modality: given values}, from `--given NAME=VALUE` and the short flags."""
    asked = {name: list(getattr(flags, flag)) for name, flag in SHORT.items()}
    for word in flags.given:
        name, equals, value = word.partition("=")
        if not (name.strip() and equals):
            raise UserError(f"--given={word}: expected --given NAME=VALUE, as --given text=...")
        asked.setdefault(name.strip(), []).append(value)
    return {name: rows for name, rows in asked.items() if rows}


def _check(flags, asked, vocab) -> None:
    """ValueError if a flag that the task needs is missing, or a flag does not fit the task."""
    infill, edits = flags.task == "infill", flags.task in EDITS
    rule = tasks.typed(vocab, "image|text" if edits else flags.task)
    takes = ("image", "text") if infill or edits else rule.given
    flag = lambda name: f"--{SHORT[name]}" if name in SHORT else f"--given {name}="  # noqa: E731
    known = [m.name for m in vocab.modalities]
    for name in asked:
        if name not in known:
            why = f"it is not a modality of this run, expected some of {', '.join(known)}"
            raise UserError(f"--given {name}= means nothing for --task={flags.task}: {why}")
    for name in NEEDS[flags.task] if edits else () if infill else rule.given:
        if name not in asked:
            raise UserError(f"{flag(name)} is missing, --task={flags.task} needs it")
    unused = [flag(name) for name in asked if name not in takes]
    unused += ["--mask"] if flags.mask and not infill else []
    alike = lambda task: task in tasks.ALIASES and not edits and tasks.same(vocab, flags.task, task)  # noqa: E731
    for name, task in OWN.items():
        typed = getattr(flags, name) not in (None, [])
        unused += [f"--{name}"] if typed and flags.task != task and not alike(task) else []
    unused += ["--best_of"] if flags.best_of != 1 and (edits or infill) else []
    unused += ["--by"] if flags.by != "bound" and flags.best_of == 1 else []
    drawn = "image" in (asked if infill else rule.free)
    unused += ["--scorer"] if flags.scorer and not drawn else []
    unused += ["--weights"] if flags.weights and not flags.scorer else []
    names = {typed.partition("=")[0] for typed in flags.scorer} & {"match", "shows"}
    matches = names or flags.by == "match"
    unused += ["--dual_encoder"] if flags.dual_encoder and not matches else []
    unused += ["--begin_with"] if flags.begin_with and (edits or infill or flags.weight) else []
    unused += ["--begin_steps"] if flags.begin_steps is not None and (edits or infill) else []
    unused += ["--weigh"] if flags.weigh and (edits or infill) else []
    unused += ["--paint"] if flags.paint and (edits or "text" not in rule.given) else []
    unused += ["--weight"] if flags.weight and (edits or infill or "text" not in rule.given) else []
    away = flags.negative_prompt and not ("image" in asked if infill else set(rule.free) - {"text"})
    for name in unused + (["--negative_prompt"] if away else []):
        raise UserError(f"{name} means nothing for --task={flags.task}: leave it out")
    if flags.num is not None and flags.num < 1:
        raise UserError(f"--num = {flags.num}, expected at least 1")
    values.seed(flags.seed, "--seed")
    if flags.best_of < 1:
        raise UserError(f"--best_of = {flags.best_of}, expected at least 1")
    if flags.task == "outpaint" and not flags.extend:
        raise UserError("--extend is missing, --task=outpaint needs it, such as --extend=left:8")
    steering_flags.extended(flags.extend)
    if flags.batch_size < 1:
        raise UserError(f"--batch_size = {flags.batch_size}, expected at least 1")
    if infill:
        if not asked:
            raise UserError("--prompt and --image are missing, infilling needs one or both")
        if max(map(len, asked.values())) > 1:
            raise UserError("--task=infill takes one --prompt and one --image")
        if flags.mask and "image" not in asked:
            raise UserError("--mask needs the --image that it is the mask of")
    if any(not text.strip() for text in asked.get("text", ())):
        raise UserError("--prompt is empty, expected a caption")
    counts = {name: len(rows) for name, rows in asked.items()}
    if flags.weight and any(count > 1 for name, count in counts.items() if name != "text"):
        raise UserError("--weight makes one condition of all prompts: give one of each other value")
    if not flags.weight and len({count for count in counts.values() if count > 1}) > 1:
        said = ", ".join(f"{count} of {flag(name)}" for name, count in counts.items())
        raise UserError(f"{said}: expected as many of each, or one")


def _check_settings(pipe, flags, settings, changes) -> int:
    """The number of steps, each with its settings; ValueError if a typed setting, or a negative
    prompt, would change nothing."""
    steps = 1
    if flags.task in EDITS:
        sampling.require_read([settings], changes, "--")
        guided = settings.on("guidance")
    else:
        plain = not (flags.task == "infill" or flags.weight or flags.scorer or flags.paint)
        plain = plain and not flags.length
        names = stepwise.usual(pipe, flags.task) if plain else ()
        if flags.begin_with is not None:
            names = _begun(flags)
        asked = (flags.task, names, plain, flags.begin_steps)
        guided = stepwise.require_read(pipe, *asked, changes, "--")
        steps = len(stepwise.chains(pipe, *asked[:3]))
    if flags.negative_prompt and not (guided or flags.weight):
        raise UserError("--negative_prompt changes nothing, guidance is off: add --guidance=2")
    if flags.blank_tokens != 1 and flags.task != "infill":
        raise UserError(f"--blank_tokens means nothing for --task={flags.task}: leave it out")
    return steps


def _each(given, count: int) -> list:
    """`count` values; a single value is used for all."""
    return list(given) * (count if len(given) == 1 else 1)


def _read(pipe, name: str, typed) -> list:
    """The values of `--given NAME=VALUE`; what has no reader is taken as `values.plain` does."""
    read = READ.get(pipe.kinds[name])
    return read(typed, pipe.tokenizers[name]) if read else values.plain(pipe, name, typed)


def _read_images(paths, tokenizer) -> np.ndarray:
    """The images at the size of the run; prints a line about an image of another size."""
    size, channels, read = tokenizer.image_size, tokenizer.shape[-1], []
    for path in paths:
        original = pixels.read(path, channels)
        if original.shape[:2] != pixels.both(size):
            found = f"{original.shape[1]} x {original.shape[0]}"
            wanted = size if isinstance(size, int) else pixels.shown(size)
            logbook.say(f"{path} is {found}: resized and cut to {wanted}")
        read.append(pixels.fit(original, size))
    return np.stack(read)


# {kind: (the values of `--given NAME=VALUE`, tokenizer) -> values}
TYPED = ("text", "length")  # kinds whose values are typed, all others are paths
READ = {"image": _read_images, "coarse": _read_images, "text": lambda typed, tokenizer: typed}


def _hidden(path, mask, tokenizer):
    """(the image, the mask) of two files, both at the size of the run: `infilling.hidden`."""
    original = pixels.read(path, tokenizer.shape[-1])
    mask = None if mask is None else pixels.read_mask(mask, original.shape[:2])
    return infilling.hidden(original, mask, tokenizer.shape[:2])
