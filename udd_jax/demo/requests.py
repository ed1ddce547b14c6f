"""What a person asks for on the page, checked: a Request, which is rows of tokens with their keys,
or something that is computed alone.

Everything that is refused is refused here, in one line, before anything is computed. Either kind
has a length, a `group`, and `compute`: requests of equal groups -> their results.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax import pipeline, values
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import outpainting, prompts
from udd_jax.sampling import settings as sampling
from udd_jax.steering import chains, edits, painted, segments, stepwise, upscaling

MOST = 16  # samples of one request
CHARACTERS = 2000  # of a text
PIXELS = 25_000_000  # of a picture
BYTES = 20_000_000  # of its file
ROUNDS = 64  # of an edit
FRAMES = 12  # intermediate states of each chain
TIMES = 16  # noise levels of a likelihood


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Samples of one task. `given`, `negative`: {modality: ids int32[n, length]}; masks: n rows.

    settings: the settings of the sampler that differ from those of the run. steered: further
    options of `Pipeline.generate`. in_steps: its rule is generated in two steps, each with masks
    of its own.
    """

    task: str
    given: dict
    negative: dict | None
    masks: tasks.Masks
    seed: int
    settings: dict
    still: str | None  # the modality that the chain computes once
    steered: dict
    in_steps: bool

    def __len__(self) -> int:
        return len(self.masks.free)

    @property
    def group(self) -> Hashable:
        """Requests of equal groups can be computed in one batch, without another result.

        What is steered is computed alone: prompts and scorers are those of a whole call.
        """
        if self.steered:
            return self
        absent = tuple(np.asarray(self.masks.absent)[0].tolist())
        settings = tuple(sorted(self.settings.items()))
        task = self.task if self.in_steps else None
        return tuple(sorted(self.given)), absent, self.still, settings, self.negative is None, task

    @property
    def keys(self) -> jax.Array:
        return pipeline.sample_keys(self.seed, len(self))

    @staticmethod
    def compute(pipe, requests: list["Request"]) -> list[values.Result]:
        first = requests[0]
        join = lambda parts: {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}  # noqa: E731
        own = {"seed": first.seed}  # what is steered is alone, and may have several candidates
        if not first.steered:
            own = {"keys": jnp.concatenate([request.keys for request in requests])}
        result = pipe.generate(
            first.task,
            sum(map(len, requests)),
            given=join([request.given for request in requests]),
            masks=None if first.in_steps else _joined(requests),
            negative=first.negative and join([request.negative for request in requests]),
            trace=FRAMES,
            **own,
            **first.settings,
            **first.steered,
        )
        ends = np.cumsum([len(request) for request in requests]).tolist()
        return [result.rows(end - len(r), end) for r, end in zip(requests, ends, strict=True)]


def _joined(requests: list[Request]) -> tasks.Masks:
    return tasks.Masks(*map(np.concatenate, zip(*(r.masks for r in requests), strict=True)))


@dataclasses.dataclass(frozen=True, eq=False)
class Alone:
    """One call of the pipeline, `call`, which has no part in the batch of another request."""

    call: Callable[[Any], Any]
    settings: dict = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return 1

    @property
    def group(self) -> Hashable:
        return self

    @staticmethod
    def compute(pipe, requests: list["Alone"]) -> list:
        return [request.call(pipe) for request in requests]


def read_picture(data: bytes, size: int, channels: int = 3) -> np.ndarray:
    """A picture file of any size -> uint8[size, size, channels]. ValueError, one line, unless it is
    one.

    The size is read from the head of the file before anything is decoded.
    """
    if len(data) > BYTES:
        raise UserError(f"the file has {len(data):,} bytes, expected at most {BYTES:,}")
    try:
        shape = pixels.size(data)
    except UserError:
        raise UserError("the file is not a picture of a format that is read, such as PNG") from None
    if math.prod(shape) > PIXELS:
        raise UserError(
            f"the picture is {shape[0]} x {shape[1]}, expected at most {PIXELS:,} pixels"
        )
    return pixels.fit(pixels.read(data, channels), size)


