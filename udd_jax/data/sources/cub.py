"""Caltech-UCSD Birds 200-2011 with ten captions an image (Reed et al. 2016).

    cub:/path      a folder that has, at any depth, the data set (`images.txt`, and next to it
                   `images/CLASS/NAME.jpg`) and the captions (`CLASS/NAME.txt`, one a line, below a
                   folder named `text_c10` or `text`)

If the captions come with `testclasses.txt` (and `valclasses.txt`), the splits are by class, as in
text-to-image papers: the classes of test are not in train. Otherwise `train_test_split.txt` has the
splits.
"""

import pathlib

from udd_jax.data import captions as texts
from udd_jax.data.sources import folder, listing
from udd_jax.errors import UserError


def items(path: str) -> list[listing.Item]:
    """The 11,788 images in the order of `images.txt`, each with its captions."""
    root = pathlib.Path(path)
    birds = _first(root, "images.txt", "the data set's list of images").parent
    classes = {name.partition("/")[0] for name in _table(birds / "images.txt").values()}
    places = sorted(root.rglob("text_c10")) + sorted(root.rglob("text"))
    # The zip file has text/text: take the one that has the folders of the classes.
    places.sort(key=lambda place: not any((place / name).is_dir() for name in classes))
    if not places:
        raise UserError(f"{path} has no folder text_c10 or text, expected CLASS/NAME.txt in it")
    splits = _splits_by_class(root)
    in_train = _table(birds / "train_test_split.txt") if splits is None else {}
    found = []
    for number, name in _table(birds / "images.txt").items():
        bird, _, file = name.partition("/")
        text = places[0] / bird / f"{pathlib.Path(file).stem}.txt"
        lines = texts.lines(text.read_bytes()) if text.exists() else ()
        captions = tuple(line.strip() for line in lines if line.strip())
        given = {"1": "train", "0": "test"}.get(in_train.get(number))
        split = given if splits is None else splits.get(bird, "train")
        place = str(birds / "images" / name)
        found.append(listing.Item(name, place, captions, {"class": bird}, split))
    return found


def _splits_by_class(root: pathlib.Path) -> dict[str, str] | None:
    if not list(root.rglob("testclasses.txt")):
        return None
    splits = {}
    for split, name in (("validation", "valclasses.txt"), ("test", "testclasses.txt")):
        for file in sorted(root.rglob(name))[:1]:
            splits |= dict.fromkeys(file.read_text().split(), split)
    return splits


def _table(path: pathlib.Path) -> dict[str, str]:
    if not path.exists():
        return {}
    return dict(line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())


def _first(root: pathlib.Path, name: str, what: str) -> pathlib.Path:
    found = sorted(root.rglob(name))
    if not found:
        raise UserError(f"{root} has no {name}, {what}; expected it at any depth")
    return found[0]


def source(path: str, split: str, **shares) -> listing.Listing:
    """The birds of one split; `shares` as in `listing.choose`."""
    return listing.choose(f"cub {path}", items(path), folder.read, split, **shares)
