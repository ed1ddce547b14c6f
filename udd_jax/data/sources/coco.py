"""COCO captions: annotation files and a folder of images.

coco:/path      a folder with captions_train2014.json, captions_val2014.json, ... (the split is
                in the name) or dataset_coco.json, Karpathy's file, which comes first and gives
                his splits (restval is train); or one such file
images=/path    where the image files are; else anywhere below the annotations' folder
"""

import json
import pathlib

from udd_jax.data.sources import folder, listing

KARPATHY = "dataset_coco.json"


def items(path: str, images: str | None = None) -> list[listing.Item]:
    """The images of all annotation files, with all their captions, in the files' order."""
    root = pathlib.Path(path)
    if root.is_dir():
        files = sorted(root.rglob(KARPATHY))[:1] or sorted(root.rglob("captions_*.json"))
    else:
        files, root = [root] if root.exists() else [], root.parent
    if not files:
        raise ValueError(f"{path} has no captions_*.json and no {KARPATHY}, expected one of them")
    places = {place.name: str(place) for place in folder.pictures(pathlib.Path(images or root))}
    found = []
    for file in files:
        try:
            content = json.loads(file.read_text("utf-8"))
            rows = _official(content, file) if "annotations" in content else _karpathy(content)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no COCO captions file ({error}), expected images and annotations"
            ) from None
        for name, captions, split, extra in rows:
            where = places.get(name, listing.Broken(f"there is no image {name}"))
            found.append(listing.Item(name, where, captions, extra, split))
    return found


def _official(content: dict, file: pathlib.Path):
    captions = {}
    for annotation in content["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    split = listing.split_named(file.stem)
    for image in content["images"]:
        own = tuple(captions.get(image["id"], ()))
        yield image["file_name"], own, split, {"id": image["id"]}


def _karpathy(content: dict):
    for image in content["images"]:
        captions = tuple(sentence["raw"] for sentence in image["sentences"])
        split = listing.split_named(image["split"])
        yield image["filename"], captions, split, {"id": image.get("cocoid")}


def source(path: str, split: str, *, images=None, **shares) -> listing.Listing:
    """The images of one split of COCO; `shares` as in `listing.choose`."""
    return listing.choose(f"coco {path}", items(path, images), folder.read, split, **shares)
