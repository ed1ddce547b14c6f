"""From the bytes of a caption file to text: byte-order marks, encodings, JSON.

    decode       bytes -> text       UTF-8; UTF-16 or UTF-32 if a byte-order mark says so, UTF-16
                                     also if its zeros do
    lines        bytes -> captions   one for each line, without blank lines
    parse_json   text -> value       every fault is a ValueError, also nesting that is too deep

Bytes that are not UTF-8 become lone surrogates here. `reading.clean` replaces them and counts the
caption as repaired.
"""

import codecs
import json

from udd_jax.errors import UserError

# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(content: bytes) -> str:
    """The text of a file, without its byte-order mark; line ends become a line feed.

    Never raises: invalid bytes are replaced (UTF-16, UTF-32) or become lone surrogates (UTF-8).
    """
    encoding, errors = "utf-8", "surrogateescape"
    for mark, name in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], name
            errors = errors if name == "utf-8" else "replace"
            break
    else:
        # UTF-16 without a mark has zeros at every second place, and what is filled up at both.
        even, odd = content[::2].count(0), content[1::2].count(0)
        few, many = sorted((even, odd))
        if len(content) > 1 and 3 * many >= max(len(content), 24 * few):
            encoding, errors = f"utf-16-{'le' if odd > even else 'be'}", "replace"
    text = content.decode(encoding, errors).replace("\ufeff", "")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines(content: bytes) -> tuple[str, ...]:
    """The captions of a text file, one for each line; if all lines are blank, the first line."""
    found = decode(content).splitlines()
    return tuple(line for line in found if line.strip()) or tuple(found[:1])


def parse_json(text: str):
    """The value of a JSON text. Raises ValueError, one line, for anything that is not JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise UserError("no JSON: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"no JSON: {error}") from None
