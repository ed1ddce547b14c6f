"""The suite "samplers": compares all samplers on one run: quality, network calls, seconds.

It needs an embedded world, where agreement can be measured. `run` measures every entry of `grid` on
a few samples, then three chosen entries on many new samples, and writes `samplers.json`:

    rows        one for each entry: settings, calls, seconds, agreement in total and of each task,
                bounds
    left_out    entries that do not fit the run's schedule, with the reason
    again       the full chain, the best entry with a quarter of its calls, and the run's own
                sampler, on more samples with another seed, to avoid selection bias
    best        these three, and their loss against the full chain
    manifest    as in evaluation.json
"""

import dataclasses
import math
import pathlib
import time

import numpy as np

from udd_jax import build, values
from udd_jax.diffusion import tasks
from udd_jax.evaluation import held_out, manifest, scores
from udd_jax.evaluation.metrics import agreement
from udd_jax.runtime import files, logbook
from udd_jax.sampling.samplers import SAMPLERS
from udd_jax.sampling.settings import IN_ORDER

RESULT = "samplers.json"
FULL = {"sampler": "ancestral"}  # the chain that the other samplers are compared with
WHY = {  # reasons for a default sampler
    "first_hitting": "It draws one token a call, given all that are drawn, at the times of the "
    "chain in continuous time: its law is that of the full chain with ever more steps, nothing is "
    "lost to tokens drawn together, it has no number of steps to choose, and it calls the network "
    "once a token and not T times."
}


def run(pipe, workdir, *, count: int = 64, say=logbook.say) -> dict:
    """Measures the grid and writes `workdir/samplers.json` after each entry.

    A stopped suite continues. Each entry draws `count` samples of each of t2i, i2t and pair in one
    call; `again` draws `evaluate.samples` of each. A row has settings, calls (and `calls_of` each
    task), seconds, and the agreement in total and of each task. Rows of the ancestral sampler also
    have `bounds`, the bits per token of the chain with this number of steps, without truncation.
    The likelihood of the other samplers has no such bound.

    Raises:
        ValueError: the run's data are not an embedded world at its own size.
    """
    path, options = pathlib.Path(workdir) / RESULT, pipe.config.evaluate
    items = held_out.read(pipe, max(count, options.samples))
    scores.require_world(items, "samplers")
    count, most = (min(number, len(items)) for number in (count, options.samples))
    # Settings that differ only in numbers share a compilation. Others need one each, which is
    # faster with one block in an iteration of the loop.
    pipe = pipe.with_network(unroll=1)
    about = manifest.make(pipe, items, "samplers")
    result = {"suite": "samplers", "rows": [], "left_out": [], "again": {}, "manifest": about}
    if path.exists():
        old = files.read_json(path)
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
            row = measure(pipe, items, changes, count, options.seed)
            if changes["sampler"] == "ancestral":
                row["bounds"] = scores.bounds(
                    pipe,
                    items,
                    count=count,
                    times=options.bound_times,
                    seed=options.seed,
                    calls=changes["steps"],
                    names=agreement.TASKS,
                )
            result["rows"].append(row)
            say(_line(row))
        files.write_json(path, result)
    steps, chosen = pipe.config.diffusion.steps, dataclasses.asdict(pipe.settings())
    for name, row in choose(result["rows"], steps, chosen).items():
        if result["again"].get(name, {}).get("settings") != row["settings"]:
            same = [r for r in result["again"].values() if r["settings"] == row["settings"]]
            seed = values.later_seed(options.seed)
            again = same or [measure(pipe, items, row["settings"], most, seed)]
            result["again"][name] = again[0]
            say(f"{name}: {_line(again[0])}")
            files.write_json(path, result)
    result["best"] = best(result["again"])
    files.write_json(path, result)
    return result


def _line(row: dict) -> str:
    name = ", ".join(str(value) for value in row["settings"].values())
    return f"{name}: {row['calls']:.1f} calls, agreement {row['agreement']['rate']:.3f}"


