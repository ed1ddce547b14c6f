"""The files of `--mode=sample`: each value in a file of its kind, `samples.jsonl` and a sheet.

PNG, WAV, JSON or `.npy`; `sheet.png` with the first samples (pictures, else layouts in colours,
numbers as squares, or spectrograms); for infilling `composite.png`, which has the given pixels
pasted back. `samples.jsonl` has a line for each sample: its caption and all that makes it again
(run, task, seed, index, given values, other flags, settings).
"""

import fcntl
import json

import numpy as np

from udd_jax.data import arrays, layouts, pixels, sounds
from udd_jax.errors import UserError
from udd_jax.evaluation.report import contact_sheet
from udd_jax.runtime import logbook

SHEET = 64  # most samples on the sheet


def _name(stem, i, count):
    return f"{stem}.png" if count == 1 and stem == "composite" else f"{stem}-{i:04d}.png"


def _write_image(out, name, i, image, tokenizer) -> dict:
    file = _name(name, i, 0)
    pixels.write_png(out / file, image)
    return {name: file}


def _write_text(out, name, i, text, tokenizer) -> dict:
    logbook.say(f"{i:4d}  {text}")
    return {"caption" if name == "text" else name: text}


def _write_sound(out, name, i, sound, tokenizer) -> dict:
    file = f"{name}-{i:04d}.wav"
    sounds.write_wav(out / file, sound, tokenizer.settings.rate)
    return {name: file}


def _write_layout(out, name, i, layout, tokenizer) -> dict:
    """The ids as JSON, and a picture of them."""
    file = f"{name}-{i:04d}.json"
    layouts.write(out / file, layout)
    pixels.write_png(out / _name(name, i, 0), layouts.picture(layout))
    return {name: file}


def _write_length(out, name, i, length, tokenizer) -> dict:
    return {name: int(length)}


def _write_array(out, name, i, array, tokenizer) -> dict:
    file = f"{name}-{i:04d}.npy"
    np.save(out / file, array)
    return {name: file}


# {kind: (folder, modality, i, value, tokenizer) -> fields for samples.jsonl}; writes value i
WRITE = {
    "image": _write_image,
    "text": _write_text,
    "sound": _write_sound,
    "layout": _write_layout,
    "length": _write_length,
    "embedding": _write_array,
    "coarse": _write_image,
}
# {kind: (value, tokenizer) -> its picture on the sheet}; a sample shows the first that it has
PICTURE = {
    "image": lambda image, tokenizer: image,
    "coarse": lambda image, tokenizer: image,
    "layout": lambda layout, tokenizer: layouts.picture(layout),
    "embedding": lambda vector, tokenizer: arrays.picture(vector),
    "sound": lambda sound, tokenizer: tokenizer.settings.picture(sound[None])[0, ::-1],
}


def _drawn(pipe, result, told) -> list[np.ndarray]:
    """A picture of each sample for the sheet, of what was generated before what was given.

    None for texts and lengths.
    """
    kinds, order = pipe.kinds, list(PICTURE)
    names = [name for name in result.values if kinds[name] in PICTURE]
    if not names:
        return []
    name = min(names, key=lambda name: (name in told, order.index(kinds[name])))
    return [PICTURE[kinds[name]](v, pipe.tokenizers[name]) for v in result.values[name]]


def _whole_lines(lines, out) -> int:
    """The number of lines of an open file of samples, which stays locked until it is closed.

    A last line that a killed command left half is cut off. UserError if another command writes."""
    try:
        fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{out} is in use: another command writes its samples there, choose another --out"
        ) from None
    except OSError:
        pass  # a disk without locks
    lines.seek(0)
    content = lines.read()
    lines.truncate(content.rfind(b"\n") + 1)
    return content.count(b"\n")


def write(out, pipe, flags, told, common, results, total, paste) -> None:
    """Writes each result when it comes, numbered on after those in the folder, then the sheet.

    told: {modality: the given values as typed, one for each sample}; common: fields of every line;
    paste: (image, mask) of infilling, or None.
    """
    shown, captions, i = [], [], 0
    with (
        (out / "samples.jsonl").open("ab+") as lines,
        logbook.progress(total, "samples", unit="sample") as bar,
    ):
        first = _whole_lines(lines, out)
        for result in results:
            if i == 0 and result.branches > 1:
                logbook.say(f"at most {result.branches} network calls a step")
            for row in range(len(result.tokens)):
                line = {"task": flags.task, "seed": flags.seed, "index": i}
                for name, made in result.values.items():
                    write = WRITE[pipe.kinds[name]]
                    line |= write(out, name, first + i, made[row], pipe.tokenizers[name])
                if told:
                    line["given"] = {name: given[i] for name, given in told.items()}
                lines.write((json.dumps(line | common) + "\n").encode())
                if paste is not None:
                    pasted = pixels.composite(result.images[row], *paste)
                    pixels.write_png(out / _name("composite", first + i, first + total), pasted)
                i += 1
            lines.flush()
            bar.update(len(result.tokens))
            if len(shown) < SHEET and (drawn := _drawn(pipe, result, told)):
                shown += drawn
                captions += result.captions or [""] * len(drawn)
    if total > SHEET and shown:
        logbook.say(f"sheet.png shows the first {SHEET} of {total} samples")
    if shown:
        columns = min(8, total)
        sheet = contact_sheet.sheet(shown[:SHEET], captions[:SHEET], columns=columns)
        pixels.write_png(out / "sheet.png", sheet)
