"""The section of the report that compares the samplers: agreement, network calls, seconds."""

from udd_jax.evaluation.report import page
from udd_jax.runtime import files


def show(path) -> str:
    """Agreement of every sampler against network calls and seconds; the bound of the chain."""
    if not path.exists():
        return ""
    found, calls, seconds, bounds, rows = files.read_json(path), {}, {}, {}, []
    for row in sorted(found["rows"], key=lambda row: row["calls"]):
        sampler, rate = row["settings"]["sampler"], 100 * row["agreement"]["rate"]
        _add(calls, sampler, row["calls"], rate)
        _add(seconds, sampler, row["seconds"], rate)
        for task, bits in row.get("bounds", {}).items():
            _add(bounds, task, row["calls"], bits["value"])
        rates = [page.percent(row[task]["rate"]) for task in ("t2i", "i2t", "pair")]
        bits = row.get("bounds", {}).get("pair")
        rows.append(
            [
                page.escape(_named(row["settings"])),
                f"{row['calls']:.1f}",
                f"{row['seconds']:.2f}",
                *rates,
                f"{bits['value']:.3f}" if bits else "",
            ]
        )
    wide = {"log_x": True, "dots": True, "size": (760, 380)}
    plots = page.plot("agreement in %", calls, "network calls", **wide)
    plots += page.plot("agreement in %", seconds, "seconds of all samples", **wide)
    plots += page.plot(
        "bound of the ancestral chain, bits a token", bounds, "network calls", log_x=True, dots=True
    )
    head = ["sampler", "calls", "seconds", "t2i", "i2t", "pair", "bound of pairs"]
    table = f"<details><summary>All of them</summary>{page.table(head, rows)}</details>"
    left = "".join(
        page.tag("li", f"{page.escape(row['settings']['sampler'])}: {page.escape(row['reason'])}")
        for row in {row["settings"]["sampler"]: row for row in found["left_out"]}.values()
    )
    left = page.tag("p", "Left out:", "note") + page.tag("ul", left, "note") if left else ""
    text = page.tag("p", _compared(found.get("best") or {}))
    return page.section("samplers", "Samplers", text + plots + table + left)


def _add(series: dict, name: str, x: float, y: float) -> None:
    xs, ys = series.setdefault(name, ([], []))
    xs.append(x)
    ys.append(y)


def _named(settings: dict) -> str:
    return ", ".join(v if k == "sampler" else f"{k} {v}" for k, v in settings.items())


def _compared(best: dict) -> str:
    """The loss with a quarter of the calls, and the default sampler, in words."""
    if not best:
        return ""
    within = "within a point of" if best["within_a_point"] else "not within a point of"
    text = (
        f"The full chain, {_result(best['full'])}. With at most a quarter of its calls the best "
        f"is {_result(best['quarter'])}: {within} it{_tasks(best)}."
    )
    if "default" in best:
        why = page.escape(best["default"]["why"] or "")
        row, parts = best["default"]["row"], _tasks(best["default"])
        text += " The sampler of the config, here with one chain for every task, has "
        text += f"{_result(row)}{parts}. {why}"
    return text


def _tasks(lost: dict) -> str:
    """How far each task is below the full chain."""
    parts = [
        f"{task} {-found['points_lost']:+.1f} ± {found['error']:.1f}"
        for task, found in lost["of_tasks"].items()
    ]
    return f" (points: {', '.join(parts)})" if parts else ""


def _result(row: dict) -> str:
    rate, error = (row["agreement"][name] for name in ("rate", "error"))
    name = page.escape(_named(row["settings"]))
    return f"<i>{name}</i>, agrees in {page.percent(rate, error)} with {row['calls']:.1f} calls"
