"""Pictures with their captions and values in files of the same name, or in folders of classes.

`here` is everywhere the walk of a folder (`walk.py`): its pictures, texts {stem: {ending: file}}
and values {stem: {modality: file}}.
"""

import os
import pathlib

from udd_jax.data import captions as texts
from udd_jax.data.sources import beside, downloads, listing, split_names
from udd_jax.errors import UserError


def items(here, field: str | None, split_field: str) -> list[listing.Item]:
    """The images with the captions in files next to them, or with the names of their folders.

    If items may be incomplete, a text or a value without a picture of its name is one as well.
    """
    found = []
    stems = {os.path.splitext(place)[0] for place in (*here.pictures, *here.unread)}
    folders = {here.parts(place)[:-1] for place in here.pictures}
    classes = {parts: here.splits.class_of(parts) for parts in folders}
    names = sorted(set(filter(None, classes.values())))
    named = len(names) > 1 and not (stems | set(here.pictures)) & set(here.texts)
    here.classes = names if named else []
    for place in here.pictures:
        stem = os.path.splitext(place)[0]
        if named:
            name, values = classes[here.parts(place)[:-1]], here.values_of(place)
            captions = (name,) if name else ()  # a picture beside the folders has none
            key, split = here.key(place), here.split(place)
            found.append(listing.Item(key, place, captions, {}, split, values))
            continue
        own = here.texts.get(stem) or here.texts.get(place, {})
        found.append(_item(here, place, place, own, here.values_of(place), field, split_field))
    for place in here.unread:
        stem, end = os.path.splitext(place)
        why = f"pictures of the format {end.lower()} are not read"
        cause = listing.Broken(why) if stem in here.texts else listing.Left(why)
        found.append(listing.Item(here.key(place), cause, (), {}, here.split(place)))
    known, alone = {*stems, *here.pictures}, set(here.alone() if here.incomplete else ())
    for stem in dict.fromkeys((*here.texts, *here.values)):
        if stem not in known:
            own, values = dict(here.texts.get(stem, {})), here.values.get(stem, {})
            for end, place in here.texts.get(stem, {}).items():
                if place.endswith(downloads.END) and downloads.statistics(pathlib.Path(place)):
                    found += downloads.failed(pathlib.Path(place), here.key(place))
                    del own[end]
            if stem in alone and (own or values):
                item = _item(here, stem, None, own, values, field, split_field)
                if item.captions or item.further or item.where:
                    found.append(item)
                    continue
            for what, places in (("text", own), ("value", values)):
                cause = listing.Left(f"a {what} without a picture of its name")
                found += [listing.Item(here.key(place), cause, ()) for place in places.values()]
    return found


class _UnknownSplit(UserError):
    """A word that names no split: an error of the whole data, not the fault of one item."""


def _item(here, place: str, where, own: dict, values: dict, field, split_field) -> listing.Item:
    """The item at `place` with the texts and values next to it; its image is at `where`, if any."""
    key, split = here.key(place), here.split(place)
    try:
        captions, extra, said, places = _said(here, place, own, field, split_field)
    except _UnknownSplit:
        raise
    except (OSError, ValueError) as error:
        return listing.Item(key, listing.Broken(str(error)), (), {}, split)
    return listing.Item(key, where, captions, extra, said or split, values | places)


def _said(here, place: str, own: dict[str, str], field, split_field):
    """Captions, other fields, split and values, from the files next to an image."""
    captions, extra, split, places = (), {}, None, {}
    if ".json" in own:
        row = texts.parse_json(texts.decode(pathlib.Path(own[".json"]).read_bytes()))
        row = row if isinstance(row, dict) else {"captions": row}
        where, folder = f"{here.key(place)}, .json", pathlib.Path(own[".json"]).parent
        try:
            split = split_names.said(row.get(split_field), where)
        except ValueError as error:
            raise _UnknownSplit(str(error)) from None
        places = beside.places(row, here.further, lambda name: here.find(name, folder, False))
        known = {*listing.CAPTION_FIELDS, field, split_field, *beside.fields(here.further)}
        extra = {name: value for name, value in row.items() if name not in known}
        if field or len(own) == 1:
            captions = listing.captions_of(row, field, where, here.incomplete)
            return captions, extra, split, places
    for end in (".txt", ".caption"):
        if end in own and not captions:
            captions = texts.lines(pathlib.Path(own[end]).read_bytes())
    return captions, extra, split, places
