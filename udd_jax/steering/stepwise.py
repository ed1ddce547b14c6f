"""A rule in two steps: some of what is free is generated first, the rest given it.

image,text|sound  beginning with text:    text|sound,  then  image|sound,text
"""

import jax
import numpy as np

from udd_jax import modalities, values
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError


def begin(pipe, task: str, names, count, given, num: int, keys_of, **options) -> tuple[str, dict]:
    """Generates the modalities `names` of a task: (the rule of the rest, what is given in it).

    count, given, num: as of `Pipeline.stream`. keys_of: number of samples -> their keys. options:
    of `Pipeline.stream` for the first step. Given are ids then, with a row for each sample.

    UserError, one line: a name that the task does not generate, or nothing is left.
    """
    names, rest = check(pipe, task, names)
    rule = tasks.parse(pipe.vocab, task)
    given = {name: values.ids(pipe, name, rows) for name, rows in (given or {}).items()}
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys_of(values.count(count, given) * num), 1)
    first = ",".join(names) + ("|" + ",".join(rule.given) if rule.given else "")
    made = pipe.generate(first, count, given=given, num=num, keys=keys, **options)
    known = (*rule.given, *names)
    ids = jax.device_get(pipe.vocab.split(jax.numpy.asarray(made.tokens)))
    for name in modalities.features(pipe.config):
        if name in given:
            ids[name] = np.repeat(given[name], num, axis=0)
    return f"{','.join(rest)}|{','.join(known)}", {name: ids[name] for name in known}


def check(pipe, task: str, names) -> tuple[list[str], list[str]]:
    """(what is generated first, what is generated then) of a task; UserError as of `begin`."""
    names = [names] if isinstance(names, str) else list(names)
    rule = tasks.parse(pipe.vocab, task)
    for name in names:
        if name not in rule.free:
            expected = ", ".join(rule.free)
            raise UserError(f"begin_with {name!r}: task {task!r} generates {expected}")
    rest = [name for name in rule.free if name not in names]
    if task == "infill" or not rest or not names:
        raise UserError(
            f"begin_with {', '.join(names)!r}: expected some, and not all, of what a rule such as "
            "image,text generates"
        )
    return names, rest
