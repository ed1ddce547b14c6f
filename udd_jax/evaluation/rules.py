"""Any modalities from any others: samples of each rule in `evaluate.rules`, and their agreement.

Conditions are held-out items in order. In an embedded world every value can be read, given ones
and generated ones. A sample is right if each generated value is readable and at least one scene
fits all of them, given and generated (`World.fitting`). A coarse level is read as the picture that
it decodes to. `samples/RULE.npz` has the samples of a
rule (with `_from_` for the bar and `_` for commas):

    tokens int32[n, L]     about: JSON, everything that the samples depend on, and their seconds
    NAME                   the first values of each modality, given and generated, for the report

A file with the right `about` is read instead of generated again.

In stored data nothing can be read exactly. With `evaluate.listener` a listener names the sounds
(listening.py); a sample is right if its sounds and its text, given and generated, have one name.
"""

import itertools
import json
import time

import numpy as np

from udd_jax import modalities
from udd_jax.data import token_cache
from udd_jax.diffusion import tasks
from udd_jax.evaluation import held_out, listening, nearest_training, samples
from udd_jax.evaluation.metrics import agreement, intervals
from udd_jax.steering import stepwise

# In `evaluate.rules`: each one from each other and from all others, and all from nothing.
EVERY = "every"
SHOWN = 4  # values of a rule for the report


def every(names, known=()) -> list[str]:
    """The rules that EVERY stands for, for modalities of these names; `known` are given alone."""
    names = list(names)
    made = [name for name in names if name not in known]
    rules = [f"{a}|{b}" for a, b in itertools.permutations(names, 2) if a in made]
    if len(names) > 2:
        rules += [f"{a}|{','.join(b for b in names if b != a)}" for a in made]
    return [*rules, ",".join(made)]


def asked(config, vocab) -> list[str]:
    """The rules of `config.evaluate.rules`. ValueError, one line, for a bad one."""
    names, found = [m.name for m in vocab.modalities if not m.level_of], []
    known = [m.name for m in vocab.modalities if m.inputs]
    for rule in config.evaluate.get("rules", ()):
        found += every(names, known) if rule == EVERY else [rule]
    for rule in found:
        tasks.parse(vocab, rule)
    return found


def named(config, vocab) -> list[tuple[str, ...]]:
    """What a record must have to be measured by a rule, for each rule of `asked`."""
    parsed = (tasks.parse(vocab, rule) for rule in asked(config, vocab))
    return [modalities.recorded(config, (*rule.free, *rule.given)) for rule in parsed]


def measure(
    pipe,
    items,
    folder,
    made_of: dict,
    say=lambda line: None,
    listeners: dict | None = None,
    training: token_cache.TokenCache | None = None,
) -> dict:
    """{rule: its rates} of `asked`; writes the samples to `folder`.

    items: `held_out.Items`; None if no record is whole. Then, and where records may lack some
    (`incomplete`), each rule is measured on those that have what it names. made_of: hashes of
    weights and tokenizers. listeners: of `listening.obtain`. training: what such items must not be
    in, if it is known; `items` are without it already. Rates: `agreement` and, if several
    modalities are free, `pairwise` {"a, b": rate}; `readable` {modality: rate}; both for an
    embedded world only, and `agreement` where a listener names the sounds. Always
    `given_tokens_changed`, `count` and `seconds`.
    """
    found, count = {}, pipe.config.evaluate.samples
    whole = None if pipe.config.get("incomplete") else items
    for rule in asked(pipe.config, pipe.vocab):
        parsed = tasks.parse(pipe.vocab, rule)
        if whole is None:
            items = held_out.read(pipe, count, names=(*parsed.free, *parsed.given))
            if training is not None:
                items = nearest_training.not_learned(pipe, training, items, say)
        tokens, about = _sampled(pipe, items, rule, folder, made_of)
        given = pipe.vocab.parts(items.tokens)
        local = {name: np.asarray(ids) for name, ids in pipe.vocab.split(tokens).items()}
        tokens_of = [
            n for n in parsed.given if not pipe.vocab.modalities[pipe.vocab.index(n)].inputs
        ]
        same = [(local[n] == given[n][: len(tokens)]).all(1) for n in tokens_of]
        found[rule] = {
            "count": len(tokens),
            "seconds": about["seconds"],
            "given_tokens_changed": int((~np.all(same, axis=0)).sum()) if same else 0,
        }
        if items.world and items.world.fitting:
            found[rule] |= _agreement(pipe, items, parsed, local)
        elif listeners:
            found[rule] |= listening.agreement(pipe, items, parsed, local, listeners)
        rate = found[rule].get("agreement")
        say(f"{rule}: {rate['rate']:.3f} agree" if rate else f"{rule}: {len(tokens)} samples")
    return found


def sections(pipe, items, workdir, folder, made_of: dict, say=lambda line: None) -> dict:
    """The entries of the result: `rules`, and `listener` where there is one. {} without rules.

    Arguments as of `measure`; workdir: where the listeners are.
    """
    if not asked(pipe.config, pipe.vocab):
        return {}
    listeners = listening.obtain(pipe, workdir)
    found = {"listener": listening.ceilings(pipe, listeners)} if listeners else {}
    for name, rates in found.get("listener", {}).items():
        shares = [f"{kind} {rates[kind]['rate']:.3f}" for kind in ("real", "kept") if kind in rates]
        say(f"listener of the {name}: {', '.join(shares) or rates['unmeasured']}")
    able = {n: o for n, o in listeners.items() if not isinstance(o, intervals.Unmeasured)}
    learned = held_out.split_of(pipe) == "train"
    training = None if learned else nearest_training.open_cache(workdir)
    return found | {"rules": measure(pipe, items, folder, made_of, say, able, training)}


