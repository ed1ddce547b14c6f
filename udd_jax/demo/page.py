"""The page: a tab for each task that the run can do, the settings, and the result.

What the run cannot do is absent. A handler only waits: `requests` checks, `service` computes.
"""

import asyncio
import contextlib
import functools
import secrets
from typing import NamedTuple

import gradio as gr
import numpy as np

from udd_jax.data import pixels
from udd_jax.demo import painter, recipes, requests, service, views
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import samplers

OUTPUTS = 9  # after the note
WAIT = "The result comes here. The first one of a kind takes longer: it compiles."


class Tab(NamedTuple):
    """task: what the run must be able to do; takes: the fields of the tab."""

    title: str
    task: str
    takes: tuple[str, ...]
    button: str
    about: str


TABS = (
    Tab("Text to image", "t2i", ("text",), "Draw", "Pictures of a caption."),
    Tab("Image to text", "i2t", ("image",), "Describe", "Captions of a picture."),
    Tab("Pairs", "pair", (), "Draw and describe", "Pictures with captions, from nothing."),
    Tab(
        "Infilling", "infill", ("image", "mask", "text", "blank_tokens"), "Fill in",
        "Paint over what should be new, and write ___ for a missing word. The rest stays. "
        "A picture or a text alone is enough.",
    ),
    Tab("Images alone", "image", (), "Draw", "Pictures without a caption."),
    Tab("Texts alone", "text", (), "Write", "Captions without a picture."),
    Tab(
        "Likelihood", "pair", ("image", "text"), "Measure",
        "How many bits the model needs for a picture and its caption, token by token.",
    ),
)  # fmt: skip


