"""What a call of `Pipeline.stream` asks for, checked, as the arrays of its chains."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from udd_jax import build, values
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import painting
from udd_jax.sampling import prompts as branching
from udd_jax.sampling import scorers as terms
from udd_jax.sampling import settings as sampling
from udd_jax.sampling.settings import IN_ORDER, Settings
from udd_jax.steering import lengths, painted, segments, weighted


class Chains(NamedTuple):
    """n chains: arrays with a row for each, and what all of them share."""

    x: np.ndarray  # int32[n, L], the given tokens
    masks: tasks.Masks  # free bool[n, L], absent bool[n, M]
    against: np.ndarray | None  # int32[n, L], the negative prompts
    prompts: branching.Prompts | None
    paint: painting.Paint | None
    weigh: np.ndarray | None  # float32[n, M], weights of what is given
    features: tuple | None  # of `Vocab.features`
    guide: Callable | None
    scorers: tuple
    settings: Settings
    still: str | None  # the modality that is computed once for a chain
    without: tuple[str, ...]  # the modalities that are not computed
    shown: list[str]  # the modalities of a result, which leaves out features
    branches: int  # evaluations of the network in a call; 0: as many as the user's guide makes

    def inputs(self, rows, trace: int) -> tuple[tuple, dict]:
        """The arguments of a generator's `sample` after the keys, for some of the chains: those of
        any generator, and by name those that the diffusion alone has."""
        steer = None if self.guide is None else terms.partial(self.guide)
        if self.prompts is not None:
            here = self.prompts._replace(x=self.prompts.x[:, rows])
            steer = jax.tree_util.Partial(branching.branches, here)
        away = None if self.against is None else self.against[rows]
        free, absent = (part[rows] for part in self.masks)
        plain = (self.x[rows], free, absent, self.settings, away, trace, self.still, steer)
        more = {
            "paint": None if self.paint is None else painted.part(self.paint, rows),
            "weigh": None if self.weigh is None else self.weigh[rows],
            "features": jax.tree.map(lambda values: values[rows], self.features),
            "without": self.without or None,
        }
        named = {name: value for name, value in more.items() if value is not None}
        return (*plain, self.scorers), named


def prepare(
    pipe,
    task,
    count,
    given,
    num,
    *,
    masks,
    negative,
    prompts,
    guide,
    scorers,
    paint,
    weigh,
    options,
) -> Chains:
    """Checks and encodes the arguments of `Pipeline.stream` of the same names.

    num: chains of each given value; options: {field of `Settings`: value}. UserError, one line.
    """
    vocab = pipe.vocab
    given = {name: values.ids(pipe, name, rows) for name, rows in (given or {}).items()}
    asked = weighted.read(pipe, prompts, given, guide) if prompts is not None else None
    prompted = branching.together(asked) if asked is not None else {}
    given = given | prompted
    plain = masks is None
    if plain:
        values.check_given(vocab, task, given)
    given = values.together(given)
    count = values.count(count, given) * num
    given = {name: np.repeat(ids, num, axis=0) for name, ids in given.items()}
    given, features = _features(pipe, given)
    settings = pipe.settings(task, **options)
    steered = (prompts, guide, paint or None, weigh or None, scorers or None, features)
    if settings.sampler == IN_ORDER and any(part is not None for part in steered):
        alone = build.only_in_order(pipe.config)
        raise UserError(
            f"{'model.kind' if alone else 'sample.sampler'} = {IN_ORDER!r} goes without prompts, "
            "guide, paint, weigh, scorers and features: leave them out"
            f"{'' if alone else ', or choose another sampler'}"
        )
    if plain:
        given, masks = lengths.cut(pipe, given, tasks.masks(vocab, task, count))
    else:
        masks = _repeated(vocab, masks, given, count, num)
    against = _against(pipe, negative, count, num) if negative else None
    if settings.on("guidance") and prompts is None and guide is None:
        typed = "guidance" in options and not sampling.whole(options)
        if typed and not guided(vocab, masks, against).any():
            raise UserError(
                f"guidance = {settings.guidance} changes nothing, nothing is there to lead it: "
                "leave it out, or give a condition or a negative prompt"
            )
    left_out = np.asarray(masks.absent)[0]
    if (np.asarray(masks.absent) != left_out).any():
        raise UserError("masks: rows lack different modalities, expected the same: call once each")
    masks = tasks.Masks(*map(np.asarray, feasible(pipe, task, masks)))
    asked = None if asked is None else weighted.branched(pipe, asked, count, masks.free)
    if asked is not None and (others := [n for n in negative or {} if n not in prompted]):
        raise UserError(f"negative has {others[0]!r}, and no prompt has: expected one of it, too")
    if negative and prompts is not None and not settings.on("guidance"):
        rest = None if asked is None else np.abs(1 - asked.weight.sum(0))[1:]
        if rest is None or rest.max() <= branching.SLIGHT:
            raise UserError(
                "negative changes nothing, the weights of the prompts sum to 1 and guidance is "
                "off: set guidance=2"
            )
    strokes = painted.read(pipe, paint, given, masks, count, count // num) if paint else None
    return Chains(
        x=values.fuse(vocab, given, count, 0),
        masks=masks,
        against=against,
        prompts=asked,
        paint=strokes,
        features=features,
        weigh=segments.read(pipe, weigh, masks, count, count // num) if weigh else None,
        guide=guide,
        scorers=terms.parse(scorers, vocab),
        settings=settings,
        still=still(pipe, masks) if guide is None else None,  # its branches may change a condition
        without=without(pipe, masks, against) if guide is None else (),
        shown=[
            m.name
            for m, out in zip(vocab.modalities, left_out, strict=True)
            if not out and not m.inputs
        ],
        branches=0
        if guide is not None
        else _branches(vocab, masks, settings, asked, strokes, against),
    )


def guided(vocab, masks: tasks.Masks, against=None) -> np.ndarray:
    """bool[n, M]: what is generated and has another modality beside it, or a negative prompt of
    one, by which guidance can lead (`guidance.by_the_others`)."""
    free, there = np.asarray(masks.free), ~np.asarray(masks.absent)
    if against is not None:
        said = against != vocab.mask_id
        there = there | np.asarray(vocab.any_of(said))
    own = np.asarray(vocab.any_of(free))
    return own & (there.sum(axis=1, keepdims=True) > there)


def _repeated(vocab, masks: tasks.Masks, given: dict, count: int, num: int) -> tasks.Masks:
    """The masks of `Pipeline.stream` with a row for each of `count` samples, checked.

    A single row holds for all; else there is one for each `num` samples of a given value.
    """
    parts = []
    for name, part, width in (
        ("free", masks[0], vocab.length),
        ("absent", masks[1], len(vocab.modalities)),
    ):
        part = np.asarray(part)
        if part.dtype != bool or part.shape not in ((1, width), (count // num, width)):
            raise UserError(
                f"masks: {name} is {part.dtype}{list(part.shape)}, expected "
                f"bool[{count // num}, {width}], a row for each given value, or one for all"
            )
        parts.append(np.repeat(part, count // len(part), axis=0))
    free, absent = parts
    for m, where in enumerate(vocab.slices):
        name, needed = vocab.modalities[m].name, ~free[:, where].all(axis=1) & ~absent[:, m]
        if needed.any() and name not in vocab.parts(given):
            raise UserError(f"masks: {name!r} is neither all free nor absent, expected it in given")
    return tasks.Masks(free, absent)


def _features(pipe, given: dict) -> tuple[dict, tuple | None]:
    """`given` with the ids of features instead of their bits, and the features themselves."""
    found = {
        m.name: pipe.tokenizers[m.name].decode(given[m.name])
        for m in pipe.vocab.modalities
        if m.inputs and m.name in given
    }
    ids = {name: np.zeros(values.shape[:2], np.int32) for name, values in found.items()}
    return given | ids, pipe.vocab.features(found)


def feasible(pipe, task: str, masks: tasks.Masks) -> tasks.Masks:
    """Changes the masks to fit the network of a run. UserError for a task that it cannot do.

    A network with one shared time has never seen an absent modality. It generates all of them, and
    the result leaves out the absent one. A conditional network generates only its own modality.
    """
    free, absent = np.asarray(masks.free), np.asarray(masks.absent)
    if pipe.model.time == "shared":
        free, absent = free | absent[:, pipe.vocab.modality_of], np.zeros_like(absent)
    if pipe.model.network != "joint":
        name, _, others = pipe.model.network.partition("_from_")
        own = pipe.vocab.modality_of == pipe.vocab.index(name)
        if free[:, ~own].any() or absent.any():
            raise UserError(
                f"task {task!r} is not for the network of this run, {pipe.model.network}: "
                f"expected '{name}|{others}', or 'infill' of the {name} with the rest given"
            )
    return tasks.Masks(free, absent)


def scored(vocab, task: str, tokens: dict) -> dict:
    """The tokens {modality: local ids int[n, length]} of `Pipeline.score`, checked, with ids 0
    where the task leaves a modality out. A mask is allowed. UserError, one line."""
    parts, rule = vocab.parts(tokens), tasks.parse(vocab, task)
    for name in (*rule.free, *rule.given):
        if name not in parts:
            raise UserError(f"score: task {task!r} needs {name!r}, which is missing")
    for m in (m for m in vocab.modalities if m.name in parts and not m.inputs):
        rows = np.asarray(parts[m.name])
        if rows.ndim != 2 or rows.shape[1] != m.length or rows.dtype.kind not in "iu":
            found = f"{rows.dtype}{list(rows.shape)}"
            raise UserError(f"score: {m.name!r} is {found}, expected int[n, {m.length}]")
        if rows.size and not 0 <= rows.min() <= rows.max() <= m.classes:
            raise UserError(
                f"score: {m.name!r} has ids {rows.min()} to {rows.max()}, expected 0 to "
                f"{m.classes - 1}, those of its own vocabulary"
            )
    count = values.count(None, parts)
    missing = [m for m in vocab.modalities if m.name not in parts]
    return tokens | {m.name: np.zeros((count, m.length), np.int32) for m in missing}


def has_bound(pipe, task: str) -> bool:
    """Whether the network of a run can bound log p of what a task generates.

    A network with one shared time cannot where something is absent: it generates that too.
    UserError as of `feasible`.
    """
    asked = tasks.masks(pipe.vocab, task, 1)
    return np.array_equal(feasible(pipe, task, asked).absent, asked.absent)


def still(pipe, masks: tasks.Masks) -> str | None:
    """The one modality without a free position in any sample, if the network can cache it."""
    if not pipe.model.block_attention:
        return None
    free = np.asarray(masks.free).any(axis=0)
    each = zip(pipe.vocab.modalities, pipe.vocab.slices, strict=True)
    names = [m.name for m, where in each if not free[where].any()]
    return names[0] if len(names) == 1 else None


def without(pipe, masks: tasks.Masks, against=None) -> tuple[str, ...]:
    """The modalities that are absent in all samples, if the network leaves them out.

    against: negative prompts int32[n, L] or None; what they say is there in a branch of guidance.
    """
    if pipe.model.absent != "left_out":
        return ()
    vocab = pipe.vocab
    said = np.zeros(vocab.length, bool)
    if against is not None:
        said = (np.asarray(against) != vocab.mask_id).any(axis=0)
    left_out = tasks.left_out(vocab, masks)
    return tuple(name for name in left_out if not said[vocab.slices[vocab.index(name)]].any())


def _against(pipe, negative: dict, count: int, num: int) -> np.ndarray:
    """Negative prompts as int32[n, L], masks where they say nothing; one, or as many as samples."""
    away = {name: values.ids(pipe, name, rows) for name, rows in negative.items()}
    away = {n: r if len(r) == 1 else np.repeat(r, num, axis=0) for n, r in away.items()}
    values.count(count, {name: ids for name, ids in away.items() if len(ids) != 1})
    return values.fuse(pipe.vocab, away, count, pipe.vocab.mask_id)


def _branches(vocab, masks, settings, asked, strokes, against) -> int:
    found = 1
    if asked is not None:
        found = branching.calls(asked, settings.guidance)
    elif settings.on("guidance"):
        found += int(guided(vocab, masks, against).sum(1).max())
    if strokes is not None and strokes.evidence:
        found += 1 + len(strokes.weight)
    return found
