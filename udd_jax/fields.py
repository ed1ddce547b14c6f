"""The fields that a row of `config.modalities` may have: the type and the range of each. And the
names that no row may have.

    SOUND["rate"]     Field(int, 1): a whole number of at least 1

`modalities.KINDS` has these tables beside the kinds, and `modalities.rows` checks every row.
"""

import math
from typing import Any, NamedTuple

from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.tokenizers import pyramid, spectrogram

SAID = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    dict: "settings, such as {'steps': 800}",
    tuple: "(rows, columns), two whole numbers",
}


class Field(NamedTuple):
    """The values of a field.

    type: int, float (also whole numbers), str, dict, or tuple for a pair of whole numbers. least,
    most: the range of a number. known: the only values, if there are few.
    """

    type: type
    least: float = -math.inf
    most: float = math.inf
    known: tuple = ()

    def fits(self, value) -> bool:
        """Whether a value has the type and lies in the range. None stands for no string."""
        if value is None:
            return self.type is str and not self.known
        if self.type is tuple:
            whole = self._replace(type=int)
            pair = isinstance(value, tuple | list) and len(value) == 2
            return pair and all(whole.fits(part) for part in value)
        types = (int, float) if self.type is float else self.type
        if not isinstance(value, types) or isinstance(value, bool):
            return False
        if self.known:
            return value in self.known
        if self.type in (str, dict):
            return True
        return math.isfinite(value) and self.least <= value <= self.most

    @property
    def said(self) -> str:
        """What is expected, in words."""
        if self.known:
            return f"one of {', '.join(str(value) for value in self.known)}"
        if self.most < math.inf:
            return f"{SAID[self.type]} from {self.least:g} to {self.most:g}"
        if self.least == math.ulp(0.0):
            return f"{SAID[self.type]} above 0"
        return SAID[self.type] + (f" of at least {self.least:g}" * (self.least > -math.inf))


POSITIVE, WORD, SHARE = Field(int, 1), Field(str), Field(float, 0, 1)
ABOVE_ZERO = Field(float, math.ulp(0.0))
SHARED = {"schedule": WORD, "weight": Field(float, 0)}
EVERY_ROW = {"kind": WORD, **SHARED}  # of a row of any kind
REFERENCE = {"like": WORD, "segment": WORD, "field": WORD, **SHARED}  # of one that is like another
SOUND = {
    **dict.fromkeys(("rate", "samples", "bands", "hop"), POSITIVE),
    **{"window": Field(int, 2), "scale": Field(str, known=tuple(spectrogram.SCALES))},
    **{"low": Field(float, 0), "high": ABOVE_ZERO, "floor": Field(float)},
    **{"vq": Field(dict), "field": WORD},
}
LAYOUT = {"grid": Field(tuple, 1), "classes": POSITIVE, "field": WORD}
EMBEDDING = {
    **{"dimensions": POSITIVE, "residuals": POSITIVE, "codes": Field(int, 2)},
    **{"vectors": POSITIVE, "field": WORD},
}
FEATURES = {"count": POSITIVE, "width": POSITIVE, "dropped": SHARE, "field": WORD}
COARSE = {
    **{"codes": Field(int, 2), "factor": Field(int, known=pyramid.FACTORS)},
    **{"preview": SHARE, "noise": SHARE},
}

# Tasks, and files and folders of a run.
TAKEN = {
    *(*tasks.ALIASES, "every", "edit", "outpaint", "upscale"),
    *("vq", "tokens", "weights", "lock", "samples", "checkpoints", "replay", "tuning", "cache"),
    *("recognition", "listener", "judges"),
}


def check(name: str, row: dict[str, Any], known: dict[str, Field]) -> None:
    """UserError, one line that names the field, for a value of another type or out of its range.

    name: of the row. known: its fields; others in the row are passed over.
    """
    for field, value in row.items():
        if field in known and not known[field].fits(value):
            raise UserError(f"modalities.{name}.{field} = {value!r}, expected {known[field].said}")
