"""Quality against network calls, of a teacher and its students: a table, JSON and a plot.

    python -m benchmarks calls teacher=RUN student=RUN ... --out=DIR [--calls=1,2,4,8] [--count=128]

All runs draw the same items of the same embedded world with the same sampler, temperature, top-r
and seed: those of the first run, where nothing else is asked for.
"""

import argparse
import pathlib

from udd_jax import pipeline
from udd_jax.evaluation import held_out, scores
from udd_jax.evaluation.metrics import agreement
from udd_jax.evaluation.report import page
from udd_jax.evaluation.suites import samplers
from udd_jax.runtime import files

TASKS = agreement.TASKS  # t2i, i2t, pair


def plot(rows: list[dict]) -> str:
    """An SVG with one panel a task: the share that agrees over the calls, a line a run."""
    found = {}
    for task in TASKS:
        lines = found[f"network calls, {task}"] = {}
        for row in rows:
            xs, ys = lines.setdefault(row["run"], ([], []))
            xs.append(row["steps"]), ys.append(row[task]["rate"])
    return page.panels(found, log_x=True)


def table(rows: list[dict]) -> str:
    lines = ["| calls | run | " + " | ".join(TASKS) + " |", "|" + "---|" * (2 + len(TASKS))]
    for row in sorted(rows, key=lambda row: row["steps"]):
        cells = " | ".join(f"{row[task]['rate']:.3f} ± {row[task]['error']:.3f}" for task in TASKS)
        lines.append(f"| {row['steps']} | {row['run']} | {cells} |")
    return "\n".join(lines) + "\n"


def run(runs: dict, out, counts, count: int, sampler: str) -> list[dict]:
    """Measures and writes calls.json, calls.svg and table.md after each row.

    runs: {name: folder}. UserError if the data are not an embedded world.
    """
    out, rows = pathlib.Path(out), []
    pipes = {name: pipeline.Pipeline.load(folder) for name, folder in runs.items()}
    first = next(iter(pipes.values()))
    items = held_out.read(first, count)
    scores.require_world(items, "calls")
    settings = {name: first.config.sample[name] for name in ("temperature", "top_r")}
    for calls in counts:
        for name, pipe in pipes.items():
            changes = {"sampler": sampler, "steps": calls} | settings
            row = samplers.measure(pipe.with_network(unroll=1), items, changes, len(items), 1)
            rows.append({"run": name, "steps": calls, "items": len(items)} | row)
            shares = (f"{task} {row[task]['rate']:.3f}" for task in TASKS)
            print(f"{name}, {calls} calls: {', '.join(shares)}", flush=True)
        files.write_json(out / "calls.json", rows)
    files.write_text(out / "calls.svg", plot(rows))
    files.write_text(out / "table.md", table(rows))
    return rows


def main(arguments) -> int:
    numbers = lambda text: [int(n) for n in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(
        "python -m benchmarks calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER, the teacher first")
    parser.add_argument("--out", required=True)
    parser.add_argument("--calls", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--count", type=int, default=128, help="items of each task")
    parser.add_argument("--sampler", default="maskgit")
    options = parser.parse_args(arguments)
    runs = dict(text.split("=", 1) for text in options.runs if "=" in text)
    if len(runs) != len(options.runs):
        parser.error(f"runs = {options.runs}, expected NAME=FOLDER with different names")
    rows = run(runs, options.out, options.calls, options.count, options.sampler)
    print(table(rows))
    return 0
