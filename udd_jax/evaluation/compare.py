"""Compares two results that have the same protocol.

`show(a, b)` describes A and B, then lists both values of each number and their difference. The
protocol defines what a number means, so results with different protocols are refused; the error
names every field that differs. Of a result of the suite main and one of full, what both have is
compared. Two results of one protocol may differ in weights, versions and
machine. Those come first.
"""

import math
import pathlib

from udd_jax.errors import UserError
from udd_jax.evaluation import manifest
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.runtime import files

SPEED = ("samples_a_second", "total_seconds", "peak_memory_gib")


def show(a, b) -> str:
    """The comparison as text. a and b: the folder of a run, or the path of its evaluation.json.

    The last column is the difference in standard errors, where these are known. A number that one
    result lacks leaves a gap. Bits per token are compared only if both have the same tokens.

    Raises:
        ValueError: the protocols differ (every such field is named), or a file is not a result.
    """
    results = [_read(path) for path in (a, b)]
    fields = [f"{name} ({one} and {two})" for name, (one, two) in _protocols(results).items()]
    if fields:
        raise UserError(f"not comparable, the protocols differ in {', '.join(fields)}")
    named = zip("AB", results, (a, b), strict=True)
    lines = [f"{letter}  {_about(result)}  {path}" for letter, result, path in named]
    for part in ("versions", "hardware"):
        for name, (one, two) in _beside(results, part).items():
            if one != two:
                lines.append(f"{part}.{name}: {one} and {two}")
    tables = [_numbers(result) for result in results]
    names = list(tables[0] | tables[1])
    width = max(map(len, names), default=0) + 2
    lines += ["", f"{'':{width}}{'A':>10}{'B':>10}{'B - A':>11}{'/ error':>9}"]
    return "\n".join([*lines, *(_line(name, tables, width) for name in names)])


def _protocols(results: list[dict]) -> dict[str, tuple]:
    """{field: (value in A, value in B)} where the protocols differ in what the numbers mean.

    What only the suite "full" reads counts if both are of it. How many samples are drawn at once
    changes none, and where the data are does not matter if the items are the same.
    """
    both = [result["manifest"]["protocol"] for result in results]
    if both[0].get("suite") != both[1].get("suite"):
        both = [manifest.of_main(protocol) for protocol in both]
    one, two = map(flat, both)
    found = {name: (one.get(name, "nothing"), two.get(name, "nothing")) for name in one | two}
    same = {"evaluate.batch_size"}
    if one.get("items") == two.get("items") is not None:
        same |= {name for name in found if name.split(".")[0] in ("data", "data_options")}
    return {name: pair for name, pair in found.items() if name not in same and pair[0] != pair[1]}


def _beside(results: list[dict], part: str) -> dict[str, tuple]:
    """{field: (value in A, value in B)} for a part of the manifest."""
    one, two = (flat(result["manifest"].get(part, {})) for result in results)
    return {name: (one.get(name, "nothing"), two.get(name, "nothing")) for name in one | two}


def _about(result: dict) -> str:
    about = result["manifest"]
    weights, commit = about["run"]["weights"], about.get("commit") or "no commit"
    return f"weights {weights}, {commit}, {about.get('finished', '')},"


def _line(name: str, tables: list[dict], width: int) -> str:
    (one, error), (two, other) = (table.get(name, (None, None)) for table in tables)
    values = "".join(f"{_number(value):>10}" for value in (one, two))
    if one is None or two is None:
        return f"{name:{width}}{values}"
    error = math.hypot(error or 0, other or 0)
    apart = f"{(two - one) / error:+9.1f}" if error else ""
    return f"{name:{width}}{values}{_number(two - one, '+'):>11}{apart}"


def _number(value: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" if abs(value) < 1000 else f"{value:{sign}.0f}"


def _read(path) -> dict:
    path = pathlib.Path(path)
    path = path / main_suite.RESULT if path.is_dir() else path
    result = files.read_json(path)
    if not isinstance(result, dict) or "protocol" not in result.get("manifest", {}):
        raise UserError(f"{path} is not a result of an evaluation: it has no manifest.protocol")
    if "headline" not in result:
        raise UserError(f"{path} is not of the suite main or full: it has no headline to compare")
    return result


def flat(tree, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else name)
    return found


def _numbers(result: dict) -> dict[str, tuple[float, float | None]]:
    """{name: (value, standard error)} of all numbers in a result."""
    rows = result["headline"]
    found = {f"{row['task']}: {row['name']}": (row["value"], row["error"]) for row in rows}
    if psnr := result.get("tokenizer", {}).get("psnr"):
        found["tokenizer: PSNR"] = psnr["value"], psnr["standard_error"]
    run = result["manifest"]["run"]
    tokens = f"{run['image_tokenizer'][:4]} {run['text_tokenizer'][:4]}"
    for task, bits in result["bounds"].items():
        name = f"{task}: bits a token (tokens {tokens})"
        found[name] = bits["value"], bits["standard_error"]
    for rule, rates in result.get("rules", {}).items():
        if rate := rates.get("agreement"):
            found[f"{rule}: agreement"] = rate["rate"], rate["error"]
    found |= _estimates(result.get("full", {}))
    speed = result["speed"]
    return found | {f"speed: {n.replace('_', ' ')}": (speed[n], None) for n in SPEED if n in speed}


def _estimates(tree: dict, prefix: str = "") -> dict[str, tuple[float, float | None]]:
    """The estimates and plain numbers in a tree of the suite "full"."""
    if "value" in tree:
        return {prefix: (tree["value"], tree["standard_error"])}
    found = {}
    for name, value in tree.items():
        name = f"{prefix}: {name}" if prefix else name
        if isinstance(value, dict):
            found |= _estimates(value, name)
        elif isinstance(value, int | float):
            found[name] = value, None
    return found
