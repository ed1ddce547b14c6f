"""The modalities of a run: the rows of `config.modalities`, and what their kinds are.

    c.modalities.voice = {"kind": "sound", "rate": 8000, ...}
    c.modalities.first = {"like": "image"}      # a reference: another picture

Every run has an image and a text. A further modality is a row, and a further kind an entry of
`KINDS`. A reference has the kind, the tokenizer, the classes, the embeddings and the head of the
modality that it is like, and positions of its own. The kind `coarse` is the coarse level of the
picture: the image tokenizer then has two levels, and the tokens of `image` are those of the fine
one.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from udd_jax import fields
from udd_jax.data import pixels, reading
from udd_jax.data.sources import beside, readers
from udd_jax.errors import UserError
from udd_jax.tokenizers import (
    embedding_tokenizer,
    image_tokenizer,
    length_tokenizer,
    text_tokenizer,
)
from udd_jax.tokenizers.feature_tokenizer import FeatureTokenizer
from udd_jax.tokenizers.layout_tokenizer import LayoutTokenizer
from udd_jax.tokenizers.length_tokenizer import LengthTokenizer
from udd_jax.tokenizers.sound_tokenizer import SoundTokenizer
from udd_jax.tokenizers.spectrogram import Spectrogram

CHANNELS = 3  # of pictures, in a config from before there was such a field
TEXT, IMAGE = "text.model", "vq/tokenizer"  # in the folder of a run


class Kind(NamedTuple):
    """How a kind of modality is stored, loaded and laid out.

    file: of its tokenizer in the folder of a run, with {name} for that of the modality; "" if
    there is none. load: (path, row) -> tokenizer, with `row` an entry of `config.modalities`.
    shape: (tokenizer, config) -> length, classes, grid or None. own: {setting that a row may have:
    its type and range}. more: config -> settings that it always has. counted: (ids of the text
    int32[n, M], padding id) -> ids, for a kind that is not stored with the data but follows from
    the text. level: whether its ids come with those of the image.
    """

    file: str
    load: Callable[[pathlib.Path, dict], Any]
    shape: Callable[[Any, Any], tuple]
    own: Mapping[str, fields.Field] = {}
    more: Callable[[Any], dict] = lambda config: {}
    counted: Callable[[Any, int], Any] | None = None
    level: bool = False


def _in_grid(tokenizer, config):
    return math.prod(tokenizer.grid), tokenizer.codes, tuple(tokenizer.grid)


def _without(channels: int) -> dict:
    """The channels of pictures as settings; {} for the usual ones."""
    return {} if channels == CHANNELS else {"channels": channels}


KINDS = {
    "image": Kind(
        IMAGE,
        lambda path, row: image_tokenizer.load(path),
        _in_grid,
        more=lambda config: _without(channels=image_channels(config)),
    ),
    "text": Kind(
        TEXT,
        lambda path, row: text_tokenizer.load(path),
        lambda tokenizer, config: (config.text.length, tokenizer.vocab_size, None),
    ),
    "sound": Kind(
        "{name}/tokenizer",
        lambda path, row: SoundTokenizer(Spectrogram.of(row), image_tokenizer.load(path)),
        _in_grid,
        fields.SOUND,
    ),
    "layout": Kind(
        "",
        lambda path, row: LayoutTokenizer(tuple(row["grid"]), row["classes"]),
        _in_grid,
        fields.LAYOUT,
    ),
    "length": Kind(
        "",
        lambda path, row: LengthTokenizer(row["most"]),
        lambda tokenizer, config: (1, config.text.length + 1, None),
        more=lambda config: {"most": config["text"]["length"]},
        counted=lambda ids, pad_id: length_tokenizer.count(ids, pad_id)[:, None],
    ),
    "embedding": Kind(
        "{name}/tokenizer",
        lambda path, row: embedding_tokenizer.load(path),
        lambda tokenizer, config: (tokenizer.residuals, tokenizer.codes, None),
        fields.EMBEDDING,
    ),
    "features": Kind(
        "",
        lambda path, row: FeatureTokenizer(row["count"], row["width"]),
        lambda tokenizer, config: (tokenizer.count, 1, None),
        fields.FEATURES,
    ),
    "coarse": Kind(
        IMAGE,
        lambda path, row: image_tokenizer.coarse(image_tokenizer.load(path), path),
        _in_grid,
        fields.COARSE,
        level=True,
    ),
}
NEEDS = {  # {kind: (settings without which there is no such modality, an example)}
    "layout": (("grid", "classes"), "(8, 8) and 4"),
    "features": (("count", "width"), "1 and 512"),
    "embedding": (("dimensions", "residuals", "codes"), "512, 4 and 256"),
}
ALONE = ("length", "features", "coarse")  # kinds that have no references
ONCE = ("length", "coarse")  # kinds of which a run has one at most
ALWAYS = ("image", "text")  # every run has one of each, under these names
NAME = re.compile("[a-z][a-z0-9]*")  # names of parameters are made of it, with "_" between them


def rows(config) -> dict[str, dict]:
    """{name: row} of `config.modalities`, in the order of the sequence, which is that of the names.

    config: a ConfigDict, or the dict of a file. One from before there was such a field has an image
    and a text. The row of a reference also has the kind and the settings of the row it is like.
    ValueError, one line: an unknown kind, a field that the kind does not have, no image or no text,
    or a reference to nothing.
    """
    found = config.get("modalities")
    found = getattr(found, "to_dict", lambda: found)() or {n: {"kind": n} for n in ALWAYS}
    if bad := sorted(name for name, row in found.items() if not isinstance(row, dict)):
        name = bad[0]
        raise UserError(
            f"modalities.{name} = {found[name]!r}, expected a row such as {{'kind': ...}}"
        )
    for name, row in sorted(found.items()):
        if name in fields.TAKEN and name not in ALWAYS:
            raise UserError(
                f"modalities.{name}: {name!r} is a task or a file of a run, expected another name"
            )
        if "like" in row:
            _check_reference(found, name, row)
            continue
        kind = row.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise UserError(
                f"modalities.{name}.kind = {kind!r}, expected one of {', '.join(KINDS)}"
            )
        if not NAME.fullmatch(name) or ((kind in ALWAYS or name in ALWAYS) and kind != name):
            raise UserError(
                f"modalities.{name} of kind {kind!r}: expected a name of small letters, and image "
                "and text under their own names"
            )
        known = fields.EVERY_ROW | KINDS[kind].own
        for field in row:
            if field not in known:
                listed = ", ".join(known)
                raise UserError(f"modalities.{name}.{field} is unknown, expected some of {listed}")
        needs, example = NEEDS.get(kind, ((), ""))
        if not set(needs) <= set(row):
            missing = " and ".join(needs)
            raise UserError(f"modalities.{name}: {missing} are missing, such as {example}")
        fields.check(name, row, known)
    for kind in ONCE:
        several = [name for name, row in sorted(found.items()) if row.get("kind") == kind]
        if len(several) > 1:
            raise UserError(f"modalities {' and '.join(several)} are of kind {kind}: expected one")
    levels = [name for name, row in sorted(found.items()) if row.get("kind") == "coarse"]
    if levels and (seen := [n for n, row in found.items() if row.get("like") == "image"]):
        raise UserError(
            f"modalities.{seen[0]}.like = 'image' with {levels[0]!r} of kind coarse: expected a "
            "picture of one level, or no references to it"
        )
    lacking = [name for name in ALWAYS if name not in found]
    if lacking:
        raise UserError(f"modalities has no {lacking[0]!r}, expected image and text at least")
    return {
        name: row | KINDS[row["kind"]].more(config)
        for name in sorted(found)
        for row in (_settings(found, name),)
    }


def _check_reference(found: dict, name: str, row: dict) -> None:
    if not NAME.fullmatch(name) or name in ALWAYS:
        raise UserError(f"modalities.{name} with like: expected another name, of small letters")
    for field in row:
        if field not in fields.REFERENCE:
            known = ", ".join(fields.REFERENCE)
            raise UserError(f"modalities.{name}.{field} with like: expected some of {known}")
    fields.check(name, row, fields.REFERENCE)
    able = [n for n, o in sorted(found.items()) if "like" not in o and o.get("kind") not in ALONE]
    if row["like"] not in able:
        others = ", ".join(able)
        raise UserError(f"modalities.{name}.like = {row['like']!r}, expected one of {others}")
    if not NAME.fullmatch(row.get("segment", name)):
        raise UserError(f"modalities.{name}.segment = {row['segment']!r}: expected small letters")


def _settings(found: dict, name: str) -> dict:
    row = found[name]
    theirs = found[row["like"]] if "like" in row else {}
    return {field: theirs[field] for field in theirs if field not in fields.REFERENCE} | row


def own(config) -> dict[str, dict]:
    """{name: row} of the modalities that are not references."""
    return {name: row for name, row in rows(config).items() if "like" not in row}


def with_references(config, tokenizers: dict) -> dict:
    """{name: tokenizer} of all modalities, in their order. tokenizers: those of `own`."""
    return {name: tokenizers[row.get("like", name)] for name, row in rows(config).items()}


def kinds(config) -> dict[str, str]:
    """{modality: its kind}."""
    return {name: row["kind"] for name, row in rows(config).items()}


def further(config) -> tuple[str, ...]:
    """The modalities besides image and text."""
    return tuple(name for name in rows(config) if name not in ALWAYS)


def counted(config) -> dict[str, Callable]:
    """{modality: `Kind.counted`} of those that follow from the text."""
    found = {name: KINDS[kind].counted for name, kind in kinds(config).items()}
    return {name: count for name, count in found.items() if count}


def level(config) -> str | None:
    """The name of the coarse level of the picture, or None if it has one level."""
    return next((name for name, kind in kinds(config).items() if KINDS[kind].level), None)


def coarse(config) -> dict:
    """The fields of `pyramid.Pyramid` that the row of the coarse level has; {} without one."""
    name = level(config)
    row = rows(config)[name] if name else {}
    names = {"codes": "coarse_embed", "factor": "factor", "preview": "preview"}
    return {"coarse_embed": 256} | {n: row[f] for f, n in names.items() if f in row} if row else {}


def stored(config) -> tuple[str, ...]:
    """The modalities besides image and text that records have."""
    without = {level(config), *counted(config)}
    return tuple(name for name in further(config) if name not in without)


def texts(config) -> tuple[str, ...]:
    """The references that are texts."""
    return tuple(name for name in further(config) if kinds(config)[name] == "text")


def recorded(config, names) -> tuple[str, ...]:
    """What a record must have, so that there is a value of each of some modalities."""
    comes_with = dict.fromkeys(counted(config), "text") | {level(config): "image"}
    return tuple(dict.fromkeys(comes_with.get(name, name) for name in names))


def complete(config, vocab, tokens: dict, pad_id: int) -> dict:
    """{modality: ids int32[n, length]}, with those that follow from the text, and with features
    float32[n, count, width] instead of their bits.

    tokens: as stored. A row that lacks its text (masks) lacks what follows from it, too. Features
    that a row lacks (masks) are NaN.
    """
    classes, found = {m.name: m.classes for m in vocab.modalities}, {}
    for name, count in counted(config).items():
        lacks = (tokens["text"] == classes["text"]).all(axis=1, keepdims=True)
        ids = np.where(lacks, classes[name], count(tokens["text"], pad_id))
        found[name] = ids.astype(np.int32)
    for name, row in features(config).items():
        lacks = (tokens[name] == classes[name]).all(axis=1)[:, None, None]
        values = KINDS["features"].load(None, row).decode(tokens[name])
        found[name] = np.where(lacks, np.float32(np.nan), values)
    return {**tokens, **found}


def features(config) -> dict[str, dict]:
    """{modality: its row} of those that are features."""
    return {name: row for name, row in rows(config).items() if row["kind"] == "features"}


def token_weights(config) -> dict[str, float]:
    """{modality: the weight of its tokens in the loss}, where a row has one."""
    return {n: row["weight"] for n, row in rows(config).items() if "weight" in row}


def image_size(config) -> int | tuple[int, int] | None:
    """`config.image_size`: the side of square pictures, or (height, width); None if it is open.

    UserError, one line, if it is neither.
    """
    size = config.image_size
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(type(side) is int for side in sides):
        raise UserError(
            f"image_size = {size!r}, expected a number of pixels, or (height, width): set "
            "--config.image_size="
        )
    return sides[0] if sides[0] == sides[1] else sides


def image_channels(config) -> int:
    """`config.image_channels`: 1 for grey, 3 for colours, 4 for colours and opacity.

    UserError, one line, for anything else.
    """
    found = config.get("image_channels", CHANNELS)
    if type(found) is not int or found not in pixels.CHANNELS:
        raise UserError(
            f"image_channels = {found!r}, expected 1 (grey), 3 (colours) or 4 (colours and "
            "opacity): set --config.image_channels="
        )
    return found


def views(config, count: int = 1, **options) -> reading.Views:
    """How the pictures of a run are cut: by default the plain view alone."""
    return reading.Views(image_size(config), count, channels=image_channels(config), **options)


def fitting(config, tokenizer):
    """The image tokenizer `vq.file`. UserError if it is for pictures of another shape."""
    wanted = (*pixels.both(image_size(config)), image_channels(config))
    if tokenizer.shape != wanted:
        raise UserError(
            f"vq.file = {config.vq.file!r} is for pictures {tokenizer.shape}, expected {wanted}: "
            "set --config.image_size= to its height and width, and --config.image_channels="
        )
    levels = 2 if level(config) else 1
    if len(tokenizer.lengths) != levels:
        raise UserError(
            f"vq.file = {config.vq.file!r} has {len(tokenizer.lengths)} of levels, the modalities "
            f"ask for {levels}: name another --config.vq.file="
        )
    return tokenizer


def _reader(row: dict, size) -> beside.Reader:
    found = readers.READERS[row["kind"]](row, size)
    return dataclasses.replace(found, alone=()) if "like" in row else found  # files have its name


def source_options(config) -> dict:
    """The options of `sources.open_source` for the data of a config."""
    listed = rows(config)
    size, names = image_size(config), stored(config)
    options = {"image_size": size, **_without(image_channels(config))}
    options |= config.data_options.to_dict()
    if names:
        options["further"] = {n: _reader(listed[n], size) for n in names}
    return options | ({"incomplete": True} if config.get("incomplete") else {})


def tokenizer_file(config, name: str) -> str:
    """The file of a modality's tokenizer in the folder of a run; "" if it has none."""
    row = rows(config)[name]
    return KINDS[row["kind"]].file.format(name=row.get("like", name))


def tokenizer_files(config) -> list[str]:
    """The files of all tokenizers in the folder of a run."""
    return list(dict.fromkeys(f for name in own(config) if (f := tokenizer_file(config, name))))


def of_sound(config, name: str) -> ml_collections.ConfigDict:
    """The config with which the tokenizer of a sound's pictures is trained: `vq`, `image_size` and
    `image_channels` are those of the modality."""
    row, own = rows(config)[name], config.copy_and_resolve_references()
    with own.unlocked():
        own.vq.update(ml_collections.ConfigDict(row.get("vq", {})))
        own.image_channels = 1
        if level(config):
            del own.modalities[level(config)]  # a sound has one level
        del own.image_size  # of an old config it is a number, which a pair may not replace
        own.image_size = Spectrogram.of(row).shape
        own.vq.file = row.get("vq", {}).get("file", "")
    return own
