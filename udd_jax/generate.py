"""What the command line does besides the main job: `--mode=sample`, a thin caller of `Pipeline`.

A sampling run leaves in its folder one PNG an image, `samples.jsonl` with caption, task, seed and
settings, `sheet.png`, and for infilling `composite.png`: the given pixels pasted back.
"""

import dataclasses
import json
import pathlib

import numpy as np

from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.runtime import files, logbook

SETTINGS = ("sampler", "steps", "guidance", "temperature", "top_r", "top_k")


def sample(workdir, flags) -> pathlib.Path:
    """Generates what the flags ask for from the run in `workdir`; returns the results' folder.

    Raises ValueError, FileNotFoundError, one line, for flags that do not fit the task or the run;
    nothing is written then.
    """
    _check(flags)
    pipe = pipeline.Pipeline.load(workdir)
    # For a few samples compilation takes the time, and one block compiles sooner than all of them.
    pipe = dataclasses.replace(pipe, model=pipe.model.clone(unroll=1))
    changes = {n: getattr(flags, n) for n in SETTINGS if getattr(flags, n) is not None}
    settings = pipe.settings(**changes)
    pictures = [_read(path, pipe.image.image_size) for path in flags.image]
    common = {"seed": flags.seed, "batch_size": flags.batch_size, **changes}
    num, mask = flags.num or 1, None
    if flags.task == "t2i":
        prompts = [prompt for prompt in flags.prompt for _ in range(num)]
        result = pipe.text_to_image(prompts, negative=flags.negative_prompt, **common)
    elif flags.task == "i2t":
        fitted = [fitted for fitted, _ in pictures for _ in range(num)]
        result = pipe.image_to_text(np.stack(fitted), **common)
    elif flags.task == "infill":
        given = prompts = None
        if pictures:
            original, mask = _hidden(flags, pipe.image.image_size)
            given = np.repeat(original[None], num, axis=0)
        if flags.prompt:
            prompts = flags.prompt * num
        result = pipe.infill(given, mask, prompts, blank_tokens=flags.blank_tokens, **common)
    else:
        result = getattr(pipe, {"pair": "pairs", "image": "images", "text": "texts"}[flags.task])(
            num, **common
        )
    out = pathlib.Path(flags.out or pathlib.Path(workdir) / "generated")
    out.mkdir(parents=True, exist_ok=True)
    _write(out, flags, settings, result)
    if mask is not None:
        pasted = pixels.composite(result.images, given, mask)
        for i, image in enumerate(pasted):
            pixels.write_png(out / _name("composite", i, len(pasted)), image)
    return out


def _check(flags) -> None:
    """Flags that the task needs, and those it has no use for."""
    needs = {
        "t2i": {"prompt"},
        "i2t": {"image"},
        "pair": set(),
        "image": set(),
        "text": set(),
        "infill": set(),
    }[flags.task]
    takes = needs | {"infill": {"prompt", "image", "mask"}, "t2i": {"negative_prompt"}}.get(
        flags.task, set()
    )
    for name in ("prompt", "image", "mask", "negative_prompt"):
        value = getattr(flags, name)
        if name in needs and not value:
            raise ValueError(f"--{name} is missing, --task={flags.task} needs it")
        if name not in takes and value:
            raise ValueError(f"--{name} means nothing for --task={flags.task}: leave it out")
    if flags.num is not None and flags.num < 1:
        raise ValueError(f"--num = {flags.num}, expected at least 1")
    if flags.batch_size < 1:
        raise ValueError(f"--batch_size = {flags.batch_size}, expected at least 1")
    if flags.task == "infill":
        if not flags.prompt and not flags.image:
            raise ValueError("--prompt and --image are missing, infilling needs one or both")
        if len(flags.prompt) > 1 or len(flags.image) > 1:
            raise ValueError("--task=infill takes one --prompt and one --image")
        if bool(flags.mask) > bool(flags.image):
            raise ValueError("--mask needs the --image that it is the mask of")
    if any(not prompt.strip() for prompt in flags.prompt):
        raise ValueError("--prompt is empty, expected a caption")


def _read(path, size):
    """A picture at the run's size, and as it is in the file."""
    original = pixels.read(path)
    if original.shape[:2] != (size, size):
        logbook.say(
            f"{path} is {original.shape[1]} x {original.shape[0]}: resized and cut to {size}"
        )
    return pixels.fit(original, size), original


def _hidden(flags, size):
    """The picture with its masked pixels filled before it is resized, so that none leaks into
    what is given; and the mask at the run's size."""
    original = pixels.read(flags.image[0])
    if flags.mask is None:
        return pixels.fit(original, size), np.zeros((size, size), bool)
    mask = pixels.read_mask(flags.mask, original.shape[:2])
    return pixels.fit(pixels.hide(original, mask), size), pixels.fit_mask(mask, size)


def _name(stem, i, count):
    return f"{stem}.png" if count == 1 and stem == "composite" else f"{stem}-{i:04d}.png"


def _write(out, flags, settings, result) -> None:
    count = len(result.tokens)
    lines = []
    for i in range(count):
        line = {"task": flags.task, "seed": flags.seed, "index": i}
        if result.images is not None:
            line["image"] = _name("image", i, count)
            pixels.write_png(out / line["image"], result.images[i])
        if result.captions is not None:
            line["caption"] = result.captions[i]
            logbook.say(f"{i:4d}  {result.captions[i]}")
        lines.append(line | {"settings": dataclasses.asdict(settings)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    files.write_text(out / "samples.jsonl", text)
    if result.images is not None:
        sheet = pixels.sheet(result.images, result.captions, columns=min(8, count))
        pixels.write_png(out / "sheet.png", sheet)
    logbook.say(f"written to {out}")
