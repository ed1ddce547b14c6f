"""Captions to token ids and back: one interface over three kinds of vocabulary file.

    tokenizer = text_tokenizer.load("runs/t2i/text.model")
    ids = tokenizer.encode(["a small red circle"], length=16)        # int32[1, 16]
    tokenizer.decode(ids)                                            # ["a small red circle"]

A `Tokenizer` is a vocabulary file held in memory. `load` looks at the content, not at the name:

- a SentencePiece model: `train_sentencepiece` writes one, and it is the default for training;
- CLIP's byte-pair merges (`bpe_simple_vocab_16e6.txt.gz`), see `clip_bpe.py`;
- a Hugging Face `tokenizer.json`, read with the `tokenizers` package.

Conventions: a text is a row of `length` ids, padded at the end with `pad_id`. There is no start or
end token. Decoding drops padding wherever it stands, so that any row of ids in range decodes to
some text.

A vocabulary without upper-case letters comes from lower-case captions. Texts are then lower-cased
before they are encoded, so that "A red circle" is understood.
"""

import collections
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from udd_jax.errors import UserError, first_line
from udd_jax.runtime import files
from udd_jax.tokenizers import clip_bpe, unspaced

BLANK = re.compile(r"_{3,}")  # three underscores or more in a prompt stand for one missing word

_BYTES = 256
_RESERVED = 2 + _BYTES  # padding, unknown, and the byte pieces of a SentencePiece model
_SMALLEST = 320  # a smaller SentencePiece model has no room for an alphabet
_LONGEST = 2000  # characters of a caption that training looks at


def normalise(text: str) -> str:
    """The text with NFKC characters, single spaces, and no control characters or surrogates."""
    if not (text.isascii() and text.isprintable()):
        kept = (c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))
        text = unicodedata.normalize("NFKC", "".join(kept))
    return " ".join(text.split())


