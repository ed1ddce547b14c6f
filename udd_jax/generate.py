"""`--mode=sample`: generates with `Pipeline` what the flags ask for, and writes files.

The output folder gets a PNG for each image, `samples.jsonl` with caption, task, seed, given values
and settings, `sheet.png`, and for infilling `composite.png`, which has the given pixels pasted
back. READ and WRITE have the functions that read the given values and write the results.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np

from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.evaluation.report import contact_sheet
from udd_jax.runtime import files, logbook

SHORT = {"text": "prompt", "image": "image"}  # short flags for `--given NAME=`
SEEDS = 2**32  # a key of JAX has so many
SHEET = 400  # at most so many images on the sheet
SETTINGS = ("sampler", "steps", "guidance", "temperature", "top_r", "top_k")


def sample(workdir, flags) -> pathlib.Path:
    """Generates what the flags ask for with the run in `workdir`; returns the output folder.

    Raises:
        ValueError, FileNotFoundError: one line; the flags do not fit the task or the run. Then
            nothing is written.
    """
    asked = _asked(flags)
    pipe = pipeline.Pipeline.load(workdir)
    _check(flags, asked, pipe.vocab)
    out = _folder(flags.out or pathlib.Path(workdir) / "generated")
    # A few samples take less time than compilation, and one block compiles faster than all of them.
    pipe = pipe.with_network(unroll=1)
    changes = {n: getattr(flags, n) for n in SETTINGS if getattr(flags, n) is not None}
    settings = pipe.settings(**changes)
    common = {"seed": flags.seed, "batch_size": flags.batch_size, **changes}
    given, num, mask = {}, flags.num or 1, None
    most = max((len(values) for values in asked.values()), default=1)
    if flags.task == "infill":
        if asked.get("image"):
            size = pipe.tokenizers["image"].image_size
            original, mask = _hidden(asked["image"][0], flags.mask, size)
            given["image"] = np.repeat(original[None], num, axis=0)
        texts = asked["text"] * num if asked.get("text") else None
        blanks = {"blank_tokens": flags.blank_tokens}
        result = pipe.infill(given.get("image"), mask, texts, **blanks, **common)
    else:
        given = {n: _each(READ[n](pipe, values), most, num) for n, values in asked.items()}
        away = {"text": [flags.negative_prompt]} if flags.negative_prompt else None
        count = None if given else num
        result = pipe.generate(flags.task, count, given=given, negative=away, **common)
    out.mkdir(parents=True, exist_ok=True)
    first = _write(out, flags, asked, settings, result)
    if mask is not None:
        pasted = pixels.composite(result.images, given["image"], mask)
        for i, image in enumerate(pasted, first):
            pixels.write_png(out / _name("composite", i, first + len(pasted)), image)
    return out


def _folder(path) -> pathlib.Path:
    """The output folder, not made yet. ValueError if it is a file or cannot be made."""
    out = pathlib.Path(path).expanduser()
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "may not be written to" if there.is_dir() else "is a file"
        raise UserError(f"--out={out} cannot be a folder, since {there} {why}: name another")
    return out


def _asked(flags) -> dict[str, list[str]]:
    """{modality: given values}, from `--given NAME=VALUE` and the short flags."""
    asked = {name: list(getattr(flags, flag)) for name, flag in SHORT.items()}
    for word in flags.given:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--given={word}: expected --given NAME=VALUE, as --given text=...")
        asked.setdefault(name, []).append(value)
    return {name: values for name, values in asked.items() if values}


def _check(flags, asked, vocab) -> None:
    """ValueError if a flag that the task needs is missing, or a flag does not fit the task."""
    rule = tasks.parse(vocab, flags.task)
    infill = flags.task == "infill"
    takes = rule.free if infill else rule.given
    flag = lambda name: f"--{SHORT[name]}" if name in SHORT else f"--given {name}="  # noqa: E731
    for name in () if infill else rule.given:
        if name not in asked:
            raise UserError(f"{flag(name)} is missing, --task={flags.task} needs it")
    unused = [flag(name) for name in asked if name not in takes]
    unused += ["--mask"] if flags.mask and not infill else []
    away = flags.negative_prompt and "text" not in rule.given
    for name in unused + (["--negative_prompt"] if away else []):
        raise UserError(f"{name} means nothing for --task={flags.task}: leave it out")
    if flags.num is not None and flags.num < 1:
        raise UserError(f"--num = {flags.num}, expected at least 1")
    if not 0 <= flags.seed < SEEDS:
        raise UserError(f"--seed = {flags.seed}, expected 0 to {SEEDS - 1}")
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
    counts = {name: len(values) for name, values in asked.items()}
    if len({count for count in counts.values() if count > 1}) > 1:
        said = ", ".join(f"{count} of {flag(name)}" for name, count in counts.items())
        raise UserError(f"{said}: expected as many of each, or one")


def _each(values, count: int, num: int) -> list:
    """Each of the `count` values `num` times; a single value is used for all."""
    values = list(values) * (count if len(values) == 1 else 1)
    return [value for value in values for _ in range(num)]


def _read_images(pipe, paths) -> np.ndarray:
    """The images at the size of the run; prints a line about an image of another size."""
    size, read = pipe.tokenizers["image"].image_size, []
    for path in paths:
        original = pixels.read(path)
        if original.shape[:2] != (size, size):
            found = f"{original.shape[1]} x {original.shape[0]}"
            logbook.say(f"{path} is {found}: resized and cut to {size}")
        read.append(pixels.fit(original, size))
    return np.stack(read)


# {modality: function that reads the values of `--given NAME=VALUE`}
READ = {"image": _read_images, "text": lambda pipe, texts: texts}


def _hidden(path, mask, size):
    """(the image, the mask), both at the size of the run.

    The masked pixels are filled before resizing, so that they do not leak into the given pixels.
    """
    original = pixels.read(path)
    if mask is None:
        return pixels.fit(original, size), np.zeros((size, size), bool)
    mask = pixels.read_mask(mask, original.shape[:2])
    return pixels.fit(pixels.hide(original, mask), size), pixels.fit_mask(mask, size)


def _name(stem, i, count):
    return f"{stem}.png" if count == 1 and stem == "composite" else f"{stem}-{i:04d}.png"


def _write_image(out, i, image) -> dict:
    name = _name("image", i, 0)
    pixels.write_png(out / name, image)
    return {"image": name}


def _write_text(out, i, text) -> dict:
    logbook.say(f"{i:4d}  {text}")
    return {"caption": text}


# {modality: function that writes value i and returns its fields for samples.jsonl}
WRITE = {"image": _write_image, "text": _write_text}


def _write(out, flags, asked, settings, result) -> int:
    """Writes the results, numbered on after those that are in the folder; returns the number."""
    count, lines = len(result.tokens), []
    path = out / "samples.jsonl"
    before = path.read_text() if path.exists() else ""
    first = before.count("\n")
    shown = {"negative_prompt": flags.negative_prompt, "mask": flags.mask}
    shown = {name: value for name, value in shown.items() if value}
    most = max((len(values) for values in asked.values()), default=1)
    given = {name: _each(values, most, count // most) for name, values in asked.items()}
    for i in range(count):
        line = {"task": flags.task, "seed": flags.seed, "index": i}
        for name, values in result.values.items():
            line |= WRITE[name](out, first + i, values[i])
        if asked:
            line["given"] = {name: values[i] for name, values in given.items()}
        lines.append(line | shown | {"settings": dataclasses.asdict(settings)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    files.write_text(path, before + text)
    if result.images is not None:
        images, captions = result.images[:SHEET], result.captions
        captions = captions if captions is None else captions[:SHEET]
        if count > SHEET:
            logbook.say(f"sheet.png shows the first {SHEET} of {count} images")
        sheet = contact_sheet.sheet(images, captions, columns=min(8, count))
        pixels.write_png(out / "sheet.png", sheet)
    logbook.say(f"written to {out}")
    return first
