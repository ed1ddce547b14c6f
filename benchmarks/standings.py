"""What the runs of a contest reached: the measures of an evaluation, and a table over the seeds.

A measure is [value, its standard error, the most that it can be].
"""

import math

import numpy as np

from udd_jax.evaluation.metrics import intervals

# Of data that are no embedded world: {part of the suite "full": its rates that the table has}
READ = {"retrieval": ("first 1",), "recognition": ("among 20", "without broken words")}


def values(result: dict) -> dict[str, list]:
    """{measure: [value, its standard error, the most that it can be]} of an evaluation.

    The error is 0 where none is; the most is None where there is no limit. The least is 0. What the
    evaluation could not measure is left out.
    """
    found = {}
    for row in result["headline"]:
        rate = row["better"] == "higher" and row["task"] != "tokenizer"  # that is shared
        if rate and row["value"] is not None:
            found[f"{row['task']}: {row['name']}"] = [row["value"], row["error"] or 0.0, 1.0]
    told = {row["task"] for row in result["headline"]}
    for rule, rates in result.get("rules", {}).items():
        if "agreement" in rates and rule not in told:
            rate = rates["agreement"]
            found[f"{rule}: agreement"] = [rate["rate"], rate["error"], 1.0]
    for task, bound in result["bounds"].items():
        _add(found, f"{task}: bits a token", bound)
    for part, rates in READ.items():
        for name, of in result.get("full", {}).get(part, {}).items():
            for rate in rates if isinstance(of, dict) else ():
                _add(found, f"{name}: {rate}", of.get(rate, {}), 1.0)
    speed = result["speed"]  # where rules alone are measured it has seconds only
    _add(found, "samples a second", {"value": speed.get("samples_a_second")})
    for task, calls in speed.get("calls_a_sample", {}).items():
        _add(found, f"{task}: network calls", {"value": calls})
    _add(found, "memory, GiB", {"value": speed.get("peak_memory_gib")})
    return found


def _add(found: dict, name: str, leaf: dict, most: float | None = None):
    """Adds a leaf of an evaluation to the measures, if it was measured."""
    if leaf.get("value") is not None:
        found[name] = [leaf["value"], leaf.get("standard_error") or 0.0, most]


def table(rows: list[dict]) -> str:
    """One table, a row a recipe, a column a measure: mean [low, high] over the seeds."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    measures = list(dict.fromkeys(name for row in rows for name in row["values"]))
    lines = ["| recipe | seeds | steps | " + " | ".join(measures) + " |"]
    lines.append("|" + "---|" * (3 + len(measures)))
    for name in recipes:
        mine = [row for row in rows if row["recipe"] == name]
        cells = [name, str(len(mine)), f"{np.mean([row['steps'] for row in mine]):.0f}"]
        for measure in measures:
            found = [row["values"][measure] for row in mine if measure in row["values"]]
            cells.append(cell(found))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(found: list[list]) -> str:
    """The mean of what `values` has of one measure, with its interval; "-" without any."""
    if not found:
        return "-"
    mean, count, most = float(np.mean([v for v, *_ in found])), len(found), found[0][2]
    most = math.inf if most is None else most
    if count > 1:
        error = float(np.std([v for v, *_ in found], ddof=1)) / count**0.5
        estimate = intervals.spread(mean, error, count - 1, count, "seeds", least=0, most=most)
        low, high = estimate.low, estimate.high
    else:
        low, high = (mean + side * 1.96 * (found[0][1] or 0) for side in (-1, 1))
        low, high = max(low, 0.0), min(high, most)
    return f"{mean:.3g}" if low == high else f"{mean:.3g} [{low:.3g}, {high:.3g}]"
