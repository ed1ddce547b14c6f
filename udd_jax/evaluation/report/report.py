"""The page: what a run is, how good it is, and what it looks like, for a person to see.

`write(workdir)` reads only files of the run's folder and writes `report.html`, one page without
scripts or other files. It needs `config.json`, `evaluation.json` and `samples/`; the metrics of the
two trainings, `stages.json`, `samplers.json` and what the suite "full" found are shown where they
are there.
"""

import json
import pathlib
import re

import numpy as np

from udd_jax.data import survey
from udd_jax.evaluation import compare, samples
from udd_jax.evaluation.report import measure_sections, page, sample_sections
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.evaluation.suites import samplers as samplers_suite
from udd_jax.runtime import files, logbook

FILE = "report.html"
PLOTS = (  # title, which columns of metrics.jsonl, whether the ordinate is logarithmic
    ("loss", r"loss", True),
    ("bound, nats a token", r"bound", False),
    ("-log p of masked tokens, nats", r"(\w+)_nll", False),
    ("accuracy at masked tokens", r"(\w+)_accuracy", False),
    ("norm of the gradient", r"gradient_norm", True),
    ("learning rate", r"learning_rate", False),
)
TOKENIZER_PLOTS = (
    ("reconstruction, PSNR in dB", r"(?:\w+_)?psnr", False),
    ("codes in use, perplexity", r"perplexity|used\w*|\w*usage", False),
    ("loss", r"loss", True),
)


def write(workdir) -> pathlib.Path:
    """Writes `workdir/report.html` and returns its path.

    Raises:
        FileNotFoundError: the folder has no config.json or no evaluation.json.
    """
    workdir = pathlib.Path(workdir)
    config = files.read_json(workdir / "config.json")["config"]
    result = files.read_json(workdir / main_suite.RESULT)
    first = config.get("task", "t2i")
    order = sorted(samples.TASKS, key=lambda task: task != first)
    kept = {task: samples.load(workdir / main_suite.FOLDER / f"{task}.npz") for task in order}
    verdicts = _verdicts(workdir / main_suite.FOLDER / "samples.jsonl")
    path = workdir / survey.FILE
    found = files.read_json(path) if path.exists() else None
    sections = [
        _headline(result, order),
        *(sample_sections.show(t, kept[t], result, verdicts.get(t)) for t in order if kept[t]),
        sample_sections.way(workdir / main_suite.FOLDER / "trace.npz"),
        _tokenizer(workdir, result),
        _likelihood(result),
        *measure_sections.show(workdir / main_suite.FOLDER, result),
        _training(workdir),
        _data(found),
        _samplers(workdir / samplers_suite.RESULT),
        _details(result, order),
        _time(workdir / "stages.json", result),
        _unmeasured(result),
        _settings(config, result),
    ]
    title = f"udd_jax, {config.get('name', 'run')} on {config.get('data', 'its data')}"
    opening = [
        page.tag("h1", page.escape(title)),
        _opening(result, found),
        _contents(sections),
        _errors(result),
    ]
    path = workdir / FILE
    files.write_text(path, page.document(title, opening + sections))
    return path


def _verdicts(path) -> dict[str, list]:
    """Of each task that was judged why its samples are wrong, None for a right one."""
    found = {}
    if path.exists():
        for line in map(json.loads, path.read_text().splitlines()):
            if "right" in line:
                found.setdefault(line["task"], []).append(line["reason"])
    return found


# ---- What comes first ---------------------------------------------------------------------------


