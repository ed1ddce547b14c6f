"""The numbers of `python -m benchmarks card` as tables in Markdown, for RESULTS.md.

python -m benchmarks table DIR        or DIR/card.json
"""

import argparse
import pathlib

from benchmarks import card_parts
from udd_jax.runtime import files

AIMS = {"train": 0.5, "sampling": 0.4}  # of the peak, the best row of a part
PERCENT = ("mfu", "peak_share", "argmax_agrees")


def text(row: dict) -> str:
    """A row as one line."""
    return ", ".join(f"{name} {value(name, x)}" for name, x in row.items())


def value(name: str, x) -> str:
    if name in PERCENT and x is not None:
        return f"{x:.1%}"
    return f"{x:.4g}" if isinstance(x, float) else "" if x is None else str(x)


def markdown(report: dict) -> str:
    """One table a part: a line a row, a column a number. What failed is a line below the table."""
    out = []
    for part, rows in report["parts"].items():
        good = {name: row for name, row in rows.items() if "failed" not in row}
        columns = list(dict.fromkeys(key for row in good.values() for key in row))
        out += [f"### {part}: {card_parts.PARTS[part].about}", ""]
        if good:
            heads = [key.replace("_", " ") for key in columns]
            out += [f"| | {' | '.join(heads)} |", "|" + "---|" * (1 + len(columns))]
        for name, row in good.items():
            cells = [value(key, row[key]) if key in row else "" for key in columns]
            out.append(f"| {name} | {' | '.join(cells)} |")
        out += [""] if good else []
        out += [f"- {name}: not measured ({rows[name]['failed']})" for name in rows.keys() - good]
        out += [f"- {line}" for line in best(part, good)]
        out += [""] if out[-1] else []
    return "\n".join(out + feeding(report["parts"]))


def best(part: str, rows: dict) -> list[str]:
    """The row of a part that uses most of the device, beside the aim."""
    shares = {name: row["mfu"] for name, row in rows.items() if row.get("mfu")}
    if part not in AIMS or not shares:
        return []
    name = max(shares, key=shares.get)
    return [f"best: {name}, MFU {shares[name]:.1%} (aim {AIMS[part]:.0%})"]


def feeding(parts: dict) -> list[str]:
    """Whether the token cache is read as fast as the fastest train step asks for."""
    eaten = [row["pairs_a_second"] for row in parts.get("train", {}).values() if "mfu" in row]
    read = [
        row["per_second"]
        for name, row in parts.get("data", {}).items()
        if name.startswith("batches") and "failed" not in row
    ]
    if not eaten or not read:
        return []
    return [f"Token cache: {max(read) / max(eaten):.1f} times what the fastest step takes.", ""]


def main(arguments) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks table", description=__doc__)
    parser.add_argument("report", help="the folder, or the card.json in it")
    path = pathlib.Path(parser.parse_args(arguments).report)
    print(markdown(files.read_json(path / "card.json" if path.is_dir() else path)))
    return 0
