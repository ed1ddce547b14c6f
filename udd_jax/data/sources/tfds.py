"""TensorFlow Datasets that were prepared as ArrayRecord files, read without TensorFlow.

    tfds:NAME, tfds:NAME/CONFIG:VERSION, or tfds:/path/to/the/prepared/version

The files are searched in `data_dir`, or in the default folder of TensorFlow Datasets. Nothing is
downloaded or prepared (`tfds build NAME --file_format=array_record` does that). The description
next to the files is sufficient, so the code of the data set, which may need TensorFlow, is not run.

Captions are the features "captions", "caption", "text", ... Without such a feature, or with a
`template`, a caption is made from other features: "a photo of a {label}", class names as words.
"""

import functools
import os
import pathlib
import re
import string

from udd_jax.data.sources import captioning, listing, split_names
from udd_jax.errors import UserError

_HOME = "~/tensorflow_datasets"


def read(where: tuple[str, str, int]) -> bytes:
    """The encoded image of (directory, split, index)."""
    directory, split, index = where
    data, images, _ = _opened(directory, split)
    return data[index][images[0]]


@functools.cache
def _opened(directory: str, split: str):
    """The data source, the names of its image features, the first of which is the picture, and its
    features. Pictures are not decoded."""
    import tensorflow_datasets  # slow to import, and few need it

    builder = tensorflow_datasets.builder_from_directory(directory)
    features = builder.info.features
    images = [n for n, f in features.items() if isinstance(f, tensorflow_datasets.features.Image)]
    images.sort(key=lambda name: (name != "image", name))  # their order is that of no file
    if not images:
        raise UserError(f"{directory} has the features {sorted(features)}, expected an image")
    decoders = {name: tensorflow_datasets.decode.SkipDecoding() for name in images}
    return builder.as_data_source(split=split, decoders=decoders), images, features


def _directory(name: str, data_dir: str | None) -> pathlib.Path:
    """The folder of the prepared version: the requested one, or the newest."""
    name, _, version = name.partition(":")
    root = pathlib.Path(os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or _HOME))
    root = root / name / version
    found = [path.parent for path in root.rglob("features.json")] if root.is_dir() else []
    if not found:
        raise UserError(
            f"{root} holds no prepared data set, expected features.json and ArrayRecord files: "
            f"prepare {name} with --file_format=array_record, or set "
            "--config.data_options.data_dir="
        )
    version = lambda path: [int(n) for n in re.findall(r"\d+", path.name)]  # noqa: E731
    newest = max(map(version, found))
    found = sorted(path for path in found if version(path) == newest)
    if len(found) > 1:
        listed = " and ".join(str(path.parent.relative_to(root)) for path in found)
        raise UserError(f"{root} has {listed}: name one, as in tfds:{name}/{found[0].parent.name}")
    return found[0]


def items(name, data_dir=None, caption_field=None, template=None) -> list[listing.Item]:
    """All examples of all splits. Captions are read now, images on access."""
    import tensorflow_datasets

    directory = str(_directory(name, data_dir))
    try:
        splits = list(tensorflow_datasets.builder_from_directory(directory).info.splits)
        opened = {split: _opened(directory, split) for split in splits}
    except NotImplementedError:
        raise UserError(
            f"{directory} holds no ArrayRecord files; prepare it with --file_format=array_record"
        ) from None
    found = []
    for split, (data, images, features) in opened.items():
        for index in range(len(data)):
            row = {field: value for field, value in data[index].items() if field not in images}
            row = {field: _plain(value, features[field]) for field, value in row.items()}
            unused = captioning.not_used(row, caption_field)
            if template is None and (caption_field or captioning.caption_fields(row)):
                captions = captioning.captions_of(row, caption_field, f"{name}, {split}")
            else:
                captions = _fill(template or "a photo of a {label}", row, name)
            known = {caption_field, *captioning.caption_fields(row)}
            extra = {field: value for field, value in row.items() if field not in known}
            place = (directory, split, index)
            key, own = f"{split}/{index}", split_names.named(split)
            found.append(listing.Item(key, place, captions, extra, own, {}, tuple(unused)))
    return found


def _plain(value, feature):
    """The value of a feature as text or a list of texts, class numbers as names; else unchanged."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, dict):  # a sequence of objects comes as an object of sequences
        texts = next((value[f] for f in ("text", *captioning.CAPTION_FIELDS) if f in value), value)
        return value if texts is value else _plain(list(texts), feature)
    if isinstance(value, list | tuple):
        return [_plain(part, feature) for part in value]
    if hasattr(feature, "int2str") and feature.num_classes:
        if int(value) < 0:  # what has no label; a list of names would give its last one
            return None
        words = re.sub(r"^\d+\.", "", feature.int2str(int(value)))
        return words.replace("_", " ")
    return value


def _fill(template: str, row: dict, name: str) -> tuple[str, ...]:
    """The caption by a template; none if a field that it names has no value."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        fields = [re.split(r"[.\[]", field, maxsplit=1)[0] for field in fields]
        return () if any(row[field] is None for field in fields) else (template.format(**row),)
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"template is {template!r}, expected names among {sorted(row)} in braces for {name}"
        ) from None


def source(
    path: str, split: str, *, data_dir=None, caption_field=None, template=None, **shares
) -> listing.Listing:
    """The examples of one split of prepared data; `shares` as in `listing.choose`."""
    found = items(path, data_dir, caption_field, template)
    return listing.choose(f"tfds {path}", found, read, split, **shares)
