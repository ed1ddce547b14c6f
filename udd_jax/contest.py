"""The suite "samplers": every order of reveal on one run, quality against calls and seconds.

For shapes, where agreement can be read. `run` measures every entry of `grid` and writes
`samplers.json`:

    rows        an entry each: settings, calls, seconds, agreement of all and of each task, bounds
    left_out    entries that do not fit the run's schedule, with the reason
    best        the full chain, the best at a quarter of its calls, the default and why
    manifest    as in evaluation.json
"""

import dataclasses
import math
import pathlib
import time

import numpy as np

from udd_jax import checkpoint, logbook, manifest, samples, sampling, scores, tasks
from udd_jax.metrics import agreement

RESULT = "samplers.json"
FULL = {"sampler": "ancestral"}  # the chain that the other samplers are compared with
WHY = {  # of a default sampler
    "first_hitting": "It draws one token a call, given all that are drawn, at the times of the "
    "chain in continuous time: its law is that of the full chain with ever more steps, nothing is "
    "lost to tokens drawn together, it has no number of steps to choose, and it calls the network "
    "once a token and not T times."
}


def run(pipe, workdir, *, count: int = 128, say=logbook.say) -> dict:
    """Measures the grid and writes `workdir/samplers.json`.

    `count` samples of each of t2i, i2t and pair, in one call, for every entry of `grid`; one that
    does not fit the run's schedule is left out with the reason. A row: settings, calls (and
    `calls_of` each task), seconds, the agreement of all and of each task. Rows of the ancestral
    chain have `bounds` too, bits a token of a chain of so many steps with nothing truncated; the
    others are no chains whose likelihood could be bounded. Written after each entry,
    so that a stopped suite goes on; `best` says what came of it.
    """
    path, options = pathlib.Path(workdir) / RESULT, pipe.config.evaluate
    items = samples.held_out(pipe, count)
    if scores.scenes(pipe, items) is None:
        raise ValueError(f"suite 'samplers' needs data that can be read: shapes, not {items.name}")
    about = manifest.make(pipe, items, "samplers")
    result = {"suite": "samplers", "rows": [], "left_out": [], "manifest": about}
    if path.exists():
        old = checkpoint.read_json(path)
        if all(old["manifest"][name] == about[name] for name in ("protocol", "run")):
            result = old
    done = [row["settings"] for row in result["rows"] + result["left_out"]]
    for changes in grid(pipe):
        if changes in done:
            continue
        try:
            pipe.settings(**changes)
        except ValueError as error:
            result["left_out"].append({"settings": changes, "reason": str(error)})
        else:
            row = _measure(pipe, items, changes, options.seed)
            if changes["sampler"] == "ancestral":
                row["bounds"] = scores.bounds(
                    pipe,
                    items,
                    count=len(items),
                    times=options.bound_times,
                    seed=options.seed,
                    calls=changes["steps"],
                    names=agreement.TASKS,
                )
            result["rows"].append(row)
            name = ", ".join(str(value) for value in changes.values())
            say(f"{name}: {row['calls']:.1f} calls, agreement {row['agreement']['rate']:.3f}")
        checkpoint.write_json(path, result)
    chosen = dataclasses.asdict(pipe.settings())
    result["best"] = best(result["rows"], pipe.config.diffusion.steps, chosen)
    checkpoint.write_json(path, result)
    return result


def grid(pipe) -> list[dict]:
    """Settings to compare: every sampler, at several numbers of calls."""
    steps = pipe.config.diffusion.steps
    longest = max(m.length for m in pipe.vocab.modalities)
    counts = sorted({max(1, steps // part) for part in (20, 10, 4, 1)})
    few = sorted({max(1, longest // part) for part in (8, 4, 2, 1)})
    by_time = [{"sampler": s, "steps": n} for s in sampling.BY_TIME for n in counts]
    by_count = [{"sampler": s, "steps": n} for s in sampling.BY_COUNT for n in few]
    others = [
        {"sampler": sampler, field: value}
        for sampler, field, values in (
            ("best_first", "group", (1, 2, 4)),
            ("first_hitting", "group", (1, 2, 4)),
            ("threshold", "threshold", (0.5, 0.8, 0.95)),
            ("entropy_bounded", "bound", (1.0, 0.3, 0.1)),
        )
        for value in values
    ]
    return by_time + by_count + others


def _measure(pipe, items, changes: dict, seed: int) -> dict:
    """One row: three tasks in one call, after a first one that compiles."""
    count, names = len(items), agreement.TASKS
    parts = [tasks.masks(pipe.vocab, task, count) for task in names]
    masks = tasks.Masks(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    given = {"image": np.tile(items.codes, (3, 1)), "text": np.tile(items.ids, (3, 1))}
    options = {"masks": masks, "seed": seed, "batch_size": count, **given, **changes}
    few = {"masks": parts[0], **{name: ids[:count] for name, ids in given.items()}}
    pipe.generate("pair", count, **options | few)
    started = time.perf_counter()
    pairs = pipe.generate("pair", 3 * count, **options)
    seconds = time.perf_counter() - started
    row = {"settings": changes, "seconds": round(seconds, 3)}
    row |= {"samples_a_second": 3 * count / seconds, "calls": float(np.mean(pairs.calls))}
    row["calls_of"] = {}
    agreed = []
    for k, task in enumerate(names):
        here = slice(k * count, (k + 1) * count)
        row["calls_of"][task] = float(np.mean(pairs.calls[here]))
        shown = items.images if task == "i2t" else pairs.images[here]
        good, rates = agreement.agreement(shown, pairs.captions[here])
        row[task] = rates["agreement"]
        agreed.append(good)
    return row | {"agreement": agreement.rate(np.concatenate(agreed))}


def best(rows: list[dict], steps: int, chosen: dict) -> dict:
    """What the rows say: the full chain, the best at a quarter of its calls, and the default.

    The full chain is the ancestral one with all its `steps`; a quarter is at most steps / 4 calls
    for every task. `chosen`: the run's own settings; its row is the default, if it was measured.
    Points are of the agreement of all tasks, 100 is all of it, with the standard error of a
    difference; `within_a_point` is whether at most one is lost. {} without a full chain.
    """
    full = next((r for r in rows if r["settings"] == FULL | {"steps": steps}), None)
    quarter = [r for r in rows if max(r["calls_of"].values()) <= steps / 4]
    if full is None or not quarter:
        return {}
    top = max(quarter, key=lambda r: r["agreement"]["rate"])
    found = {"full": full, "quarter": top, **_lost(full, top)}
    chosen = chosen | {"steps": chosen["steps"] or steps}
    for row in rows:
        if row["settings"].items() <= chosen.items():
            found["default"] = {"row": row, **_lost(full, row), "why": WHY.get(chosen["sampler"])}
    return found


def _lost(full: dict, row: dict) -> dict:
    """How many points of agreement a row is below the full chain."""
    one, two = full["agreement"], row["agreement"]
    points = 100 * (one["rate"] - two["rate"])
    error = 100 * math.hypot(one["error"], two["error"])
    return {"points_lost": points, "error": error, "within_a_point": points <= 1}
