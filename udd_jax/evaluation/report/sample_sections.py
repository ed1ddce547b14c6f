"""The samples of each task as sections of the page, and the denoising of some pairs.

Each task shows its first samples, then right samples next to wrong ones with the reason. An image
with a verdict has a green frame if it is right and a red one if it is wrong.
"""

import numpy as np

from udd_jax.data import pixels
from udd_jax.evaluation import samples, scores
from udd_jax.evaluation.report import page

FIRST, EXAMPLES = 16, 8  # first samples shown; right and wrong samples picked, each
FIRST_INFILLED, EXAMPLES_INFILLED = 9, 4  # the same for infilling, which takes more space
GIVEN_GREY = 168


TASKS = {  # task: (heading, the condition, the rate that counts)
    "t2i": ("Text to image", "An image for each held-out caption.", "agreement"),
    "i2t": ("Image to text", "A caption for each held-out image.", "agreement"),
    "pair": ("Pairs from nothing", "An image and its caption, both from noise.", "agreement"),
    "infill": (
        "Infilling",
        "A half of a held-out image and half of the words of its caption at once, from the rest. "
        "Each sample shows what is given, the mask (white is generated) and the result.",
        "consistency",
    ),
    "image": ("Images alone", "Images with the text absent.", "readable"),
    "text": ("Texts alone", "Captions with the image absent.", "parsable"),
}


# A reason that a reader would not understand: every given token is in the result all the same.
WORDS = {
    scores.LOST: "what was given cannot be read in the result: a blank became no word or several, "
    "or what was drawn does not fit the given pixels"
}


def reason(result: dict, name: str) -> str:
    """Why a sample is wrong, in the words of the world where it has some."""
    return result.get("world", {}).get("reasons", {}).get(name) or WORDS.get(name, name)


def show(task: str, kept: samples.Samples, result: dict, reasons: list | None) -> str:
    """The section of a task: a sentence, the first samples, right and wrong ones."""
    heading, asked, key = TASKS[task]
    reasons = reasons and [name and reason(result, name) for name in reasons]
    rates = result["scores"][task]
    told = f"{asked} "
    if key in rates:
        told += f"Of {len(kept)}, {page.percent(rates[key]['rate'], rates[key]['error'])} are right"
        changed = rates.get("given_tokens_changed")
        told += "; every given token is untouched." if changed == 0 else "."
    else:
        told += f"{len(kept)} samples, which nothing but the eye can judge."
    item = _text_item if task == "text" else _infilled if task == "infill" else _plain
    first, examples = FIRST, EXAMPLES
    if task == "infill":
        first, examples = FIRST_INFILLED, EXAMPLES_INFILLED
    count = min(first, len(kept))
    content = page.tag("p", told)
    content += page.tag("h3", f"The first {count}, not chosen")
    content += _row(task, [item(kept, i, reasons) for i in range(count)])
    if reasons and any(reasons):
        right, wrong = _picked(reasons, count, examples)
        halves = "".join(
            page.tag(
                "div", page.tag("h3", name) + _row(task, [item(kept, i, reasons) for i in rows])
            )
            for name, rows in (("Right", right), ("Wrong, and why", wrong))
            if rows
        )
        content += page.tag("div", halves, "halves")
    return page.section(task, heading, content)


def _picked(reasons: list, seen: int, count: int) -> tuple[list[int], list[int]]:
    """Picks `count` right samples, if possible after the first `seen`, and wrong ones.

    The wrong ones take the reasons in turn. Returns two lists of indices.
    """
    right = [i for i, reason in enumerate(reasons) if reason is None]
    right.sort(key=lambda i: i < seen)
    wrong = [i for i, reason in enumerate(reasons) if reason is not None]
    turn = {i: reasons[:i].count(reasons[i]) for i in wrong}
    return right[:count], sorted(wrong, key=turn.get)[:count]


def _row(task: str, items: list[str]) -> str:
    return (
        page.tag("ul", "".join(items), "plain")
        if task == "text"
        else page.tag("div", "".join(items), "row")
    )


def _verdict(i: int, reasons: list | None) -> tuple[str, str]:
    """(the CSS class of sample i, a line that says why it is wrong)."""
    if not reasons:
        return "", ""
    if reasons[i] is None:
        return "right", ""
    return "wrong", f'<div class="bad">✗ {page.escape(reasons[i])}</div>'


def _plain(kept, i, reasons) -> str:
    css, why = _verdict(i, reasons)
    caption = page.escape(kept.captions[i]) if kept.captions else ""
    return page.figure([page.picture(kept.images[i], "judged")], caption + why, css)


def _text_item(kept, i, reasons) -> str:
    css, why = _verdict(i, reasons)
    sign = '<span class="good">✓</span> ' if css == "right" else ""
    return page.tag("li", f"{sign}{page.escape(kept.captions[i])}{why}")


def _infilled(kept, i, reasons) -> str:
    css, why = _verdict(i, reasons)
    free = kept.free_pixels[i]
    given = kept.given_images[i]
    given = np.where(free[..., None], pixels.grey(GIVEN_GREY, given.shape[-1]), given)
    mask = np.where(free[..., None], np.uint8(255), np.uint8(40)).repeat(3, axis=-1)
    blanked, words = kept.given_captions[i].split(), kept.captions[i].split()
    if len(blanked) == len(words):
        words = [
            page.tag("mark", page.escape(word)) if blank == "___" else page.escape(word)
            for blank, word in zip(blanked, words, strict=True)
        ]
    else:
        words = [page.tag("mark", page.escape(kept.captions[i]))]
    caption = (
        f'<span class="soft">{page.escape(" ".join(blanked))}</span><br>{" ".join(words)}{why}'
    )
    shown = [page.picture(given), page.picture(mask), page.picture(kept.images[i], "judged")]
    return page.figure(shown, caption, f"triple {css}")


def way(path) -> str:
    """The denoising of a few pairs over time, image and tokens."""
    if not path.exists():
        return ""
    with np.load(path) as trace:
        pictures, pieces = trace["images"], trace["pieces"]
    rows = []
    for n in range(min(3, pictures.shape[1])):
        frames = []
        for k in range(len(pictures)):
            words = " ".join(
                page.tag("span", "·", "hidden") if piece == "_" else page.escape(piece)
                for piece in pieces[k, n]
                if piece
            )
            frames.append(page.figure([page.picture(pictures[k, n])], words))
        rows.append(page.tag("div", "".join(frames), "frames"))
    text = (
        "From noise, left, to the finished pair, right, at equal shares of the steps. A grey cell "
        "is an image code that is still masked, a dot a masked word; what is shown may change "
        "again where the noise also replaces tokens."
    )
    return page.section("way", "How a pair comes about", page.tag("p", text) + "".join(rows))
