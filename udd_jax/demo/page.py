"""The page: a tab for each task that the run can do, the settings, and the result.

What the run cannot do is absent. A handler only waits: `requests` checks, `service` computes.
"""

import asyncio
import contextlib
import functools
import pathlib
import secrets
from typing import NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from udd_jax.data import pixels
from udd_jax.demo import fields, painter, recipes, requests, service, steering, views
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError

IMAGES = ("edit", "outpaint", "upscale")  # tasks that are not rules, and make a picture
WAIT = "The result comes here. The first one of a kind takes longer: it compiles."


class Tab(NamedTuple):
    """takes: rows of `fields.FIELDS`; does: the method of Page that answers; needs: what the run
    must be able to do, `task` unless given."""

    title: str
    task: str
    takes: tuple[str, ...]
    button: str
    about: str
    does: str = "generate"
    needs: str = ""


TABS = (
    Tab("Text to image", "t2i", ("text",), "Draw", "Pictures of a caption."),
    Tab("Image to text", "i2t", ("image",), "Describe", "Captions of a picture."),
    Tab("Pairs", "pair", (), "Draw and describe", "Pictures with captions, from nothing."),
    Tab(
        "Infilling", "infill", ("painted", "text", "blank_tokens"), "Fill in",
        "Paint over what should be new, and write ___ for a missing word. The rest stays. "
        "A picture or a text alone is enough.",
    ),
    Tab(
        "Edit", "edit", ("image", "text", "edit"), "Edit",
        "The picture follows a new caption, and keeps what the caption does not change. More "
        "rounds, a larger share and more guidance follow it further. Of a result, the picture is "
        "taken that is open, else the first.",
        "edit", "t2i",
    ),
    Tab(
        "Extend", "outpaint", ("image", "text", "extend"), "Extend",
        "The picture goes on beyond its sides. The text is that of the whole, or empty.",
        "outpaint", "image",
    ),
    Tab(
        "Upscale", "upscale", ("image", "text", "factor"), "Upscale",
        "The fine level of a picture is drawn anew: of a small one, or of one that gets larger. "
        "A larger one is drawn in windows, which know things at the size they had in training. "
        "The text is that of the whole, or empty.",
        "upscale", "image",
    ),
    Tab("Images alone", "image", (), "Draw", "Pictures without a caption."),
    Tab("Texts alone", "text", (), "Write", "Captions without a picture."),
    Tab(
        "Any from any", "any", ("rule",), "Make",
        "Any of what this run has learned together, from any others.", "generate_rule",
    ),
    Tab(
        "Likelihood", "pair", ("image", "text"), "Measure",
        "How many bits the model needs for a picture and its caption, token by token.", "measure",
    ),
)  # fmt: skip


def _text(asked: dict) -> str:
    """The text of a tab; "" if it is blank or has no field for one."""
    return (asked.get("text") or "").strip()


