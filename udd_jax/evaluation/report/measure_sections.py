"""The results of the suite "full" as sections: tables with 95 % intervals, and images.

This code does not know the meaning of a measure. Each part of `result["full"]` is a tree. Its
estimates and fractions become rows of a table; whole numbers and words become a line below the
table; measures that were not taken are listed with their reasons at the end of the page.
"""

import pathlib
from collections.abc import Iterator

import numpy as np

from udd_jax.evaluation import recognition
from udd_jax.evaluation.report import page

PARTS = {  # part of result["full"]: (heading, a sentence that explains it)
    "pictures": (
        "Pictures by feature networks",
        "Images generated from held-out captions against the pictures of the same items.",
    ),
    "agreement": (
        "Text to image agreement",
        "Images against the captions that they were made from; categories weigh the same in their "
        "mean.",
    ),
    "captions": (
        "Captions against those of the item",
        "Captions of held-out images against all captions of theirs, and what they are like.",
    ),
    "retrieval": (
        "Retrieval by likelihood",
        "Of a group of different held-out items, is the right caption of an image, or the right "
        "image of a caption, the one that the model's own bound finds most likely?",
    ),
    "round_trips": (
        "Round trips",
        "There and back again: what comes last is compared with what came first, and, for chance, "
        "with what came first of another item.",
    ),
    "memory": (
        "Memory",
        "Is it new? Generated pairs and their nearest training pairs, counted in tokens, beside "
        "how near pairs are that were not trained on; and how often the model repeats itself. In a "
        "small world a true pair is often a training pair too: what counts is the difference.",
    ),
    "reconstruction": (
        "The image tokenizer by other measures",
        "Held-out images through the image tokenizer and back.",
    ),
    "recognition": (
        "Recognition",
        "Does a classifier see in a picture what its name says, among so many names? It was "
        "trained on the real pictures of the training split; what it says of held-out real ones is "
        "what a perfect model would reach.",
    ),
    "judges": (
        "Human judges",
        "Is a picture real or generated? Who is right half of the time cannot tell.",
    ),
    "steering": (
        "Steering",
        "Pictures that are changed by another caption, that put words where they were painted, "
        "that follow a word or a picture without any prompt, or that are the best of some.",
    ),
    "speed": (
        "Speed",
        "One batch of pairs: the first call of a process that has compiled nothing, and the next.",
    ),
}


def show(folder, result: dict) -> list[str]:
    """The sections of all parts that have a number. folder: the folder of the samples."""
    folder, sections = pathlib.Path(folder), []
    for name, part in result.get("full", {}).items():
        if not measured(part):
            continue
        heading, text = PARTS[name]
        content = page.tag("p", text) + _table(part)
        content += FIGURES.get(name, _nothing)(folder)
        warnings = "".join(page.tag("li", page.escape(w)) for w in _warnings(part))
        content += page.tag("ul", warnings, "note") if warnings else ""
        sections.append(page.section(name, heading, content))
    return sections


