"""The suite "tuning": temperature and top-r for the run's own sampler.

It needs an embedded world, where samples can be checked. `run` samples every setting of `grid` with
items of the validation split, so that the choice does not use the test split, and writes
`tuning.json`:

    rows        one for each entry: temperature, top_r; for each task in TASKS its rate, its error,
                and the largest total variation from the true distribution
    best        the row with the highest mean rate, among those whose total variation is within the
                world's aim if there are any
    manifest    as in evaluation.json

Set the choice by hand: `--config.sample.temperature=... --config.sample.top_r=...`.
"""

import pathlib

import numpy as np

from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, manifest, samples, scores
from udd_jax.runtime import files, logbook

RESULT, FOLDER = "tuning.json", "tuning"
SPLIT = "validation"
TASKS = {"t2i": "agreement", "i2t": "agreement", "pair": "agreement", "infill": "consistency"}
TEMPERATURES, TOP_R = (1.0, 1.15, 1.3), (0.65, 0.75, 0.85)


# What the suite decides itself.
OWN = ("evaluate.split", "evaluate.samples", "sample.temperature", "sample.top_r")


def require_read(fields: dict) -> None:
    """UserError, one line, for a typed field, {field: value}, that the suite does not read."""
    for name in OWN:
        if name in fields:
            raise UserError(f"--config.{name} does nothing with --suite=tuning: leave it out")


def run(pipe, workdir, *, count: int = 256, say=logbook.say) -> dict:
    """Writes `workdir/tuning.json` after each entry. A stopped suite reuses its samples.

    Each entry draws `count` samples of each task. All entries with truncation share a compilation.

    Raises:
        ValueError: the run's data are not an embedded world at its own size.
    """
    path = pathlib.Path(workdir) / RESULT
    pipe = pipe.with_config(evaluate={"split": SPLIT})
    options = pipe.config.evaluate
    items = held_out.read(pipe, count)
    world = scores.require_world(items, "tuning")
    about = manifest.make(pipe, items, "tuning")
    result = {"suite": "tuning", "rows": [], "manifest": about}
    asked = {
        "count": count,
        "batch_size": min(options.batch_size, count, len(items)),
        "seed": options.seed,
        "made_of": manifest.made_of(pipe),
    }
    for temperature, top_r in grid():
        row = {"temperature": temperature, "top_r": top_r}
        sharper = with_settings(pipe, row)
        folder = pathlib.Path(workdir) / FOLDER / f"{temperature:g}-{top_r:g}"
        for task, measure in TASKS.items():
            drawn = samples.obtain(sharper, items, task, folder / f"{task}.npz", **asked)
            rates, _ = scores.verdicts(world, task, drawn)
            apart = [found["tv"] for found in rates.get("variation", {}).values()]
            row[task] = rates[measure] | ({"variation": max(apart)} if apart else {})
        result["rows"].append(row)
        result["best"] = best(result["rows"], world.aims.get("variation", 1.0))
        files.write_json(path, result)
        say(line(row))
    say(f"best: {line(result['best'])}")
    return result


def with_settings(pipe, row: dict):
    """A pipeline whose TASKS, under all of their names, have these settings."""
    rules = pipe.config.get("sample_rules", {})
    own = [rule for rule in rules if any(tasks.same(pipe.vocab, rule, task) for task in TASKS)]
    return pipe.with_config(sample=row, sample_rules=dict.fromkeys((*TASKS, *own), row))


def grid() -> list[tuple[float, float]]:
    """(temperature, top-r): the network unchanged, and sharper settings."""
    return [(1.0, 1.0), *((t, r) for t in TEMPERATURES for r in TOP_R)]


def best(rows: list[dict], variation: float) -> dict:
    """The best row, if possible with at most this total `variation`; the first of equal rows."""
    varied = [row for row in rows if _variation(row) <= variation]
    return max(varied or rows, key=_mean)


def line(row: dict) -> str:
    rates = ", ".join(f"{task} {row[task]['rate']:.3f}" for task in TASKS)
    return (
        f"temperature {row['temperature']:g}, top_r {row['top_r']:g}: {rates}, mean "
        f"{_mean(row):.3f}, largest total variation {_variation(row):.3f}"
    )


def _mean(row):
    return float(np.mean([row[task]["rate"] for task in TASKS]))


def _variation(row):
    return max(row[task].get("variation", 0.0) for task in TASKS)
