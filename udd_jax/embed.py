"""`--mode=embed`: a data set with the vectors of a run's dual encoder, for a kind `embedding`.

    udd_jax --mode=embed --workdir=runs/t2i --config=configs/t2i.py --out=data/vectors
    udd_jax --config=configs/prior.py --config.data=folder:data/vectors

All vectors come to a trainer as files beside the pictures, whatever encoder made them. So this is
data in, data out, and a trainer knows nothing of it. What the files are: data/vectors.py.
"""

import pathlib
import shlex

from udd_jax import modalities, pipeline
from udd_jax.data import reading, sources, token_checks, vectors
from udd_jax.data.sources import listing
from udd_jax.errors import UserError
from udd_jax.runtime import logbook

# What `configs/prior.py` expects of the vectors and of the run that made them.
PRIOR = {"modalities.summary.dimensions": 64, "image_size": 32, "text.length": 13}


def run(workdir, out, config=None, dual_encoder: str | None = None, fields=None) -> dict:
    """Writes every record of the data of `config`, by default of the run, with its vector.

    workdir: the folder of a run; out: of the new data. dual_encoder: a run whose dual encoder is
    used instead. fields: {field: value} that replace those of the config. Returns the counts of
    `vectors.write`. ValueError, FileNotFoundError, one line.
    """
    if not out:
        raise UserError("--out is missing, expected a folder for the pictures and their vectors")
    pipe = pipeline.Pipeline.load(workdir)
    if dual_encoder:
        pipe = pipe.with_dual_encoder(dual_encoder)
    encoder, config = pipe.dual_encoder, pipe.config if config is None else config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(fields or {})
    left = modalities.stored(config)
    size, channels = pipe.tokenizers["image"].image_size, pipe.tokenizers["image"].shape[-1]
    own = {"incomplete": bool(config.get("incomplete")), "channels": channels}
    options = {**config.data_options.to_dict(), "image_size": size, **own}
    data = {split: sources.open_source(config.data, split, **options) for split in listing.SPLITS}
    logbook.begin()
    found = vectors.write(
        data,
        pipe.embed,
        out,
        settings={"image tokenizer": pipe.tokenizers["image"].hash, "dual encoder": encoder.hash},
        views=reading.Views(size, **own),
        skip_limit=config.get("skip_limit", token_checks.LIMIT),
    )
    for line in describe(found, left):
        logbook.say(line)
    count, numbers = sum(row["vectors"] for row in found.values()), encoder.model.width
    again = f"udd_jax --config=configs/prior.py --config.data=folder:{shlex.quote(str(out))}"
    ours = (numbers, pipe.config.image_size, pipe.config.text.length)
    for (name, usual), own in zip(PRIOR.items(), ours, strict=True):
        if own != usual:
            again += " " + shlex.quote(f"--config.{name}={own}")
    logbook.finish(f"{count} vectors of {numbers} numbers", pathlib.Path(out), again)
    return found


def describe(found: dict, left=()) -> list[str]:
    """Lines about what was written. found: of `vectors.write`; left: modalities that were not."""
    lines = []
    for split, row in found.items():
        lines.append(f"  {split}: {row['vectors']} vectors, {row['captions']} captions")
        lines += [f"    {cause}: {count}" for cause, count in row["causes"].items()]
        if not row["vectors"] and not row["captions"]:
            lines.append(
                f"    read it with --config.data_options.{split}=0, so that it stays empty"
            )
    if left:
        lines.append(f"  not copied: {', '.join(left)}; put their files beside the pictures")
    return lines
