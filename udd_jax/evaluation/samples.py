"""The samples of an evaluation: generated once, stored, and read by all measures.

Six tasks use one sampler and one compilation. Conditions are held-out items in order; each item of
a task has its own key. A task is generated in parts of one batch, `TASK-00000.npz` and so on.
Several processes share the parts, and a stopped evaluation continues with the missing ones. The
complete task is stored in `samples/TASK.npz`:

    tokens int32[n, L]; calls int32[n]; images uint8[n, S, S, C]; captions str[n]
    kept bool[n]               whether every given token is in the result, bit for bit
    given_images, given_captions, free_pixels bool[n, S, S]         infilling: the given parts
    about                      JSON: everything the samples depend on, and their seconds

`images` and `captions` should agree: one was generated from the other (from the image itself, not
its reconstruction), or both were generated. An absent modality has no array.

A file with the right `about` is read instead of generated again. The folder also has `trace.npz`
(the denoising of some pairs: images uint8[FRAMES, n, S, S, C] and pieces str[FRAMES, n, M]),
`reconstructions.npz`, pictures, sheets, and `samples.jsonl`.
"""

import dataclasses
import json
import pathlib
import time
import zipfile

import jax
import numpy as np

from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.evaluation import held_out
from udd_jax.evaluation.report import contact_sheet
from udd_jax.runtime import files
from udd_jax.steering import stepwise

