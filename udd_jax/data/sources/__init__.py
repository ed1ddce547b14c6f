"""One line of config names a source of captioned images; the same line serves every stage.

    shapes                     the embedded world whose law is known         sources/shapes/
    glyphs                     written notes, long captions, a known law     sources/glyphs.py
    folder:/path               pictures with captions.jsonl, .csv, .parquet
                               or name.txt beside name.png                   sources/folder.py
    webdataset:/path/*.tar     KEY.png with KEY.json or KEY.txt              sources/webdataset.py
    parquet:/path              image bytes and captions in columns           sources/parquet.py
    coco:/path                 annotations (or Karpathy's) and images        sources/coco.py
    cub:/path                  birds with ten captions an image              sources/cub.py
    tfds:NAME                  prepared TensorFlow Datasets                  sources/tfds.py

A source is a sequence of `records.Record` with a `name`. That of an embedded world also has its
`world` (worlds.py), by which everything that is generated from it can be judged. Where the data do
not say which items are for training, validation and test, the hash of an image's bytes does, so
that no picture is in two. Each kind of stored data is a chapter of this package with a function
`source`, imported when it is asked for.
"""

import functools
import importlib
import inspect

from udd_jax.data.sources import glyphs, shapes, worlds

WORLDS = {world.name: world for world in (shapes.WORLD, glyphs.WORLD)}  # yours may join them
STORED = ("folder", "webdataset", "parquet", "coco", "cub", "tfds")
# Options of stored data, of all kinds; a kind has its own as well.
SHARED = ("validation", "test", "trust_splits", "size")
LAST = ("split_field",)
_SIZES = {"train": 20000, "validation": 1000, "test": 1000}  # of an embedded world
_CAPTIONS = {"train": 4}  # and captions an image; 1 elsewhere


def open_source(spec: str, split: str, **options):
    """Opens a source.

    Args:
        spec: the name of an embedded world (WORLDS), or "kind:path" as in the list above.
        split: "train", "validation" or "test".
        **options: of the source's own function: `size`, `seed` of an embedded world; of stored
            data `validation` and `test`, the shares that are split off by hash where the data give
            no such split, `trust_splits` and `size` (`listing.choose`), and what the chapter of the
            kind names. None is as good as not given.

    Returns:
        A source: `len(source)`, `source[i] -> Record`, `source.name`; of an embedded world
        `source.world`.

    Raises:
        ValueError: unknown kind or option, or no such data.
    """
    kind, colon, path = spec.partition(":")
    if (kind not in WORLDS or colon) and (kind not in STORED or not path):
        kinds = ", ".join([*WORLDS, *(f"{name}:PATH" for name in STORED)])
        raise ValueError(f"data is {spec!r}, expected one of {kinds}")
    options = {name: value for name, value in options.items() if value is not None}
    if kind in WORLDS:
        source = functools.partial(worlds.Source, WORLDS[kind])
    else:
        source = importlib.import_module(f"udd_jax.data.sources.{kind}").source
    known = [name for name in inspect.signature(source).parameters if name not in ("path", "split")]
    if "shares" in known:
        known.remove("shares")
        known = [name for name in known if name not in LAST] + [
            *SHARED,
            *(name for name in LAST if name in known),
        ]
    for name in options:
        if name not in known:
            raise ValueError(
                f"data_options has {name!r} for {spec!r}, expected some of {', '.join(known)}: "
                f"leave out --config.data_options.{name}="
            )
    if kind in WORLDS:
        usual = {"size": _SIZES.get(split, 1), "captions_per_image": _CAPTIONS.get(split, 1)}
        return source(split, **(usual | options))
    return source(path, split, **options)
