"""The work folder of a run: its config, and the time of each stage.

A folder belongs to one config, which is written into it. Another config is an error that names the
fields, except those in CHANGEABLE.
"""

import contextlib
import json
import time

import jax
import ml_collections

from udd_jax.errors import UserError
from udd_jax.runtime import files, provenance

CONFIG = "config.json"
# Fields that may differ from the config of the work folder.
CHANGEABLE = (
    "name",
    "task",
    "train.steps",
    "train.log_every",
    "train.save_every",
    "train.keep",
    "train.held_out",
    "train.accumulate",
    "sample",
    "sample_rules",
    "begin_with",
    "evaluate",
    "workers",
    "vq.above_flat",
    "dual_encoder",
    "skip_limit",
    "mesh",
    "model.implementation",
    "model.unroll",
    "model.remat",
)
# Fields that came later and are not off at 0, with what runs without them do.
LATER = {
    "cache": True,
    "image_channels": 3,
    "modalities.image.kind": "image",
    "modalities.text.kind": "text",
    "model.absent": "noise",
    "model.kind": "diffusion",
    "model.stack": "plain",
    "train.contrastive.negatives": 4,
    "train.contrastive.form": "bounded",
    "train.end_to_end.until": 0.3,
    "train.image_weight": 1.0,
    "train.teacher_guidance.image": 1.0,
    "train.teacher_guidance.text": 1.0,
    "vq.rebuild.steps": 400,
    "vq.rebuild.learning_rate": 1e-4,
}


def claim(config: ml_collections.ConfigDict, workdir, changeable=()) -> None:
    """Writes `config.json`, or compares with the existing one; ValueError if they differ.

    changeable: fields that may differ, in addition to CHANGEABLE.

    The file also has the provenance of the run, and that of earlier starts with other versions.
    """
    path = workdir / CONFIG
    new = json.loads(config.to_json())  # as it is stored: lists, not tuples
    record = {"config": new, "made_with": provenance.provenance()}
    if path.exists():
        stored = files.read_json(path)
        old, made, before = stored["config"], stored["made_with"], stored.get("before", [])
        differ = [
            f"{name}: {a!r} there, {b!r} here"
            for name, a, b in _differences(old, new)
            if not any(name == c or name.startswith(c + ".") for c in (*CHANGEABLE, *changeable))
        ]
        if differ:
            raise UserError(
                f"{workdir} belongs to another config ({'; '.join(differ)}): "
                "choose another --workdir or set these fields back"
            )
        record["before"] = [*before, made] if made != record["made_with"] else before
    if jax.process_index() == 0:
        files.write_json(path, record)


def _differences(old: dict, new: dict, prefix: str = ""):
    for name in sorted({*old, *new}):
        a, b = (x.get(name, LATER.get(prefix + name)) for x in (old, new))
        if isinstance(a, dict) or isinstance(b, dict):
            yield from _differences(a or {}, b or {}, f"{prefix}{name}.")
        elif a != b and (a or b or (name in old and name in new)):  # a field of one, off, is equal
            yield prefix + name, a, b


@contextlib.contextmanager
def timed(workdir, name: str):
    """Adds the seconds of a stage to `stages.json`: the sum over all runs of this folder."""
    path = workdir / "stages.json"
    seconds = files.read_json(path) if path.exists() else {}
    start = time.perf_counter()

    def add():
        seconds[name] = round(seconds.get(name, 0) + time.perf_counter() - start, 2)
        if jax.process_index() == 0:
            files.write_json(path, seconds)

    try:
        yield
    except BaseException:  # a stop, or an error: of the disk, perhaps
        with contextlib.suppress(OSError):
            add()
        raise
    add()
