"""The splits that names say: of a folder, of a shard, in a field of the data.

    named         "val2014" -> "validation"
    field         the field of a row that says it, in any case
    said          what it says, where an unknown word is an error
    Folders       names among their neighbours: "test" is a split and "dev board" may be a class
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


def field(row: dict, name: str) -> str:
    """The field of a row that is called `name`, in any case and with spaces around; `name` itself
    if there is none, or if it is there as well."""
    if name in row:
        return name
    wanted = name.strip().lower()
    return next((key for key in row if str(key).strip().lower() == wanted), name)


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


class Folders:
    """Which of the folders with images are splits.

    A name that has a split word, and otherwise only numbers and words such as "images", is that
    split if the folders next to it are splits, too, or have such plain names: `train` and `test`,
    `images` and `test`, or `test` alone. Next to other names (`bus`, `car`) it is the name of a
    class, unless words for the training and for what is held out are both there. A name with other
    words ("dev board") is a split only if all folders next to it name splits, at least two
    different ones.

    Attributes:
        splits: {parts of the path of a folder, or of one above it: its split, or None}.
        refused: (parts, the names beside it) of each folder that has the plain name of a split and
            is none.
    """

    def __init__(self, folders):
        """folders: of the images, each the parts of its path below the root."""
        beside, self.splits, self.refused = {}, {}, []
        for parts in folders:
            for depth, part in enumerate(parts):
                beside.setdefault(parts[:depth], set()).add(part)
        for parent, names in beside.items():
            splits = {name: named(name) for name in names}
            sure = None not in splits.values() and len(set(splits.values())) > 1
            pure = {name for name in names if splits[name] and _plain(name)}
            others = sorted(name for name in names if name not in pure and not _plain(name))
            both = {splits[name] == "train" for name in pure} == {True, False}
            for name, split in sorted(splits.items()):
                own = sure or (name in pure and (not others or both))
                self.splits[*parent, name] = split if own else None
                if name in pure and not own:
                    self.refused.append(((*parent, name), others))

    def split(self, folder: tuple[str, ...]) -> str | None:
        """The split of a folder: that of the outermost one that is a split."""
        above = (self.splits.get(folder[: depth + 1]) for depth in range(len(folder)))
        return next(filter(None, above), None)

    def class_of(self, folder: tuple[str, ...]) -> str | None:
        """The name of the innermost folder that is not a split, as words: "001.Night_owl" -> "Night
        owl"; None if there is none."""
        depths = range(len(folder), 0, -1)
        name = next((folder[d - 1] for d in depths if not self.splits.get(folder[:d])), None)
        return name and re.sub(r"^\d+[.\-_ ]+(?=\D)", "", name).replace("_", " ")

    def notes(self) -> list[str]:
        """A line about the names of splits that are none."""
        if not self.refused:
            return []
        parts, others = self.refused[0]
        shown = printable(", ".join(others[:3]))
        more = f" (and {len(self.refused) - 1} more)" if len(self.refused) > 1 else ""
        return [
            f"the folder {printable('/'.join(parts))}{more} is taken for a class and no split, as "
            f"{shown} lie beside it: if it is a split, move those elsewhere"
        ]


def _plain(name: str) -> bool:
    """Whether a name has only split words, numbers and words such as "images"."""
    others = any(letter.isalpha() for letter in _PARTS.sub("", name))  # in other scripts
    words = {word.lower() for word in _PARTS.findall(name)}
    return not others and words <= _PLAIN_WORDS | set(WORDS)


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
