"""What a person fills in: the fields of the tabs (FIELDS), of steering (WAYS), and the settings.

A row is a function `(page, tab) -> {name: its component}`, called where the fields should stand.
`gather` turns what the fields hold into what `steering` reads.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import gradio as gr

from udd_jax.data import pixels
from udd_jax.demo import painter, requests, steering
from udd_jax.errors import UserError
from udd_jax.sampling import settings as samplers
from udd_jax.steering import edits, upscaling

# ---- Of tabs ------------------------------------------------------------------------------------


def _text(page, tab) -> dict:
    hint = "a small ___ circle" if tab.task == "infill" else "a small red circle"
    known = tab.title == "Text to image" and page.pipe.config.data == "shapes"
    value = "a small red circle above a large blue square" if known else ""
    return {"text": gr.Textbox(value, label="Text", placeholder=hint, **LIMIT)}


def picture(page, paint: bool, label="Picture file"):
    """A file, or a picture of the result, becomes the picture of a tab."""
    kinds, grid = sorted(pixels.suffixes()), page.grid if paint else None
    file = gr.File(label=label, file_types=kinds, type="binary", height=110)
    again = gr.Button("Take a picture of the result", size="sm")
    place = gr.HTML(
        painter.value(),
        label="Picture",
        html_template=painter.template(grid),
        js_on_load=painter.script(grid),
    )
    page.pictures.append((file, again, place))
    return place


def _edit(page, tab) -> dict:
    found = {}
    with gr.Row():
        found["rounds"] = gr.Slider(
            1, requests.ROUNDS, value=edits.ROUNDS, step=1, label="Rounds", min_width=140
        )
        label = "Share drawn anew in a round"
        found["share"] = gr.Slider(
            0.05, 1, value=edits.SHARE, step=0.05, label=label, min_width=140
        )
        if page.pipe.guidable:
            label = "Guidance of the edit"
            found["edit_guidance"] = gr.Slider(
                0, 8, value=edits.GUIDANCE, step=0.1, label=label, min_width=140
            )
    return found


def _extend(page, tab) -> dict:
    height, width = pixels.both(page.size)
    most = dict(zip(SIDES, (width, width, height, height), strict=True))
    with gr.Row():
        return {
            f"extend_{side}": gr.Slider(
                0, most[side], value=value, step=1, label=f"New pixels: {side}", min_width=140
            )
            for side, value in zip(SIDES, (0, width // 2, 0, 0), strict=True)
        }


def _factor(page, tab) -> dict:
    size = pixels.both(page.size)
    named = lambda f: f"{f}: {pixels.shown(tuple(f * side for side in size))} pixels"  # noqa: E731
    choices = [(named(factor), factor) for factor in upscaling.FACTORS]
    return {"factor": gr.Radio(choices, value=1, label="How many times the size of the run")}


def _blank_tokens(page, tab) -> dict:
    return {"blank_tokens": gr.Number(1, label="Tokens for each ___", precision=0)}


def _rule(page, tab) -> dict:
    """What is made, and a value or none for each modality."""
    kinds = page.pipe.kinds
    able = [m.name for m in page.pipe.vocab.modalities if not m.inputs]
    usual = [name for name in able if name != "text"]
    found = {"made": gr.CheckboxGroup(able, value=usual, label="Make")}
    gr.Markdown("From nothing, or from what is given here:")
    found |= _text(page, tab)
    found["image"] = picture(page, False)
    for name, kind in kinds.items():
        if kind in GIVEN and name not in found:
            found[f"given_{name}"] = GIVEN[kind].place(page, name)
    return found


class Given(NamedTuple):
    """How a value of a kind of modality is given, besides the image and the text.

    place: (page, name) -> its component; read: (page, what that holds) -> the value, or None.
    """

    place: Callable
    read: Callable


def _file(page, name: str):
    label = f"File of the {name} ({', '.join(SUFFIXES[page.pipe.kinds[name]])})"
    return gr.File(label=label, type="filepath", height=110)


LIMIT = {"max_length": requests.CHARACTERS}
SIDES = ("left", "right", "top", "bottom")
SUFFIXES = {"sound": (".wav", ".flac"), "layout": (".json", ".png")}  # {kind: of its files}
SUFFIXES |= dict.fromkeys(("embedding", "features"), (".npy",))
GIVEN = {
    **dict.fromkeys(
        SUFFIXES, Given(_file, lambda page, held: pathlib.Path(held) if held else None)
    ),
    "image": Given(
        lambda page, name: picture(page, False, f"Picture file of {name}"),
        lambda page, held: painter.read(held, page.tokenizer)[0],
    ),
    "text": Given(
        lambda page, name: gr.Textbox(label=f"Text of {name}", **LIMIT),
        lambda page, held: (held or "").strip() or None,
    ),
    "length": Given(
        lambda page, name: gr.Number(None, label=f"Tokens of the text ({name})", precision=0),
        lambda page, held: held,
    ),
}
FIELDS = {
    "text": _text,
    "image": lambda page, tab: {"image": picture(page, False)},
    "painted": lambda page, tab: {"image": picture(page, True)},
    "blank_tokens": _blank_tokens,
    "edit": _edit,
    "extend": _extend,
    "factor": _factor,
    "rule": _rule,
}


# ---- Of steering --------------------------------------------------------------------------------


def _prompts(page, tab) -> dict:
    gr.Markdown("Further prompts join the text. A negative weight leads away from its prompt.")
    found = {"weight": gr.Number(1, label="Weight of the text", step=0.1)}
    for k in range(2, steering.PROMPTS + 1):
        with gr.Row():
            found[f"prompt_{k}"] = gr.Textbox(label=f"Prompt {k}", scale=4, min_width=160, **LIMIT)
            found[f"weight_{k}"] = gr.Number(
                1, label=f"Weight {k}", step=0.1, scale=1, min_width=90
            )
    return found


def _paint(page, tab) -> dict:
    gr.Markdown("Words of the text, and the cells where they belong.")
    found = {}
    with gr.Row():
        for k in range(1, steering.PHRASES + 1):
            with gr.Column(min_width=220):
                label, hint = f"Words {k}", "a red circle" if k == 1 else "a blue square"
                found[f"words_{k}"] = gr.Textbox(label=label, placeholder=hint, **LIMIT)
                found[f"place_{k}"] = gr.HTML(
                    painter.value(),
                    label=f"Place {k}",
                    html_template=painter.template(page.grid, f"the place of words {k}"),
                    js_on_load=painter.script(page.grid),
                )
    found["strength"] = gr.Slider(0, 4, value=1, step=0.1, label="Strength of the places")
    return found


def _best(page, tab) -> dict:
    rankings = steering.rankings(page.pipe, tab.task)
    gr.Markdown("Draws so many candidates of each sample, and keeps the one that fits best.")
    found = {"best_of": gr.Slider(1, steering.BEST, value=1, step=1, label="Candidates")}
    if len(rankings) > 1:
        names = {"bound": "the model's own bound", "match": "the dual encoder"}
        choices = [(names[by], by) for by in rankings]
        found["by"] = gr.Radio(choices, value=rankings[-1], label="Ranked by")
    return found


def _scorers(page, tab) -> dict:
    found = {}
    if steering.matches(page.pipe):
        with gr.Row():
            label = "Match with a text"
            found["match"] = gr.Textbox(label=label, scale=4, min_width=160, **LIMIT)
            kinds = list(steering.MEANINGS.items())
            found["match_kind"] = gr.Dropdown(
                kinds, value="shows", label="That is", scale=4, min_width=200
            )
            found["match_scale"] = gr.Number(
                6, label="Scale of the match", step=1, scale=1, min_width=90
            )
    if steering.free(page.pipe, tab.task, "image"):
        gr.Markdown("Pictures become like this one.")
        found["like"] = picture(page, False, "File of a picture to be like")
        with gr.Row():
            kinds = list(steering.LIKENESS.items())
            found["like_kind"] = gr.Dropdown(
                kinds, value="palette", label="In what", scale=4, min_width=200
            )
            found["like_scale"] = gr.Number(
                64, label="Scale of the likeness", step=1, scale=1, min_width=90
            )
    return found


def _weigh(page, tab) -> dict:
    gr.Markdown("How much attention each gets of what is given. 1 is usual, 0 is none.")
    with gr.Row():
        return {
            f"weigh_{name}": gr.Number(
                1, label=f"Weight of the {name}", minimum=0, step=0.1, min_width=120
            )
            for name in page.pipe.kinds
        }


def _begin_with(page, tab) -> dict:
    gr.Markdown("What is made in a first step. The rest is made from it.")
    names = [m.name for m in page.pipe.vocab.modalities if not m.inputs]
    return {"begin_with": gr.CheckboxGroup(names, label="Make first")}


# {way of `steering.WAYS` or `steering.RULE_WAYS`: (title, its fields)}
WAYS = {
    "prompts": ("Several prompts", _prompts),
    "paint": ("Places of words", _paint),
    "scorers": ("Likeness", _scorers),
    "best_of": ("The best of several", _best),
    "weigh": ("Weights of what is given", _weigh),
    "begin_with": ("In two steps", _begin_with),
}


def steer(page, tab) -> dict:
    """The fields of all ways that work for the task of a tab."""
    table = steering.RULE_WAYS if tab.task == "any" else steering.WAYS
    names, found = steering.ways(page.pipe, tab.task, table), {}
    if not names:
        return {}
    with gr.Accordion("Steering", open=False):
        for name, (title, lay_out) in WAYS.items():
            if name in names:
                with gr.Accordion(title, open=False):
                    found |= lay_out(page, tab)
    return found


def gather(asked: dict) -> dict:
    """The fields with those that are numbered as lists: `prompts` and `phrases`."""

    def rows(first, second, numbers):
        named = [(f"{first}_{k}", f"{second}_{k}") for k in numbers]
        return [(asked[a], asked[b]) for a, b in named if a in asked]

    prompts = rows("prompt", "weight", range(2, steering.PROMPTS + 1))
    return asked | {
        "prompts": prompts, "phrases": rows("words", "place", range(1, steering.PHRASES + 1))
    }  # fmt: skip


# ---- The settings -------------------------------------------------------------------------------


def settings(page) -> dict:
    """The settings of all tabs, those that mean something for this run."""
    run, found = page.defaults, {}
    found["count"] = gr.Slider(1, requests.MOST, value=4, step=1, label="How many")
    with gr.Row():
        found["seed"] = gr.Number(0, label="Seed", precision=0, min_width=120)
        found["fresh"] = gr.Checkbox(True, label="A new seed each time", min_width=120)
    with gr.Row():
        names = [name for name in samplers.names() if _fits(page.pipe, sampler=name)]
        choices = [(f"{run.sampler}, unless the task has its own", ""), *names]
        found["sampler"] = gr.Dropdown(choices, value="", label="Sampler", min_width=170)
        label = f"Steps (0: all {page.pipe.kernel.steps})"
        found["steps"] = gr.Number(run.steps, label=label, precision=0, min_width=120)
    found["temperature"] = gr.Slider(0.1, 2, value=run.temperature, label="Temperature", step=0.05)
    label = "Top r: keep the likeliest, up to this mass"
    found["top_r"] = gr.Slider(0.05, 1, value=run.top_r, label=label, step=0.05)
    if page.pipe.guidable:
        label = "Guidance (1: off)"
        found["guidance"] = gr.Slider(0, 8, value=run.guidance, label=label, step=0.1)
        about = "Text to image moves away from it, with guidance."
        found["negative"] = gr.Textbox(label="Negative prompt", info=about, **LIMIT)
    return found


def _fits(pipe, **changes) -> bool:
    try:
        pipe.settings(**changes)
    except UserError:
        return False
    return True