def _opening(result: dict, found: dict | None) -> str:
    protocol, about = result["manifest"]["protocol"], result["manifest"]
    what = (
        "One network that has learned images and captions together, as tokens of one discrete "
        "diffusion: it makes pairs from nothing, images from captions, captions from images, and "
        "the missing parts of both."
    )
    data = page.escape(found["splits"]["train"]["name"] if found else about["source"])
    if "reader" in result:
        data = (
            "<i>shapes</i>, a drawn world of one or two objects on a grid, whose images and "
            "captions can be read back exactly"
        )
    conditions = f"It was trained on {data}, and is measured on {protocol['item_count']} items of "
    conditions += "the test split"
    if "reader" in result:
        conditions += ", which show only pairs of objects that no training image has"
    sampler, calls = protocol["settings"]["sampler"], result["speed"]["calls_a_sample"].values()
    least, most = (f"{number:.3g}" for number in (min(calls), max(calls)))
    how = (
        f"Samples come from the averaged weights with the sampler <i>{page.escape(sampler)}</i>, "
        f"in {least if least == most else f'{least} to {most}'} network calls; the manifest at the "
        "end says all else."
    )
    return page.tag("p", f"{what} {conditions}. {how}", "lead")


def _data(found: dict | None) -> str:
    """What was found in the data before the training; nothing for an embedded world."""
    if found is None or not found["sizes"]:
        return ""
    lines = (line.strip() for line in survey.describe(found).splitlines())
    items = "".join(page.tag("li", page.escape(line)) for line in lines)
    return page.section("data", "Data", f"<ul>{items}</ul>")


def _contents(sections: list[str]) -> str:
    """Links to the sections that are there."""
    found = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', "".join(sections))
    return page.tag("nav", "".join(f'<a href="#{name}">{heading}</a>' for name, heading in found))


def _errors(result: dict) -> str:
    lines = "".join(page.tag("li", page.escape(error)) for error in result["errors"])
    return page.tag("div", f"<b>Errors</b><ul>{lines}</ul>", "alarm") if lines else ""


def _headline(result: dict, order: list[str]) -> str:
    """The first table: rates with their aims."""
    rank = {task: i for i, task in enumerate(order)}
    rows = [row for row in result["headline"] if row["better"] == "higher"]
    rows.sort(key=lambda row: rank.get(row["task"], len(rank)))
    cells = []
    for row in rows:
        name = sample_sections.TASKS.get(row["task"], ("Image tokenizer",))[0]
        aim = "" if row["aim"] is None else f"{100 * row['aim']:.0f} %"
        if row["floor"] is not None:
            aim += f", floor {100 * row['floor']:.0f} %"
        value = page.percent(row["value"], row["error"])
        bar = page.meter(row["value"], row["error"], row["aim"])
        cells.append(
            [page.escape(name), page.escape(row["name"]), bar, f"{value} {_met(row)}", aim]
        )
    if not cells:
        return ""
    text = (
        "Shares with one standard error; the tick in a bar is the aim. A sample counts as right "
        "only if all that the caption says is so."
    )
    head = ["", "share of samples", "", "measured", "aim"]
    return page.section(
        "headline", "In short", page.table(head, cells, 3) + page.tag("p", text, "note")
    )


def _met(row: dict) -> str:
    css, sign = {None: ("", ""), True: ("good", "✓"), False: ("bad", "✗")}[row["met"]]
    return f'<span class="met {css}">{sign}</span>'


# ---- The parts ----------------------------------------------------------------------------------


def _tokenizer(workdir, result: dict) -> str:
    found = result["tokenizer"]
    psnr = found["psnr"]
    told = (
        f"Held-out images through the tokenizer and back: {psnr['value']:.2f} ± "
        f"{psnr['standard_error']:.2f} dB PSNR. {found['codes_used']} of {found['codes']} codes "
        f"are in use, with a perplexity of {found['perplexity']:.1f}."
    )
    if "read_right" in found:
        read = found["read_right"]
        told += (
            f" {page.percent(read['rate'], read['error'])} of the reconstructions are read right"
        )
        told += ", which no image sample can be expected to exceed."
    content = page.tag("p", told)
    path = workdir / main_suite.FOLDER / "reconstructions.npz"
    if path.exists():
        with np.load(path) as file:
            before, after = file["images"][:8], file["decoded"][:8]
        pictures = [
            page.figure([page.picture(a), page.picture(b)], css="double")
            for a, b in zip(before, after, strict=True)
        ]
        content += page.tag("h3", "Images and, beside them, their reconstructions")
        content += page.tag("div", "".join(pictures), "row")
    plots = _plots(workdir / "vq", TOKENIZER_PLOTS)
    if plots:
        content += page.tag("h3", "Its training") + plots
    return page.section("tokenizer", "The image tokenizer", content)


