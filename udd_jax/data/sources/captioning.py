"""The captions of a picture: from the fields of a row, or from the texts of its name.

    captions_of   a row of a table or an object of JSON -> captions
    said          the texts of one name, in a folder or a shard -> captions, fields

    a.txt   a.text   a.caption   a.json      the first of them that has a caption is used

With `caption_field` the field of `a.json` is asked first. A text has a caption on each line; the
object in `a.json` has them in a field such as "caption", and its other fields are data. What has
other captions and is not used is named in words, so that it can be counted.
"""

import numpy as np

from udd_jax.data import captions as texts
from udd_jax.data.sources.listing import printable
from udd_jax.errors import UserError

CAPTION_FIELDS = (
    *("captions", "caption", "sentences", "text", "texts", "comment", "prompt", "txt"),
)
TEXTS = (".txt", ".text", ".caption")
ENDS = (*TEXTS, ".json")


def said(own: dict[str, bytes], field: str | None, where: str, optional=False):
    """What the texts of one picture say.

    Args:
        own: {an ending of ENDS: the bytes of its file}.
        field: the caption field of `.json`, or None for the usual names.
        where: the name of `.json`, for a message.
        optional: a `.json` without captions is no fault.

    Returns:
        (captions, the object of `.json` or {}, what is not used in words).

    Raises:
        ValueError: `.json` is damaged, or lacks the caption field, and has to have it.
    """
    found = {end: texts.lines(own[end]) for end in TEXTS if end in own}
    row = {}
    if ".json" in own:
        row = texts.parse_json(texts.decode(own[".json"]))
        row = row if isinstance(row, dict) else {"captions": row}
        if field or not found or caption_fields(row):
            found[".json"] = captions_of(row, field, where, optional)
    order = [end for end in ((".json", *TEXTS) if field else ENDS) if end in found]
    written = [end for end in order if _written(found[end])]
    chosen = (written or order or [None])[0]
    captions = found.get(chosen, ())
    others = [end for end in written if not _written(found[end]) <= _written(captions)]
    unused = [f"the captions of {end} beside those of {chosen}" for end in others if end in TEXTS]
    if ".json" in others:
        unused.append(
            f"the captions of .json beside those of {chosen} (--config.data_options.caption_field= "
            "prefers them)"
        )
    return captions, row, unused + (not_used(row, field) if chosen == ".json" else [])


def captions_of(row: dict, field: str | None, where: str, optional=False) -> tuple[str, ...]:
    """The captions in a row of a table or a JSON object.

    Args:
        row: field names and values; a caption field holds a text, a list of texts, or a list of
            objects with "raw" or "caption" (Karpathy's files).
        field: the caption field, or None for the usual names.
        where: for the message.
        optional: a row without this field has no captions.

    Raises:
        ValueError: the row does not have this field.
    """
    known = caption_fields(row)
    chosen = (field if field in row else None) if field else _chosen(row, known)
    if chosen is None and optional:
        return ()
    if chosen is None:
        wanted = field or " or ".join(CAPTION_FIELDS)
        raise UserError(
            f"{where} has the fields {sorted(map(str, row))}, expected {wanted}; name it with "
            "caption_field (--config.data_options.caption_field=)"
        )
    return _texts(row[chosen])


def caption_fields(row: dict) -> list:
    """The fields of a row with a usual name, in the order of CAPTION_FIELDS."""
    fields = {name: str(name).strip().lower() for name in row}
    own = [name for name, known in fields.items() if known in CAPTION_FIELDS]
    return sorted(own, key=lambda name: CAPTION_FIELDS.index(fields[name]))


def not_used(row: dict, field: str | None) -> list[str]:
    """The caption fields of a row that `captions_of` does not use and that say something else, in
    words.

    field: as of `captions_of`, or several with commas between them.
    """
    known = caption_fields(row)
    used = [field, *field.split(",")] if field else [_chosen(row, known)]
    captions = {text for name in used if name in row for text in _written(_texts(row[name]))}
    return [
        f"the field {printable(str(name))} (--config.data_options.caption_field= chooses another)"
        for name in known
        if name not in used and not _written(_texts(row[name])) <= captions
    ]


def _chosen(row: dict, known: list):
    """The first of some fields with a caption, else the first of them, else None."""
    return next((n for n in known if _written(_texts(row[n]))), known[0] if known else None)


def _texts(value) -> tuple:
    """The captions in the value of a field."""
    if value is None:
        return ()
    values = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    return tuple(v.get("raw", v.get("caption")) if isinstance(v, dict) else v for v in values)


def _written(captions) -> set[str]:
    """Those of some captions that have a text."""
    return {c.strip() for c in captions if isinstance(c, str) and c.strip()}
