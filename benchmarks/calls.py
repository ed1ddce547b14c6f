"""Quality against network calls, of a teacher and its students: a table, JSON and a plot.

    python -m benchmarks calls teacher=RUN student=RUN ... --out=DIR [--calls=1,2,4,8]
        [--bounds=0.1,0.3] [--count=128]

All runs draw the same items of the same embedded world with the same temperature, top-r and seed:
those of the first run, whose tokenizers they share; the image decoder may be another. `--calls` are
of the sampler MaskGIT, `--bounds` in nats of the entropy-bounded one, whose samples take as many
calls as they need. A run draws pairs in the order that it always does (`begin_with`): each of the
two steps then has half of the calls. With one call a pair is drawn at once.
"""

import argparse
import functools
import pathlib

import numpy as np

from udd_jax import pipeline
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, scores
from udd_jax.evaluation.metrics import agreement
from udd_jax.evaluation.report import page
from udd_jax.networks import matching
from udd_jax.runtime import files
from udd_jax.steering import stepwise

TASKS = agreement.TASKS  # t2i, i2t, pair


def plot(rows: list[dict]) -> str:
    """An SVG with one panel a task: the share that agrees over the mean of the calls, a line for
    each run and sampler."""
    found = {}
    for task in TASKS:
        lines = found[f"network calls, {task}"] = {}
        for row in rows:
            xs, ys = lines.setdefault(f"{row['run']}, {row['sampler']}", ([], []))
            xs.append(row["calls"][task]["mean"]), ys.append(row[task]["rate"])
    return page.panels(found, log_x=True)


def _cell(row: dict, task: str) -> str:
    found, calls = row["variation"][task], row["calls"][task]
    text = f"{row[task]['rate']:.3f} ± {row[task]['error']:.3f}"
    text += f"; {max(found.values()):.2f}" if found else ""
    return text + (f" ({calls['mean']:.1f}, {calls['most']})" if "bound" in row else "")


def table(rows: list[dict]) -> str:
    """The share that agrees, the largest total variation from a true law, and where they vary the
    calls: their mean, their most."""
    lines = ["| sampler | run | " + " | ".join(TASKS) + " |", "|" + "---|" * (2 + len(TASKS))]
    for row in rows:
        cells = " | ".join(map(functools.partial(_cell, row), TASKS))
        how = f"{row['bound']} nats" if "bound" in row else f"{row['steps']} calls"
        lines.append(f"| {row['sampler']}, {how} | {row['run']} | {cells} |")
    return "\n".join(lines) + "\n"


def measure(pipe, items, settings: dict) -> dict:
    """{task: the share of `items` that agrees, "calls": {task: their mean, and their most},
    "variation": {task: {property: total variation from its true law, of what can be read}}}.

    settings: of the sampler; its steps, if it has some, are those of a whole pair.
    """
    row, count, calls = {"calls": {}, "variation": {}}, len(items), settings.get("steps")
    given = {"t2i": {"text": items.ids}, "i2t": {"image": items.codes}, "pair": None}
    for task in TASKS:
        options = {"seed": 1, "batch_size": count, **settings}
        if calls and stepwise.usual(pipe, task):
            halves = {"steps": calls // 2, "begin_steps": calls - calls // 2}
            options |= halves if calls > 1 else {"begin_with": ()}
        result = pipe.generate(task, count, given=given[task], **options)
        shown = items.images if task == "i2t" else result.images
        captions = items.captions if task == "t2i" else result.captions
        pairs = agreement.read(items.world, shown, captions)
        row[task] = agreement.agreement(items.world, pairs)[1]["agreement"]
        read = [pair for pair in pairs if None not in pair]
        variety = agreement.variation(items.world.laws.get(task, {}), read)
        row["variation"][task] = {name: found["tv"] for name, found in variety.items()}
        made = np.asarray(result.calls)
        row["calls"][task] = {"mean": float(made.mean()), "most": int(made.max())}
    return row


def tokenizing(pipe) -> tuple:
    """What makes the tokens of a run: hashes of its tokenizers, of the image without its decoder,
    and the length of its texts."""
    return matching.hashes(pipe.tokenizers), pipe.text_length


def run(runs: dict, out, points: list[dict], count: int) -> list[dict]:
    """Measures and writes calls.json after each of the points, at the end calls.svg and table.md.

    runs: {name: folder}; points: settings of a sampler. UserError if the data are not an embedded
    world, or a run has other tokenizers than the first.
    """
    out, rows = pathlib.Path(out), []
    pipes = {name: pipeline.Pipeline.load(folder) for name, folder in runs.items()}
    first = next(iter(pipes.values()))
    for name, pipe in pipes.items():
        if tokenizing(pipe) != tokenizing(first):
            raise UserError(
                f"{name} ({runs[name]}) has other tokenizers than {next(iter(runs))}, whose tokens "
                "all runs are given: expected runs with the same ones"
            )
    items = held_out.read(first, count)
    scores.require_world(items, "calls")
    usual = {name: first.config.sample[name] for name in ("temperature", "top_r")}
    for point in points:
        for name, pipe in pipes.items():
            row = measure(pipe.with_network(unroll=1), items, usual | point)
            rows.append({"run": name, **point, "items": len(items)} | row)
            shares = (f"{task} {row[task]['rate']:.3f}" for task in TASKS)
            print(f"{name}, {point}: {', '.join(shares)}", flush=True)
        files.write_json(out / "calls.json", rows)
    files.write_text(out / "calls.svg", plot(rows))
    files.write_text(out / "table.md", table(rows))
    return rows


def main(arguments) -> int:
    numbers = lambda kind: lambda text: [kind(n) for n in text.split(",") if n]  # noqa: E731
    parser = argparse.ArgumentParser(
        "python -m benchmarks calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="NAME=FOLDER, the teacher first")
    parser.add_argument("--out", required=True)
    parser.add_argument("--calls", type=numbers(int), default=[1, 2, 4, 8])
    parser.add_argument("--bounds", type=numbers(float), default=[], help="in nats")
    parser.add_argument("--count", type=int, default=128, help="items of each task")
    options = parser.parse_args(arguments)
    runs = dict(text.split("=", 1) for text in options.runs if "=" in text)
    if len(runs) != len(options.runs):
        parser.error(f"runs = {options.runs}, expected NAME=FOLDER with different names")
    points = [{"sampler": "maskgit", "steps": calls} for calls in options.calls]
    points += [{"sampler": "entropy_bounded", "bound": bound} for bound in options.bounds]
    rows = run(runs, options.out, points, options.count)
    print(table(rows))
    return 0