def _training(workdir) -> str:
    plots = _plots(workdir, PLOTS)
    return page.section("training", "Training of the diffusion", plots) if plots else ""


def _plots(folder, wanted) -> str:
    """A plot for each row of `wanted` of which metrics.jsonl has a column."""
    columns, drawn = logbook.Logbook(folder).columns(), []
    for title, pattern, log in wanted:
        found = {}
        for name in columns:
            match = re.fullmatch(pattern, name)
            if match:
                found[next(iter(match.groups()), None) or name] = columns[name]
        drawn.append(page.plot(title, found, "step", log_y=log))
    return page.tag("div", "".join(drawn), "plots") if any(drawn) else ""


def _likelihood(result: dict) -> str:
    """Bits a token of what each task generates."""
    rows = []
    for task, bits in result["bounds"].items():
        name = {"t2i": "image, given the text", "i2t": "text, given the image"}.get(task)
        parts = [bits, *(bits["modalities"].get(m) for m in ("image", "text"))]
        cells = [
            "" if b is None else f"{b['value']:.3f} ± {b['standard_error'] or 0:.3f}" for b in parts
        ]
        rows.append([page.escape(name or {"pair": "pair"}.get(task, f"{task} alone")), *cells])
    text = (
        "An upper bound on -log<sub>2</sub> p of held-out items, in bits a token, with its "
        f"standard error over {result['bounds']['pair']['count']} items."
    )
    if "entropy" in result:
        text += (
            f" Captions given scenes have an entropy of {result['entropy']['value']:.3f} bits a "
            "token, which the bound on texts given images may not undercut, and "
            + ('<b class="bad">does</b>.' if result["entropy"]["undercut"] else "does not.")
        )
    head = ["", "all that is generated", "image tokens", "text tokens"]
    return page.section("likelihood", "Likelihood", page.tag("p", text) + page.table(head, rows))


def _samplers(path) -> str:
    """Agreement against network calls and seconds, of every sampler; the bound of the chain."""
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
    """What a quarter of the calls costs, and what the default is, in words."""
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
        text += f" The default is {_result(row)}{parts}. {why}"
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


# ---- Details ------------------------------------------------------------------------------------


def _details(result: dict, order: list[str]) -> str:
    """Variety, reasons, and agreement by what a caption names."""
    scored = {task: result["scores"][task] for task in order if task in result["scores"]}
    parts = []
    rows = [row for row in result["headline"] if row["better"] == "lower"]
    if rows:
        found = {(row["task"], row["name"].split()[-1]): row for row in rows}
        kinds = list(dict.fromkeys(name for _, name in found))
        cells = [
            [
                page.escape(sample_sections.TASKS[task][0]),
                *(_varied(found.get((task, kind))) for kind in kinds),
            ]
            for task in order
            if any((task, kind) in found for kind in kinds)
        ]
        text = (
            "Total variation between what was generated and the true law, given what the "
            f"condition names; at most {main_suite.VARIATION:.2f} is asked for. The small number "
            "is what as many draws from the true law itself would show."
        )
        parts.append(page.tag("h3", "Variety") + page.tag("p", text))
        parts.append(page.table(["", *map(page.escape, kinds)], cells))
    why = {task: rates["reasons"] for task, rates in scored.items() if "reasons" in rates}
    if why:
        names = sorted(
            {name for reasons in why.values() for name in reasons}, key=_reason_rank(why)
        )
        cells = [
            [
                page.escape(sample_sections.REASONS.get(name, name)),
                *(_share(reasons.get(name)) for reasons in why.values()),
            ]
            for name in names
        ]
        parts.append(page.tag("h3", "Why samples are wrong"))
        parts.append(
            page.table(["", *(page.escape(sample_sections.TASKS[task][0]) for task in why)], cells)
        )
    named = {task: rates["by_named"] for task, rates in scored.items() if "by_named" in rates}
    if named:
        keys = sorted({key for groups in named.values() for key in groups}, key=int)
        cells = []
        for task, groups in named.items():
            found = [groups.get(key) for key in keys]
            shares = [
                ""
                if g is None
                else f"{page.percent(g['rate'])} <span class=soft>of {g['count']}</span>"
                for g in found
            ]
            cells.append([page.escape(sample_sections.TASKS[task][0]), *shares])
        parts.append(page.tag("h3", "Agreement by the number of attributes that the caption names"))
        parts.append(page.table(["", *keys], cells))
    if "reader" in result:
        reader = result["reader"]
        parts.append(
            page.tag(
                "p",
                "The reader itself fails on the truth for "
                f"{page.percent(reader['images']['rate'], reader['images']['error'])} of images, "
                f"{page.percent(reader['captions']['rate'], reader['captions']['error'])} of "
                "captions and "
                f"{page.percent(reader['pairs']['rate'], reader['pairs']['error'])} of pairs.",
                "note",
            )
        )
    return page.section("details", "Details", "".join(parts)) if parts else ""