def leaves(tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yields (path, leaf). A leaf is a plain value, or the dict of an Estimate or Unmeasured."""
    if not isinstance(tree, dict) or "value" in tree or "unmeasured" in tree:
        yield path, tree
        return
    for name, value in tree.items():
        yield from leaves(value, (*path, name))


def measured(part) -> bool:
    """Whether a part has a measured number, and not only reasons and plain facts."""
    found = [leaf for _, leaf in leaves(part) if isinstance(leaf, dict)]
    return not found or any("value" in leaf for leaf in found)


def number(value) -> str:
    """A number with about four digits; a word unchanged."""
    if isinstance(value, float):
        return f"{value:.3f}" if 0.01 <= abs(value) < 100 else f"{value:.4g}"
    return page.escape(value)


def _table(part: dict) -> str:
    """A table of the numbers by group, those without a group first, then a line of other facts.

    Columns that would be empty are left out.
    """
    rows, beside, group = [], [], ()
    for path, leaf in sorted(leaves(part), key=lambda found: len(found[0]) > 1):
        name = path[-1].replace("_", " ") if path else ""
        if not isinstance(leaf, dict | float):
            beside.append(f"{_joined(path)}: {leaf}")
            continue
        if isinstance(leaf, dict) and "value" not in leaf:
            continue
        if path[:-1] != group:
            group = path[:-1]
            rows.append([page.tag("b", page.escape(_joined(group))), "", "", ""] if group else [])
        cells = _cells(leaf) if isinstance(leaf, dict) else [number(leaf), "", ""]
        rows.append([page.escape(name), *cells])
    rows = list(filter(None, rows))
    head = ["", "measured", "95 % interval", "of"]
    shown = [i for i in range(4) if i < 2 or any(row[i] for row in rows)]
    table = page.table([head[i] for i in shown], [[row[i] for i in shown] for row in rows])
    return table + (page.tag("p", page.escape("; ".join(beside)), "note") if beside else "")


def _cells(leaf: dict) -> list[str]:
    ends = [leaf["low"], leaf["high"]]
    interval = "" if None in ends else " to ".join(map(number, ends))
    return [number(leaf["value"]), interval, str(leaf["count"])]


def _joined(path: tuple[str, ...]) -> str:
    return ", ".join(path).replace("_", " ")


def _warnings(part: dict) -> list[str]:
    return [
        f"{_joined(path)}: {leaf['warning']}"
        for path, leaf in leaves(part)
        if isinstance(leaf, dict) and leaf.get("warning")
    ]


def _nothing(folder) -> str:
    return ""


def _load(path) -> dict | None:
    if not path.exists():
        return None
    with np.load(path) as file:
        return dict(file)


def _trips(folder) -> str:
    kept = _load(folder / "round_trips.npz")
    if kept is None:
        return ""
    first = [
        page.figure([page.picture(a), page.picture(b)], page.escape(text), "double")
        for a, text, b in zip(
            kept["images"], kept["middle_texts"], kept["back_images"], strict=True
        )
    ]
    second = [
        page.figure([page.picture(image)], f"{page.escape(a)}<br>→ {page.escape(b)}")
        for a, image, b in zip(
            kept["texts"], kept["middle_images"], kept["back_texts"], strict=True
        )
    ]
    return (
        page.tag("h3", "Image, the caption made of it, and the image made of that")
        + page.tag("div", "".join(first), "row")
        + page.tag("h3", "Caption, the image made of it, and the caption made of that")
        + page.tag("div", "".join(second), "row")
    )


def _neighbours(folder) -> str:
    kept = _load(folder / "neighbours.npz")
    if kept is None:
        return ""
    figures = [
        page.figure(
            [page.picture(image), page.picture(near)],
            f"{page.escape(text)}<br>"
            f'<span class="soft">{page.escape(near_text)}, {apart} tokens apart</span>',
            "double",
        )
        for image, near, text, near_text, apart in zip(
            kept["images"],
            kept["near_images"],
            kept["captions"],
            kept["near_captions"],
            kept["apart"].tolist(),
            strict=True,
        )
    ]
    heading = "The generated pairs nearest to training, and the training pairs beside them"
    return page.tag("h3", heading) + page.tag("div", "".join(figures), "row")


def _recognised(folder) -> str:
    kept = _load(folder / recognition.KEPT)
    if kept is None:
        return ""
    figures = [
        page.figure(
            [page.picture(image), page.picture(near)],
            f'{page.escape(name)}<br><span class="soft">looks like {page.escape(seen)}</span>',
            f"double {'right' if right else 'wrong'}",
        )
        for image, near, name, seen, right in zip(
            *(kept[key] for key in ("images", "near_images", "names", "seen", "right")),
            strict=True,
        )
    ]
    heading = "The first of text to image, the nearest training picture, and what it looks like"
    return page.tag("h3", heading) + page.tag("div", "".join(figures), "row")


def _steering(folder) -> str:
    """A row of pictures for each scale, the painted masks beside the results, and the edits."""
    kept, content, of = _load(folder / "steering.npz") or {}, "", None
    for name, images in kept.items():
        part, row = name.split("/")
        content += page.tag("h3", page.escape(part)) if part != of else ""
        of = part
        pictures = page.figure(
            [page.picture(image) for image in images], page.escape(row), "double"
        )
        content += page.tag("div", pictures, "row")
    return content


FIGURES = {
    "round_trips": _trips,
    "memory": _neighbours,
    "recognition": _recognised,
    "steering": _steering,
}
