"""Checks of a token cache: too many faults, or other data, settings and views than its own."""

import collections
import json

from udd_jax.data import reading
from udd_jax.errors import UserError

SOURCE = ("source", "source_hash", "records")


def refused(proof, limit: float, source) -> bool:
    """Whether the shard with this proof, a file, was refused: its files may have been mended since,
    so it is written anew."""
    try:
        check_faults(json.loads(proof.read_text()), limit, len(source), "")
    except ValueError:
        return True
    return False


def check_faults(proof: dict, limit: float, records: int, where):
    causes = collections.Counter(fault["cause"] for fault in proof["faults"])
    captions = sum(count for _, count in proof["items"]) + sum(causes[c] for c in reading.DROPPED)
    for kinds, whole, what in (
        (reading.SKIPPED, records, "records"),
        (reading.DROPPED, max(captions, records), "captions"),
    ):
        counts = {cause: causes[cause] for cause in kinds if causes[cause]}
        if sum(counts.values()) > limit * whole:
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
