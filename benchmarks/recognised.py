"""Which way to sample is recognised best? A table of recognition, one row for each way.

    python -m benchmarks recognised --run=RUN [--rule="image|text"] [--split=validation]
                                    [--count=96] [--seed=1] [--with "guidance=3.0 steps=32"] ...
                                    [--out=FILE]

Recognition is that of the report (`udd_jax/evaluation/recognition.py`), with the same classifier of
the run. The items are the first of the split whose name the classifier knows: a choice made on
`validation` leaves `test` for the number that is told. Above the ways to sample stand the real
pictures, and what the image tokenizer makes of them (of two levels also the coarse one alone).
--rule: a picture from a text, or a text from a picture. --with: settings of the sampler; without
any, those of the run.
"""

import argparse
import time

import numpy as np

from benchmarks.options import named
from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, recognition
from udd_jax.evaluation.metrics import intervals
from udd_jax.runtime import files

MOST = 5000  # items of a split that are looked at


def run(
    folder, rule: str, split: str, count: int, seed: int, ways, steps=recognition.STEPS
) -> list[dict]:
    """One row for the real pictures, one for each level of their codes, and one for each way.

    ways: dicts of settings of `Pipeline.generate`. steps: of the classifier's training, if the run
    has none. Each row is printed. UserError: the rule is no picture from a text or the other way
    round, or captions are no names.
    """
    pipe = pipeline.Pipeline.load(folder)
    free, given = _sides(pipe, rule)
    found = recognition.obtain(pipe, folder, steps)
    if isinstance(found, intervals.Unmeasured):
        raise UserError(found.unmeasured)
    items, truth = _items(pipe, found, split, count)
    rows, read = [], lambda pictures: recognition.recognised(found, pixels.as_rgb(pictures), truth)

    def add(what: str, shares: dict, **more):
        rows.append({"what": what, "items": len(truth), **_numbers(shares), **more})
        print(line(rows[-1]), flush=True)

    add("real pictures", read(items.images))
    add("read back from their codes", read(pipe.codecs["image"].decode(items.codes)))
    if pipe.vocab.coarse is not None:
        coarse = items.further[pipe.vocab.coarse.name]
        add("from the coarse ones alone", read(pipe.tokenizers["image"].preview(coarse)))
    known = {"text": items.captions, "image": items.images}
    own = {given: known[given] if given in known else items.tokens[given]}
    for way in ways:
        start = time.perf_counter()
        made = pipe.generate(rule, given=own, seed=seed, **way)
        seconds, values = round(time.perf_counter() - start, 1), made.values[free]
        if free == "text":
            shares = recognition.named(found, values, pixels.as_rgb(items.images), truth)
        else:
            shares = read(np.asarray(values))
        said = " ".join((rule, *(f"{name}={value}" for name, value in way.items())))
        add(said, shares, calls=float(np.mean(made.calls)), seconds=seconds)
    return rows


def _sides(pipe, rule: str) -> tuple[str, str]:
    """(free, given) of a rule that makes a picture of a text, or a text of a picture."""
    free, given = tasks.typed(pipe.vocab, rule)
    coarse = pipe.vocab.coarse
    pictures = {"image"} if coarse is None else {"image", coarse.name}
    fits = len(free) == len(given) == 1 and "text" in free + given
    if not fits or not {*free, *given} - {"text"} <= pictures:
        raise UserError(
            f"--rule={rule!r}, expected a picture from a text such as 'image|text', or a text from "
            "a picture"
        )
    return free[0], given[0]


def _items(pipe, found, split: str, count: int) -> tuple[held_out.Items, np.ndarray]:
    """The first `count` items of a split with a name that the classifier knows, and the names."""
    if split != held_out.split_of(pipe):  # `evaluate.only` is said of that split
        pipe = pipe.with_config(evaluate={"only": ""})
    items = held_out.read(pipe, MOST, split)
    truth = np.array([found.name(texts[0]) for texts in items.references])
    known = np.flatnonzero(truth >= 0)[:count]
    if not len(known):
        raise UserError(f"no picture of split {split!r} has a name of the training split")
    return items.without(set(range(len(items))) - set(known.tolist())), truth[known]


def _numbers(shares: dict) -> dict:
    """{measure: [value, standard error]}, None for what could not be measured."""
    return {
        name: [getattr(share, "value", None), getattr(share, "standard_error", None)]
        for name, share in shares.items()
    }


def _measures(row: dict) -> dict:
    """What `_numbers` has put into a row."""
    return {name: pair for name, pair in row.items() if isinstance(pair, list)}


def line(row: dict) -> str:
    """A row of the table in words."""
    shares = (
        f"{name} {value:.3f} ± {error or 0:.3f}"
        for name, (value, error) in _measures(row).items()
        if value is not None
    )
    return f"{row['what']}: {', '.join(shares)}"


def table(rows: list[dict]) -> str:
    """Markdown; what a row does not have is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in _measures(row)))
    lines = [f"| | {' | '.join(names)} | calls |", "|" + "---|" * (len(names) + 2)]
    for row in rows:
        cells = (row.get(name, [None]) for name in names)
        said = ("-" if v[0] is None else f"{v[0]:.3f} ± {v[1] or 0:.3f}" for v in cells)
        what = row["what"].replace("|", "\\|")
        lines.append(f"| {what} | {' | '.join(said)} | {row.get('calls', '')} |")
    return "\n".join(lines) + "\n"


def main(arguments) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks recognised",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="a finished run")
    parser.add_argument("--rule", default="image|text")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--count", type=int, default=96, help="items")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--with", action="append", dest="ways", help="NAME=VALUE NAME=VALUE ...")
    parser.add_argument("--out", default="", help="file for the JSON")
    options = parser.parse_args(arguments)
    ways = [named(way.split()) for way in options.ways or [""]]
    asked = (options.rule, options.split, options.count, options.seed)
    rows = run(options.run, *asked, ways)
    if options.out:
        files.write_json(options.out, rows)
    print(table(rows))
    return 0
