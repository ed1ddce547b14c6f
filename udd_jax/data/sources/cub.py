"""Caltech-UCSD Birds 200-2011 with ten captions an image (Reed et al. 2016).

    cub:/path      a folder that has, at any depth, the data set (`images.txt`, and next to it
                   `images/CLASS/NAME.jpg`) and the captions (`CLASS/NAME.txt`, one a line, below a
                   folder named `text_c10` or `text`)

If the captions come with `testclasses.txt` (and `valclasses.txt`), the splits are by class, as in
text-to-image papers: the classes of test are not in train. Otherwise `train_test_split.txt` has the
splits.
"""

import os
import pathlib

from udd_jax.data import captions as texts
from udd_jax.data.sources import beside, folder, listing, walk
from udd_jax.errors import UserError

_WORDS = {"1": "train", "0": "test"}  # in train_test_split.txt


def items(path: str) -> list[listing.Item]:
    """The 11,788 images in the order of `images.txt`, each with its captions.

    A line of a list that cannot be read is a fault. Pictures, captions and classes that no list
    has are left out.
    """
    root = pathlib.Path(path)
    birds = _first(root, "images.txt", "the data set's list of images").parent
    rows, found = _table(birds / "images.txt")
    classes = {name.partition("/")[0] for _, name in rows}
    places = sorted(root.rglob("text_c10")) + sorted(root.rglob("text"))
    # The zip file has text/text: take the one that has the folders of the classes.
    places.sort(key=lambda place: not any(os.path.isdir(place / name) for name in classes))
    if not places:
        raise UserError(f"{path} has no folder text_c10 or text, expected CLASS/NAME.txt in it")
    splits, in_train = _splits_by_class(root), {}
    if splits is None:
        in_train, faults = _in_train(birds / "train_test_split.txt")
        found += faults
    pictures, captions, used = _absolute(birds / "images"), _absolute(places[0]), set()
    for number, name in rows:
        bird, _, file = name.partition("/") if "/" in name else ("", "", name)
        place = beside.inside(pictures, name)
        if place in used:
            found.append(_left(f"images.txt, {number} {name}", "a second line of a picture"))
            continue
        text = beside.inside(captions, f"{bird}/{pathlib.PurePosixPath(file).stem}.txt")
        lines = texts.lines(folder.read(text)) if isinstance(text, str) else ()
        said = tuple(line.strip() for line in lines if line.strip())
        split = in_train.get(number) if splits is None else splits.get(bird, "train")
        found.append(listing.Item(name, place, said, {"class": bird}, split))
        used |= {place, text}
    for place, why in (
        *((place, "a picture that is in no list") for place in _pictures(pictures)),
        *((place, "a text without a picture of its name") for place in _texts(captions)),
    ):
        if place not in used:
            found.append(_left(os.path.relpath(place, _absolute(root)), why))
    lost = sorted(set(splits or ()) - classes)
    return found + [_left(name, "a class that no picture has") for name in lost]


def _left(key: str, why: str) -> listing.Item:
    return listing.Item(key, listing.Left(why), ())


def _absolute(place: pathlib.Path) -> str:
    return os.path.normpath(os.path.abspath(place))


def _pictures(place: str) -> list[str]:
    here = walk.Files(pathlib.Path(place))
    return sorted([*here.pictures, *here.unread])


def _texts(place: str) -> list[str]:
    own = walk.Files(pathlib.Path(place)).texts.values()
    return sorted(file for ends in own for end, file in ends.items() if end == ".txt")


def _splits_by_class(root: pathlib.Path) -> dict[str, str] | None:
    if not list(root.rglob("testclasses.txt")):
        return None
    splits = {}
    for split, name in (("validation", "valclasses.txt"), ("test", "testclasses.txt")):
        for file in sorted(root.rglob(name))[:1]:
            splits |= dict.fromkeys(texts.decode(file.read_bytes()).split(), split)
    return splits


def _in_train(path: pathlib.Path) -> tuple[dict[str, str], list[listing.Item]]:
    """({number of a picture: its split}, the lines that are faults); UserError for another word."""
    rows, faults = _table(path)
    for number, word in rows:
        if word not in _WORDS:
            raise UserError(
                f"{path}, picture {listing.printable(number)}: split is "
                f"{listing.printable(repr(word))}, expected 1 for train or 0 for test"
            )
    return {number: _WORDS[word] for number, word in rows}, faults


def _table(path: pathlib.Path) -> tuple[list[tuple[str, str]], list[listing.Item]]:
    """((number, what follows it) of each line, the lines that are faults); none without a file."""
    rows, faults = [], []
    lines = texts.decode(path.read_bytes()).split("\n") if path.exists() else ()
    for at, line in enumerate(lines, 1):
        words = line.split(maxsplit=1)
        if len(words) == 2:
            rows.append((words[0], words[1].rstrip()))
        elif words:
            cause = f"{listing.printable(repr(line))}, expected two words"
            faults.append(listing.Item(f"{path.name}, line {at}", listing.Broken(cause), ()))
    return rows, faults


def _first(root: pathlib.Path, name: str, what: str) -> pathlib.Path:
    found = sorted(root.rglob(name))
    if not found:
        raise UserError(f"{root} has no {name}, {what}; expected it at any depth")
    return found[0]


def source(path: str, split: str, **shares) -> listing.Listing:
    """The birds of one split; `shares` as in `listing.choose`."""
    return listing.choose(f"cub {path}", items(path), folder.read, split, **shares)
