"""Pictures with their captions and values in files of the same name, or in folders of classes.

`here` is everywhere the walk of a folder (`walk.py`): its pictures, texts {stem: {ending: file}}
and values {stem: {modality: file}}.
"""

import os

from udd_jax.data.sources import beside, captioning, listing, split_names


def items(here, field: str | None, split_field: str) -> list[listing.Item]:
    """The images with the captions in files next to them, or with the names of their folders.

    If items may be incomplete, a text or a value without a picture of its name is one as well.
    UserError for a word that names no split: it is no fault of one item, but of all data.
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
        captioned = stem in here.texts or (named and here.splits.class_of(here.parts(place)[:-1]))
        cause = listing.Broken(why) if captioned else listing.Left(why)
        found.append(listing.Item(here.key(place), cause, (), {}, here.split(place)))
    known, alone = {*stems, *here.pictures}, set(here.alone() if here.incomplete else ())
    for stem in dict.fromkeys((*here.texts, *here.values)):
        if stem not in known:
            own, values = dict(here.texts.get(stem, {})), here.values.get(stem, {})
            if stem in alone and (own or values):
                item = _item(here, stem, None, own, values, field, split_field)
                if item.captions or item.further or item.where:
                    found.append(item)
                    continue
            for what, places in (("text", own), ("value", values)):
                cause = listing.Left(f"a {what} without a picture of its name")
                found += [listing.Item(here.key(place), cause, ()) for place in places.values()]
    return found


def _item(here, place: str, where, own: dict, values: dict, field, split_field) -> listing.Item:
    """The item at `place` with the texts and values next to it; its image is at `where`, if any."""
    key, split = here.key(place), here.split(place)
    try:
        contents = {end: _read(file) for end, file in own.items()}
        json = os.path.splitext(key)[0] + ".json"
        captions, row, unused = captioning.said(contents, field, json, here.incomplete)
    except (OSError, ValueError) as error:
        return listing.Item(key, listing.Broken(str(error)), (), {}, split)
    split_field = split_names.field(row, split_field)
    split = split_names.said(row.get(split_field), json) or split
    folder = os.path.dirname(own.get(".json", place))
    places = beside.places(row, here.further, lambda name: here.find(name, folder, False))
    known = {*captioning.caption_fields(row), field, split_field, *beside.fields(here.further)}
    extra = {name: value for name, value in row.items() if name not in known}
    return listing.Item(key, where, captions, extra, split, values | places, tuple(unused))


def _read(file: str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()
