"""Sheets for human judges: is this image real or generated? And the scores of their answers.

`write` mixes the images of held-out items with images generated from their captions, numbers them,
and writes to a folder

    sheet.html      the numbered images with their captions, one page that needs no other file
    answers.csv     picture, answer: a judge fills in "real" or "generated" and sends it back
    key.json        the truth, and the digest of the pictures; do not show it to judges

Each judge's answers go into the same folder as `answers-NAME.csv`. `score` compares them with the
key, as in TeTIm-Eval (Galatolo et al. 2022, arXiv 2212.07839).
"""

import csv
import hashlib
import pathlib

import numpy as np

from udd_jax.data import captions as texts
from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import alignment, intervals
from udd_jax.evaluation.report import page
from udd_jax.runtime import files, logbook

SHEET, ANSWERS, KEY = "sheet.html", "answers.csv", "key.json"
DIGITS = 3  # of the number of a picture, at least


def update(folder, real: np.ndarray, generated: np.ndarray, captions, seed: int = 0) -> None:
    """`write`, unless the folder has the sheet of these pictures.

    A sheet of others is moved with its answers to a folder beside it, `folder` and a number: what
    was said of other pictures is no answer about these.
    """
    folder = pathlib.Path(folder)
    if (folder / KEY).exists():
        old = files.read_json(folder / KEY)
        if old.get("of") == _digest(real, generated, captions):
            return
        before = files.aside(folder)
        logbook.say(f"judges: the samples are others than on the sheet, which is now in {before}")
    write(folder, real, generated, captions, seed)


def _digest(real, generated, captions) -> str:
    """A name of what a sheet shows, in whatever order."""
    hasher = hashlib.sha256("\0".join(captions).encode())
    for images in (real, generated):
        hasher.update(np.ascontiguousarray(images))
    return hasher.hexdigest()[:16]


def write(folder, real: np.ndarray, generated: np.ndarray, captions, seed: int = 0) -> None:
    """Writes the sheet. real, generated: uint8[n, S, S, C]; image i of both has captions[i]."""
    folder = pathlib.Path(folder)
    pictures = [(alignment.REAL, image, text) for image, text in zip(real, captions, strict=True)]
    pictures += [
        (alignment.GENERATED, image, text) for image, text in zip(generated, captions, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(pictures))
    numbers = [str(i).zfill(DIGITS) for i in range(1, len(pictures) + 1)]
    figures, truth = [], {}
    for number, at in zip(numbers, order, strict=True):
        kind, image, text = pictures[at]
        truth[number] = kind
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
    digest = _digest(real, generated, captions)
    files.write_json(folder / KEY, {"of": digest, "pictures": truth})


def score(folder) -> dict | intervals.Unmeasured:
    """`alignment.judged` of all answers, and the number of judges; `Unmeasured` without answers.

    Raises:
        ValueError: a file is not an answer sheet, or has unknown images or answers.
    """
    folder = pathlib.Path(folder)
    paths = sorted(folder.glob("answers-*.csv"))
    answers = [given for path in paths if (given := _answers(path))]
    if not answers:
        return intervals.Unmeasured(
            f"no judge has answered: give {SHEET} and {ANSWERS} of the folder judges to some, put "
            "what comes back there as answers-NAME.csv, and run --suite=judges"
        )
    key = files.read_json(folder / KEY)
    found = alignment.judged(answers, key.get("pictures", key))  # a key of an old sheet is flat
    return {"judges": len(answers), **found}


def _answers(path) -> dict[str, str]:
    lines = texts.decode(path.read_bytes()).splitlines()
    divided = ";" if lines and ";" in lines[0] else ","  # as spreadsheets of some countries write
    rows = csv.DictReader(lines, delimiter=divided)
    if rows.fieldnames is None or not {"picture", "answer"} <= set(rows.fieldnames):
        raise UserError(f"{path} has the columns {rows.fieldnames}, expected picture and answer")
    cells = ([(row[name] or "").strip() for name in ("picture", "answer")] for row in rows)
    # A spreadsheet makes 1 of 001.
    return {picture.zfill(DIGITS): answer.lower() for picture, answer in cells if answer}
