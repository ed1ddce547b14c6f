"""COCO captions: annotation files and a folder of images.

coco:/path      one annotation file, or a folder with such files at any depth:
                captions_train2014.json, captions_val2014.json, ... (the name has the split); or
                Karpathy's dataset_coco.json or dataset_flickr30k.json, which is preferred and has
                his splits (restval counts as train)
images=/path    the folder of the image files; by default anywhere below the annotations' folder

A file name, with its folder if it has one, is the image whose path ends in it. If several images
match, the one in a folder of the annotations' split is used; if that fails, it is a fault.
"""

import os
import pathlib

from udd_jax.data import captions as texts
from udd_jax.data.sources import folder, listing, split_names, walk
from udd_jax.errors import UserError

KARPATHY = "dataset_coco.json"
_KARPATHYS = "dataset_*.json"


def items(path: str, images: str | None = None, split_field: str = "split") -> list[listing.Item]:
    """The images of all annotation files with all their captions, in the order of the files.

    What is there and not used is left out: pictures that no file lists, captions of pictures that
    their file does not list, and files beside Karpathy's.
    """
    root = pathlib.Path(path)
    second = []
    if root.is_dir():
        files = sorted(root.rglob(KARPATHY)) or sorted(root.rglob(_KARPATHYS))
        files, second = files[:1], files[1:]
        official = sorted(root.rglob("captions_*.json"))
        files, second = (files, second + official) if files else (official, [])
    else:
        files, root = [root] if root.exists() else [], root.parent
    if not files:
        raise UserError(f"{path} has no captions_*.json and no {KARPATHY}, expected one of them")
    here, used, found = walk.Files(_folder(images) if images else root), set(), []
    shown = [*here.pictures, *here.unread]
    places, unread = walk.by_name(shown), set(here.unread)
    for file in files:
        rows, lost = _rows(file, split_field)
        splits = [
            split_names.said(said, listing.printable(f"{file.name}, {name}"))
            for name, _, said, _ in rows
        ]
        wheres = _places(places, rows, splits)
        for (name, captions, _, extra), split, where in zip(rows, splits, wheres, strict=True):
            used.add(where)
            if where in unread:
                where = listing.Broken(f"pictures of the format {_end(where)} are not read")
            found.append(listing.Item(name, where, captions, extra, split))
        for number, _ in enumerate(lost):
            key = f"{os.path.relpath(file, root)}, caption {number}"
            cause = listing.Left("a caption of an image that its file does not list")
            found.append(listing.Item(key, cause, ()))
    left = [(place, "a picture that is in no list") for place in sorted(shown)]
    left += [(str(file), "a list beside the one that is used") for file in second]
    for place, why in left:
        if place not in used:
            found.append(listing.Item(os.path.relpath(place, root), listing.Left(why), ()))
    return found


def _folder(images: str) -> pathlib.Path:
    """The folder in the option `images`; UserError if it is not there."""
    found = pathlib.Path(os.path.expanduser(images))
    if not found.is_dir():
        raise UserError(
            f"images is {images!r}, which is not a folder, expected that of the pictures: set "
            "--config.data_options.images="
        )
    return found


def _end(place: str) -> str:
    return os.path.splitext(place)[1].lower()


def _rows(file: pathlib.Path, split_field: str) -> tuple[list, list]:
    """((name, captions, split, other fields) of each image, the captions of no image) of a file.

    UserError if it has another form.
    """
    try:
        content = texts.parse_json(texts.decode(file.read_bytes()))
        official = "annotations" in content
        rows, lost = _official(content, file) if official else (_karpathy(content, split_field), [])
        for name, *_ in rows:
            if not isinstance(name, str):
                raise TypeError(f"a file name is {name!r}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(
            f"{file} is not a COCO captions file ({why}), expected images and annotations"
        ) from None
    return rows, lost


def _places(places: dict[tuple[str, ...], list[str]], rows: list, splits: list) -> list:
    """Where the picture of each row is, or why nowhere."""
    found = [_place(places, row[0], split) for row, split in zip(rows, splits, strict=True)]
    named = {n: (rows[n][0], place) for n, place in enumerate(found) if isinstance(place, str)}
    for n in walk.not_their_own(named):
        shown = listing.printable(rows[n][0])
        found[n] = listing.Broken(f"there is no image {shown}, one of its name is another's")
    return found


def _place(places: dict[tuple[str, ...], list[str]], name: str, split: str | None):
    found = walk.by_end(places, name)
    if len(found) > 1:
        own = [p for p in found if split in map(split_names.named, pathlib.Path(p).parts[:-1])]
        found = own if split else found
    shown = listing.printable(name)
    if not found:
        folder = "--config.data_options.images= names the folder of the images"
        return listing.Broken(f"there is no image {shown}; {folder}")
    if len(found) > 1:
        return listing.Broken(f"{len(found)} images are called {shown}: name its folder in it")
    return found[0]


def _official(content: dict, file: pathlib.Path) -> tuple[list, list]:
    captions, rows = {}, []
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    split, known = split_names.named(file.stem), set()
    for image in content["images"]:
        known.add(image["id"])
        own = tuple(captions.get(image["id"], ()))
        rows.append((image["file_name"], own, split, {"id": image["id"]}))
    return rows, [caption for n, own in captions.items() if n not in known for caption in own]


def _karpathy(content: dict, split_field: str) -> list:
    rows = []
    for image in content["images"]:
        captions = tuple(sentence["raw"] for sentence in image["sentences"])
        place = os.path.join(image.get("filepath") or "", image["filename"])
        split = image.get(split_names.field(image, split_field))
        rows.append((place, captions, split, {"id": image.get("cocoid")}))
    return rows


def source(path: str, split: str, *, images=None, split_field="split", **shares) -> listing.Listing:
    """The images of one split of COCO; `shares` as in `listing.choose`."""
    found = items(path, images, split_field)
    return listing.choose(f"coco {path}", found, folder.read, split, **shares)
