"""Cuts in texts whose script has no spaces between words: Chinese, Japanese, Thai and others.

Byte-pair merging stays within words, and words end at spaces. Without spaces a whole caption would
become one piece, and a model could recall captions but never compose one. Where such texts have no
dictionary, two neighbours may share a piece only if they hardly ever occur apart:

    joined(a, b)  if  n(ab) >= 5,  n(ab) >= .9 n(a)  and  n(ab) >= .9 n(b)

Then a piece is a unit that the captions never take apart: often a word, at least a character.
"""

import collections
import itertools
import re
import unicodedata

CUT = "\x1f"  # normalised captions have no control characters
_LEAST, _SHARE = 5, 0.9
# Han with its signs, kana, Bopomofo and Yi, and Thai, Lao, Tibetan, Myanmar, Khmer, Tai scripts.
_UNSPACED = re.compile(
    "[\u0e01-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\u3005-\u3007"
    "\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uaa60-\uaadf\uf900-\ufaff"
    "\U00020000-\U0003ffff]+"
)


def cut(texts: list[str]) -> list[str]:
    """The texts with CUT between neighbours of an unspaced script that may not share a piece.

    Texts of other scripts are unchanged. The result depends on all texts together.
    """
    singles, together = collections.Counter(), collections.Counter()
    for text in texts:
        for run in _UNSPACED.findall(text):
            units = _units(run)
            singles.update(units)
            together.update(itertools.pairwise(units))

    def joined(a, b):
        least = max(_LEAST, _SHARE * singles[a], _SHARE * singles[b])
        return together[a, b] >= least

    def marked(found):
        units = _units(found[0])
        parts = units[:1]
        for a, b in itertools.pairwise(units):
            parts.append(b if joined(a, b) else CUT + b)
        return CUT + "".join(parts) + CUT

    return [_UNSPACED.sub(marked, text) for text in texts]


def _units(run: str) -> list[str]:
    """The characters of a text, each with the marks that combine with it."""
    units = []
    for letter in run:
        if units and unicodedata.category(letter).startswith("M"):
            units[-1] += letter
        else:
            units.append(letter)
    return units
