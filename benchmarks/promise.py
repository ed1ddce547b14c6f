"""What runs of one config reach, side by side: their rates, floors that follow, and a picture.

    python -m benchmarks promise RUN RUN ... [--plot=FILE.svg] [--out=FILE] [--floors=FILE]

RUN is a folder with an `evaluation.json`. For each row of the headline it prints the least, the
mean and the largest value of the runs, and how many meet the aim. A floor is what a further run of
the same kind would be below in one of a hundred cases, for all floors together: the prediction
interval of Student's t on asin(sqrt(rate)), whose variance does not hang on the rate. promise.md
says what the runs are for.
"""

import argparse
import math
import pathlib

from scipy import stats

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import agreement
from udd_jax.evaluation.report import page
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.runtime import files

RED = 0.01  # how often a true run may be below some floor
DEEP = 3  # decimals of a floor; it is rounded down
DRAWN = (*agreement.TASKS, "infill")


def parse(arguments):
    parser = argparse.ArgumentParser(
        "python -m benchmarks promise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--plot", default="", help="file for the picture")
    parser.add_argument("--out", default="", help="file for the JSON of the table")
    parser.add_argument("--floors", default="", help="file for the floors, as of .ci/floors.json")
    return parser.parse_args(arguments)


def read(folder) -> dict:
    """{(task, name): its row} of the headline of a run, and of a rate the "count" of its samples.

    UserError if there is none."""
    path = pathlib.Path(folder) / main_suite.RESULT
    if not path.exists():
        raise UserError(f"{path} does not exist: expected the folder of an evaluated run")
    result, found = files.read_json(path), {}
    places = {(task, name): place for task, name, place in main_suite.RATES}
    for row in result["headline"]:
        key, rate = (row["task"], row["name"]), result
        for part in places.get(key, ("rules", row["task"], "agreement")):
            rate = rate.get(part, {})
        found[key] = row | {"count": rate.get("count")}
    return found


def measures(runs: list[dict]) -> dict:
    """{(task, name): its rows, one a run}, of the rows that all runs have."""
    return {key: [run[key] for run in runs] for key in runs[0] if all(key in run for run in runs)}


def floor(rates: list[float], count: int, chance: float) -> float:
    """The rate that a further run is below with this chance.

    rates: of at least two runs, each of `count` samples.
    """
    n = len(rates)
    angles = [math.asin(math.sqrt((r * count + 3 / 8) / (count + 3 / 4))) for r in rates]
    mean = math.fsum(angles) / n
    spread = math.sqrt(math.fsum((a - mean) ** 2 for a in angles) / (n - 1))
    spread = max(spread, 1 / (2 * math.sqrt(count)))  # that of equal runs, by chance alone
    low = mean + stats.t.ppf(chance, n - 1) * spread * math.sqrt(1 + 1 / n)
    return math.floor(10**DEEP * math.sin(max(low, 0)) ** 2) / 10**DEEP


def summary(found: dict) -> list[dict]:
    """A row for each measure; a floor for each rate, from two runs on.

    UserError if a rate is of other numbers of samples in some of the runs."""
    rates = sum(rows[0]["better"] == "higher" for rows in found.values())
    table = []
    for (task, name), rows in found.items():
        values = [row["value"] for row in rows]
        line = {"task": task, "name": name, "least": min(values), "most": max(values)}
        line["mean"] = math.fsum(values) / len(values)
        line["aim"], line["met"] = rows[0]["aim"], sum(row["met"] is not False for row in rows)
        count, *others = dict.fromkeys(row["count"] for row in rows)
        if others:
            raise UserError(
                f"{task}: {name} is of {count} samples in the first run and of {others[0]} in "
                "another, expected runs of one config with one evaluate.samples"
            )
        if rows[0]["better"] == "higher" and len(values) > 1:
            line["floor"] = floor(values, count, RED / rates)
        table.append(line)
    return table


def markdown(table: list[dict], runs: int) -> str:
    """The summary as a table in Markdown."""
    out = [
        f"| {runs} runs | least | mean | most | aim met by | floor |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        met = "" if row["aim"] is None else f"{row['met']} (aim {row['aim']:g})"
        cells = [f"{row['task']}: {row['name']}"]
        cells += [f"{row[name]:.3f}" for name in ("least", "mean", "most")]
        cells += [met, f"{row['floor']:.3f}" if "floor" in row else ""]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def floors(table: list[dict]) -> dict[str, float]:
    """{place in evaluation.json: floor}, the form of `.ci/floors.json`."""
    known = {(row["task"], row["name"]): row.get("floor") for row in table}
    places = {
        ".".join((*path, "rate")): known.get((task, name)) for task, name, path in main_suite.RATES
    }
    return {place: value for place, value in places.items() if value is not None}


def plot(found: dict) -> str | None:
    """An SVG over the runs, a line each task: its rate, and its largest total variation. None if
    the runs have neither."""
    shares, apart = {}, {}
    for (task, _), rows in found.items():
        values = [row["value"] for row in rows]
        if task in agreement.TASKS and rows[0]["better"] == "lower":
            apart[task] = [max(pair) for pair in zip(apart.get(task, values), values, strict=True)]
        elif task in DRAWN and rows[0]["better"] == "higher":
            shares[task] = values
    panels = {"run, share that is right": shares, "run, largest total variation": apart}
    drawn = {
        label: {task: (list(range(len(values))), values) for task, values in lines.items()}
        for label, lines in panels.items()
        if lines
    }
    return page.panels(drawn) if drawn else None


def main(arguments) -> int:
    options = parse(arguments)
    found = measures([read(folder) for folder in options.runs])
    table = summary(found)
    print(markdown(table, len(options.runs)))
    if options.out:
        files.write_json(options.out, {"runs": options.runs, "rows": table})
    if options.floors:
        files.write_json(options.floors, floors(table))
    if options.plot and (drawn := plot(found)):
        files.write_text(options.plot, drawn)
    elif options.plot:
        print(f"{options.plot} is not written: the runs have no rate of {', '.join(DRAWN)}")
    return 0
