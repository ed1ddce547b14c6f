"""A data set of pictures with a vector each, written so that a killed command goes on.

    directory/
      train/0012-KEY.png    the picture: the file of the source as it is, or its pixels as a PNG
      train/0012-KEY.txt    its captions, one a line
      train/0012-KEY.npy    its vector, float32[E]
      validation/, test/    the same
      skipped.jsonl         one line for each fault: split, position, key, cause, detail
      .vectors/             what the vectors are made of, and a proof of each finished block

`folder:directory` reads it, each record with an embedding of any name (`sources/folder.py`). Its
splits and the order of its records are those of the source: 0012 is the position in the split. A
block is a fixed range of positions, encoded at once. Its proof is written last, and a block without
proof is written anew, so the bytes do not depend on where a command was stopped.
"""

import collections
import concurrent.futures
import io
import json
import os
import pathlib
import re

import numpy as np

from udd_jax.data import arrays, pixels, reading, token_checks
from udd_jax.errors import UserError
from udd_jax.runtime import files, lock, logbook

HOME, SKIPPED = ".vectors", "skipped.jsonl"  # a source does not read names that begin with a dot
BLOCK = 256  # positions
OF_VIEWS = ("size", "min_side", "max_characters", "channels")  # what vectors depend on


def write(
    data: dict,
    embed,
    directory,
    *,
    settings: dict,
    views: reading.Views,
    skip_limit=token_checks.LIMIT,
    threads=8,
) -> dict:
    """Writes the records of all splits, or the rest of them.

    Args:
        data: {split: source}.
        embed: pictures uint8[n, S, S, C] -> float32[n, E], row by row.
        directory: an empty folder, a new one, or what an earlier call left.
        settings: what the vectors depend on besides data and views, such as hashes; JSON values.
        views: the size S, the channels C, and what makes a record unusable. Only the plain view is
            encoded.
        skip_limit: the largest share of records (and of captions) that may be unusable.
        threads: number of threads that read and write files.

    Returns:
        {split: {"vectors": their number, "captions": theirs, "causes": {cause: count} of faults}}

    Raises:
        ValueError, one line: the folder has other files, or vectors of other data; or more than
        `skip_limit` of a split is unusable.
    """
    files.require_disk(directory)
    directory = pathlib.Path(directory)
    made_of = {
        "data": {s: getattr(source, "hash", None) or source.name for s, source in data.items()},
        "records": {split: len(source) for split, source in data.items()},
        "views": {n: value for n, value in views.recorded.items() if n in OF_VIEWS},
        "incomplete": views.incomplete,
        **settings,
    }
    _check(directory, json.loads(json.dumps(made_of)))
    with lock.hold(directory, logbook.say, "--out"):
        files.write_json(directory / HOME / "settings.json", made_of)
        found, faults = {}, []
        for split, source in data.items():
            proofs = _write_split(directory, split, source, embed, views, threads)
            whole = {"items": [], "faults": []}
            for proof in map(files.read_json, proofs):
                for name, rows in whole.items():
                    rows += proof[name]
            faults += [{"split": split} | fault for fault in whole["faults"]]
            lines = "".join(json.dumps(fault) + "\n" for fault in faults)
            files.write_text(directory / SKIPPED, lines)
            _check_faults(whole, proofs, skip_limit, len(source), directory / SKIPPED)
            found[split] = _counts(whole)
    return found


def _check(directory: pathlib.Path, made_of: dict) -> None:
    """UserError for a folder with other files, or with vectors of something else."""
    there = directory / HOME / "settings.json"
    if not there.exists():
        if any(path.name not in (lock.FILE, HOME) for path in _entries(directory)):
            raise UserError(f"--out={directory} has other files: name an empty folder or a new one")
        return
    then = files.read_json(there)
    for name, now in made_of.items():
        if then.get(name) != now:
            raise UserError(
                f"--out={directory} has vectors of something else ({name} is {then.get(name)} "
                f"there and {now} now): name another folder, or delete this one"
            )


