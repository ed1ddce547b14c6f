"""The suite "tuning": temperature and top-r for the run's own sampler.

For an embedded world, where what is right can be read. `run` samples every setting of `grid` from
items of the validation split, so that a choice has seen nothing of what the result is measured on,
and writes `tuning.json`:

    rows        an entry each: temperature, top_r; of each task in TASKS its rate, its error, and
                the largest total variation from the true law
    best        the row of the highest mean rate among those whose variations are within the aim
                of the world, among all where there is none
    manifest    as in evaluation.json

The choice is entered by hand: `--config.sample.temperature=... --config.sample.top_r=...`.
"""

import pathlib

import numpy as np

from udd_jax.evaluation import held_out, manifest, samples, scores
from udd_jax.runtime import files, logbook

RESULT, FOLDER = "tuning.json", "tuning"
SPLIT = "validation"
TASKS = {"t2i": "agreement", "i2t": "agreement", "pair": "agreement", "infill": "consistency"}
TEMPERATURES, TOP_R = (1.0, 1.15, 1.3), (0.65, 0.75, 0.85)


def run(pipe, workdir, *, count: int = 256, say=logbook.say) -> dict:
    """Writes `workdir/tuning.json`, after each entry, so that a stopped suite goes on.

    `count` samples of each task for every entry. All that truncate share a compilation.

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
        sharper = pipe.with_config(sample=row)
        folder = pathlib.Path(workdir) / FOLDER / f"{temperature:g}-{top_r:g}"
        for task, measure in TASKS.items():
            drawn = samples.obtain(sharper, items, task, folder / f"{task}.npz", **asked)
            rates, _ = scores.judge(world, task, drawn)
            apart = [found["tv"] for found in rates.get("variation", {}).values()]
            row[task] = rates[measure] | ({"variation": max(apart)} if apart else {})
        result["rows"].append(row)
        result["best"] = best(result["rows"], world.aims.get("variation", 1.0))
        files.write_json(path, result)
        say(line(row))
    say(f"best: {line(result['best'])}")
    return result


def grid() -> list[tuple[float, float]]:
    """(temperature, top-r): the plain network, and sharper ones."""
    return [(1.0, 1.0), *((t, r) for t in TEMPERATURES for r in TOP_R)]


def best(rows: list[dict], variation: float) -> dict:
    """The row to choose, with at most so much `variation` if there is one; of equals the first."""
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
