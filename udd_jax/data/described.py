"""The results of a survey (`survey.py`) as text, for the terminal and for the report."""

FEW = 500  # pictures; fewer are learned by heart


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
        lines.append(f"  sizes: {_sizes(found['sizes'])}")
        lines += _clear(found)
    if found["examples"]:
        lines.append(f"  captions such as: {'; '.join(map(_short, found['examples']))}")
    for kind, words in (
        ("unusable", "unusable"),
        ("alone", "used as they are"),
        ("dropped", "captions dropped"),
        ("repaired", "captions repaired"),
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
            f"the vocabulary lacks {len(text['lacking'])} characters, which are spelled in bytes "
            f"or lost: {shown}; --config.text.vocab_size= may be raised"
        )
    return lines


def _sizes(sizes: dict) -> str:
    pairs = {tuple(map(int, size.split(" x "))): count for size, count in sizes.items()}
    count = sum(pairs.values())
    smallest, largest = (choose(pairs, key=lambda s: s[0] * s[1]) for choose in (min, max))
    square = sum(n for (width, height), n in pairs.items() if width == height)
    shown = "{} x {}".format(*smallest)
    if smallest != largest:
        shown += " to {} x {}".format(*largest)
    cut = "all square" if square == count else f"{count - square} of {count} are cut to a square"
    return f"{shown} pixels, {cut}"


def _clear(found: dict) -> list[str]:
    """A line about transparency, if there is some or a run asks for it."""
    count, pictures = found.get("clear", 0), sum(found["sizes"].values())
    said = f"  transparency: {count} of {pictures} pictures"
    if found.get("channels", 3) == 4:
        return [said if count else f"{said}; --config.image_channels=3 is enough"]
    return [f"{said}, put over white; --config.image_channels=4 keeps it"] if count else []


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