class Tokenizer:
    """A vocabulary file in memory; made by `load` or `train_sentencepiece`, and picklable.

    vocab_size: int     number of classes K; ids are 0..K-1
    pad_id: int         the id that fills a row after its text
    hash: str           sha256 of the kind and of the content of the file
    kind: str           "sentencepiece", "clip" or "huggingface"
    """

    def __init__(self, kind: str, content: bytes):
        backing = {
            "sentencepiece": _SentencePiece,
            "clip": clip_bpe.Pairs,
            "huggingface": _HuggingFace,
        }[kind]
        self._backing = backing(content)
        self._content = content
        self.kind = kind
        self.vocab_size: int = self._backing.vocab_size
        self.pad_id: int = self._backing.pad_id
        self.hash = hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()

    def __reduce__(self):
        return Tokenizer, (self.kind, self._content)

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} classes, {self.hash[:12]})"

    def pieces(self, text: str) -> list[int]:
        """The ids of one text, without padding and of any length."""
        return self._backing.pieces(text)

    def piece(self, index: int) -> str:
        """The label of an id in a picture of a token row: "small", "ing", "<0x41>"; padding: ""."""
        index = self._checked(np.asarray([index]))[0]
        return "" if index == self.pad_id else self._backing.piece(int(index))

    def encode(self, texts: Sequence[str], length: int, strict: bool = False) -> np.ndarray:
        """Texts to int32[B, length], padded with `pad_id`.

        A text of more than `length` pieces is cut at a whole character. With `strict`, as for the
        prompt of a user, a text that is too long or has no pieces is a ValueError that names it.
        """
        if isinstance(texts, str):
            raise UserError(f"texts: expected a list of strings, not the string {_short(texts)}")
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self.pieces(text)
            if strict:
                self._check_prompt(text, len(ids), length)
            ids = self._cut(ids, length)
            row[: len(ids)] = ids
        return rows

    def _cut(self, ids: list[int], length: int) -> list[int]:
        """The first `length` ids, fewer where these end inside a character that bytes spell."""
        if len(ids) <= length:
            return ids
        ids = ids[:length]
        while ids and self._backing.text(ids).endswith("\ufffd"):
            ids = ids[:-1]
        return ids

    def words(self, ids: Sequence[int]) -> list[int]:
        """The number, from 0 on, of the word that each id of a text belongs to.

        Words are what spaces part; a space of its own belongs to the word after it. In a text of
        one word, such as one of a script without spaces, each id is a word.
        """
        ids, text = list(ids), self._backing.text
        counts = [len(text(ids[: i + 1]).split()) for i in range(len(ids))]
        if not counts or counts[-1] < 2:
            return list(range(len(ids)))
        starts = [count - bool(text([i]).strip()) for i, count in zip(ids, counts, strict=True)]
        return [min(start, counts[-1] - 1) for start in starts]

    def encode_with_blanks(
        self, text: str, length: int, blank_tokens: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """A prompt such as "a ___ circle" to (ids int32[length], free bool[length]).

        Each `___` becomes `blank_tokens` free positions, which hold `pad_id` until tokens are
        generated there. Everything else is given (free False) and stays: the words, and also the
        padding after them, so that the text does not grow beyond its blanks. A prompt without
        blanks is entirely given. Raises ValueError if the prompt is empty or does not fit.
        """
        if blank_tokens < 1:
            raise UserError(f"blank_tokens: {blank_tokens} is not at least 1")
        ids, *others = map(self.pieces, BLANK.split(text))
        count = len(ids) + sum(blank_tokens + len(given) for given in others)
        self._check_prompt(text, count, length)
        free = [False] * len(ids)
        for given in others:
            ids += [self.pad_id] * blank_tokens + given
            free += [True] * blank_tokens + [False] * len(given)
        padding = length - len(ids)
        return (
            np.asarray(ids + [self.pad_id] * padding, np.int32),
            np.asarray(free + [False] * padding, bool),
        )

    def decode(self, ids: np.ndarray) -> list[str]:
        """int[B, M] to B texts. Padding is dropped; bytes that are not UTF-8 become U+FFFD.

        The pieces of CLIP hold the space after a word, as published: "a bird ". Raises ValueError
        only for ids outside 0..vocab_size-1.
        """
        rows = self._checked(np.asarray(ids))
        return [self._backing.text([i for i in row if i != self.pad_id]) for row in rows.tolist()]

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary file (only the merges in use, for CLIP), so that `load` reads it."""
        content = self._content
        if self.kind == "clip":
            content = gzip.compress(content, mtime=0)
        files.write_bytes(path, content)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        bad = ids[(ids < 0) | (ids >= self.vocab_size)] if ids.size else ids
        if bad.size:
            raise UserError(f"token ids: {bad.flat[0]} is outside 0..{self.vocab_size - 1}")
        return ids

    def _check_prompt(self, text: str, size: int, length: int) -> None:
        if size == 0:
            raise UserError(f"prompt: {_short(text)} is empty; give at least one word")
        if size > length:
            raise UserError(
                f"prompt: {_short(text)} has {size} pieces, more than the text length {length}; "
                "shorten it"
            )


def load(path: str | os.PathLike, classes: int | None = None) -> Tokenizer:
    """Read a vocabulary file of any of the three kinds.

    `classes` is the size to which CLIP's merges are cut. The default is 8192; a file that
    `Tokenizer.save` wrote keeps its size. Raises a one-line ValueError for a file that is missing,
    damaged or of unknown kind.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"text tokenizer: cannot read {path}: {first_line(error)}") from None
    kind = {b"#": "clip", b'"': "clip", b"{": "huggingface", b"\n": "sentencepiece"}.get(
        content.lstrip(b" \t\r")[:1]
    )
    if kind is None:
        raise UserError(
            f"text tokenizer: {path} is not a SentencePiece model, tokenizer.json or CLIP merges "
            "file"
        )
    if classes is not None and kind != "clip":
        raise UserError(f"text tokenizer: classes={classes} is for CLIP merges; {path} is {kind}")
    try:
        if kind == "clip":
            content = clip_bpe.cut(content, classes)
        return Tokenizer(kind, content)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"text tokenizer: {path}: {first_line(error)}") from None


