"""The splits that names say: of a folder, of a shard, in a field of the data.

    named         "val2014" -> "validation"
    said          a field of the data, where an unknown word is an error
    of_folders    names among their neighbours: "test" is a split and "dev board" may be a class
    of_shards     all of them name one, or none

The file name of a picture is never asked.
"""

import itertools
import pathlib
import re

from udd_jax.data.sources.listing import printable
from udd_jax.errors import UserError

_TABLE = {
    "train": ("train", "training", "trainset", "trainval", "restval"),
    "validation": ("validation", "valid", "val", "dev", "devel", "valset", "minival"),
    "test": ("test", "testing", "testset", "testa", "testb"),
}
# Next to another split word, that word decides: "val_unseen" is validation.
_WEAK_TABLE = {"test": ("eval", "evaluation", "holdout", "heldout", "unseen")}
_KNOWN_SPLITS, _WEAK_SPLITS = (
    {word: split for split, words in table.items() for word in words}
    for table in (_TABLE, _WEAK_TABLE)
)
WORDS = (*_KNOWN_SPLITS, *_WEAK_SPLITS)
_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# Words that may stand next to a split word in the name of a folder.
_PLAIN_WORDS = frozenset(
    (
        *("a", "b", "c", "coco", "data", "dataset", "img", "imgs", "image", "images", "jpg"),
        *("jpeg", "png", "photo", "photos", "pic", "pics", "picture", "pictures", "set"),
        *("shard", "shards", "split", "splits", "part", "parts", "of", "out", "held"),
    )
)


def named(name: str) -> str | None:
    """The split in the name of a folder or shard: "val2014" -> "validation". None without one."""
    words = [word.lower() for word in _PARTS.findall(name)]
    words += [a + b for a, b in itertools.pairwise(words)]  # testA, held_out
    for table in (_KNOWN_SPLITS, _WEAK_SPLITS):
        found = {table[word] for word in words if word in table}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def of_path(path: pathlib.Path, root: pathlib.Path) -> str | None:
    """The split of the outermost part of `path` below `root` that names one."""
    splits = map(named, path.relative_to(root).parts)
    return next((split for split in splits if split), None)


def said(value, where: str) -> str | None:
    """The split in a field of the data; None if the field is empty.

    Raises:
        ValueError: an unknown word. It is an error, because a wrong guess could train on test data.
    """
    if value is None or not str(value).strip():
        return None
    split = named(str(value))
    if split is None:
        raise UserError(
            f"{where}: split is {value!r}, expected one of {', '.join(WORDS)}; rename it, or "
            "name another field with --config.data_options.split_field= (none reads none)"
        )
    return split


def of_folders(folders) -> dict[tuple[str, ...], str | None]:
    """The splits of the folders with images; each folder is the parts of its path below the root.

    A name that has a split word, and otherwise only numbers and words such as "images", is that
    split. A name with other words ("dev board") is a split only if all folders next to it name
    splits, at least two different ones. Otherwise it is the name of a class. The outermost folder
    with a split decides.
    """
    beside = {}
    for parts in folders:
        for depth, part in enumerate(parts):
            beside.setdefault(parts[:depth], set()).add(part)
    found = {}
    for parent, names in beside.items():
        splits = {name: named(name) for name in names}
        sure = None not in splits.values() and len(set(splits.values())) > 1
        for name, split in splits.items():
            words = {word.lower() for word in _PARTS.findall(name)}
            pure = words <= _PLAIN_WORDS | set(WORDS)
            found[*parent, name] = split if pure or sure else None
    return {
        parts: next(filter(None, (found[parts[: d + 1]] for d in range(len(parts)))), None)
        for parts in folders
    }


def of_shards(paths, root: pathlib.Path) -> list[str | None]:
    """The split of each shard, by its path below `root`.

    Raises:
        ValueError: some shards name a split, and others do not.
    """
    splits = [of_path(path, root) for path in paths]
    if None in splits and any(splits):
        name = printable(str(paths[splits.index(None)].relative_to(root)))
        raise UserError(
            f"{root}: the name of {name} names no split and others do, expected one of "
            f"{', '.join(WORDS)} in each; rename it, or give a pattern in --config.data="
        )
    return splits
