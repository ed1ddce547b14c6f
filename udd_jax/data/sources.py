"""One line of config names a source of captioned images; the same line serves every stage.

    shapes                     the embedded world whose law is known         data/shapes.py
    folder:/path               pictures with captions.jsonl, .csv, .parquet
                               or name.txt beside name.png                   data/folder.py

A source is a sequence of `records.Record` with a `name`. Where the data do not say which items are
for training, validation and test, the hash of an image's bytes does, so that no picture is in two.
"""

import inspect

from udd_jax.data import folder, shapes

_EMBEDDED = {"shapes": shapes.source}
_STORED = {"folder": folder.source}
_SIZES = {"train": 20000, "validation": 1000, "test": 1000}  # of an embedded world


def open_source(spec: str, split: str, **options):
    """Opens a source.

    Args:
        spec: "shapes", or "kind:path" as in the list above.
        split: "train", "validation" or "test".
        **options: of the source's own function: `size`, `seed` of an embedded world; of stored
            data `validation` and `test`, the shares that are split off by hash where the data give
            no such split, and what the chapter of the kind names.

    Returns:
        A source: `len(source)`, `source[i] -> Record`, `source.name`.

    Raises:
        ValueError: unknown kind or option, or no such data.
    """
    kind, colon, path = spec.partition(":")
    if kind in _EMBEDDED and not colon:
        open_kind, arguments = _EMBEDDED[kind], (split,)
        options = {"size": _SIZES.get(split, 1)} | options
    elif kind in _STORED and path:
        open_kind, arguments = _STORED[kind], (path, split)
    else:
        kinds = [*_EMBEDDED, *(f"{name}:PATH" for name in _STORED)]
        raise ValueError(f"data is {spec!r}, expected one of {', '.join(kinds)}")
    known = dict.fromkeys(inspect.signature(open_kind).parameters)
    if known.pop("shares", 0) is None:
        known |= dict.fromkeys(("validation", "test"))
    known = [name for name in known if name not in ("path", "split")]
    for name in options:
        if name not in known:
            raise ValueError(
                f"data_options has {name!r} for {spec!r}, expected some of {', '.join(known)}"
            )
    return open_kind(*arguments, **options)