class Page:
    """The page of a pipeline, `blocks`, and its service, which `close` ends.

    workdir: the folder of the run as commands show it; None for the run of the package.
    """

    def __init__(self, pipe, workdir=None):
        self.pipe, self.workdir = pipe, workdir
        self.size = pipe.tokenizers["image"].image_size
        self.grid = pipe.tokenizers["image"].grid
        self.service = service.Service(pipe)
        self.defaults = pipe.settings()
        title = f"udd_jax: {pipe.config.name}"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
            self._lay_out()
        blocks.queue(max_size=service.WAITING, default_concurrency_limit=None)
        self.blocks = blocks

    def close(self) -> None:
        self.blocks.close(verbose=False)
        self.service.close()

    # ---- Layout -----------------------------------------------------------------------------

    def _lay_out(self):
        gr.Markdown(
            f"# Images and texts from one model\nThe run `{self.pipe.config.name}`: pictures of "
            f"{self.size} x {self.size} pixels, trained on `{self.pipe.config.data}`. "
            "It knows what is in these data and nothing else."
        )
        with gr.Tabs():
            tabs = [(tab, *self._tab(tab)) for tab in TABS if self.pipe.can(tab.task)]
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                outputs = self._outputs()
            with gr.Column(scale=2, min_width=300), gr.Accordion("Settings"):
                settings = self._settings()
        events = []
        for tab, fields, button, _, connect in tabs:
            asked = fields | settings
            handler = self.measure if tab.title == "Likelihood" else self.generate
            event = button.click(
                functools.partial(_named, handler, tab, tuple(asked)),
                list(asked.values()),
                [*outputs.values(), settings["seed"]],
                api_name=tab.title.lower().replace(" ", "_"),
                api_visibility="undocumented",
            )
            events.append(event)
            if connect:
                connect(outputs["gallery"], outputs["note"])
        for _, _, _, stop, _ in tabs:
            stop.click(None, cancels=events)

    def _tab(self, tab: Tab):
        """(fields by name, the button, the button that stops, what connects its picture)."""
        fields, connect = {}, None
        with gr.Tab(tab.title):
            gr.Markdown(tab.about)
            if "image" in tab.takes:
                connect = self._picture(fields, "mask" in tab.takes)
            if "text" in tab.takes:
                hint = "a small ___ circle" if tab.task == "infill" else "a small red circle"
                known = tab.title == "Text to image" and self.pipe.config.data == "shapes"
                value = "a small red circle above a large blue square" if known else ""
                fields["text"] = gr.Textbox(
                    value, label="Text", placeholder=hint, max_length=requests.CHARACTERS
                )
            if "blank_tokens" in tab.takes:
                fields["blank_tokens"] = gr.Number(1, label="Tokens for each ___", precision=0)
            with gr.Row():
                button = gr.Button(tab.button, variant="primary", scale=4)
                stop = gr.Button("Stop", scale=1, min_width=80)
        return fields, button, stop, connect

    def _picture(self, fields, paint):
        """A file, or the first picture of the result, becomes the picture of a tab."""
        kinds = sorted(pixels.suffixes())
        file = gr.File(label="Picture file", file_types=kinds, type="binary", height=110)
        again = gr.Button("Take the first picture of the result", size="sm")
        grid = self.grid if paint else None
        fields["image"] = place = gr.HTML(
            painter.value(), html_template=painter.template(grid), js_on_load=painter.script(grid)
        )
        hide = {"show_progress": "hidden", "api_visibility": "private"}

        def connect(gallery, note):
            file.upload(self.open, file, [place, note], **hide)
            again.click(self.take, gallery, [place, note], **hide)

        return connect

    def _outputs(self) -> dict:
        note = gr.HTML(views.note(WAIT))
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
            "note": note, "gallery": gallery, "words": words, "moments": moments, "chain": chain,
            "again": again, "command": command, "python": python, "files": files,
        }  # fmt: skip

    def _settings(self) -> dict:
        """{setting: its field}, those that mean something for this run."""
        run, fields = self.defaults, {}
        fields["count"] = gr.Slider(1, requests.MOST, value=4, step=1, label="How many")
        with gr.Row():
            fields["seed"] = gr.Number(0, label="Seed", precision=0, min_width=120)
            fields["fresh"] = gr.Checkbox(True, label="A new seed each time", min_width=120)
        with gr.Row():
            names = [name for name in samplers.SAMPLERS if self._fits(sampler=name)]
            fields["sampler"] = gr.Dropdown(
                names, value=run.sampler, label="Sampler", min_width=120
            )
            label = f"Steps (0: all {self.pipe.kernel.steps})"
            fields["steps"] = gr.Number(run.steps, label=label, precision=0, min_width=120)
        fields["temperature"] = gr.Slider(
            0.1, 2, value=run.temperature, label="Temperature", step=0.05
        )
        fields["top_r"] = gr.Slider(
            0.05, 1, value=run.top_r, label="Top r: keep the likeliest, up to this mass", step=0.05
        )
        if self.pipe.guidable:
            fields["guidance"] = gr.Slider(
                0, 8, value=run.guidance, label="Guidance (1: off)", step=0.1
            )
            fields["negative"] = gr.Textbox(
                label="Negative prompt", info="Text to image moves away from it, with guidance.",
                max_length=requests.CHARACTERS,
            )  # fmt: skip
        return fields

    def _fits(self, **changes) -> bool:
        try:
            self.pipe.settings(**changes)
        except UserError:
            return False
        return True

    # ---- Pictures ---------------------------------------------------------------------------

    def open(self, data):
        """The file of a visitor -> (the picture, what is said)."""
        with _saying() as said:
            return painter.value(requests.read_picture(data, self.size)), ""
        return painter.value(), said[0]

    def take(self, gallery):
        """The first picture of the result -> (the picture, what is said)."""
        with _saying() as said:
            if not gallery:
                raise UserError("there is no picture in the result yet")
            return painter.value(np.ascontiguousarray(gallery[0][0][..., :3])), gr.skip()
        return gr.skip(), said[0]

    # ---- Results ----------------------------------------------------------------------------

    async def generate(self, tab: Tab, asked: dict):
        """The updates of all outputs, and the seed. ValueError, one line."""
        count, seed, settings = self._chosen(asked)
        image, mask = painter.read(asked.get("image"), self.size, self.grid)
        if mask is not None:
            mask = mask if mask.any() else None
            image = image if mask is None else pixels.hide(image, mask)
        typed = {
            "text": asked.get("text") or "",
            "negative": (asked.get("negative") or "") if "text" in tab.takes else "",
            "blank_tokens": asked.get("blank_tokens") or 1,
        }
        request = requests.make(
            self.pipe, tab.task, image=image, mask=mask, count=count, seed=seed,
            settings=settings, **typed,
        )  # fmt: skip
        result = await asyncio.wrap_future(self.service.generate(request))
        typed["negative"] = typed["negative"] if request.negative else ""
        read = {"image": image is not None, "mask": mask is not None}
        recipe = {**typed, **read, "count": count, "seed": seed, "settings": request.settings}
        files = {} if image is None else {"image.png": image}
        if mask is not None:
            files["mask.png"] = np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
        new = tasks.parse(self.pipe.vocab, tab.task).free  # what was given needs no second look
        drawn = "image" in new and result.images is not None
        written = "text" in new and result.captions is not None
        return [
            views.note(f"{count} sample{'s' * (count > 1)}, seed {seed}."),
            gr.Gallery(list(result.images) if drawn else None, visible=drawn),
            gr.HTML(views.captions(result.captions or ()), visible=written),
            gr.Accordion(visible=True),
            views.chain(self.pipe, result),
            gr.Accordion(visible=True),
            gr.Code(recipes.command(tab.task, self.workdir, **recipe), visible=True),
            recipes.python(tab.task, self.workdir, **recipe),
            views.files(files),
            seed,
        ]

    async def measure(self, tab: Tab, asked: dict):
        """As `generate`, for the likelihood."""
        _, seed, _ = self._chosen(asked)
        image, _ = painter.read(asked["image"], self.size, self.grid)
        text = asked["text"] or ""
        if image is None:
            raise UserError("the picture is missing: choose one")
        requests.make(self.pipe, "t2i", text=text, seed=seed)  # checks the text
        each = await asyncio.wrap_future(self.service.score(image, text, seed))
        return [
            views.note(f"The likelihood, seed {seed}."),
            gr.Gallery(visible=False),
            gr.HTML(views.bits(self.pipe, image, text, each), visible=True),
            gr.Accordion(visible=False),
            "",
            gr.Accordion(visible=True),
            gr.Code(visible=False),
            recipes.likelihood(self.workdir, text, seed),
            views.files({"image.png": image}),
            seed,
        ]

    def _chosen(self, asked):
        """(count, seed, the settings that differ from those of the run)."""
        seed = secrets.randbelow(10**6) if asked["fresh"] else asked["seed"]
        names = ("sampler", "steps", "temperature", "top_r", "guidance")
        chosen = {name: asked[name] for name in names if asked.get(name) is not None}
        changed = {n: v for n, v in chosen.items() if v != getattr(self.defaults, n)}
        return asked["count"], 0 if seed is None else seed, changed


@contextlib.contextmanager
def _saying():
    """A list that gets, as HTML, the sentence of an error that the person can mend."""
    said = []
    try:
        yield said
    except UserError as error:
        said.append(views.note(f"Not done: {error}.", alert=True))


async def _named(handler, tab, names, *values):
    """Calls a handler with the values of the fields by their names; an error is only said."""
    with _saying() as said:
        return await handler(tab, dict(zip(names, values, strict=True)))
    return [said[0], *[gr.skip()] * OUTPUTS]