class Page:
    """The page of a pipeline, `blocks`, and its service, which `close` ends.

    workdir: the folder of the run as commands show it; None for the run of the package.
    """

    def __init__(self, pipe, workdir=None):
        self.pipe, self.workdir = pipe, workdir
        self.tokenizer = pipe.tokenizers["image"]
        self.size, self.grid = self.tokenizer.image_size, self.tokenizer.grid
        self.channels = self.tokenizer.shape[-1]
        self.service = service.Service(pipe)
        self.defaults = pipe.settings()
        self.pictures = []  # (file, button, place) of each picture that a tab takes
        title = f"udd_jax: {pipe.config.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            self._lay_out()
        blocks.queue(max_size=service.WAITING, default_concurrency_limit=None)
        self.blocks = blocks

    def close(self) -> None:
        self.blocks.close(verbose=False)
        self.service.close()

    def can(self, tab: Tab) -> bool:
        """Whether the run can do what a tab is for."""
        if tab.task == "any":
            return len(self.pipe.vocab.modalities) > 2 and self.pipe.can("any")
        if tab.task == "upscale" and self.pipe.vocab.coarse is None:
            return False
        return self.pipe.can(tab.needs or tab.task)

    # ---- Layout -----------------------------------------------------------------------------

    def _lay_out(self):
        gr.Markdown(
            f"# Images and texts from one model\nThe run `{self.pipe.config.name}`: pictures of "
            f"{pixels.shown(self.size)} pixels{pixels.SAID[self.channels]}, trained on "
            f"`{self.pipe.config.data}`. It knows what is in these data and nothing else."
        )
        with gr.Tabs():
            tabs = [(tab, *self._tab(tab)) for tab in TABS if self.can(tab)]
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                outputs = self._outputs()
            with gr.Column(scale=2, min_width=300), gr.Accordion("Settings"):
                settings = fields.settings(self)
        events = []
        for tab, asked, button, _ in tabs:
            asked = asked | settings
            event = button.click(
                functools.partial(_named, tuple(outputs), getattr(self, tab.does), tab, asked),
                list(asked.values()),
                [*outputs.values(), settings["seed"]],
                api_name=tab.title.lower().replace(" ", "_"),
                api_visibility="undocumented",
            )
            events.append(event)
        for *_, stop in tabs:
            stop.click(None, cancels=events)
        gallery, chosen, note = (outputs[name] for name in ("gallery", "chosen", "note"))
        hide = {"show_progress": "hidden", "api_visibility": "private"}
        gallery.select(_selected, None, chosen, **hide)
        for file, again, place in self.pictures:
            file.upload(self.open, file, [place, note], **hide)
            again.click(self.take, [gallery, chosen], [place, note], **hide)

    def _tab(self, tab: Tab):
        """(fields by name, the button, the button that stops)."""
        asked = {}
        with gr.Tab(tab.title):
            gr.Markdown(tab.about)
            for name in tab.takes:
                asked |= fields.FIELDS[name](self, tab)
            if tab.does in ("generate", "generate_rule"):
                asked |= fields.steer(self, tab)
            with gr.Row():
                button = gr.Button(tab.button, variant="primary", scale=4)
                stop = gr.Button("Stop", scale=1, min_width=80)
        return asked, button, stop

    def _outputs(self) -> dict:
        note = gr.HTML(views.note(WAIT))
        chosen = gr.State(0)
        gallery = gr.Gallery(
            label="Pictures", show_label=False, format="png", columns=4, object_fit="contain",
            buttons=["download", "download_all", "fullscreen"], elem_classes="samples",
            interactive=False, visible=False, type="numpy",
        )  # fmt: skip
        words = gr.HTML(visible=False, padding=True)
        with gr.Accordion("The chain of the first one", open=True, visible=False) as moments:
            chain = gr.HTML(js_on_load=views.MOVE)
        with gr.Accordion("Make it again", open=False, visible=False) as again:
            fixed = {"language": None, "interactive": False, "wrap_lines": True, "lines": 1}
            command = gr.Code(label="Command line", **fixed)
            python = gr.Code(label="Python", **fixed)
            files = gr.HTML()
        return {
            "note": note, "chosen": chosen, "gallery": gallery, "words": words, "moments": moments,
            "chain": chain, "again": again, "command": command, "python": python, "files": files,
        }  # fmt: skip

    # ---- Pictures ---------------------------------------------------------------------------

    def open(self, data):
        """The file of a visitor -> (the picture, what is said)."""
        with _saying() as said:
            return painter.value(requests.read_picture(data, self.size, self.channels)), ""
        return painter.value(), said[0]

    def take(self, gallery, chosen):
        """A picture of the result -> (the picture, what is said)."""
        with _saying() as said:
            if not gallery:
                raise UserError("there is no picture in the result yet")
            row = gallery[chosen if chosen < len(gallery) else 0]
            found = pixels.from_pillow(Image.fromarray(row[0]), self.channels)
            return painter.value(pixels.fit(found, self.size)), gr.skip()
        return gr.skip(), said[0]

    # ---- Results ----------------------------------------------------------------------------

    async def generate(self, tab: Tab, asked: dict):
        """Samples of a task: the updates of the outputs by name, and "seed". ValueError, one line.

        The other methods that a tab names do the same.
        """
        count, seed, settings = self._chosen(asked)
        image, mask = painter.read(asked.get("image"), self.tokenizer)
        if mask is not None:
            mask = mask if mask.any() else None
            image = image if mask is None else pixels.hide(image, mask)
        text = _text(asked)
        typed = {
            "text": text,
            "negative": (asked.get("negative") or "") if tab.task == "t2i" else "",
            "blank_tokens": (asked.get("blank_tokens") or 1) if "___" in text else 1,
        }
        steered = steering.read(self.pipe, tab.task, fields.gather(asked))
        options = {**typed, "count": count, "seed": seed, "steered": steered}
        request = requests.make(
            self.pipe, tab.task, image=image, mask=mask, settings=settings, **options
        )
        options["negative"] = typed["negative"] if request.negative else ""
        idle = ["negative prompt"] if typed["negative"].strip() and not request.negative else []
        files = {} if image is None else {"image.png": image}
        files |= {} if mask is None else {"mask.png": painter.picture(mask)}
        read = {"image": image is not None, "mask": mask is not None}
        return await self._answer(tab.task, request, files, settings, idle, **options, **read)

    async def generate_rule(self, tab: Tab, asked: dict):
        """Samples of any rule."""
        count, seed, settings = self._chosen(asked)
        image, _ = painter.read(asked.get("image"), self.tokenizer)
        kinds = {n: k for n, k in self.pipe.kinds.items() if f"given_{n}" in asked}
        more = {n: fields.GIVEN[k].read(self, asked[f"given_{n}"]) for n, k in kinds.items()}
        more = {name: value for name, value in more.items() if value is not None}
        text = _text(asked)
        given = [name for name, value in (("text", text), ("image", image is not None)) if value]
        rule = requests.rule(self.pipe, asked["made"], [*given, *more])
        steered = steering.read(self.pipe, rule, asked, steering.RULE_WAYS)
        shown = {"text": text, "count": count, "seed": seed, "steered": steered}
        request = requests.make(self.pipe, rule, image=image, more=more, settings=settings, **shown)
        names, files = {}, {} if image is None else {"image.png": image}
        for name, value in more.items():
            names[name] = value
            if isinstance(value, pathlib.Path):
                names[name] = f"{name}{value.suffix}"
                files[names[name]] = value.read_bytes()
            elif isinstance(value, np.ndarray):
                names[name] = f"{name}.png"
                files[names[name]] = value
        shown |= {"image": image is not None, "given": names}
        return await self._answer(rule, request, files, settings, **shown)

    async def edit(self, tab: Tab, asked: dict):
        """Edits of a picture."""
        count, seed, settings = self._chosen(asked)
        settings |= {"guidance": asked["edit_guidance"]} if "edit_guidance" in asked else {}
        image, _ = painter.read(asked["image"], self.tokenizer)
        shown = {"text": _text(asked), "count": count, "seed": seed}
        options = {**shown, "share": asked["share"], "rounds": asked["rounds"]}
        request = requests.edit(self.pipe, image, settings=settings, **options)
        files = {"image.png": image}
        return await self._answer("edit", request, files, settings, image=True, **shown)

    async def outpaint(self, tab: Tab, asked: dict):
        """Pictures beyond their sides."""
        extend = {side: asked[f"extend_{side}"] for side in fields.SIDES}
        extend = {side: number for side, number in extend.items() if number}
        words = [f"--extend={side}:{number}" for side, number in extend.items()]
        return await self._larger("outpaint", requests.outpaint, asked, words, extend=extend)

    async def upscale(self, tab: Tab, asked: dict):
        """Pictures with a new fine level, or larger ones."""
        factor = asked["factor"]
        words = [f"--factor={factor}"]
        return await self._larger("upscale", requests.upscale, asked, words, factor=factor)

    async def _larger(self, task: str, make, asked: dict, words: list[str], **how):
        """The answer of a task by windows of one picture. make: its request; words: `how` on the
        command line."""
        count, seed, settings = self._chosen(asked)
        image, _ = painter.read(asked["image"], self.tokenizer)
        shown = {"text": _text(asked), "count": count, "seed": seed}
        request = make(self.pipe, image, settings=settings, **how, **shown)
        way = steering.Steered({}, words, {name: repr(value) for name, value in how.items()})
        shown |= {"image": True, "steered": [way]}
        return await self._answer(task, request, {"image.png": image}, settings, **shown)

    async def _answer(self, task: str, request, files: dict, chosen: dict, idle=(), **shown):
        """Waits for the result of a request, and shows it with how to make it again.

        files: those of the recipe, {name: picture or bytes}; chosen: all settings that were, some
        of which the request may not read; idle: what else changes nothing; shown: the arguments of
        `recipes`.
        """
        changed = (n for n, value in chosen.items() if value != getattr(self.defaults, n))
        idle = [*idle, *(n.replace("_", " ") for n in changed if n not in request.settings)]
        result = await asyncio.wrap_future(self.service.submit(request))
        rule = "image" if task in IMAGES else task
        new = tasks.parse(self.pipe.vocab, rule).free  # what was given needs no second look
        made = {name: value for name, value in result.values.items() if name in new}
        pictures, texts = made.pop("image", None), made.pop("text", None)
        words = views.captions(texts) if texts is not None else ""
        words += views.others(self.pipe, made)
        chain = len(result.states) and {"image", "text"} & set(result.values)
        for way in shown.get("steered", ()):
            files = files | way.files
        shown["settings"] = request.settings
        count, seed = shown["count"], shown["seed"]
        note = f"{count} sample{'s' * (count > 1)}, seed {seed}."
        return {
            "note": views.note(note + f" Without effect here: {', '.join(idle)}." * bool(idle)),
            "chosen": 0,
            "gallery": gr.Gallery(
                None if pictures is None else [np.array(pixels.to_pillow(p)) for p in pictures],
                visible=pictures is not None,
                selected_index=None,
            ),
            "words": gr.HTML(words, visible=bool(words)),
            "moments": gr.Accordion(visible=bool(chain)),
            "chain": views.chain(self.pipe, result) if chain else "",
            "again": gr.Accordion(visible=True),
            "command": gr.Code(recipes.command(task, self.workdir, **shown), visible=True),
            "python": recipes.python(task, self.workdir, **shown),
            "files": views.files(files),
            "seed": seed,
        }

    async def measure(self, tab: Tab, asked: dict):
        """The likelihood of a pair."""
        _, seed, _ = self._chosen(asked)
        image, _ = painter.read(asked["image"], self.tokenizer)
        text = asked["text"] or ""
        request = requests.score(self.pipe, image, text, seed=seed)
        each = await asyncio.wrap_future(self.service.submit(request))
        return {
            "note": views.note(f"The likelihood, seed {seed}."),
            "gallery": gr.Gallery(visible=False),
            "words": gr.HTML(views.bits(self.pipe, image, text, each), visible=True),
            "moments": gr.Accordion(visible=False),
            "chain": "",
            "again": gr.Accordion(visible=True),
            "command": gr.Code(visible=False),
            "python": recipes.likelihood(self.workdir, text, seed),
            "files": views.files({"image.png": image}),
            "seed": seed,
        }

    def _chosen(self, asked):
        """(count, seed, the settings that differ from those of the run).

        All settings, if a sampler is chosen: a task may have a sampler and settings of its own.
        """
        seed = secrets.randbelow(10**6) if asked["fresh"] else asked["seed"]
        names = ("sampler", "steps", "temperature", "top_r", "guidance")
        chosen = {name: asked[name] for name in names if asked.get(name) not in (None, "")}
        if "sampler" not in chosen:
            chosen = {n: v for n, v in chosen.items() if v != getattr(self.defaults, n)}
        return asked["count"], 0 if seed is None else seed, chosen


def _selected(event: gr.SelectData):
    return event.index or 0


@contextlib.contextmanager
def _saying():
    """A list that gets, as HTML, the sentence of an error that the person can mend."""
    said = []
    try:
        yield said
    except UserError as error:
        said.append(views.note(f"Not done: {error}.", alert=True))


async def _named(outputs, handler, tab, asked, *given):
    """Calls a handler with the values of the fields by their names; an error is only said.

    outputs: the names of what is updated, in order, without the seed.
    """
    found = {}
    with _saying() as said:
        found = await handler(tab, dict(zip(asked, given, strict=True)))
    if said:
        found = {"note": said[0]}
    return [found.get(name, gr.skip()) for name in (*outputs, "seed")]
