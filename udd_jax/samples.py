"""The samples that an evaluation rests on: made once, kept, and looked at again.

Six tasks, all from one sampler and one compilation. Conditions are held-out items, in order; item b
of a task draws from its own key. Every task's samples are kept in `samples/TASK.npz`:

    tokens int32[n, L]; calls int32[n]; images uint8[n, S, S, 3]; captions str[n]
    kept bool[n]               whether every given token is in the result, bit for bit
    given_images, given_captions, free_pixels bool[n, S, S]         infilling: what was to be kept
    about                      JSON: what the samples depend on, and the seconds that they took

`images` and `captions` are the two that are to agree: what was generated, and what it was generated
from (the image itself, not its reconstruction). A modality that is absent is not there.

A file whose `about` is what would be asked for again is read, not made again. Beside these files
stand `trace.npz` (how some pairs came about: images uint8[FRAMES, n, S, S, 3] and pieces
str[FRAMES, n, M]), `reconstructions.npz`, pictures, sheets, and `samples.jsonl`.
"""

import dataclasses
import hashlib
import json
import pathlib
import time

import numpy as np

from udd_jax import checkpoint, images, tasks
from udd_jax.data import reading, sources

TASKS = ("t2i", "i2t", "pair", "infill", "image", "text")
TRACED, FRAMES = 4, 8  # pairs whose way is kept, and at how many times
PICTURES, SHOWN = 8, 32  # samples of a task kept as PNG files, and shown on its sheet
_GREY = 160  # a cell whose code is still masked


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Held-out items in the order of their source.

    name: of the source; images: uint8[n, S, S, 3]; captions: the first of each, as the text
    tokenizer gives it back; codes: int32[n, N], ids: int32[n, M]; extra: the records' own;
    hash: of keys, pictures and captions.
    """

    name: str
    images: np.ndarray
    captions: list[str]
    codes: np.ndarray
    ids: np.ndarray
    extra: list[dict]
    hash: str

    def __len__(self) -> int:
        return len(self.captions)


def held_out(pipe, count: int, split: str = "test") -> Items:
    """The first `count` items of a split that can be read; fewer where there are not so many.

    Raises:
        ValueError: there is none.
    """
    source = sources.open_source(pipe.config.data, split, **pipe.config.data_options)
    views = reading.Views(pipe.config.image_size)
    digest, pixels, captions, extra = hashlib.sha256(), [], [], []
    for position in range(len(source)):
        if len(captions) == count:
            break
        example = reading.example(source, position, views)
        if example.pixels is None:
            continue
        pixels.append(example.pixels[0])
        captions.append(example.captions[0])
        extra.append(source[position].extra)
        digest.update(f"{example.key}\0{captions[-1]}\0".encode() + pixels[-1].tobytes())
    if not captions:
        raise ValueError(f"data {pipe.config.data!r} has no readable item in split {split!r}")
    pixels = np.stack(pixels)
    ids = pipe.text.encode(captions, pipe.text_length)
    captions = pipe.decode_text(ids)
    name, codes = source.name, pipe.image.encode(pixels)
    return Items(name, pixels, captions, codes, ids, extra, digest.hexdigest()[:16])


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one task; the fields are those of its file."""

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


def obtain(pipe, items: Items, task: str, path, *, count, batch_size, seed, made_of) -> Samples:
    """The samples of a task, from its file if that fits, else made and kept.

    `count` of those that need no condition, and at most as many as there are items of those that
    do. `made_of`: hashes of weights and tokenizers. Pairs leave `trace.npz` beside their file.
    """
    path = pathlib.Path(path)
    wanted = {
        "task": task,
        "count": count if task in ("pair", "image", "text") else min(count, len(items)),
        "batch_size": batch_size,
        "seed": seed,
        "settings": dataclasses.asdict(pipe.settings()),
        "items": items.hash,
        **made_of,
    }
    wanted = json.loads(json.dumps(wanted))
    found = load(path)
    if found and {**found.about, "seconds": None} == {**wanted, "seconds": None}:
        return found
    started = time.perf_counter()
    made, states = _generate(pipe, items, task, wanted["count"], batch_size, seed)
    wanted["seconds"] = round(time.perf_counter() - started, 3)
    made = dataclasses.replace(made, about=wanted)
    if task == "pair":
        write(path.with_name("trace.npz"), _frames(pipe, states, made.tokens))
    arrays = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    write(path, arrays | {"about": json.dumps(wanted)})
    return made


def load(path) -> Samples | None:
    """What a file holds; None where there is none, or where it is no such file."""
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except (FileNotFoundError, ValueError, OSError, EOFError):
        return None
    for name in ("captions", "given_captions"):
        if name in arrays:
            arrays[name] = arrays[name].tolist()
    return Samples(**{**arrays, "about": json.loads(str(arrays["about"]))})