def check_text(text: str, name: str) -> str:
    """The text; ValueError if it is longer than a person types."""
    if len(text) > CHARACTERS:
        raise UserError(f"{name} has {len(text)} characters, expected at most {CHARACTERS}")
    return text


def _common(pipe, texts: dict, count, seed, settings, rules=(None,)) -> dict:
    """Checks what every request has; returns the settings that are read.

    texts: {what it is called: text}; rules: those of its chains, None for the settings of the run.
    """
    if values.whole("number of samples", count, 1) > MOST:
        raise UserError(f"number of samples = {count}, expected at most {MOST}")
    values.seed(seed)
    for name, text in texts.items():
        check_text(text, name)
    changes = settings or {}
    return sampling.read([pipe.settings(rule, **changes) for rule in rules], changes)


def _with_picture(pipe, image, text: str, count, seed, settings, rule="infill") -> dict:
    """`_common` for what needs a picture, drawn by a rule."""
    settings = _common(pipe, {"the text": text}, count, seed, settings, (rule,))
    if image is None:
        raise UserError("the picture is missing: choose one")
    return settings


def _optional(pipe, text: str) -> str | None:
    """A caption that may be left empty, checked."""
    if not text.strip():
        return None
    values.ids(pipe, "text", text)
    return text


def rule(pipe, made, given) -> str:
    """The rule that makes some modalities from others. ValueError if it makes no sense."""
    for name in made:
        if name in given:
            raise UserError(f"the {name} is given and made: take away one of them")
    if not made:
        raise UserError("nothing is to be made: choose something")
    names = [m.name for m in pipe.vocab.modalities]
    sides = (",".join(name for name in names if name in side) for side in (made, given))
    return "|".join(side for side in sides if side)


def _ids(pipe, name: str, value) -> np.ndarray:
    """The ids of a value. Of the path of a visitor's file, an error says the name alone."""
    try:
        return values.ids(pipe, name, value)
    except UserError as error:
        if not isinstance(value, pathlib.Path):
            raise
        raise UserError(str(error).replace(str(value), value.name)) from None
    except OSError:
        raise UserError(f"the file of the {name} cannot be read: choose it again") from None


def make(
    pipe,
    task: str,
    *,
    text: str = "",
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    more: dict | None = None,
    negative: str = "",
    blank_tokens: int = 1,
    count: int = 1,
    seed: int = 0,
    settings: dict | None = None,
    steered=(),
) -> Request:
    """Checks what was typed and turns it into tokens.

    text, image uint8[S, S, C], mask bool[S, S]: as the task needs them; more: {further modality:
    its value, or the path of its file}; steered: of `steering.read`. Raises ValueError.
    """
    texts = {"the text": text, "the negative prompt": negative}
    texts |= {f"the {n}": value for n, value in (more or {}).items() if isinstance(value, str)}
    options = {name: value for way in steered for name, value in way.options.items()}
    in_steps = "begin_with" in options or _in_steps(pipe, task, options)
    first = options.get("begin_with", stepwise.usual(pipe, task)) if in_steps else ()
    rules = [rule for rule, _ in stepwise.chains(pipe, task, first, in_steps)]
    settings = _common(pipe, texts, count, seed, settings, rules)
    if task == "infill":
        captions = [text] if text.strip() else None
        images = None if image is None else image[None]
        given, masks = pipe.infilling(images, mask, captions, blank_tokens)
    else:
        needs = tasks.typed(pipe.vocab, task).given
        have = {"text": text, "image": image, **(more or {})}
        for name in needs:
            if have.get(name) is None:
                what = {"image": "picture"}.get(name, name)
                raise UserError(f"the {what} is missing: choose one")
        needs = [n for n in needs if n != "text" or "prompts" not in options]
        given = {name: _ids(pipe, name, have[name]) for name in needs}
        masks = tasks.masks(pipe.vocab, task, 1)
    # The page may have guidance from a task where it counts.
    if "prompts" not in options and not chains.guided(pipe.vocab, masks).any():
        settings = sampling.unguided(settings)
    against = None
    guided = any(pipe.settings(rule, **settings).on("guidance") for rule in rules)
    if negative.strip() and guided and ("text" in given or "prompts" in options):
        against = {"text": values.ids(pipe, "text", negative)}
    repeat = lambda rows: np.repeat(np.asarray(rows), count, axis=0)  # noqa: E731
    each = lambda ids: {name: repeat(rows) for name, rows in ids.items()}  # noqa: E731
    if "prompts" in options:
        asked = [(ids, weight, None) for ids, weight in options["prompts"]]
        options["prompts"] = [(each(ids), weight) for ids, weight in options["prompts"]]
    if "paint" in options:
        shown = given | (prompts.together(asked) if "prompts" in options else {})
        painted.read(pipe, options["paint"], shown, masks, 1, 1)
    if "weigh" in options:
        segments.read(pipe, options["weigh"], masks, 1, 1)
    return Request(
        task=task,
        given=each(given),
        negative=against and each(against),
        masks=tasks.Masks(*map(repeat, masks)),
        seed=seed,
        settings=settings,
        still=chains.still(pipe, masks),
        steered=options,
        in_steps=in_steps,
    )


