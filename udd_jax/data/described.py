"""The results of a survey (`survey.py`) as text, for the terminal and for the report."""

import collections
import unicodedata

from udd_jax.data import pixels

FEW = 500  # pictures; fewer are learned by heart
_SCRIPTS = 5  # at most, that are named


def describe(found: dict, spec: str = "") -> str:
    """The result of `survey` as text, and that of `texts` if `found["text"]` has it."""
    lines = [f"data {spec}".strip()] if spec else []
    for split, row in found["splits"].items():
        captions = "" if row["captions"] is None else f", {row['captions']} captions"
        unusable = f", {row['unusable']} of them unusable" if row["unusable"] else ""
        decided = f" ({row['decided']})" if row["decided"] else ""
        what = "records" if "having" in row else "pictures"
        lines.append(f"  {split}: {row['records']} {what}{unusable}{captions}{decided}")
        if "having" in row:
            having = ", ".join(f"{count} {name}" for name, count in row["having"].items())
            lines.append(f"    of those that can be used: {having}")
    lines += [f"  {note}" for note in found.get("notes", ())]
    for split, what in (("validation", "image tokenizer"), ("test", "evaluation")):
        if not found["splits"].get(split, {"records": 1})["records"]:
            lines.append(f"  no {split}: the scores of the {what} are those of training pictures")
    training = found["splits"].get("train", {"captions": None})
    if training["captions"] is not None and training["records"] < FEW:
        lines.append(
            f"  {training['records']} pictures are few: expect them to be learned by heart, and "
            "little else (overfitting)"
        )
    if found["sizes"]:
        lines.append(f"  sizes: {_sizes(found['sizes'], found.get('fitted'))}")
        lines += _clear(found)
    if found["examples"]:
        lines.append(f"  captions such as: {'; '.join(map(_short, found['examples']))}")
    for kind, words in (
        ("unusable", "unusable"),
        ("alone", "used as they are"),
        ("dropped", "captions dropped"),
        ("repaired", "captions repaired"),
        ("unused", "not used"),
        ("left", "left out"),
    ):
        for cause, row in found.get(kind, {}).items():
            lines.append(f"  {words}: {cause}, {row['count']} (the first: {row['first']})")
    if found.get("text", {}).get("captions"):
        lines += [f"  {line}" for line in describe_texts(found["text"])]
    return "\n".join(lines)


def asked(split: str, only: str, category: str, count: int, size: int) -> str:
    """The items that the evaluation will measure, as a line.

    split, only, category: as of `survey.asked`, which gives `count`; size: of the split.
    """
    if not size:
        return f"evaluation: of training pictures, since the split {split} is empty"
    those = f" with {only} (--config.evaluate.only)" if only else ""
    by = f", also by their field {category!r} (--config.evaluate.category)" if category else ""
    return f"evaluation: of {count} of the {size} items of the split {split}{those}{by}"


def describe_texts(text: dict) -> list[str]:
    """The result of `texts` as lines."""
    share = text["cut"] / max(1, text["captions"])
    mend = f"; --config.text.length={text['covers']} keeps 98% whole" if share > 0.02 else ""
    lines = [
        f"text.length={text['length']} cuts {text['cut']} of {text['captions']} captions "
        f"({share:.1%}); the longest has {text['longest']} pieces{mend}"
    ]
    if text["lacking"]:
        shown = " ".join(list(text["lacking"])[:20])
        lines.append(
            "characters that the vocabulary lacks, spelled in bytes or lost "
            f"({len(text['lacking'])}): {shown}; {_scripts(text)}; "
            "--config.text.vocab_size= may be raised"
        )
    return lines


def _scripts(text: dict) -> str:
    """The scripts of the characters that are lacking: "CYRILLIC (80.0%), CJK (20.0%)", by share of
    all characters in the captions, or of those that are lacking if the survey has no such count."""
    counts = collections.Counter()
    for letter, count in text["lacking"].items():
        counts[script(letter)] += count
    whole, of = text.get("characters"), "all characters"
    if not whole:
        whole, of = counts.total(), "these"
    shares = ", ".join(f"{name} ({n / whole:.1%})" for name, n in counts.most_common(_SCRIPTS))
    more = f" and {len(counts) - _SCRIPTS} other scripts" if len(counts) > _SCRIPTS else ""
    return f"{shares}{more} of {of}"


def script(letter: str) -> str:
    """The script of a character by its name in Unicode: "CYRILLIC"; "symbols" for what is not a
    letter, a mark or a digit, such as an emoji."""
    name = unicodedata.name(letter, "")
    return name.split()[0] if name and unicodedata.category(letter)[0] in "LMN" else "symbols"


def _sizes(sizes: dict, fitted: list[int] | None) -> str:
    pairs = {tuple(map(int, size.split(" x "))): count for size, count in sizes.items()}
    smallest, largest = (choose(pairs, key=lambda s: s[0] * s[1]) for choose in (min, max))
    shown = "{} x {}".format(*smallest)
    if smallest != largest:
        shown += " to {} x {}".format(*largest)
    return f"{shown} pixels, {_cut(pairs, fitted) if fitted else _square(pairs)}"


def _square(pairs: dict) -> str:
    count, square = sum(pairs.values()), sum(n for (w, h), n in pairs.items() if w == h)
    return "all square" if square == count else f"{count - square} of {count} are not square"


def _cut(pairs: dict, fitted: list[int]) -> str:
    """What is cut off when pictures {(width, height): count} are fitted to (height, width)."""
    count, cut, lost = sum(pairs.values()), 0, 0.0
    for (width, height), n in pairs.items():
        top, left, bottom, right = pixels.middle((height, width), tuple(fitted))
        share = 1 - (bottom - top) * (right - left) / (height * width)
        cut, lost = cut + n * (share > 0), lost + n * share
    to = pixels.shown(tuple(fitted))
    if not cut:
        return f"none is cut to become {to}"
    return (
        f"{cut} of {count} are cut to become {to} and lose {lost / cut:.1%} of their area on "
        'average; --config.image_size="(HEIGHT, WIDTH)" sets other proportions'
    )


def _clear(found: dict) -> list[str]:
    """A line about transparency, if there is some or a run asks for it."""
    count, pictures = found.get("clear", 0), sum(found["sizes"].values())
    said = f"  transparency: {count} of {pictures} pictures"
    if found.get("channels", 3) == 4:
        return [said if count else f"{said}; --config.image_channels=3 is enough"]
    return [f"{said}, put over white; --config.image_channels=4 keeps it"] if count else []


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
