"""Are the sounds of stored data heard right? A listener that names them, trained on real ones.

The first caption of a recording is its name. The classifier of `recognition` learns the names from
the spectrograms of the training recordings, `evaluate.listener` steps long. What it says of
held-out recordings, and of these after the tokenizer and the vocoder, stands beside what it says of
generated ones: the second is what a perfect model would reach.
"""

import pathlib

import numpy as np

from udd_jax import modalities
from udd_jax.data import reading
from udd_jax.data.sources import listing
from udd_jax.evaluation import held_out, recognition
from udd_jax.evaluation.metrics import agreement as rates
from udd_jax.evaluation.metrics import intervals


def obtain(pipe, workdir) -> dict:
    """{modality: its `recognition.Recogniser`} of each sound, from `workdir` or trained now.

    An `intervals.Unmeasured` has the reason why there is none. {} if `evaluate.listener` is 0, or
    the data are an embedded world, whose sounds can be read exactly.
    """
    steps = pipe.config.evaluate.get("listener", 0)
    source = held_out.source(pipe, "train") if steps else None
    if not isinstance(source, listing.Listing):
        return {}
    own = modalities.own(pipe.config)
    names = [name for name, row in own.items() if row["kind"] == "sound"]
    return {name: _listener(pipe, source, name, workdir, steps) for name in names}


def _listener(pipe, source, name: str, workdir, steps: int):
    settings, names, pictures = pipe.tokenizers[name].settings, [], []
    views = modalities.views(pipe.config, incomplete=True)
    for example in reading.examples(source, 0, min(recognition.MOST, len(source)), views):
        if example.captions and name in example.extra:
            names.append(example.captions[0].casefold())
            pictures.append(settings.picture(example.extra[name][None])[0])
    if not names:
        return intervals.Unmeasured(f"no record of the training has a caption and a {name}")
    path = pathlib.Path(workdir) / recognition.FOLDER / name
    words = frozenset(word for text in names for word in text.split())
    return recognition.learned(path, names, np.stack(pictures), words, steps, pipe.config.seed)


def heard(pipe, listener: recognition.Recogniser, name: str, sounds) -> list[str]:
    """What is heard in sounds float32[n, samples] of a modality."""
    _, logits = listener.read(pipe.tokenizers[name].settings.picture(sounds))
    return [listener.names[i] for i in logits.argmax(axis=1)]


def agreement(pipe, items: held_out.Items, rule, local: dict, listeners: dict) -> dict:
    """{"agreement": the share of samples whose sounds and text have one name}.

    rule: a `tasks.Rule`; local: {modality: local ids int32[n, length]} of its samples. The name of
    what is given is that of its record. {} for a rule without a sound that has a listener, or
    without a text.
    """
    named = (*rule.free, *rule.given)
    hearing = {name: found for name, found in listeners.items() if name in named}
    if "text" not in named or not hearing:
        return {}
    count, some = len(local["text"]), next(iter(hearing.values()))
    truth = [_said(some, texts[0]) for texts in items.references[:count]]
    told = {name: truth for name in (*hearing, "text")}
    for name in set(rule.free) & set(told):
        values = pipe.codecs[name].decode(local[name])
        if name == "text":
            told[name] = [_said(some, text) for text in values]
        else:
            told[name] = heard(pipe, hearing[name], name, values)
    right = [len(set(row)) == 1 and None not in row for row in zip(*told.values(), strict=True)]
    return {"agreement": rates.rate(right)}


def _said(listener: recognition.Recogniser, caption: str) -> str | None:
    number = listener.name(caption)
    return listener.names[number] if number >= 0 else None


def ceilings(pipe, listeners: dict) -> dict:
    """{modality: {"names", their number; "real", the share of held-out recordings that is heard
    right; "kept", that after the tokenizer and the vocoder}}, or {"unmeasured": the reason}."""
    found = {}
    for name, listener in listeners.items():
        if isinstance(listener, intervals.Unmeasured):
            found[name] = {"unmeasured": listener.unmeasured}
            continue
        items = held_out.read(pipe, pipe.config.evaluate.samples, names=(name, "text"))
        truth = [_said(listener, texts[0]) for texts in items.references]
        shown = {"real": items.values(name), "kept": pipe.codecs[name].decode(items.further[name])}
        shares = {
            kind: rates.rate(np.equal(heard(pipe, listener, name, sounds), truth))
            for kind, sounds in shown.items()
        }
        found[name] = {"names": len(listener.names), **shares}
    return found
