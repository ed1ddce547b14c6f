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
    """The images of all annotation files with all their captions, in the order of the files."""
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
    shown = walk.pictures(pathlib.Path(images or root))
    places, used, found = walk.by_name(shown), set(), []
    for file in files:
        try:
            content = texts.parse_json(texts.decode(file.read_bytes()))
            official = "annotations" in content
            rows = list(_official(content, file) if official else _karpathy(content, split_field))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is no COCO captions file ({error}), expected images and annotations"
            ) from None
        for name, captions, said, extra in rows:
            split = said if official else split_names.said(said, f"{file.name}, {name}")
            where = _place(places, name, split)
            used.add(where)
            found.append(listing.Item(name, where, captions, extra, split))
    left = [(place, "a picture that is in no list") for place in map(str, shown)]
    left += [(str(file), "a list beside the one that is used") for file in second]
    for place, why in left:
        if place not in used:
            found.append(listing.Item(os.path.relpath(place, root), listing.Left(why), ()))
    return found


def _place(places: dict[str, list[str]], name: str, split: str | None):
    found = walk.by_end(places, name)
    if len(found) > 1:
        own = [p for p in found if split in map(split_names.named, pathlib.Path(p).parts[:-1])]
        found = own if split else found
    shown = listing.printable(name)
    if not found:
        return listing.Broken(f"there is no image {shown}")
    if len(found) > 1:
        return listing.Broken(f"{len(found)} images are called {shown}: name its folder in it")
    return found[0]


def _official(content: dict, file: pathlib.Path):
    captions = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    split = split_names.named(file.stem)
    for image in content["images"]:
        own = tuple(captions.get(image["id"], ()))
        yield image["file_name"], own, split, {"id": image["id"]}


def _karpathy(content: dict, split_field: str):
    for image in content["images"]:
        captions = tuple(sentence["raw"] for sentence in image["sentences"])
        place = os.path.join(image.get("filepath") or "", image["filename"])
        yield place, captions, image.get(split_field), {"id": image.get("cocoid")}


def source(path: str, split: str, *, images=None, split_field="split", **shares) -> listing.Listing:
    """The images of one split of COCO; `shares` as in `listing.choose`."""
    found = items(path, images, split_field)
    return listing.choose(f"coco {path}", found, folder.read, split, **shares)
