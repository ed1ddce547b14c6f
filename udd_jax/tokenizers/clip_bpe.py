"""CLIP's byte-pair encoding: the vocabulary of the published text tokenizers.

The file `bpe_simple_vocab_16e6.txt.gz` lists pairs of pieces; the pair that is listed first merges
first. The classes are the 256 bytes, the 256 bytes that end a word, the merges in order, and two
special tokens. As in UniD3 the file is cut to its first merges. The default is 7936 + 256 = 8192
classes; the other published size is 16384 + 256.

The padding, id 0, is also the token "!" inside a word. Therefore an "!" before another character
does not come back (published behaviour).
"""

import functools
import html
import itertools
import re
import unicodedata
from collections.abc import Iterable

from udd_jax.errors import UserError

_BYTES = 256
_LONGEST_WORD = 500  # characters; merging takes quadratic time, so longer words are split
_CLASSES = 8192
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_PUBLISHED_MERGES = 48894  # CLIP's own cut; only the published file has more lines
_CONTRACTION = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d")


class Pairs:
    """Byte-pair encoding: a word starts as its characters, and the best-ranked pair merges first.

    Tokens are strings over the 256 printable stand-ins for bytes. The last token of a word ends in
    the mark `</w>`.
    """

    pad_id = 0
    _END = "</w>"

    def __init__(self, content: bytes):
        lines = content.decode().splitlines()[1:]
        pairs = [tuple(line.split()) for line in lines]
        if not all(len(pair) == 2 for pair in pairs):
            raise UserError("a line of CLIP's merges is not two pieces")
        self._stand_in = _byte_stand_ins()
        self._byte = {c: b for b, c in self._stand_in.items()}
        letters = list(self._stand_in.values())
        self._tokens = letters + [c + self._END for c in letters]
        self._tokens += ["".join(pair) for pair in pairs] + list(_SPECIAL)
        self._id = {token: i for i, token in enumerate(self._tokens)}
        self._rank = {pair: i for i, pair in enumerate(pairs)}
        self._merged = functools.lru_cache(1 << 16)(self._merge)
        self.vocab_size = len(self._tokens)

    def pieces(self, text: str) -> list[int]:
        return [i for word in _words(_published_cleaning(text)) for i in self._merged(word)]

    def _merge(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:
            return (self._id[word],)
        parts = [self._stand_in[b] for b in word.encode()]
        parts[-1] += self._END
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda p: self._rank.get(p, len(self._rank)))
            if best not in self._rank:
                break
            parts = _join(parts, best)
        return tuple(self._id[part] for part in parts)

    def text(self, ids: list[int]) -> str:
        joined = "".join(self._tokens[i] for i in ids)
        content = bytes(self._byte[c] for c in joined)
        return content.decode("utf-8", "replace").replace(self._END, " ")

    def piece(self, index: int) -> str:
        return self.text([index]).strip()


def _join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with every occurrence of the pair joined, from the left."""
    joined, i = [], 0
    while i < len(parts):
        width = 2 if tuple(parts[i : i + 2]) == pair else 1
        joined.append("".join(parts[i : i + width]))
        i += width
    return joined


def cut(content: bytes, classes: int | None) -> bytes:
    """A merges file, cut so that it makes `classes` classes; None is 8192 of the published file.

    A file that is not longer than CLIP's own cut stays whole without `classes`. ValueError where
    the merges do not make so many.
    """
    header, *merges = content.decode().splitlines()
    others = 2 * _BYTES + len(_SPECIAL)
    if classes is None and len(merges) > _PUBLISHED_MERGES:
        classes = _CLASSES
    keep = len(merges) if classes is None else classes - others
    if not 0 <= keep <= len(merges):
        raise UserError(f"classes={classes} is not in {others}..{others + len(merges)}")
    return "\n".join([header, *merges[:keep], ""]).encode()


def _published_cleaning(text: str) -> str:
    try:
        import ftfy
    except ImportError:
        raise UserError("CLIP's published text cleaning needs `pip install ftfy`") from None
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _words(text: str) -> Iterable[str]:
    """Splits like CLIP's pattern: contractions, runs of letters, single digits, runs of others.

    The classes of the pattern are Unicode categories, which `re` does not know; hence a loop.
    """
    start = 0
    while start < len(text):
        kind = _character_kind(text[start])
        if match := _CONTRACTION.match(text, start):
            end = match.end()
        else:
            end = start + 1
            last = end if kind in ("N", "space") else min(len(text), start + _LONGEST_WORD)
            while end < last and _character_kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[start:end]
        start = end


@functools.lru_cache(4096)
def _character_kind(character: str) -> str:
    if character.isspace():
        return "space"
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else "other"


def _byte_stand_ins() -> dict[int, str]:
    """Byte to printable character, in CLIP's order: first the visible Latin-1, unchanged."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}