def grid(pipe) -> list[dict]:
    """The settings to compare: every sampler with several numbers of calls."""
    steps = pipe.config.diffusion.steps
    longest = max(m.length for m in pipe.vocab.modalities)
    counts = sorted({max(1, steps // part) for part in (20, 10, 4, 1)})
    few = sorted({max(1, longest // part) for part in (4, 2, 1)})
    table = SAMPLERS.items()
    by_time = [{"sampler": s, "steps": n} for s, row in table if row.kind == "time" for n in counts]
    by_count = [{"sampler": s, "steps": n} for s, row in table if row.kind == "count" for n in few]
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
    tried = {one["sampler"] for one in others}
    others += [{"sampler": s} for s, row in table if row.kind == "order" and s not in tried]
    in_order = [{"sampler": IN_ORDER}] if build.in_order(pipe.config) else []
    return by_time + by_count + others + in_order


def measure(pipe, items, changes: dict, count: int, seed: int) -> dict:
    """One row: `count` samples of three tasks in one call, after a first call that compiles."""
    names = agreement.TASKS
    parts = [tasks.masks(pipe.vocab, task, count) for task in names]
    masks = tasks.Masks(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    given = {"image": items.codes[:count], "text": items.ids[:count]}
    size = min(pipe.config.evaluate.batch_size, 3 * count)
    options = {"seed": seed, "batch_size": size, **changes}
    first = {name: np.resize(ids, (size, ids.shape[1])) for name, ids in given.items()}
    pipe.generate("pair", size, masks=tasks.masks(pipe.vocab, "pair", size), given=first, **options)
    started = time.perf_counter()
    tripled = {name: np.tile(ids, (len(names), 1)) for name, ids in given.items()}
    pairs = pipe.generate("pair", len(names) * count, given=tripled, masks=masks, **options)
    seconds = time.perf_counter() - started
    row = {"settings": changes, "seconds": round(seconds, 3)}
    row |= {"samples_a_second": 3 * count / seconds, "calls": float(np.mean(pairs.calls))}
    row["calls_of"] = {}
    agreed = []
    for k, task in enumerate(names):
        here = slice(k * count, (k + 1) * count)
        row["calls_of"][task] = float(np.mean(pairs.calls[here]))
        shown = items.images[:count] if task == "i2t" else pairs.images[here]
        agreed.append(agreement.agreed(items.world, shown, pairs.captions[here]))
        row[task] = agreement.rate(agreed[-1])
    return row | {"agreement": agreement.rate(np.concatenate(agreed))}


def choose(rows: list[dict], steps: int, chosen: dict) -> dict[str, dict]:
    """The chosen rows by name: `full`, `quarter` and, if the grid has it, `default`.

    `full` is the ancestral chain with all `steps`. `quarter` is the row with the highest agreement
    among those with at most steps / 4 calls for every task. `default` has the run's own settings,
    `chosen`. {} without a full chain.
    """
    full = next((r for r in rows if r["settings"] == FULL | {"steps": steps}), None)
    quarter = [r for r in rows if max(r["calls_of"].values()) <= steps / 4]
    if full is None or not quarter:
        return {}
    found = {"full": full, "quarter": max(quarter, key=lambda r: r["agreement"]["rate"])}
    chosen = chosen | {"steps": chosen["steps"] or steps}
    own = [row for row in rows if row["settings"].items() <= chosen.items()]
    return found | ({"default": own[-1]} if own else {})


def best(found: dict[str, dict]) -> dict:
    """The rows of `choose`, and the agreement that `quarter` and `default` lose against `full`.

    Losses are in percentage points of the total agreement, and of each task in `of_tasks`, with the
    standard error of the difference. `within_a_point`: at most one point is lost. `why`: the reason
    for the default sampler.
    """
    if not found:
        return {}
    full, quarter = found["full"], found["quarter"]
    result = {"full": full, "quarter": quarter, **_lost(full, quarter)}
    if "default" in found:
        row = found["default"]
        why = WHY.get(row["settings"]["sampler"])
        result["default"] = {"row": row, **_lost(full, row), "why": why}
    return result


def _lost(full: dict, row: dict) -> dict:
    """The percentage points of agreement that a row loses against the full chain."""
    parts = {task: _points(full[task], row[task]) for task in agreement.TASKS if task in row}
    return _points(full["agreement"], row["agreement"]) | {"of_tasks": parts}


def _points(one: dict, two: dict) -> dict:
    points = 100 * (one["rate"] - two["rate"])
    error = 100 * math.hypot(one["error"], two["error"])
    return {"points_lost": points, "error": error, "within_a_point": points <= 1}
