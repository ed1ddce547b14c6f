"""What img2dataset writes about its downloads.

`NAME_stats.json` next to a shard or folder NAME counts the pictures that were stored ("successes")
and those that were not ("failed_to_download", "failed_to_resize"). The latter are no fault of the
data, but they are counted. In its Parquet files, the column `status` says it of each row.
"""

import pathlib

from udd_jax.data import captions as texts
from udd_jax.data.sources import listing

END = "_stats.json"
STORED = "success"  # in the field `status`
_MOST = 10**6  # pictures of a shard; more are not believed
_FAILED = ("failed_to_download", "failed_to_resize")


def statistics(path: pathlib.Path) -> dict[str, int]:
    """The counts in one file, or {} if it is not there or is not such a file."""
    try:
        said = texts.parse_json(texts.decode(path.read_bytes()))
        counts = {name: int(said.get(name, 0)) for name in ("successes", *_FAILED)}
        return counts if "successes" in said and sum(counts.values()) <= _MOST else {}
    except (ValueError, TypeError, AttributeError, OverflowError, OSError):
        return {}


def failed(path: pathlib.Path, name: str) -> list[listing.Item]:
    """One `Left` item for each picture that could not be stored; `name` is for their keys."""
    counts = statistics(path)
    return [
        listing.Item(f"{name}, {cause} {number}", listing.Left(cause_of(cause)), ())
        for cause in _FAILED
        for number in range(counts.get(cause, 0))
    ]


def lost(path: pathlib.Path, name: str, there: int, where) -> list[listing.Item]:
    """One item at `where`, for each picture that was stored and is not among those `there`."""
    count = statistics(path).get("successes", 0)
    return [listing.Item(f"{name}, lost {n}", where, ()) for n in range(count - there)]


def cause_of(status) -> str:
    """The status of a picture that was not stored, in words."""
    return f"img2dataset did not store it ({status})"
