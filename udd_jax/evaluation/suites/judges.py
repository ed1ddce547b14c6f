"""Sheets for human judges: is this image real or generated? And the scores of their answers.

`write` mixes the images of held-out items with images generated from their captions, numbers them,
and writes to a folder

    sheet.html      the numbered images with their captions, one page that needs no other file
    answers.csv     picture, answer: a judge fills in "real" or "generated" and sends it back
    key.json        the truth; do not show it to judges

Each judge's answers go into the same folder as `answers-NAME.csv`. `score` compares them with the
key, as in TeTIm-Eval (Galatolo et al. 2022, arXiv 2212.07839).
"""

import csv
import pathlib

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import alignment, intervals
from udd_jax.evaluation.report import page
from udd_jax.runtime import files

SHEET, ANSWERS, KEY = "sheet.html", "answers.csv", "key.json"


def write(folder, real: np.ndarray, generated: np.ndarray, captions, seed: int = 0) -> None:
    """Writes the sheet. real, generated: uint8[n, S, S, C]; image i of both has captions[i]."""
    folder = pathlib.Path(folder)
    pictures = [(alignment.REAL, image, text) for image, text in zip(real, captions, strict=True)]
    pictures += [
        (alignment.GENERATED, image, text) for image, text in zip(generated, captions, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(pictures))
    numbers = [f"{i:03d}" for i in range(1, len(pictures) + 1)]
    figures, key = [], {}
    for number, at in zip(numbers, order, strict=True):
        kind, image, text = pictures[at]
        key[number] = kind
        words = f"<b>{number}</b> {page.escape(text)}"
        figures.append(page.figure([page.picture(image)], words))
    text = (
        f"Each picture is either real or was generated from its caption. Write {alignment.REAL} or "
        f"{alignment.GENERATED} behind its number in a copy of {ANSWERS}, and leave out those that "
        "you do not want to judge."
    )
    body = [page.tag("h1", "Real or generated?"), page.tag("p", text)]
    body.append(page.tag("div", "".join(figures), "row"))
    files.write_text(folder / SHEET, page.document("Real or generated?", body))
    lines = "picture,answer\n" + "".join(f"{number},\n" for number in numbers)
    files.write_text(folder / ANSWERS, lines)
    files.write_json(folder / KEY, key)


def score(folder) -> dict | intervals.Unmeasured:
    """`alignment.judged` of all answers, and the number of judges; `Unmeasured` without answers.

    Raises:
        ValueError: a file is not an answer sheet, or has unknown images or answers.
    """
    folder = pathlib.Path(folder)
    answers = sorted(folder.glob("answers-*.csv"))
    if not answers:
        return intervals.Unmeasured(
            f"no judge has answered: give {SHEET} and {ANSWERS} of the folder judges to some, put "
            "what comes back there as answers-NAME.csv, and run --suite=judges"
        )
    found = alignment.judged([_answers(path) for path in answers], files.read_json(folder / KEY))
    return {"judges": len(answers), **found}


def _answers(path) -> dict[str, str]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames is None or not {"picture", "answer"} <= set(rows.fieldnames):
            raise UserError(
                f"{path} has the columns {rows.fieldnames}, expected picture and answer"
            )
        answers = {r["picture"].strip(): (r["answer"] or "").strip().lower() for r in rows}
    return {picture: answer for picture, answer in answers.items() if answer}
