"""Any from any: a matrix of directions, a table of all rules, and samples of each rule.

Each kind of modality has its way to be shown: a picture, a line of text, an audio player, a map of
colours, squares for numbers.
"""

import numpy as np

from udd_jax import modalities
from udd_jax.data import arrays, layouts, sounds
from udd_jax.diffusion import tasks
from udd_jax.evaluation import rules
from udd_jax.evaluation.report import page
from udd_jax.tokenizers.spectrogram import Spectrogram

OTHERS, NOTHING = "all others", "nothing"


# {kind: (value, row of `config.modalities`) -> markup}
SHOW = {
    **dict.fromkeys(("image", "coarse"), lambda value, row: page.picture(value)),
    "text": lambda value, row: page.tag("p", page.escape(value), "note"),
    "sound": lambda value, row: page.audio(sounds.data_uri(value, Spectrogram.of(row).rate)),
    "layout": lambda value, row: page.picture(layouts.picture(value)),
    **dict.fromkeys(
        ("features", "embedding"),
        lambda value, row: page.figure(
            [page.picture(arrays.picture(value))],
            " x ".join(map(str, np.shape(value))) + " numbers",
        ),
    ),
    "length": lambda value, row: page.tag("p", f"{int(value)} tokens", "note"),
}


def show(folder, result: dict, config) -> str:
    """The section; "" if the result has no rules. folder: of the samples; config: of the run."""
    found = result.get("rules")
    if not found:
        return ""
    rows = modalities.rows(config)
    text = (
        "Each modality can be generated from any others. A sample is right if all of its values, "
        "given and generated, can be read, and at least one scene fits them all."
    )
    judged, heard = any("agreement" in rates for rates in found.values()), result.get("listener")
    if heard or not judged:
        text = "Each modality can be generated from any others."
    content = page.tag("p", text) + (_heard(heard) if heard else "")
    if judged:
        content += _matrix(list(rows), found)
    content += _table(found)
    for rule in found:
        content += _samples(folder / f"{rules.file_name(rule)}.npz", rule, rows)
    return page.section("rules", "Any from any", content)


def _heard(found: dict) -> str:
    """How well each listener hears what is held out; it limits all that it says."""
    lines = []
    for name, rates in found.items():
        if "unmeasured" in rates:
            lines.append(f"The {name} has no listener: {rates['unmeasured']}.")
            continue
        real, kept = (page.percent(rates[k]["rate"], rates[k]["error"]) for k in ("real", "kept"))
        lines.append(
            f"A listener, trained on the real recordings of the training, knows {rates['names']} "
            f"names. It hears {real} of the held-out recordings right, and {kept} of them after "
            "the tokenizer and the vocoder. A sample is right if its sounds, as heard, and its "
            "text, given and generated, have one name."
        )
    return "".join(page.tag("p", line) for line in lines)


def _matrix(names: list[str], found: dict) -> str:
    """Rows: what is generated; columns: from what. The colour is the share of right samples."""
    by = {}
    for rule, rates in found.items():
        sides = ([n.strip() for n in side.split(",")] for side in _full(rule).split("|"))
        free, given = (*(",".join(n for n in names if n in side) for side in sides), "")[:2]
        others = ",".join(name for name in names if name != free)
        by[free, OTHERS if given == others and len(names) > 2 else given or NOTHING] = rates
    columns = [*names, OTHERS, NOTHING]
    joint = ",".join(names)
    cells = []
    for free in [*names, joint]:
        if any((free, given) in by for given in columns):
            label = "all at once" if free == joint else free
            cells.append([page.escape(label), *(_cell(by.get((free, c))) for c in columns)])
    head = ["generated, from", *map(page.escape, columns)]
    return page.tag("h3", "Directions") + page.table(head, cells)


def _full(rule: str) -> str:
    """A rule with the names of its modalities: that of a short name such as "t2i"."""
    return tasks.ALIASES.get(rule, rule)


def _cell(rates: dict | None) -> str:
    if rates is None or "agreement" not in rates:
        return ""
    share = rates["agreement"]["rate"]
    style = f"background: color-mix(in srgb, var(--good) {round(70 * share)}%, transparent)"
    return f'<span class="share" style="{style}">{page.percent(share)}</span>'


def _table(found: dict) -> str:
    cells = []
    for rule, rates in found.items():
        right, readable = rates.get("agreement"), rates.get("readable", {})
        pairs = rates.get("pairwise", {})
        told = [f"{name} {page.percent(rate['rate'])}" for name, rate in readable.items()]
        two = [f"{name} {page.percent(rate['rate'])}" for name, rate in pairs.items()]
        cells.append(
            [
                page.escape(rule),
                "<br>".join(page.escape("; ".join(names)) for names in (told, two) if names),
                page.percent(right["rate"], right["error"]) if right else "",
                str(rates["count"]),
                "yes" if rates["given_tokens_changed"] == 0 else "no",
            ]
        )
    head = ["rule", "readable; pairs that agree", "right", "samples", "given tokens untouched"]
    return page.tag("h3", "All rules") + page.table(head, cells, 2)


def _samples(path, rule: str, rows: dict) -> str:
    if not path.exists():
        return ""
    with np.load(path) as file:
        values = {name: file[name] for name in rows if name in file}
    given = [name.strip() for name in _full(rule).partition("|")[2].split(",")]
    shown = []
    for i in range(min(len(column) for column in values.values())):
        parts = []
        for name, column in sorted(values.items(), key=lambda pair: pair[0] not in given):
            said = f"{name}, given" if name in given else f"{name}, generated"
            value = str(column[i]) if rows[name]["kind"] == "text" else column[i]
            drawn = SHOW[rows[name]["kind"]](value, rows[name])
            parts.append(page.figure([drawn], page.escape(said)))
        shown.append(page.tag("div", "".join(parts), "row"))
    return f"<details><summary>{page.escape(rule)}</summary>{''.join(shown)}</details>"