TASKS = ("t2i", "i2t", "pair", "infill", "image", "text")
FOLDER = "samples"
TRACED, FRAMES = 4, 8  # pairs whose denoising is stored, and at how many times
PICTURES, SHOWN = 8, 32  # samples of a task stored as PNG files, and shown on its sheet
_GREY = 160  # a cell whose code is still masked


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one task; the fields are those of its file (see the top of this file)."""

    tokens: np.ndarray
    calls: np.ndarray
    about: dict
    images: np.ndarray | None = None
    captions: list[str] | None = None
    kept: np.ndarray | None = None
    given_images: np.ndarray | None = None
    given_captions: list[str] | None = None
    free_pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)


def obtain(pipe, items: held_out.Items, task: str, path, **options) -> Samples:
    """The samples of a task: read from their file if it fits, else generated (`make`) and stored.

    options: those of `make`. The task "pair" also writes `trace.npz` next to its file.
    """
    path = pathlib.Path(path)
    wanted = _about(pipe, items, task, **options)
    found = load(path)
    if found and {**found.about, "seconds": None} == {**wanted, "seconds": None}:
        return found
    files = make(pipe, items, task, path, **options)
    parts = [load(file) for file in files]
    fields = {}
    for field in dataclasses.fields(Samples):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            fields[field.name] = np.concatenate(values)
        elif isinstance(values[0], list):
            fields[field.name] = [text for value in values for text in value]
    wanted["seconds"] = round(sum(part.about["seconds"] for part in parts), 3)
    made = Samples(**fields | {"about": wanted})
    _keep(path, made)
    for file in files:
        file.unlink()
    return made


def make(
    pipe, items: held_out.Items, task: str, path, *, count, batch_size, seed, made_of, share=None
) -> list[pathlib.Path]:
    """Generates the missing parts of a task next to `path`; returns the files of all parts.

    count: the number of samples, at most the number of items for a task with a condition. made_of:
    hashes of weights and tokenizers. share: (index, count): process k mod count generates part k;
    by default that of this process.
    """
    path = pathlib.Path(path)
    wanted = _about(
        pipe, items, task, count=count, batch_size=batch_size, seed=seed, made_of=made_of
    )
    index, processes = share or (jax.process_index(), jax.process_count())
    files = []
    for k, start in enumerate(range(0, wanted["count"], batch_size)):
        files.append(path.with_name(f"{path.stem}-{k:05d}.npz"))
        if k % processes != index:
            continue
        found, about = load(files[-1]), wanted | {"part": k}
        if found and {**found.about, "seconds": None} == {**about, "seconds": None}:
            continue
        # The last batch is filled by repetition, so that there is one compilation.
        rows, started = np.arange(start, start + batch_size), time.perf_counter()
        rows = np.minimum(rows, wanted["count"] - 1)
        made, states = _generate(pipe, items, task, rows, seed)
        made = _cut(made, wanted["count"] - start)
        about["seconds"] = round(time.perf_counter() - started, 3)
        if task == "pair" and k == 0:
            write(path.with_name("trace.npz"), frames(pipe, states, made.tokens))
        _keep(files[-1], dataclasses.replace(made, about=about))
    return files


def _about(pipe, items, task, *, count, batch_size, seed, made_of) -> dict:
    wanted = {
        "task": task,
        "count": count if task in ("pair", "image", "text") else min(count, len(items)),
        "batch_size": batch_size,
        "seed": seed,
        "settings": dataclasses.asdict(pipe.settings(task)),
        "items": items.hash,
        **made_of,
    }
    if levels := stepwise.levels(pipe, task):
        wanted["levels"] = levels
    return json.loads(json.dumps(wanted))


def _cut(samples: Samples, count: int) -> Samples:
    fields = {f.name: getattr(samples, f.name) for f in dataclasses.fields(samples)}
    about = fields.pop("about")
    return Samples(**{n: v if v is None else v[:count] for n, v in fields.items()}, about=about)


def _keep(path, samples: Samples) -> None:
    arrays = {f.name: getattr(samples, f.name) for f in dataclasses.fields(samples)}
    write(path, arrays | {"about": json.dumps(samples.about)})


def stored(path) -> dict[str, np.ndarray] | None:
    """The arrays of a file in the .npz format; None if it does not exist or is not such a file."""
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def load(path) -> Samples | None:
    """The samples in a file; None if it does not exist or is not such a file."""
    arrays = stored(path)
    if arrays is None:
        return None
    for name in ("captions", "given_captions"):
        if name in arrays:
            arrays[name] = arrays[name].tolist()
    return Samples(**{**arrays, "about": json.loads(str(arrays["about"]))})


def count(path) -> int:
    """The number of samples in a file, without reading their pictures."""
    with np.load(path) as file:
        return len(file["tokens"])


def write(path, arrays: dict) -> None:
    """Writes an .npz file with the arrays that are not None; NumPy turns a string into an array."""
    with files.open_atomic(path) as file:
        np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})


def _generate(pipe, items, task, rows, seed):
    """Generates samples rows, int[B], of a task: (Samples without `about`, states of the first)."""
    given, extra, first = {}, {}, int(rows[0])
    masks = tasks.masks(pipe.vocab, task, len(rows))
    if task == "t2i":
        given["text"] = items.ids[rows]
    if task == "i2t":
        given["image"] = items.codes[rows]
    if task == "infill":
        shown, text = items.images[rows], pipe.tokenizers["text"]
        halves, hidden, blanks = _holes(text, items.ids[rows], shown.shape[1:3], seed, first)
        given, masks = pipe.infilling(shown, halves)
        given["text"] = np.where(hidden, text.pad_id, items.ids[rows])
        (free, absent), m = map(np.array, (masks.free, masks.absent)), pipe.vocab.index("text")
        free[:, pipe.vocab.slices[m]], absent[:, m] = hidden, False
        masks = tasks.Masks(free, absent)
        extra = {"given_images": shown, "given_captions": blanks, "free_pixels": halves}
    steps = stepwise.of_itself(pipe, task)  # in two steps, which have masks of their own
    options = {
        "masks": None if steps else masks,
        "seed": seed,
        "batch_size": len(rows),
        "first": first,
    }
    pairs = pipe.generate(task, len(rows), given=given, trace=FRAMES, **options)
    captions = None if pairs.captions is None else list(pairs.captions)
    shown = items.images[rows] if task == "i2t" else pairs.images
    kept = _kept(pipe.vocab, pairs.tokens, given, np.asarray(masks.free)) if given else None
    samples = Samples(pairs.tokens, pairs.calls, {}, shown, captions, kept, **extra)
    return samples, pairs.states[:, :TRACED]


def _holes(tokenizer, ids, size, seed, first):
    """Draws the missing parts for infilling: a half of each image, and half of the words.

    The half is left, right, upper or lower. Of a missing word all ids are. Item `first` + i has its
    own seed. ids: int32[n, M] of the captions; size: (height, width).

    Returns:
        (bool[n, *size] and bool[n, M], both True where missing; the captions with `___`).
    """
    halves, hidden = np.zeros((len(ids), *size), bool), np.zeros(ids.shape, bool)
    blanks = []
    for i, (half, row) in enumerate(zip(halves, ids, strict=True)):
        rng = np.random.default_rng((seed, first + i))
        side = rng.integers(4)
        rows = half if side < 2 else half.T
        middle = len(rows) // 2
        rows[slice(middle, None) if side % 2 else slice(middle)] = True
        row = row[row != tokenizer.pad_id]
        words = np.array(tokenizer.words(row.tolist()), int)
        count = len(set(words.tolist()))
        missing = rng.permutation(count)[: (count + 1) // 2]
        hidden[i, : len(row)] = np.isin(words, missing)
        shown = [
            "___" if word in missing else tokenizer.decode(row[None, words == word])[0].strip()
            for word in range(count)
        ]
        blanks.append(" ".join(shown))
    return halves, hidden, blanks


def _kept(vocab, tokens, given, free):
    """Whether every position that is not free has the given token: bool[n]."""
    kept, given = np.ones(len(tokens), bool), vocab.parts(given)
    for m, (modality, where) in enumerate(zip(vocab.modalities, vocab.slices, strict=True)):
        if modality.name in given:
            same = tokens[:, where] == given[modality.name] + vocab.offsets[m]
            kept &= (same | free[:, where]).all(axis=1)
    return kept


def frames(pipe, states, tokens):
    """The denoising of pairs: images uint8[FRAMES, n, S, S, C], pieces str[FRAMES, n, M].

    A masked code is a grey cell, a masked token is `_`. A decoder also sees neighbouring codes, so
    masked codes are replaced by the final ones before decoding, and then covered with grey.
    """
    frames, count = states.shape[:2]
    final = np.broadcast_to(tokens[None, :count], states.shape)
    masked = states == pipe.vocab.mask_id
    split = pipe.vocab.split(np.where(masked, final, states).reshape(frames * count, -1))
    picture = pipe.vocab.slices[pipe.vocab.index("image")]
    words = pipe.vocab.slices[pipe.vocab.index("text")]
    image, text = pipe.tokenizers["image"], pipe.tokenizers["text"]
    known = {  # an absent one stays masked
        m.name: np.minimum(split[m.name], m.classes - 1) for m in pipe.vocab.modalities
    }
    shown = image.decode(pipe.vocab.joined("image", known))
    (rows, columns), (height, width) = image.grid, shown.shape[1:3]
    cells = masked[..., picture].reshape(-1, rows, columns)
    hidden = cells.repeat(height // rows, axis=1).repeat(width // columns, axis=2)
    shown = np.where(hidden[..., None], pixels.grey(_GREY, shown.shape[-1]), shown)
    pieces = [
        ["_" if hide else text.piece(i) for i, hide in zip(ids, row, strict=True)]
        for ids, row in zip(
            np.asarray(split["text"]),
            masked[..., words].reshape(frames * count, -1),
            strict=True,
        )
    ]
    return {
        "images": shown.reshape(frames, count, *shown.shape[1:]),
        "pieces": np.array(pieces).reshape(frames, count, -1),
    }


def show(drawn: dict[str, Samples], verdicts: dict[str, list[str | None]], folder) -> None:
    """Writes pictures, sheets and `samples.jsonl`, one line for each sample.

    verdicts: {task: for each sample the reason why it is wrong, or None}, for judged tasks only.
    """
    folder, lines, first = pathlib.Path(folder), [], []
    for task, s in drawn.items():
        reasons = verdicts.get(task)
        for i in range(len(s)):
            line = {"task": task, "index": i, "caption": s.captions[i] if s.captions else None}
            line |= _condition(task, s, i)
            if reasons:
                line |= {"right": reasons[i] is None, "reason": reasons[i]}
            line |= {"seed": s.about["seed"], "settings": s.about["settings"]}
            lines.append(json.dumps(line) + "\n")
        if s.images is None:
            continue
        captions = s.captions or [""] * len(s)
        marks = [reason is None for reason in reasons] if reasons else [None] * len(s)
        for i in range(min(PICTURES, len(s))):
            pixels.write_png(folder / f"{task}-{i:03d}.png", s.images[i])
        rows = list(zip(s.images[:SHOWN], captions, marks, strict=False))
        _sheet(folder / f"{task}-sheet.png", rows)
        first += rows[:PICTURES]
    _sheet(folder / "sheet.png", first)
    files.write_text(folder / "samples.jsonl", "".join(lines))


def _condition(task, s, i) -> dict:
    if task == "infill":
        return {"condition": {"item": i, "given": s.given_captions[i], "half": _side(s, i)}}
    given = {"t2i": "caption", "i2t": "image"}.get(task)
    return {"condition": {"item": i, "given": given}} if given else {}


def _side(s, i) -> str:
    """Which half of an image is free."""
    free = s.free_pixels[i]
    if free[0].all():
        return "upper"
    if free[-1].all():
        return "lower"
    return "left" if free[0, 0] else "right"


def _sheet(path, rows):
    shown, captions, marks = zip(*rows, strict=True)
    pixels.write_png(path, contact_sheet.sheet(shown, captions, marks=marks))