def train_sentencepiece(
    captions: Iterable[str], path: str | os.PathLike, vocab_size: int = 4096
) -> Tokenizer:
    """Train a byte-pair SentencePiece model on the captions, write it to `path`, and return it.

    Id 0 is the padding and id 1 the unknown piece. The unknown piece is never used, because the
    bytes, ids 2..257, spell any character that the model lacks. There is no start or end token.
    Pairs are merged, within words, until `vocab_size` is reached or every word of the captions is
    one piece. On a small corpus `Tokenizer.vocab_size` is therefore smaller than `vocab_size`. The
    result depends on the captions and their counts, but not on their order or on chance. At most
    half of the pieces are single characters; rarer characters are spelled in bytes. Scripts that
    put no spaces between words are cut as in `unspaced.cut`, so that a caption is not one piece.
    Raises ValueError if no caption has any text or `vocab_size` is below 320.
    """
    if vocab_size < _SMALLEST:
        raise UserError(
            f"vocab_size: {vocab_size} is less than {_SMALLEST}, the room that {_BYTES} bytes, "
            "padding, unknown and an alphabet need"
        )
    lines = sorted(normalise(caption[:_LONGEST]) for caption in captions)
    lines = [line for line in lines if line]
    if not lines:
        raise UserError("captions: no caption has any text; a text tokenizer needs at least one")
    counts = collections.Counter()
    for line in lines:
        counts.update(line)
    alphabet = {c for c, _ in counts.most_common((vocab_size - _RESERVED) // 2)}
    if len(alphabet) < len(counts):
        lines = ["".join(c if c in alphabet else " " for c in line) for line in lines]
    cuts, lines = {}, unspaced.cut(lines)
    if any(unspaced.CUT in line for line in lines):
        cuts = {"pretokenization_delimiter": unspaced.CUT}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        unk_surface="",
        normalization_rule_name="identity",
        max_sentence_length=4 * _LONGEST + 1,
        num_threads=1,
        minloglevel=2,
        **cuts,
    )
    tokenizer = Tokenizer("sentencepiece", model.getvalue())
    tokenizer.save(path)
    return tokenizer


class _SentencePiece:
    def __init__(self, content: bytes):
        self._model = model = sentencepiece.SentencePieceProcessor()
        model.LoadFromSerializedProto(content)
        self.vocab_size = model.vocab_size()
        self.pad_id = model.pad_id()
        if self.pad_id < 0:
            raise UserError("the SentencePiece model has no padding piece; train it with a pad_id")
        ids = range(self.vocab_size)
        self._lower = _is_lower(
            model.id_to_piece(i) for i in ids if not (model.is_byte(i) or model.is_control(i))
        )

    def pieces(self, text: str) -> list[int]:
        text = normalise(text)
        return self._model.encode(text.lower() if self._lower else text)

    def text(self, ids: list[int]) -> str:
        return normalise(self._model.decode(ids))

    def piece(self, index: int) -> str:
        return self._model.id_to_piece(index).replace("\u2581", " ").strip()


class _HuggingFace:
    def __init__(self, content: bytes):
        try:
            import tokenizers
        except ImportError:
            raise UserError("a tokenizer.json needs `pip install tokenizers`") from None
        try:
            self._model = model = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises bare Exception
            raise UserError(f"not a tokenizer.json: {first_line(error)}") from None
        vocabulary = model.get_vocab()
        special = {str(t) for t in model.get_added_tokens_decoder().values() if t.special}
        padding = (model.padding or {}).get("pad_token")
        names = [n for n in (padding, "[PAD]", "<pad>", "<|padding|>") if n in vocabulary]
        if not names:
            raise UserError("the tokenizer.json has no padding token such as [PAD]")
        model.no_padding()
        model.no_truncation()
        self.vocab_size = max(vocabulary.values()) + 1
        self.pad_id = vocabulary[names[0]]
        self._lower = _is_lower(p for p in vocabulary if p not in special)

    def pieces(self, text: str) -> list[int]:
        text = text.encode("utf-8", "ignore").decode()  # the package refuses surrogates
        text = text.lower() if self._lower else text
        return self._model.encode(text, add_special_tokens=False).ids

    def text(self, ids: list[int]) -> str:
        return self._model.decode(ids)

    def piece(self, index: int) -> str:
        return (self._model.id_to_token(index) or "").replace("\u2581", " ").strip(" \u0120")


def _is_lower(pieces: Iterable[str]) -> bool:
    return all(piece == piece.lower() for piece in pieces)


def _short(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else text[:57] + "...")
