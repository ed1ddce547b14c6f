"""The held-out items of an evaluation, in the order of their split."""

import dataclasses
import hashlib
import pathlib

import numpy as np
from flax import traverse_util

from udd_jax import command_line, modalities
from udd_jax.data import reading, sources, survey
from udd_jax.data.sources import listing
from udd_jax.data.sources.worlds import World
from udd_jax.errors import UserError
from udd_jax.runtime import files, logbook
from udd_jax.sampling import settings as sampling

MEASURED = {"split": "test", "only": "", "category": ""}  # fields of `evaluate`: which items


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Held-out items in the order of their source.

    Attributes:
        name: of the source.
        images: uint8[n, S, S, C]; None if the items were not asked for their images.
        captions: the first caption of each item, encoded and decoded by the text tokenizer.
        codes, ids: int32[n, N], int32[n, M], local ids; None as images, and [] and None as texts.
            Of a picture of two levels, N are the codes of both (`Vocab.parts`).
        extra: the fields `extra` of the records.
        hash: of keys, images, captions and the values of `extra` that are modalities.
        keys: of the records.
        references: all captions of each item, as written.
        world: the embedded world that can check samples, or None.
        further: {name: int32[n, length]}, local ids of the modalities besides image and text.
        left_out: the keys of items that were here (`without`).
    """

    name: str
    images: np.ndarray
    captions: list[str]
    codes: np.ndarray
    ids: np.ndarray
    extra: list[dict]
    hash: str
    keys: list[str]
    references: list[tuple[str, ...]]
    world: World | None = None
    further: dict = dataclasses.field(default_factory=dict)
    left_out: frozenset = frozenset()

    @property
    def tokens(self) -> dict[str, np.ndarray]:
        """{modality: int32[n, length]}, local ids."""
        found = {"image": self.codes, "text": self.ids, **self.further}
        return {name: ids for name, ids in found.items() if ids is not None}

    def values(self, name: str):
        """The n values of a modality, as they are in the data."""
        own = {"image": self.images, "text": self.captions}
        if name not in own and name not in self.extra[0]:  # a length
            return self.further[name][:, 0]
        return own[name] if name in own else np.stack([extra[name] for extra in self.extra])

    @property
    def scenes(self) -> list:
        """The scenes of the items, for an embedded world."""
        return [extra["scene"] for extra in self.extra]

    def __len__(self) -> int:
        return len(self.keys)

    def without(self, numbers) -> "Items":
        """The items but those of these numbers; the hash says which are left out."""
        left_out = set(numbers)
        kept = [i for i in range(len(self)) if i not in left_out]
        lists = ("captions", "extra", "keys", "references")
        changed = {name: [own[i] for i in kept] for name in lists if (own := getattr(self, name))}
        arrays = {name: getattr(self, name) for name in ("images", "codes", "ids")}
        changed |= {name: own[kept] for name, own in arrays.items() if own is not None}
        changed["further"] = {name: ids[kept] for name, ids in self.further.items()}
        changed["left_out"] = self.left_out | {self.keys[i] for i in left_out}
        digest = hashlib.sha256(f"{self.hash} without {sorted(numbers)}".encode()).hexdigest()[:16]
        return dataclasses.replace(self, hash=digest, **changed)


def read(pipe, count: int, split: str = "", names=None) -> Items:
    """The first `count` readable items of a split, by default of `evaluate.split`; maybe fewer.

    With `evaluate.only`, "field=value", only items whose record has this value. names: the
    modalities that an item must have, and has; by default all.

    Raises:
        ValueError: there are no such items.
    """
    digest, found = hashlib.sha256(), []
    asked = {
        *modalities.recorded(pipe.config, names or ()),
        *(names or modalities.rows(pipe.config)),
    }
    for example in stream(pipe, count, split, names):
        caption = (*example.captions, "")[0]
        digest.update(f"{example.key}\0{caption}\0".encode())
        if example.pixels is not None:
            digest.update(example.pixels[0].tobytes())
        for name in sorted(asked & {*modalities.stored(pipe.config)}):
            digest.update(np.ascontiguousarray(example.extra[name]).tobytes())
        found.append((example.key, example.pixels, example.captions, example.extra))
    keys, pixels, references, extra = map(list, zip(*found, strict=True))
    images = codes = ids = None
    captions, tokens = [], {m.name: _masks(m, len(keys)) for m in pipe.vocab.modalities}
    if "image" in asked:
        images = np.stack([views[0] for views in pixels])
        codes = pipe.codecs["image"].encode(images)
        if (coarse := pipe.vocab.coarse) is not None:
            tokens[coarse.name] = pipe.vocab.parts({"image": codes})[coarse.name]
    if "text" in asked:
        firsts = [texts[0] for texts in references]
        tokens["text"] = ids = pipe.codecs["text"].encode(firsts, strict=False)
        captions = pipe.codecs["text"].decode(ids)
    for name in modalities.stored(pipe.config):
        if name in asked:
            values = np.stack([fields[name] for fields in extra])
            tokens[name] = pipe.codecs[name].encode(values, strict=False)
    pad_id = pipe.tokenizers["text"].pad_id
    tokens = modalities.complete(pipe.config, pipe.vocab, tokens, pad_id)
    further = {name: tokens[name] for name in modalities.further(pipe.config) if name in asked}
    measured = source(pipe, split or split_of(pipe))
    world = getattr(measured, "world", None)
    if world and world.image_size != modalities.image_size(pipe.config):
        world = None  # it can read only images of its own size
    about = (extra, digest.hexdigest()[:16], keys, references, world, further)
    return Items(measured.name, images, captions, codes, ids, *about)


def _masks(modality, count: int) -> np.ndarray:
    """int32[count, length], the ids of items that lack a modality, as in a batch."""
    length = modality.length * (modality.inputs or 1)
    return np.full((count, length), modality.classes, np.int32)


def whole(pipe) -> bool:
    """Whether any record of the measured split may have a value of every modality."""
    return survey.whole(source(pipe, split_of(pipe)))


def split_of(pipe) -> str:
    """The split that is measured. An old config has no such field; then it is "test"."""
    return pipe.config.evaluate.get("split", "test")


def typed(pipe, workdir, fields: dict):
    """The pipeline with fields of its config that were typed, {field: value}.

    `data` and `data_options` may name another place of the data that the run was trained on: a
    person has moved them. UserError, one line, if other data are there.
    """
    sections = traverse_util.unflatten_dict(fields, sep=".")
    other = pipe.with_config(**sections)
    for line in command_line.prefer_typed(other.config, fields):
        logbook.say(line)
    named = [name for name in ("data", "data_options") if name in sections]
    if all(other.config[name] == pipe.config[name] for name in named):
        return other
    flags = " ".join(f"--config.{n}={v}" for n, v in fields.items() if n.partition(".")[0] in named)
    there = {split: source(other, split) for split in listing.SPLITS}
    path, world = pathlib.Path(workdir) / survey.FILE, pipe.config.data in sources.WORLDS
    if not path.exists() and not world:
        logbook.say(f"{flags}: no {survey.FILE} in the run says if it knows them")
    elif world or not survey.same(files.read_json(path), there):
        raise UserError(
            f"{flags} are other data than those of this run ({pipe.config.data}), whose names, "
            "captions and splits decide: name the place of the same data, or leave it out"
        )
    return other


def require_read(pipe, fields: dict) -> None:
    """UserError, one line, for a typed setting of the sampler that no rule of the run reads.

    fields: of `typed`, which the pipeline has.
    """
    typed = command_line.of_section(fields, "sample")
    pipe.settings(**typed)  # the baseline has one sampler
    chains = [pipe.settings(rule) for rule in (None, *pipe.config.get("sample_rules", {}))]
    sampling.require_read(chains, typed, "--config.sample.")


def measurable(pipe, data=None):
    """The pipeline, which measures training pictures if the split it asks for has none at all.

    data: {split: source}; opened if not given.
    """
    split = pipe.config.evaluate.get("split", "test")
    if split == "train" or len(data[split] if data else source(pipe, split)):
        return pipe
    logbook.say(
        f"evaluation: the split {split} has no pictures, so those of the training are measured: "
        "the numbers say how well they are remembered"
    )
    return pipe.with_config(evaluate={"split": "train"})


def source(pipe, split: str, **options):
    """A split of the run's data; `options` replace those of the config."""
    options = modalities.source_options(pipe.config) | options
    return sources.open_source(pipe.config.data, split, **options)


