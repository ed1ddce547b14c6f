"""What to try next with a run: command lines for the tasks that it was trained for."""

import shlex

from udd_jax.diffusion import tasks

MOST = 3
# {kind: what is given in an example}; a value of another kind is a file
VALUES = {"text": '"a small red circle"', "length": "4"}
# {kind: the ending of the files that `sample_files` writes and that may be given}
ENDINGS = {"image": ".png", "coarse": ".png", "sound": ".wav", "layout": ".json"}
ENDINGS |= {"embedding": ".npy"}
SIX = ("image", "text")  # the modalities of the tasks that have names


def tries(pipe, command: str, task: str | None, there: dict[str, str]) -> list[str]:
    """At most MOST lines, of other tasks than `task`, which was done.

    Where a run has more than an image and a text, most of the lines are about these.

    command: the beginning of each; there: {kind: the path of such a file}. A rule that would be
    given a file of another kind is left out.
    """
    vocab, mixture = pipe.vocab, pipe.config.train.mixture.to_dict()
    trained = [rule for rule, weight in mixture.items() if weight > 0]
    everything = any(tasks.ALIASES.get(rule) == tasks.EVERY for rule in trained)
    values = VALUES | {kind: shlex.quote(path) for kind, path in there.items()}
    named = {
        "t2i": f'{command} --prompt="a small red circle" --num=16',
        "pair": f"{command} --task=pair --num=16",
        "i2t": f"{command} --task=i2t --image={values.get('image')}",
        "text": f"{command} --task=text --num=16",
    }
    knows = lambda name: everything or any(tasks.same(vocab, name, r) for r in trained)  # noqa: E731
    named = {name: line for name, line in named.items() if knows(name)}
    others = {}
    for rule in [*(_around_text(vocab) if "any" in trained else ()), *trained]:
        known = any(tasks.same(vocab, rule, name) for name in (*named, *others))
        if rule not in tasks.ALIASES and not known:
            given = tasks.typed(vocab, rule).given
            words = "".join(f" --given {name}={values.get(pipe.kinds[name])}" for name in given)
            others[rule] = f'{command} --task="{rule}"{words}'

    def left(lines: dict) -> list[str]:
        """Those that are not done and whose files are there."""
        found = []
        for name, line in lines.items():
            done = task is not None and tasks.same(vocab, name, task)
            given = tasks.typed(vocab, name).given
            if not done and all(pipe.kinds[each] in values for each in given):
                found.append(line)
        return found

    levels = (*SIX, vocab.coarse and vocab.coarse.name)
    further = lambda rule: any(n not in levels for side in tasks.typed(vocab, rule) for n in side)  # noqa: E731
    front = left({rule: line for rule, line in others.items() if further(rule)})
    back = left({rule: line for rule, line in others.items() if not further(rule)})
    plain = left(named)
    return [*plain[:1], *front, *plain[1:], *back][:MOST]


def _around_text(vocab) -> list[str]:
    """The rules of a text and one other modality, for those that have no named task."""
    names = [m.name for m in vocab.modalities if m.name not in SIX]
    made = [m.name for m in vocab.modalities if m.name in names and not m.inputs]
    return [*(f"text|{name}" for name in names), *(f"{name}|text" for name in made)]