def _entries(directory: pathlib.Path) -> list[pathlib.Path]:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--out={directory} is a file, expected a folder")
    return list(directory.iterdir()) if directory.exists() else []


def _write_split(directory, split: str, source, embed, views, threads: int) -> list[pathlib.Path]:
    """Writes the blocks of a split that lack their proof -> the proofs of all of them."""
    proofs = []
    with (
        logbook.progress(len(source), f"vectors, {split}", unit="record") as bar,
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        for start in range(0, len(source), BLOCK):
            block = range(start, min(start + BLOCK, len(source)))
            proofs.append(directory / HOME / f"{split}-{start}.json")
            if not proofs[-1].exists():
                read = list(pool.map(lambda at: _read(source, at, views), block))
                seen = [example.pixels[0] for _, example in read if example.pixels is not None]
                found = iter(embed(np.stack(seen)) if seen else ())
                vectors = [e.pixels is not None and next(found) for _, e in read]
                names = [_name(source, example) for _, example in read]
                contents = list(map(_contents, read, vectors))
                list(pool.map(lambda n, c: _write(directory / split, n, c), names, contents))
                files.write_json(proofs[-1], _proof([example for _, example in read]))
            bar.update(len(block))
    return proofs


def _read(source, position: int, views) -> tuple:
    """(the record as it is or None, its `reading.Example`); reads it once, if it can be read."""
    try:
        record = source[position]
    except (OSError, ValueError):
        return None, reading.example(source, position, views)  # with its fault
    return record, reading.example({position: record}, position, views)


def _name(source, example: reading.Example) -> str:
    """A file name without ending or dot: the position, and what of the key is safe anywhere."""
    key, end = os.path.splitext(example.key)
    key = key if end.lower() in pixels.suffixes() else example.key
    safe = re.sub(r"[^A-Za-z0-9_-]+", "_", key)[:80]
    return f"{example.position:0{len(str(len(source)))}}-{safe}"


def _contents(read: tuple, vector) -> dict[str, bytes]:
    """{ending: content} of the files of one record; {} if it is unusable."""
    (record, example), found = read, {}
    if example.pixels is not None:
        found |= _picture(record.image, example.pixels.shape[-1])
        file = io.BytesIO()
        np.save(file, np.asarray(vector, np.float32))
        found[arrays.SUFFIX] = file.getvalue()
    if example.captions:
        found[".txt"] = "".join(f"{caption}\n" for caption in example.captions).encode()
    return found


def _picture(image, channels: int) -> dict[str, bytes]:
    """{ending: content} of the file of a picture, which is kept as it is if it is one."""
    if end := pixels.ending(image):
        return {end: image}
    image = pixels.read(image, channels) if isinstance(image, bytes) else image
    return {".png": pixels.encode_png(image)}


def _write(folder: pathlib.Path, name: str, contents: dict) -> None:
    for end, content in contents.items():
        files.write_bytes(folder / f"{name}{end}", content)


def _proof(examples: list[reading.Example]) -> dict:
    """As `token_checks` takes it; an item is position, captions and whether it has a vector."""
    items = [[e.position, len(e.captions), e.pixels is not None] for e in examples if e.usable]
    faults = [
        {"position": e.position, "key": e.key, "cause": cause, "detail": detail}
        for e in examples
        for cause, detail in e.faults
    ]
    return {"items": items, "faults": faults}


def _check_faults(whole: dict, proofs, limit: float, records: int, where) -> None:
    """UserError if too much is unusable; what has faults is then read again by the next call."""
    try:
        token_checks.check_faults(whole, limit, records, where)
    except ValueError:
        for path in proofs:
            if files.read_json(path)["faults"]:
                path.unlink()
        raise


def _counts(whole: dict) -> dict:
    return {
        "vectors": sum(has for _, _, has in whole["items"]),
        "captions": sum(captions for _, captions, _ in whole["items"]),
        "causes": dict(collections.Counter(fault["cause"] for fault in whole["faults"])),
    }
