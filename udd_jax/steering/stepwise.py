"""A rule in two steps: some of what is free is generated first, the rest given it.

image,text|sound  beginning with text:    text|sound,  then  image|sound,text
text|sound        by way of the image:    image|sound, then  text|image,sound

The second is a sample of text|sound as well, since the image is drawn from what the sound allows.
It is left out of the result. A run may have learned both steps better than the rule itself.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np

from udd_jax import modalities, values
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import settings as sampling


def rules(vocab, task: str, names) -> tuple[str, str]:
    """The rules of the two steps of a task that begins with `names`."""
    free, given = tasks.parse(vocab, task)
    rest = [name for name in free if name not in names]
    bar = "|" + ",".join(given) if given else ""
    known = tuple(dict.fromkeys((*given, *names)))
    return ",".join(names) + bar, f"{','.join(rest)}|{','.join(known)}"


def usual(pipe, task: str) -> list[str]:
    """What a rule of a run begins with unless something else is asked for: `config.begin_with`.

    [] for a rule that gives it or that generates nothing else, and for one modality from nothing.
    """
    if tasks.ALIASES.get(task) == tasks.EVERY:
        return []
    rule = tasks.parse(pipe.vocab, task)
    names = [name for name in pipe.config.get("begin_with", ()) if name not in rule.given]
    alone = not rule.given and len(tasks.typed(pipe.vocab, task).free) == 1  # coarse, too
    return [] if alone or set(rule.free) <= set(pipe.vocab.levels(names)) else names


def of_itself(pipe, task: str) -> list[str]:
    """What is generated first if nothing is asked for: the coarse level, or `usual`; [] if none."""
    return tasks.coarse_first(pipe.vocab, task) or usual(pipe, task)


def aside(pipe, task: str, names) -> list[str]:
    """The modalities that are generated first and not named by the rule."""
    return [name for name in _listed(names) if name not in tasks.parse(pipe.vocab, task).free]


def levels(pipe, task: str) -> list[dict]:
    """The two steps in which a rule is generated, rule and settings; [] if it is in one.

    An evaluation keeps them with its samples.
    """
    names = of_itself(pipe, task)
    steps = rules(pipe.vocab, task, names) if names else ()
    return [{"rule": rule, **vars(pipe.settings(rule))} for rule in steps]


def chains(pipe, task: str, names, levels: bool) -> list[tuple[str, bool]]:
    """The rules of all chains of a call of `Pipeline.stream`, in order.

    Each is (rule, whether it belongs to what is generated first and has `begin_steps`). names,
    levels: as of `earlier`. UserError as of `begin`.
    """
    found = []
    if names:
        first, task = rules(pipe.vocab, task, check(pipe, task, names)[0])
        found += [(rule, True) for rule, _ in chains(pipe, first, (), True)]
    if levels and (coarse := tasks.coarse_first(pipe.vocab, task)):
        first, task = rules(pipe.vocab, task, coarse)
        found.append((first, not found))
    return [*found, (task, False)]


def require_read(
    pipe, task: str, names, levels: bool, begin_steps, changes: dict, flag: str = ""
) -> bool:
    """UserError, one line, if no chain of a call reads a setting that was asked for.

    changes: {setting: value}; begin_steps: of `Pipeline.stream`, or None; flag: as of
    `settings.require_read`. Returns whether the guidance of any chain is on.
    """
    every = chains(pipe, task, names, levels)
    if begin_steps is None:
        found = [pipe.settings(rule, **changes) for rule, _ in every]
        sampling.require_read(found, changes, flag)
        return any(settings.on("guidance") for settings in found)
    steps = {"steps": values.whole("begin_steps", begin_steps, 1)}
    begun = [pipe.settings(rule, **changes | steps) for rule, first in every if first]
    rest = [pipe.settings(rule, **changes) for rule, first in every if not first]
    others = {name: value for name, value in changes.items() if name != "steps"}
    if begun and not sampling.read(begun, steps):
        raise UserError(
            f"{flag}begin_steps = {begin_steps} changes nothing, {begun[0].unread('steps').why}: "
            f"leave it out, or set {flag}sampler={'maskgit' if flag else repr('maskgit')}"
        )
    sampling.require_read([*begun, *rest], others, flag)
    sampling.require_read(rest, {n: v for n, v in changes.items() if n == "steps"}, flag)
    return any(settings.on("guidance") for settings in (*begun, *rest))


class Call(NamedTuple):
    """What a call of `Pipeline.stream` still has to generate; the fields are its arguments."""

    task: str
    count: int | None
    given: dict | None
    num: int
    negative: dict | None
    weigh: dict | None = None
    done: tuple[np.ndarray, ...] = ()  # int32[n], the network calls of each step that is done
    states: tuple[np.ndarray, ...] = ()  # int32[n, trace, L], the intermediate states of each
    branches: tuple[int, ...] = ()  # of each, as of `values.Result`

    def spent(self, count: int) -> np.ndarray:
        """int32[count]: the network calls of the steps before, for each sample of the last one."""
        each = [np.repeat(calls, count // len(calls)) for calls in self.done]
        return np.sum([np.zeros(count, np.int32), *each], axis=0)

    def traced(self, last: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
        """int32[b, trace, L]: states of the whole call, as many as of its last step.

        last: int32[b, trace, L], those of some rows, int[b], of the `count` samples of that step.
        """
        trace, rows = last.shape[1], np.asarray(rows)
        if not self.states or not trace:
            return last
        before = [states[rows // (count // len(states))] for states in self.states]
        every = np.concatenate([*before, last], axis=1)
        return every[:, np.linspace(0, every.shape[1] - 1, trace).round().astype(int)]


def earlier(
    pipe, call: Call, names, levels: bool, candidates: int, keys_of, begin_steps=None, **options
) -> tuple[Call, str, int]:
    """All that comes before the last chain of a call: `names`, then the coarse level of a picture.

    Args:
        names: what is generated first, or nothing.
        levels: whether the levels of a picture are generated one after the other.
        candidates: of each sample, of which the best one is kept; each has its own coarse level.
        keys_of: (number of samples, candidates of each) -> their keys, [n].
        begin_steps: the `steps` of the very first chain, if they are its own.
        options: of `Pipeline.stream`, for all of this.

    Returns:
        The call for the rest; the rule by whose directions candidates are compared; the candidates
        that the last chain has to draw of each sample.

    UserError, one line: as of `begin`, or `begin_steps` where nothing comes first.
    """
    own = {} if begin_steps is None else {"steps": values.whole("begin_steps", begin_steps, 1)}
    if names:
        call, own = begin(pipe, call, names, keys_of, **options | own), {}
    judged = call.task
    if levels and (coarse := tasks.coarse_first(pipe.vocab, call.task)):
        call = call._replace(num=call.num * candidates)
        whose = functools.partial(keys_of, each=candidates)
        call, own = begin(pipe, call, coarse, whose, **options | own), {}
        candidates = 1
    if own:
        raise UserError(f"begin_steps = {begin_steps}: name what comes first with begin_with")
    return call, judged, candidates


def begin(pipe, call: Call, names, keys_of, **options) -> Call:
    """Generates the modalities `names` of a call; returns the call for the rest, given them.

    Its given values and negative prompts are ids, with a row for each sample. keys_of: number of
    samples -> their keys, [n]. options: of `Pipeline.stream` for this step. `negative` and `weigh`
    of the call may name what only the rest is given.

    UserError, one line: a name that the task gives, nothing is left, or `given` is not what the
    task gives.
    """
    names, _ = check(pipe, call.task, names)
    given = {name: values.ids(pipe, name, rows) for name, rows in (call.given or {}).items()}
    values.check_given(pipe.vocab, call.task, given)
    given = values.together(given)
    keys = keys_of(values.count(call.count, given) * call.num)
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, len(call.done) + 1)
    first, second = rules(pipe.vocab, call.task, names)
    free, known = tasks.parse(pipe.vocab, first)
    options |= {"given": given, "num": call.num, "keys": keys}
    options["weigh"] = {n: value for n, value in (call.weigh or {}).items() if n in known} or None
    options["negative"] = led(free, call.negative) or None
    options["begin_with"] = ()  # what is asked for first is not by way of something else
    names = [field.name for field in dataclasses.fields(sampling.Settings) if field.name in options]
    asked = {name: options[name] for name in names}
    found = [pipe.settings(rule, **asked) for rule, _ in chains(pipe, first, (), True)]
    reads = sampling.read(found, asked)  # the others count for what comes later
    if sampling.whole(asked):
        reads = asked  # a recorded line stays whole, so that it is not checked
    elif len(free) + len(known) == 1 and not options["negative"]:  # nothing there could lead it
        reads = sampling.unguided(reads)
    options = {n: value for n, value in options.items() if n not in asked or n in reads}
    if not any(settings.on("guidance") for settings in found):
        options["negative"] = None
    made = pipe.generate(first, call.count, **options)
    ids = jax.device_get(pipe.vocab.split(jax.numpy.asarray(made.tokens)))
    for name in modalities.features(pipe.config):
        if name in given:
            ids[name] = np.repeat(given[name], call.num, axis=0)
    given = {name: ids[name] for name in tasks.parse(pipe.vocab, second).given}
    states = np.full_like(made.states, pipe.vocab.mask_id)  # the rest is not drawn yet
    for modality, where in zip(pipe.vocab.modalities, pipe.vocab.slices, strict=True):
        if modality.name in given:
            states[..., where] = made.states[..., where]
    negative, weigh = _repeated(pipe, call.negative, call.num), _weights(call.weigh, call.num)
    done, states = (*call.done, made.calls), (*call.states, np.swapaxes(states, 0, 1))
    branches = (*call.branches, made.branches)
    return Call(second, None, given, 1, negative, weigh, done, states, branches)


def repeated(pipe, num: int, settings: dict) -> dict:
    """The settings of a call whose given values have `num` rows each already: a negative prompt or
    a weight for each value becomes one for each row."""
    found = dict(settings)
    if isinstance(found.get("negative"), dict):  # what is none is refused later, as everywhere
        found["negative"] = _repeated(pipe, found["negative"], num)
    if isinstance(found.get("weigh"), dict):
        found["weigh"] = _weights(found["weigh"], num)
    return found


def led(free, negative: dict | None) -> dict:
    """The negative prompts that a chain reads: those beside which it generates something else."""
    return {name: value for name, value in (negative or {}).items() if set(free) - {name}}


def require_led(pipe, task: str, names, levels: bool, negative: dict | None) -> None:
    """UserError for a negative prompt that no chain of a call reads. names, levels: of `chains`."""
    every = [tasks.parse(pipe.vocab, rule).free for rule, _ in chains(pipe, task, names, levels)]
    for name in negative or {}:
        if not any(name in led(free, negative) for free in every):
            raise UserError(
                f"negative {name!r} changes nothing: task {task!r} generates nothing beside it"
            )


def _weights(weigh: dict | None, num: int) -> dict | None:
    """Weights of given values for the next step, where each sample has a row: lists repeated."""
    return weigh and {n: np.repeat(w, num) if np.size(w) > 1 else w for n, w in weigh.items()}


def _repeated(pipe, negative: dict | None, num: int) -> dict | None:
    """Negative prompts for the next step, where each sample has a row: as ids, `num` times."""
    rows = {name: values.ids(pipe, name, given) for name, given in (negative or {}).items()}
    return {n: r if len(r) == 1 else np.repeat(r, num, axis=0) for n, r in rows.items()} or None


def check(pipe, task: str, names) -> tuple[list[str], list[str]]:
    """(what is generated first, what is generated then) of a task; UserError as of `begin`."""
    names = _listed(names)
    rule = tasks.parse(pipe.vocab, task)
    able = [m.name for m in pipe.vocab.modalities if m.name not in rule.given and not m.inputs]
    for name in names:
        if name not in able:
            expected = ", ".join(able)
            raise UserError(f"begin_with {name!r}: task {task!r} can begin with {expected}")
    if set(both := pipe.vocab.levels(names)) - {*names} <= set(rule.free):
        names = both
    rest = [name for name in rule.free if name not in names]
    if task == "infill" or not rest or not names:
        raise UserError(
            f"begin_with {', '.join(names)!r}: expected some, and not all, of what a rule such as "
            "image,text generates"
        )
    return names, rest


def _listed(names) -> list[str]:
    if isinstance(names, bytes | dict) or not np.iterable(names):
        raise UserError(f"begin_with = {names!r}, expected names of modalities such as 'image'")
    return [names] if isinstance(names, str) else list(names)