def write(path, arrays: dict) -> None:
    """An .npz file of those arrays that are not None; a string becomes one, as NumPy has it."""
    with checkpoint.open_atomic(path) as file:
        np.savez_compressed(file, **{k: v for k, v in arrays.items() if v is not None})


def _generate(pipe, items, task, count, batch_size, seed):
    """Returns (Samples without `about`, states of the first)."""
    first, given, extra = slice(count), {}, {}
    masks = tasks.masks(pipe.vocab, task, count)
    if task == "t2i":
        given["text"] = items.ids[first]
    if task == "i2t":
        given["image"] = items.codes[first]
    if task == "infill":
        halves, blanks = _holes(items.captions[first], items.images.shape[1], seed)
        hidden = [images.hide(i, hole) for i, hole in zip(items.images, halves, strict=False)]
        words = [pipe.text.encode_with_blanks(blank, pipe.text_length) for blank in blanks]
        given["image"] = pipe.image.encode(np.stack(hidden))
        given["text"] = np.stack([ids for ids, _ in words])
        cells = [images.code_mask(hole, pipe.image.grid).reshape(-1) for hole in halves]
        free = np.concatenate([np.stack(cells), np.stack([blank for _, blank in words])], axis=1)
        masks = masks._replace(free=free)
        extra = {"given_images": items.images[first], "given_captions": blanks}
        extra["free_pixels"] = halves
    pairs = pipe.generate(
        task, count, masks=masks, seed=seed, batch_size=batch_size, trace=FRAMES, **given
    )
    captions = None if pairs.captions is None else list(pairs.captions)
    shown = items.images[first] if task == "i2t" else pairs.images
    kept = _kept(pipe.vocab, pairs.tokens, given, np.asarray(masks.free)) if given else None
    samples = Samples(pairs.tokens, pairs.calls, {}, shown, captions, kept, **extra)
    return samples, pairs.states[:, :TRACED]


def _holes(captions, size, seed):
    """A half of each image, left, right, upper or lower, and `___` for half of the words."""
    halves, blanks = np.zeros((len(captions), size, size), bool), []
    for i, (half, caption) in enumerate(zip(halves, captions, strict=True)):
        rng = np.random.default_rng((seed, i))
        side = rng.integers(4)
        rows = half if side < 2 else half.T
        rows[size // 2 * (side % 2) : size // 2 * (1 + side % 2)] = True
        words = caption.split()
        for word in rng.permutation(len(words))[: (len(words) + 1) // 2]:
            words[word] = "___"
        blanks.append(" ".join(words))
    return halves, blanks


def _kept(vocab, tokens, given, free):
    """Whether every position that is not free holds the token that was given: bool[n]."""
    kept = np.ones(len(tokens), bool)
    for m, (modality, where) in enumerate(zip(vocab.modalities, vocab.slices, strict=True)):
        if modality.name in given:
            same = tokens[:, where] == given[modality.name] + vocab.offsets[m]
            kept &= (same | free[:, where]).all(axis=1)
    return kept


def _frames(pipe, states, tokens):
    """How pairs came about: images uint8[FRAMES, n, S, S, 3], pieces str[FRAMES, n, M].

    A masked code is a grey cell, a masked token `_`. A decoder looks at neighbouring codes too, so
    that under the grey the finished picture is decoded.
    """
    frames, count = states.shape[:2]
    final = np.broadcast_to(tokens[None, :count], states.shape)
    masked = states == pipe.vocab.mask_id
    split = pipe.vocab.split(np.where(masked, final, states).reshape(frames * count, -1))
    picture = pipe.vocab.slices[pipe.vocab.index("image")]
    words = pipe.vocab.slices[pipe.vocab.index("text")]
    shown = pipe.image.decode(np.asarray(split["image"]))
    (rows, columns), size = pipe.image.grid, shown.shape[1]
    cells = masked[..., picture].reshape(-1, rows, columns)
    hidden = cells.repeat(size // rows, axis=1).repeat(size // columns, axis=2)
    shown = np.where(hidden[..., None], np.uint8(_GREY), shown)
    pieces = [
        ["_" if hide else pipe.text.piece(i) for i, hide in zip(ids, row, strict=True)]
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
    """Pictures, sheets and `samples.jsonl`, a line a sample.

    verdicts: for a task, of each sample why it is wrong, None where it is right; a task that was
    not judged is not in it.
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
            images.write_png(folder / f"{task}-{i:03d}.png", s.images[i])
        rows = list(zip(s.images[:SHOWN], captions, marks, strict=False))
        _sheet(folder / f"{task}-sheet.png", rows)
        first += rows[:PICTURES]
    _sheet(folder / "sheet.png", first)
    checkpoint.write_text(folder / "samples.jsonl", "".join(lines))


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
    images.write_png(path, images.sheet(shown, captions, marks=marks))