def stream(pipe, count: int, split: str = "", names=None, without=frozenset()):
    """Yields the examples of the items of `read`, one at a time; without: keys of none of them."""
    split = split or split_of(pipe)
    records = source(pipe, split)
    views = modalities.views(pipe.config, incomplete=names is not None)
    wanted = modalities.recorded(pipe.config, names or ("image",))
    field, _, value = pipe.config.evaluate.get("only", "").partition("=")
    left = count
    for position in range(len(records)):
        if left == 0:
            return
        if field and not _is(records, position, field, value):
            continue
        example = reading.example(records, position, views)
        if _has(example, wanted) and example.key not in without:
            left -= 1
            yield example
    if left == count:
        only = f" with {field} = {value}" if field else ""
        only += f" that has {' and '.join(names)}" if names else ""
        raise UserError(f"data {pipe.config.data!r} has no readable item{only} in split {split!r}")


def _is(records, position: int, field: str, value: str) -> bool:
    """Whether a record can be read and has the value in a field; its picture is not decoded."""
    try:
        return str(records[position].extra.get(field)) == value
    except (OSError, ValueError):
        return False


def _has(example, names) -> bool:
    """Whether an example has a value of each of some modalities; what it lacks may be anything."""
    own = {"image": example.pixels is not None, "text": bool(example.captions)}
    return all(own.get(name, name in example.extra) for name in names)
