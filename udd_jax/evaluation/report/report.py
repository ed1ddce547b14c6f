"""The report page: the config of a run, its measures and its samples.

`write(workdir)` reads only files of the run's folder and writes `report.html`, one page without
scripts or other files. It needs `config.json`, `evaluation.json` and `samples/`. If they exist, it
also shows the metrics of the two trainings, `stages.json`, `samplers.json` and the results of the
suite "full".
"""

import json
import pathlib
import re

from udd_jax.data import described, survey
from udd_jax.errors import UserError
from udd_jax.evaluation import compare, samples
from udd_jax.evaluation.report import (
    measure_sections,
    page,
    rule_sections,
    sample_sections,
    sampler_section,
    training_sections,
)
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.evaluation.suites import samplers as samplers_suite
from udd_jax.runtime import files

FILE = "report.html"
NAMES = {"tokenizer": "Image tokenizer"}  # of rows of the headline that are not tasks
NO_AIMS = (  # where `evaluate.aims` is off
    "This run has no aims. Either its config is too small to be good, as those called smoke, and "
    "only shows that every stage works, or it is about other rules than these."
)
RULES = (  # where no held-out record has a value of every modality
    "One network that has learned several modalities together, as tokens of one discrete "
    "diffusion: it makes any of them from any others."
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
    kept = {
        task: samples.load(workdir / main_suite.FOLDER / f"{task}.npz")
        for task in order
        if task in result["scores"]  # of an older result there may be others
    }
    reasons = verdicts(workdir / main_suite.FOLDER / "samples.jsonl")
    path = workdir / survey.FILE
    found = files.read_json(path) if path.exists() else None
    sections = [
        _headline(result, order),
        *(sample_sections.show(t, s, result, reasons.get(t)) for t, s in kept.items() if s),
        rule_sections.show(workdir / main_suite.FOLDER, result, config),
        sample_sections.way(workdir / main_suite.FOLDER / "trace.npz"),
        training_sections.tokenizer(workdir, result),
        _likelihood(result),
        *measure_sections.show(workdir / main_suite.FOLDER, result),
        training_sections.training(workdir),
        _data(found),
        sampler_section.show(workdir / samplers_suite.RESULT),
        _details(result, order),
        training_sections.time(workdir / "stages.json", result),
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


def verdicts(path) -> dict[str, list]:
    """{task: for each sample the reason why it is wrong, or None}, for tasks with verdicts.

    path: the list of the samples, `samples.jsonl`. UserError, one line, if it is damaged.
    """
    found = {}
    try:
        for line in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
            if "right" in line:
                found.setdefault(line["task"], []).append(line["reason"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error!r}): evaluate again") from None
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
    world, split = result.get("world"), protocol["split"]
    if world:
        data = (
            f"<i>{page.escape(world['name'])}</i>, {page.escape(world['about'])}, whose images and "
            "captions can be read back exactly"
        )
    conditions = f"It was trained on {data}, and is measured on {protocol['item_count']} items of "
    conditions += f"the {page.escape(split)} split"
    if world and world["held_out"] and split == "test":
        conditions += f", {page.escape(world['held_out'])}"
    if split == "train":
        conditions += ", which it has learned from: the numbers say how well it remembers them"
    sampler = page.escape(protocol["settings"]["sampler"])
    how = f"Samples come from the averaged weights with the sampler <i>{sampler}</i>"
    if calls := result["speed"].get("calls_a_sample", {}).values():
        least, most = (f"{number:.3g}" for number in (min(calls), max(calls)))
        how += f", in {least if least == most else f'{least} to {most}'} network calls"
    how += "; the manifest at the end says all else."
    if not result["scores"]:
        what = RULES
    return page.tag("p", f"{what} {conditions}. {how}", "lead")


def _data(found: dict | None) -> str:
    """The survey of the data; nothing for an embedded world."""
    if found is None or not found["sizes"]:
        return ""
    lines = (line.strip() for line in described.describe(found).splitlines())
    items = "".join(page.tag("li", page.escape(line)) for line in lines)
    return page.section("data", "Data", f"<ul>{items}</ul>")


def _contents(sections: list[str]) -> str:
    """Links to the sections of the page."""
    found = re.findall(r'<section id="(\w+)"><h2>(.*?)</h2>', "".join(sections))
    return page.tag("nav", "".join(f'<a href="#{name}">{heading}</a>' for name, heading in found))


def _errors(result: dict) -> str:
    lines = "".join(page.tag("li", page.escape(error)) for error in result["errors"])
    return page.tag("div", f"<b>Errors</b><ul>{lines}</ul>", "alarm") if lines else ""


def _headline(result: dict, order: list[str]) -> str:
    """The first table: rates and their aims."""
    rank = {task: i for i, task in enumerate(order)}
    rows = [row for row in result["headline"] if row["better"] == "higher"]
    rows.sort(key=lambda row: rank.get(row["task"], len(rank)))
    cells = []
    for row in rows:
        name = sample_sections.TASKS.get(row["task"], (NAMES.get(row["task"], row["task"]),))[0]
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
    text = "Shares with one standard error. "
    head = ["", "share of samples", "", "measured", "aim"]
    if any(row["aim"] is not None for row in rows):
        text += "The tick in a bar is the aim. "
    else:
        head, cells = head[:-1], [row[:-1] for row in cells]
    if result["scores"]:
        text += "A sample counts as right only if all that the caption says is so."
    content = page.table(head, cells, 3) + page.tag("p", text, "note")
    if not result.get("aims", True) and result["scores"]:
        content = page.tag("p", NO_AIMS) + content
    return page.section("headline", "In short", content)


def _met(row: dict) -> str:
    css, sign = {None: ("", ""), True: ("good", "✓"), False: ("bad", "✗")}[row["met"]]
    return f'<span class="met {css}">{sign}</span>'


# ---- The parts ----------------------------------------------------------------------------------


def _likelihood(result: dict) -> str:
    """The bound of each task, bits per token; nothing where there is none."""
    if not result["bounds"]:
        return ""
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
        f"standard error over {next(iter(result['bounds'].values()))['count']} items."
    )
    if "entropy" in result:
        text += (
            f" Captions given scenes have an entropy of {result['entropy']['value']:.3f} bits a "
            "token, which the bound on texts given images may not undercut, and "
            + ('<b class="bad">does</b>.' if result["entropy"]["undercut"] else "does not.")
        )
    head = ["", "all that is generated", "image tokens", "text tokens"]
    return page.section("likelihood", "Likelihood", page.tag("p", text) + page.table(head, rows))


# ---- Details ------------------------------------------------------------------------------------


def _details(result: dict, order: list[str]) -> str:
    """Variety, reasons of errors, and agreement by the number of attributes in the caption."""
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
        aim = next((row["aim"] for row in rows if row["aim"] is not None), None)
        asked = "" if aim is None else f"; at most {aim:.2f} is asked for, within two errors"
        text = (
            "Total variation between what was generated and the true law, given what the "
            f"condition names{asked}. The small number is what as many draws from the true law "
            "itself would show."
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
                page.escape(sample_sections.reason(result, name)),
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


def _unmeasured(result: dict) -> str:
    """The measures that were not taken, grouped by reason, and by part of the evaluation."""
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