def _reason_rank(why: dict):
    names = [name for reasons in why.values() for name in reasons]
    return names.index


def _varied(row: dict | None) -> str:
    if row is None:
        return ""
    return f"{row['value']:.3f}{_met(row)} <small class=soft>{row['error']:.3f}</small>"


def _share(value: float | None) -> str:
    if value is None:
        return ""
    return page.percent(value) if value else '<span class="soft">0</span>'


def _time(path, result: dict) -> str:
    """Seconds of the run's stages and of the evaluation's parts."""
    speed = result["speed"]
    content = ""
    if path.exists():
        content += page.tag("h3", "Stages of the run") + _seconds(files.read_json(path))
    content += page.tag("h3", "Parts of the evaluation") + _seconds(speed["seconds"])
    calls = ", ".join(f"{task} {value:.3g}" for task, value in speed["calls_a_sample"].items())
    hardware = result["manifest"]["hardware"]
    content += page.tag(
        "p",
        f"{speed['samples_a_second']:g} samples a second; network calls a sample: {calls}. "
        f"Samples of {speed['with_compilation']} came first: their time has the compilation in it. "
        f"Peak memory {speed['peak_memory_gib']:.2f} GiB, on {hardware['devices']} × "
        f"{page.escape(hardware['device'])} with {hardware['cores']} cores.",
        "note",
    )
    return page.section("time", "Time", content)


def _seconds(seconds: dict) -> str:
    longest = max([*seconds.values(), 1e-9])
    rows = [
        [
            page.escape(name.replace("_", " ")),
            f'<span class="bar" style="width:{220 * value / longest:.0f}px"></span>',
            f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min",
        ]
        for name, value in seconds.items()
    ]
    total = sum(seconds.values())
    rows.append(["together", "", f"{total:.1f} s" if total < 120 else f"{total / 60:.1f} min"])
    return page.table(["", "", "time"], rows, 2)


def _unmeasured(result: dict) -> str:
    """Every name under its reason; those of one part of the evaluation stand together."""
    reasons = {}
    for name, why in result["unmeasured"].items():
        part, _, last = name.rpartition(": ")
        reasons.setdefault(why, {}).setdefault(part, []).append(last)
    lines = []
    for why, parts in reasons.items():
        names = [f"{part}: {', '.join(those)}".removeprefix(": ") for part, those in parts.items()]
        lines.append(page.tag("b", page.escape("; ".join(names))) + "<br>" + page.escape(why))
    content = page.tag("ul", "".join(page.tag("li", line) for line in lines), "reasons")
    return page.section("unmeasured", "What was not measured", content) if lines else ""


def _settings(config: dict, result: dict) -> str:
    def listing(name, tree):
        rows = [[page.escape(k), page.escape(json.dumps(v))] for k, v in compare.flat(tree).items()]
        table = page.table(["", ""], rows, 2)
        return f"<details><summary>{page.escape(name)}</summary>{table}</details>"

    content = listing("Settings of the run", config)
    content += listing("Manifest of the evaluation", result["manifest"])
    return page.section("settings", "Settings and manifest", content)