def _sampled(pipe, items, rule: str, folder, made_of: dict):
    """(tokens int32[n, L], about) of a rule, read or generated."""
    options, parsed = pipe.config.evaluate, tasks.parse(pipe.vocab, rule)
    count = min(options.samples, len(items))
    about = {"rule": rule, "count": count, "seed": options.seed, "items": items.hash}
    about |= {"settings": vars(pipe.settings(rule)), **made_of}
    if levels := stepwise.levels(pipe, rule):
        about["levels"] = levels
    about = json.loads(json.dumps(about))
    path = folder / f"{file_name(rule)}.npz"
    if file := samples.stored(path):
        old = json.loads(str(file["about"]))
        if {**old, "seconds": None} == {**about, "seconds": None}:
            return file["tokens"], old
    started = time.perf_counter()
    known = pipe.vocab.parts(items.tokens)
    given = {name: known[name][:count] for name in parsed.given}
    size = min(options.batch_size, count)
    asked_for = {"seed": options.seed, "batch_size": size, "trace": samples.FRAMES}  # one program
    made = pipe.generate(rule, count, given=given, **asked_for)
    about["seconds"] = round(time.perf_counter() - started, 3)
    shown = {name: made.values[name][:SHOWN] for name in parsed.free}
    for name in parsed.given:
        level = pipe.kinds[name] == "coarse"
        few = pipe.codecs[name].decode(known[name][:SHOWN]) if level else items.values(name)[:SHOWN]
        shown[name] = few
    samples.write(path, {"tokens": made.tokens, "about": json.dumps(about), **shown})
    return made.tokens, about


def file_name(rule: str) -> str:
    """The name of a rule's samples, which are not those of a task of that name."""
    name = rule.replace(" ", "").replace("|", "_from_").replace(",", "_")
    return f"rule_{name}" if name in samples.TASKS else name


def _agreement(pipe, items, rule: tasks.Rule, local: dict) -> dict:
    """The rates of a rule; local: {modality: local ids int32[n, length]} of its samples."""
    world, count = items.world, len(local[rule.free[0]])
    # A length tells nothing that could disagree.
    known = (
        "image",
        "text",
        *(n for n in pipe.kinds if _as(pipe.kinds, n) == "image"),
        *world.senses,
    )
    rule = tasks.Rule(*(tuple(n for n in side if n in known) for side in rule))
    if not rule.free:
        return {}
    read = {name: _truth(pipe, items, name, count) for name in rule.given}
    for name in rule.free:
        values = pipe.codecs[name].decode(pipe.vocab.joined(name, local))
        read[name] = _read(pipe, world, name, values)
    coarse, judged = pipe.vocab.coarse, dict(read)
    if coarse and {coarse.name, coarse.level_of} <= set(rule.free):
        del judged[coarse.name]  # the preview of a picture that is whole
    rates = {
        "readable": {n: agreement.rate([r is not None for r in read[n]]) for n in rule.free},
        "agreement": agreement.rate(_agree(world, judged, pipe.kinds)),
    }
    if len(rule.free) > 1:
        rates["pairwise"] = {
            f"{a}, {b}": agreement.rate(_agree(world, {a: read[a], b: read[b]}, pipe.kinds))
            for a, b in itertools.combinations(rule.free, 2)
        }
    return rates


def _agree(world, read: dict, kinds: dict | None = None) -> list[bool]:
    """For each sample whether at least one scene fits all readings {modality: n readings}.

    kinds: {modality: its kind}. Two readings of pictures must be the same.
    """
    rows = list(zip(*read.values(), strict=True))
    known = [None not in row for row in rows]
    if len(read) == 1:
        return known
    told = [_as(kinds or {}, name) for name in read]

    def fit(row):
        one = dict(zip(told, row, strict=True))
        same = all(one[name] == value for name, value in zip(told, row, strict=True))
        return same and bool(world.fitting(**one))

    return [ok and fit(row) for ok, row in zip(known, rows, strict=True)]


def _as(kinds: dict, name: str) -> str:
    """The name under which the world knows a modality: a coarse level is a picture."""
    return "image" if kinds.get(name) == "coarse" else name


def _read(pipe, world, name: str, values) -> list:
    """What the world reads from generated values of a modality, None where it is unclear."""
    if _as(pipe.kinds, name) == "image":
        return world.read_images(values)
    if name == "text":
        return [world.parse_caption(text) for text in values]
    return world.senses[name].read(values)


def _truth(pipe, items, name: str, count: int) -> list:
    """What the given values tell: of an item's scene, or of its caption."""
    scenes = items.scenes[:count]
    if _as(pipe.kinds, name) == "image":
        return scenes
    if name == "text":
        return [items.world.parse_caption(text) for text in items.captions[:count]]
    return [items.world.senses[name].told(scene) for scene in scenes]
