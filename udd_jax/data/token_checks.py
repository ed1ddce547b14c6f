"""Checks of a token cache: too many faults, tokens that do not fit its dtype, or other data,
settings and views than its own."""

import collections
import json

import numpy as np

from udd_jax.data import reading
from udd_jax.errors import UserError

LIMIT = 0.01  # largest share of unusable records, where nothing else is said
SOURCE = ("source", "source_hash", "records")


def refused(proof, limit: float, source) -> bool:
    """Whether the shard with this proof, a file, was refused: its files may have been mended since,
    so it is written anew."""
    try:
        check_faults(json.loads(proof.read_text()), limit, len(source), "", part=True)
    except ValueError:
        return True
    return False


def check_faults(proof: dict, limit: float, records: int, where, part: bool = False):
    """part: of one shard, whose captions are not all that there are; `finish` checks those."""
    causes = collections.Counter(fault["cause"] for fault in proof["faults"])
    captions = sum(item[1] for item in proof["items"]) + sum(causes[c] for c in reading.DROPPED)
    for kinds, whole, what in (
        (reading.skipping(causes), records, "records"),
        *(() if part else ((reading.DROPPED, max(captions, records), "captions"),)),
    ):
        counts = {cause: causes[cause] for cause in kinds if causes[cause]}
        if reading.too_many(sum(counts.values()), whole, limit):
            listed = ", ".join(f"{cause} {count}" for cause, count in counts.items())
            raise UserError(
                f"{sum(counts.values())} of {whole} {what} are unusable ({listed}), expected at "
                f"most {limit:.1%}: see {where}, or raise skip_limit (--config.skip_limit=)"
            )


def refuse_other(directory, manifest: dict, made_of: dict, prefix: str = ""):
    for name, now in made_of.items():
        then = manifest.get(name)
        if isinstance(now, dict) and isinstance(then, dict):
            missing = {key: None for key in then if key not in now}
            refuse_other(directory, then, now | missing, f"{prefix}{name}.")
        elif then != now:
            mend = "put the data back, or " if name in SOURCE else ""
            what = f"{prefix}{name} is {then!r} in the token cache and {now!r} now"
            raise UserError(f"{directory}: {what}; {mend}delete the folder to tokenize again")


def in_batches(encode, batch_size: int, dtype: str):
    """`encode` in batches of one size, so that it compiles once; checks that tokens fit `dtype`."""
    limit = np.iinfo(dtype).max

    def encode_all(inputs):
        rows = []
        for start in range(0, len(inputs), batch_size):
            part = inputs[start : start + batch_size]
            fill = [part[-1]] * (batch_size - len(part))
            full = [*part, *fill] if isinstance(part, list) else np.stack([*part, *fill])
            rows.append(np.asarray(encode(full))[: len(part)])
        rows = np.concatenate(rows)
        if rows.min() < 0 or rows.max() > limit:
            raise UserError(
                f"tokens are {rows.min()}..{rows.max()}, expected 0..{limit} for dtype {dtype}; "
                "use a wider dtype"
            )
        return rows.astype(np.dtype(dtype).newbyteorder("<"))

    return encode_all
