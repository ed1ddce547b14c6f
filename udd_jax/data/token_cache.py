"""The token cache: every image and caption is tokenized once, then read in random batches.

    directory/
      manifest.json               about the tokens: source, settings, views, counts, checksums
      shard-00000.arrayrecord     one record an item: its views' codes, its captions' pieces, then
                                  the ids of each further modality, packed as one little-endian
                                  integer type
      shard-00000.json            the contents of that shard; written last, so that it is proof
      index.npy                   int64[items, 2]: position in the source, number of captions; and
                                  in a third column, if any item lacks an image or a value of a
                                  further modality, which ones: bit 0 the image, bit n the n-th
                                  further one. Their ids in the record are 0
      skipped.jsonl               one line for each fault: position, key, cause, detail

A shard covers a fixed range of the source and is written under a temporary name. A run that was
killed continues with the first shard without proof, and ends with the same bytes as an
uninterrupted run. Several processes may write at once, each its own shards: `write_shards` in each,
then `finish` in one. A group holds one record, records are not compressed, and one call reads many
of them: this makes reading fast, not the format.
"""

import collections
import contextlib
import hashlib
import json
import pathlib

import numpy as np
from array_record.python import array_record_module

from udd_jax.data import pixels, reading, token_checks
from udd_jax.errors import UserError, first_line
from udd_jax.runtime import files

_FORMAT = 1
_READER = "readahead_buffer_size:0,max_parallelism:1"


def write_cache(
    source, encode_images, encode_texts, directory, *, settings, views, skip_limit=0.01, **options
) -> "TokenCache":
    """Tokenizes a source, or the rest of it, into a cache: `write_shards`, then `finish`."""
    options |= {"settings": settings, "views": views, "skip_limit": skip_limit}
    write_shards(source, encode_images, encode_texts, directory, **options)
    return finish(directory, skip_limit)


