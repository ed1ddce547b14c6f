"""The sources of captioned images; `config.data` names one, for all stages.

    shapes                     an embedded world of simple scenes            sources/shapes/
    shapes64                   the same scenes at 64 x 64 pixels
    compose                    pictures that a text makes of two others      shapes/compose.py
    glyphs                     an embedded world of notes, long captions     sources/glyphs.py
    folder:/path               images with captions.jsonl, .csv, .parquet
                               or name.txt next to name.png                  sources/folder.py
    webdataset:/path/*.tar     KEY.png with KEY.json or KEY.txt              sources/webdataset.py
    parquet:/path              image bytes and captions in columns           sources/parquet.py
    coco:/path                 annotations (or Karpathy's) and images        sources/coco.py
    cub:/path                  birds with ten captions an image              sources/cub.py
    tfds:NAME                  prepared TensorFlow Datasets                  sources/tfds.py

A source is a sequence of `records.Record` with a `name`. The source of an embedded world also has
its `world` (worlds.py), which can check generated samples. If the data do not name the splits, the
hash of the bytes of an image decides between training, validation and test, so that no image is in
two splits. Each kind of stored data is a file of this package with a function `source`, imported on
use.
"""

import functools
import importlib
import inspect
import os

from udd_jax.data.sources import glyphs, shapes, worlds
from udd_jax.data.sources.shapes import compose
from udd_jax.errors import UserError

_OURS = (shapes.WORLD, compose.WORLD, glyphs.WORLD, shapes.WORLD_64)
WORLDS = {world.name: world for world in _OURS}  # add your own here
STORED = ("folder", "webdataset", "parquet", "coco", "cub", "tfds")
# Options of all kinds of stored data; each kind has more.
SHARED = ("validation", "test", "trust_splits", "ignore_splits", "size")
LAST = ("split_field",)
ASKED = ("further", "incomplete")  # arguments of a source that the config decides
_SIZES = {"train": 20000, "validation": 1000, "test": 1000}  # of an embedded world
_CAPTIONS = {"train": 4}  # captions of each image in an embedded world; 1 in other splits


def open_source(
    spec: str, split: str, image_size=None, *, channels=3, further=(), incomplete=False, **options
):
    """Opens a source.

    Args:
        spec: the name of an embedded world (WORLDS), or "kind:path" as in the list above.
        split: "train", "validation" or "test".
        image_size: the size to which pictures will be fitted, a side or (height, width); those that
            are then equal are never in two splits of stored data. None: those whose pixels are.
        channels: in which they are compared; those of an embedded world are fixed.
        further: modalities besides image and text, which `record.extra` then has: their names, for
            an embedded world; {name: `beside.Reader`} for stored data.
        incomplete: whether records of stored data may lack their image.
        **options: for an embedded world `size`, `seed`, `captions_per_image`; for stored data
            `validation` and `test`, the shares for splits that the data lack, `trust_splits`,
            `ignore_splits` and `size` (`listing.choose`), and the options of the `source` function
            of the kind. None means the default.

    Returns:
        A source: `len(source)`, `source[i] -> Record`, `source.name`; for an embedded world also
        `source.world`.

    Raises:
        ValueError: unknown kind or option, a world of other channels, or the data do not exist.
    """
    kind, colon, path = spec.partition(":")
    path = os.path.expanduser(path)
    if (kind not in WORLDS or colon) and (kind not in STORED or not path):
        kinds = ", ".join([*WORLDS, *(f"{name}:PATH" for name in STORED)])
        there = f": for this folder, --config.data=folder:{spec}" if os.path.isdir(spec) else ""
        raise UserError(f"data is {spec!r}, expected one of {kinds}{there}")
    options = {name: value for name, value in options.items() if value is not None}
    if kind in WORLDS and channels != WORLDS[kind].channels:
        raise UserError(
            f"image_channels = {channels}, but the pictures of {kind!r} have "
            f"{WORLDS[kind].channels} channels and are read back by them: set "
            f"--config.image_channels={WORLDS[kind].channels}"
        )
    if kind in WORLDS:
        options |= {"senses": tuple(further)} if further else {}
        source = functools.partial(worlds.Source, WORLDS[kind])
    else:
        source = importlib.import_module(f"udd_jax.data.sources.{kind}").source
    stored = _of_stored(spec, source, further, incomplete)
    shares = "shares" in inspect.signature(source).parameters
    known = [n for n in inspect.signature(source).parameters if n not in ("path", "split", *ASKED)]
    if shares:
        known.remove("shares")
        known = [name for name in known if name not in LAST] + [
            *SHARED,
            *(name for name in LAST if name in known),
        ]
    for name in options:
        if name not in known:
            raise UserError(
                f"data_options has {name!r} for {spec!r}, expected some of {', '.join(known)}: "
                f"leave out --config.data_options.{name}="
            )
    if kind in WORLDS:
        usual = {"size": _SIZES.get(split, 1), "captions_per_image": _CAPTIONS.get(split, 1)}
        return source(split, **(usual | options))
    compared = {"side": image_size, "channels": channels} if shares else {}
    return source(path, split, **options, **stored, **compared)


def _of_stored(spec: str, source, further, incomplete: bool) -> dict:
    """The arguments ASKED of the `source` of a kind of stored data, if it has them.

    ValueError if it has no further modalities, and some are wanted.
    """
    takes = inspect.signature(source).parameters
    if "senses" in takes:  # an embedded world
        return {}
    if further and "further" not in takes:
        raise UserError(
            f"modalities has {', '.join(further)}, which {spec} does not have: expected image and "
            "text, or data in a folder, a webdataset or a parquet file"
        )
    asked = {"further": further or None, "incomplete": incomplete}
    return {name: value for name, value in asked.items() if value and name in takes}