def _in_steps(pipe, task: str, steered: dict) -> bool:
    """Whether the run generates a rule in two steps by itself."""
    plain = not {"prompts", "scorers", "paint"} & set(steered)
    return plain and bool(stepwise.of_itself(pipe, task))


def edit(
    pipe,
    image,
    text: str,
    *,
    count=1,
    seed=0,
    share=edits.SHARE,
    rounds=edits.ROUNDS,
    settings=None,
) -> Alone:
    """An edit of a picture uint8[S, S, C] to a new caption: `Pipeline.edit`."""
    settings = _with_picture(pipe, image, text, count, seed, settings)
    values.ids(pipe, "text", text)
    edits.check(share, rounds)
    if rounds > ROUNDS:
        raise UserError(f"rounds = {rounds}, expected at most {ROUNDS}")
    asked = {"share": share, "rounds": rounds, **settings}
    options = {"num": count, "seed": seed, "trace": FRAMES, **asked}
    return Alone(lambda pipe: pipe.edit(image[None], text, **options), asked)


def outpaint(pipe, image, text: str, extend: dict, *, count=1, seed=0, settings=None) -> Alone:
    """A picture uint8[S, S, C] beyond its sides: `Pipeline.outpaint`. text: "" for none."""
    settings = _with_picture(pipe, image, text, count, seed, settings)
    for side, new in outpainting.sides(extend, image.shape[:2]).items():
        most = image.shape[side in outpainting.SIDES[:2]]
        if new > most:
            raise UserError(f"a side has {new} new pixels, at most {most}")
    captions = _optional(pipe, text)
    if captions is None and pipe.vocab.coarse is None:
        settings = sampling.unguided(settings)
    options = {"extend": extend, "num": count, "seed": seed, **settings}
    draw = lambda pipe: values.Result.of(pipe.outpaint(image[None], captions, **options))  # noqa: E731
    return Alone(draw, settings)


def upscale(pipe, image, text: str, factor: int, *, count=1, seed=0, settings=None) -> Alone:
    """A picture uint8[S, S, C] at a larger size: `Pipeline.upscale`. text: "" for none."""
    rule = upscaling.rule(pipe, bool(text.strip()))
    settings = _with_picture(pipe, image, text, count, seed, settings, rule)
    captions = _optional(pipe, text)
    options = {"factor": factor, "num": count, "seed": seed, **settings}
    draw = lambda pipe: values.Result.of(pipe.upscale(image[None], captions, **options))  # noqa: E731
    return Alone(draw, settings)


def score(pipe, image, text: str, *, seed=0) -> Alone:
    """log2 p of each token of a pair, float64[L]: `Pipeline.log_likelihood`."""
    _with_picture(pipe, image, text, 1, seed, None)
    values.ids(pipe, "text", text)
    options = {"times": TIMES, "seed": seed, "each": True}
    return Alone(lambda pipe: pipe.log_likelihood(image[None], [text], **options)[0])