def write_shards(
    source,
    encode_images,
    encode_texts,
    directory,
    *,
    settings: dict,
    views: reading.Views,
    encode_further: dict | None = None,
    batch_size: int = 64,
    shard_size: int = 32768,
    dtype: str = "uint16",
    skip_limit: float = 0.01,
    threads: int = 4,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    progress=lambda positions: None,
):
    """Writes the missing shards of this process.

    Args:
        source: a source of records.
        encode_images: uint8[batch_size, S, S, C] -> int32[batch_size, N].
        encode_texts: list of batch_size strings -> int32[batch_size, M].
        directory: of the cache.
        settings: everything else that the tokens depend on, in addition to the source and the
            views, above all the hashes of the tokenizers; JSON values.
        views: how pictures are cut.
        encode_further: {name: values of batch_size records -> int32[batch_size, length]}, for the
            modalities that `record.extra` has under these names; a value that a record lacks is
            None, and its ids are 0.
        batch_size: images, or captions, in an encode call; the last call is filled up.
        shard_size: source positions in a shard.
        dtype: of the stored tokens.
        skip_limit: the largest share of records (and of captions) that may be unusable.
        threads, workers: of the decoding.
        process_index, process_count: this process writes shards index, index + count, ...
        progress: called with the number of source positions finished since the last call.

    Raises:
        ValueError: the directory holds a cache of another source or with other settings, a token
            does not fit `dtype`, or more than `skip_limit` of the data is unusable.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    made_of = {
        "format": _FORMAT,
        "source": source.name,
        "source_hash": getattr(source, "hash", None),
        "records": len(source),
        "settings": settings,
        "views": views.recorded,
        "shard_size": shard_size,
        "dtype": dtype,
    }
    made_of = json.loads(json.dumps(made_of))
    if (manifest := _manifest(directory)) is not None:
        if made_of["source_hash"] == manifest["source_hash"] is not None:
            manifest["source"] = made_of["source"]  # the data moved
        token_checks.refuse_other(directory, manifest, made_of)
    elif process_index == 0:
        files.write_json(directory / "manifest.json", made_of | {"complete": False})
    encode_images = token_checks.in_batches(encode_images, batch_size, dtype)
    encode_texts = token_checks.in_batches(encode_texts, batch_size, dtype)
    encode_further = {
        name: token_checks.in_batches(encode, batch_size, dtype)
        for name, encode in sorted((encode_further or {}).items())
    }
    encoders = encode_images, encode_texts, encode_further
    for shard in range(process_index, _shards(made_of), process_count):
        start, stop = shard * shard_size, min((shard + 1) * shard_size, len(source))
        path = directory / f"shard-{shard:05d}.arrayrecord"
        proof = path.with_suffix(".json")
        if proof.exists() and not token_checks.refused(proof, skip_limit, source):
            progress(stop - start)
            continue
        if manifest and manifest["complete"]:  # some files are mended, and it is no longer
            files.write_json(directory / "manifest.json", made_of | {"complete": False})
        examples = reading.examples(source, start, stop, views, threads=threads, workers=workers)
        blank = np.zeros((views.count, *pixels.both(views.size), views.channels), np.uint8)
        proof = _write_shard(path, examples, encoders, batch_size, progress, blank)
        files.write_bytes(path.with_suffix(".json"), json.dumps(proof).encode())
        token_checks.check_faults(
            proof, skip_limit, len(source), path.with_suffix(".json"), part=True
        )


def finish(directory, skip_limit: float = 0.01) -> "TokenCache":
    """Joins the proofs of the shards into index, manifest and list of faults; opens the cache.

    Raises:
        ValueError: shards are missing, or too much of the data is unusable.
    """
    directory = pathlib.Path(directory)
    manifest = _manifest(directory)
    if manifest is None:
        raise UserError(f"{directory} holds no token cache, expected one to finish; write it")
    if manifest["complete"]:
        return TokenCache(directory)
    shards = []
    for shard in range(_shards(manifest)):
        path = directory / f"shard-{shard:05d}.json"
        if not path.exists():
            raise UserError(f"{directory} has no {path.name}; write the shards before finishing")
        shards.append(json.loads(path.read_text()))
    faults = [fault for shard in shards for fault in shard["faults"]]
    lines = "".join(json.dumps(fault) + "\n" for fault in faults)
    files.write_bytes(directory / "skipped.jsonl", lines.encode())
    whole = {"items": [item for shard in shards for item in shard["items"]], "faults": faults}
    try:
        where = directory / "skipped.jsonl"
        token_checks.check_faults(whole, skip_limit, manifest["records"], where)
    except ValueError:  # the shards with faults are written anew, in case the files are mended
        for shard in shards:
            if shard["faults"]:
                (directory / shard["file"]).with_suffix(".json").unlink()
        raise
    columns = max((len(item) for item in whole["items"]), default=2)
    rows = [[*item, 0][:columns] for item in whole["items"]]
    index = np.array(rows, np.int64).reshape(-1, columns)
    with files.open_atomic(directory / "index.npy") as file:
        np.save(file, index)
    for field in ("image_length", "text_length"):
        manifest[field] = max(shard[field] for shard in shards)
    if further := next((s["further"] for s in shards if "further" in s), None):
        manifest["further"] = further  # a shard without any item has none
    manifest["items"] = len(index)
    manifest["captions"] = int(index[:, 1].sum())
    manifest["faults"] = dict(collections.Counter(fault["cause"] for fault in faults))
    manifest["shards"] = [
        {"file": s["file"], "items": len(s["items"]), "bytes": s["bytes"], "sha256": s["sha256"]}
        for s in shards
    ]
    manifest["index_sha256"] = _sha256(directory / "index.npy")
    files.write_json(directory / "manifest.json", manifest | {"complete": True})
    return TokenCache(directory)


class TokenCache:
    """A finished cache, opened for reading.

    Attributes:
        manifest: dict, the content of manifest.json.
        views: number of views of an item; image_length, text_length: N and M.
        positions: int64[items], the position of each item in its source.
        captions: int64[items], the number of captions of each item; of 0, a row of padding is kept.
        lacking: {modality: bool[items], which items lack it}.

    Raises:
        ValueError: no cache, an unfinished one, other `settings`, or a damaged cache. With
            `verify`, each shard is compared with its checksum when it is first read.
    """

    def __init__(self, directory, settings: dict | None = None, verify: bool = True):
        self.directory = pathlib.Path(directory)
        self.manifest = _manifest(self.directory)
        if self.manifest is None or not self.manifest["complete"]:
            state = "no token cache" if self.manifest is None else "an unfinished token cache"
            raise UserError(f"{directory} holds {state}, expected a finished one; write it first")
        if settings is not None:
            settings = json.loads(json.dumps(settings))
            token_checks.refuse_other(self.directory, self.manifest, {"settings": settings})
        self._verify = verify
        self._compare("index.npy", self.manifest["index_sha256"])
        index = np.load(self.directory / "index.npy")
        self.positions, self.captions = index[:, 0], index[:, 1]
        self.views = self.manifest["views"]["count"]
        self.image_length = self.manifest["image_length"]
        self.text_length = self.manifest["text_length"]
        self.further = self.manifest.get("further", {})  # {modality: its length}
        bits = index[:, 2] if index.shape[1] > 2 else np.zeros(len(index), np.int64)
        names = enumerate(("image", *self.further))
        self.lacking = {name: (bits >> bit & 1).astype(bool) for bit, name in names}
        self.lacking["text"] = self.captions == 0
        self._dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self._starts = np.cumsum([0] + [shard["items"] for shard in self.manifest["shards"]])
        self._readers = {}

    def __len__(self) -> int:
        return len(self.positions)

    def pairs(self, indices, views, captions) -> dict[str, np.ndarray]:
        """One view and one caption of each item.

        Args:
            indices, views, captions: int64[B], numbers of the items, their views, their captions.

        Returns:
            {"image": int32[B, N], "text": int32[B, M]}, and for each further modality its name and
            int32[B, length].
        """
        image = np.empty((len(indices), self.image_length), np.int32)
        text = np.empty((len(indices), self.text_length), np.int32)
        image_starts = np.asarray(views) * self.image_length
        text_starts = self.views * self.image_length + np.asarray(captions) * self.text_length
        further = {n: np.empty((len(indices), m), np.int32) for n, m in self.further.items()}
        rows = zip(self._records(indices), image_starts.tolist(), text_starts.tolist(), strict=True)
        for row, (record, image_start, text_start) in enumerate(rows):
            image[row] = record[image_start : image_start + self.image_length]
            text[row] = record[text_start : text_start + self.text_length]
            start = len(record) - sum(self.further.values())
            for name, length in self.further.items():
                further[name][row] = record[start : start + length]
                start += length
        return {"image": image, "text": text, **further}

    def read(self, indices) -> dict[str, np.ndarray]:
        """All views and captions of each item.

        Args:
            indices: int64[B].

        Returns:
            {"image": int32[B, views, N], "text": int32[B, C, M], "captions": int64[B]}: C is the
            largest number of captions in the cache; an item with fewer captions repeats them.
        """
        indices = np.asarray(indices)
        most, middle = int(self.captions.max()), self.views * self.image_length
        image = np.empty((len(indices), self.views, self.image_length), np.int32)
        text = np.empty((len(indices), most, self.text_length), np.int32)
        for row, record in enumerate(self._records(indices)):
            image[row] = record[:middle].reshape(image.shape[1:])
            last = len(record) - sum(self.further.values())
            own = record[middle:last].reshape(-1, self.text_length)
            text[row] = own[np.arange(most) % len(own)]
        return {"image": image, "text": text, "captions": self.captions[indices]}

    def _records(self, indices) -> list[np.ndarray]:
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"item {indices.min()}..{indices.max()} of a cache of {len(self)}")
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        records = [None] * len(indices)
        for shard in np.unique(shards).tolist():
            rows = np.flatnonzero(shards == shard)
            found = self._reader(shard).read((indices[rows] - self._starts[shard]).tolist())
            for row, record in zip(rows.tolist(), found, strict=True):
                records[row] = np.frombuffer(record, self._dtype)
        return records

    def _reader(self, shard: int):
        if shard not in self._readers:
            entry = self.manifest["shards"][shard]
            self._compare(entry["file"], entry["sha256"])
            path = str(self.directory / entry["file"])
            self._readers[shard] = array_record_module.ArrayRecordReader(path, _READER)
        return self._readers[shard]

    def _compare(self, file: str, expected: str):
        path = self.directory / file
        if not path.exists():
            raise UserError(f"{path} is missing; delete {self.directory} and tokenize again")
        if self._verify and _sha256(path) != expected:
            raise UserError(
                f"{path} is damaged (its sha256 is not the manifest's); "
                f"delete {self.directory} and tokenize again"
            )


def _write_shard(path, *args) -> dict:
    with files.whole(path) as partial:
        proof = {"file": path.name} | _write_records(partial, *args)
    return proof | {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _write_records(partial, examples, encoders, batch_size, progress, blank) -> dict:
    """blank: uint8[views, S, S, C], encoded in place of a picture that an item lacks."""
    encode_images, encode_texts, encode_further = encoders
    with _writing(partial):
        writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
    proof = {"items": [], "faults": [], "image_length": 0, "text_length": 0}

    def write(batch):
        shown = [blank if e.pixels is None else e.pixels for e in batch]
        image = encode_images(np.concatenate(shown))
        captions = [example.captions or ("",) for example in batch]  # a row of padding for none
        text = encode_texts([caption for own in captions for caption in own])
        proof["image_length"], proof["text_length"] = image.shape[1], text.shape[1]
        for codes, example in zip(image.reshape(len(batch), -1), batch, strict=True):
            codes *= example.pixels is not None
        images = np.split(image, np.cumsum([len(views) for views in shown])[:-1])
        texts = np.split(text, np.cumsum([len(own) for own in captions])[:-1])
        further = {
            name: encode([example.extra.get(name) for example in batch])
            for name, encode in encode_further.items()
        }
        if further:
            proof["further"] = {name: rows.shape[1] for name, rows in further.items()}
        with _writing(partial):
            for row in zip(images, texts, *further.values(), strict=True):
                writer.write(b"".join(part.tobytes() for part in row))
        proof["items"] += [_index(example, tuple(further)) for example in batch]

    batch, done = [], 0
    for example in examples:
        for cause, detail in example.faults:
            fault = {"position": example.position, "key": example.key}
            proof["faults"].append(fault | {"cause": cause, "detail": detail})
        done += 1
        if example.usable:
            batch.append(example)
        if len(batch) == batch_size:
            write(batch)
            progress(done)
            batch, done = [], 0
    if batch:
        write(batch)
    with _writing(partial):
        writer.close()
    progress(done)
    return proof


def _index(example, further: tuple[str, ...]) -> tuple[int, ...]:
    """The row of an item in the index."""
    gone = [example.pixels is None, *(name not in example.extra for name in further)]
    bits = sum(1 << bit for bit, lacks in enumerate(gone) if lacks)
    return (example.position, len(example.captions), *([bits] if bits else []))


@contextlib.contextmanager
def _writing(partial):
    """Turns errors of ArrayRecord, such as a full disk, into one line."""
    try:
        yield
    except RuntimeError as error:
        cause = first_line(error)
        raise OSError(f"{partial}: {cause}; make room and run again to continue") from None


def _shards(manifest: dict) -> int:
    return -(-manifest["records"] // manifest["shard_size"])


def _manifest(directory: pathlib.Path) -> dict | None:
    path = directory / "manifest.json"
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path} is damaged; delete {directory} and tokenize again") from None


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
