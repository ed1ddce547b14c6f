"""Ways to steer the samples of a task on the page: prompts with weights, painted words, scorers,
the best of several. And of rules that a person puts together: weights of what is given, and what is
made first.

Each is a row of WAYS, or for such rules of RULE_WAYS: for which tasks of a run it works (`fits`),
and what it makes of the fields that a person filled in (`read`), by their names. Fields that are
left as they are steer nothing. To add a way, add a row, and the fields that it reads in
`fields.WAYS`.
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from udd_jax import build, values
from udd_jax.demo import painter, recipes
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import prompts
from udd_jax.steering import candidates, painted

PROMPTS = 4  # of one request
PHRASES = 2  # that can be painted
BEST = 16  # candidates of a sample
CANDIDATES = 64  # of a request
MEANINGS = {"a word for one thing, somewhere": "shows", "a whole caption": "match"}
LIKENESS = {
    "its colours and no others": "palette",
    "all of its colours": "colours",
    "its look anywhere": "style",
    "the same places": "content",
    "look and places": "like",
}


class Steered(NamedTuple):
    """What one way adds to a request.

    options: of `Pipeline.generate`; words: of the command line; python: {keyword: its value, as it
    is written}; files: the pictures uint8[S, S, C] that words and python name.
    """

    options: dict[str, Any]
    words: list[str]
    python: dict[str, str]
    files: dict[str, np.ndarray] = types.MappingProxyType({})


def free(pipe, task: str, name: str) -> bool:
    """Whether a task generates a modality."""
    return name in tasks.parse(pipe.vocab, task).free


def given(pipe, task: str, name: str) -> bool:
    """Whether a task is given a modality."""
    return name in tasks.parse(pipe.vocab, task).given


def matches(pipe) -> bool:
    """Whether the run has a dual encoder."""
    try:
        return pipe.dual_encoder is not None
    except UserError:
        return False


# ---- Several prompts ----------------------------------------------------------------------------


def _weighs(pipe, task) -> bool:
    return pipe.guidable and build.diffuses(pipe.config) and given(pipe, task, "text")


def _weighted(pipe, task, asked) -> Steered | None:
    """`text` with `weight`, then the entries of `prompts`, (text, weight)."""
    rows = [(asked.get("text") or "", asked.get("weight", 1))]
    rows += [(text, weight) for text, weight in asked.get("prompts", ()) if (text or "").strip()]
    if len(rows) == 1 and rows[0][1] == 1:
        return None
    if len(rows) > PROMPTS:
        raise UserError(f"there are {len(rows)} prompts, expected at most {PROMPTS}")
    prompts.parse(rows)  # checks them
    found = [({"text": values.ids(pipe, "text", text)}, weight) for text, weight in rows]
    words = [word for text, weight in rows for word in (f"--prompt={text}", f"--weight={weight}")]
    return Steered({"prompts": found}, words, {"prompts": recipes.literal(rows)})


# ---- Painted words ------------------------------------------------------------------------------


def _paints(pipe, task) -> bool:
    return painted.drawable(pipe) and given(pipe, task, "text") and free(pipe, task, "image")


def _painted(pipe, task, asked) -> Steered | None:
    """The entries of `phrases`, (phrase, value of the painter), with `strength`."""
    size, grid = pipe.tokenizers["image"].image_size, pipe.tokenizers["image"].grid
    strength, found, files = asked.get("strength", 1), [], {}
    for phrase, sent in asked.get("phrases", ()):
        mask = painter.read_mask(sent, size, grid)
        if not (phrase or "").strip() and not mask.any():
            continue
        if not (phrase or "").strip():
            raise UserError("there is a painted place without its words: say what belongs there")
        if not mask.any():
            raise UserError(f"{phrase!r} has no place: paint where it belongs")
        found.append((phrase.strip(), mask, strength))
        files[f"paint-{len(found)}.png"] = painter.picture(mask)
    if not found:
        return None
    names = [(phrase, name) for (phrase, *_), name in zip(found, files, strict=True)]
    words = [f"--paint={phrase}={name}:{strength}" for phrase, name in names]
    lines = [
        f"({recipes.literal(phrase)}, Image.open({recipes.literal(name)}), {strength})"
        for phrase, name in names
    ]
    return Steered({"paint": found}, words, {"paint": f"[{', '.join(lines)}]"}, files)


# ---- Scorers ------------------------------------------------------------------------------------


def _scores(pipe, task) -> bool:
    return build.diffuses(pipe.config) and pipe.vocab.coarse is None and free(pipe, task, "image")


def _scored(pipe, task, asked) -> Steered | None:
    """`match`, a text, and `like`, a picture, each with its `_kind` and `_scale`."""
    found, files = [], {}
    text, scale = (asked.get("match") or "").strip(), asked.get("match_scale")
    if text and scale:
        found.append((asked.get("match_kind") or "shows", text, text, scale))
    picture = painter.read(asked.get("like"), pipe.tokenizers["image"])[0]
    scale = asked.get("like_scale")
    if picture is not None and scale:
        found.append((asked.get("like_kind") or "palette", picture, "like.png", scale))
        files["like.png"] = picture
    if not found:
        return None
    made = [(pipe.scorer(name, value), scale) for name, value, _, scale in found]
    words = [f"--scorer={name}={shown}:{scale}" for name, _, shown, scale in found]
    lines = [
        f"(pipe.scorer({recipes.literal(name)}, {recipes.literal(shown)}), {scale})"
        for name, _, shown, scale in found
    ]
    return Steered({"scorers": made}, words, {"scorers": f"[{', '.join(lines)}]"}, files)


# ---- The best of several ------------------------------------------------------------------------


def rankings(pipe, task: str) -> list[str]:
    """How candidates of a task can be ranked, of "bound" and "match"."""
    try:
        bound = all(map(pipe.can, candidates.directions(pipe, task)))
    except UserError:
        return []
    rule = tasks.parse(pipe.vocab, task)
    both = {"image", "text"} <= {*rule.free, *rule.given} and matches(pipe)
    return ["bound"] * bound + ["match"] * both


def _best(pipe, task, asked) -> Steered | None:
    """The best of `best_of`, ranked `by`."""
    if asked.get("best_of", 1) == 1:
        return None
    number, by = values.whole("best of", asked["best_of"], 1), asked.get("by") or "bound"
    if number > BEST:
        raise UserError(f"best of = {number}, expected at most {BEST}")
    if number * asked["count"] > CANDIDATES:
        raise UserError(
            f"{asked['count']} samples of {number} candidates are {number * asked['count']}, "
            f"expected at most {CANDIDATES}"
        )
    candidates.check(pipe, by)
    options = {"best_of": number} | ({"by": by} if by != "bound" else {})
    words = [f"--{name}={value}" for name, value in options.items()]
    return Steered(options, words, {n: recipes.literal(v) for n, v in options.items()})


# ---- Of rules: weights of what is given, and what is made first ----------------------------------


def _given_weighs(pipe, task) -> bool:
    return build.diffuses(pipe.config)


def _given_weighted(pipe, task, asked) -> Steered | None:
    """The fields `weigh_NAME` that are not 1: the weight of a modality that is given."""
    typed = {name: asked.get(f"weigh_{name}", 1) for name in pipe.kinds}
    found = {name: weight for name, weight in typed.items() if weight != 1}
    if not found:
        return None
    words = [f"--weigh={name}={weight}" for name, weight in found.items()]
    inside = ", ".join(f"{recipes.literal(name)}: {weight}" for name, weight in found.items())
    return Steered({"weigh": found}, words, {"weigh": f"{{{inside}}}"})


def _begun(pipe, task, asked) -> Steered | None:
    """The names in `begin_with`."""
    names = [name for name in pipe.kinds if name in (asked.get("begin_with") or ())]
    if not names:
        return None
    words = [f"--begin_with={','.join(names)}"]
    return Steered({"begin_with": names}, words, {"begin_with": recipes.literal(names)})


class Way(NamedTuple):
    """fits: (pipe, task) -> bool; read: (pipe, task, {field: value}) -> Steered, None if off."""

    fits: Callable[[Any, str], bool]
    read: Callable[[Any, str, dict], Steered | None]


WAYS = {
    "prompts": Way(_weighs, _weighted),
    "paint": Way(_paints, _painted),
    "best_of": Way(lambda pipe, task: bool(rankings(pipe, task)), _best),
    "scorers": Way(_scores, _scored),
}


RULE_WAYS = {
    "weigh": Way(_given_weighs, _given_weighted),
    "begin_with": Way(lambda pipe, task: True, _begun),
}


def ways(pipe, task: str, table=WAYS) -> list[str]:
    """The names of the ways in a table that work for a task of this run."""
    return [name for name, way in table.items() if way.fits(pipe, task)]


def read(pipe, task: str, asked: dict, table=WAYS) -> list[Steered]:
    """What all ways make of the fields. UserError, one line, for fields that make no sense."""
    found = [table[name].read(pipe, task, asked) for name in ways(pipe, task, table)]
    return [steered for steered in found if steered is not None]
