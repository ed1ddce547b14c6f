"""What to try next with a run: command lines for the tasks that it was trained for."""

import shlex

from udd_jax.diffusion import tasks

MOST = 3
# {kind: what is given in an example}
VALUES = {
    **{"text": '"a small red circle"', "image": "a.png", "coarse": "a.png", "sound": "a.wav"},
    **{"layout": "a.json", "length": "4", "embedding": "a.npy", "features": "a.npy"},
}


def tries(pipe, command: str, task: str | None, image: str) -> list[str]:
    """At most MOST lines, of other tasks than `task`, which was done.

    command: the beginning of each; image: the path of a picture that is there.
    """
    vocab, mixture = pipe.vocab, pipe.config.train.mixture.to_dict()
    trained = [rule for rule, weight in mixture.items() if weight > 0]
    everything = any(tasks.ALIASES.get(rule) == tasks.EVERY for rule in trained)
    lines = {
        "t2i": f'{command} --prompt="a small red circle" --num=16',
        "pair": f"{command} --task=pair --num=16",
        "i2t": f"{command} --task=i2t --image={shlex.quote(image)}",
        "text": f"{command} --task=text --num=16",
    }
    knows = lambda name: everything or any(tasks.same(vocab, name, r) for r in trained)  # noqa: E731
    lines = {name: line for name, line in lines.items() if knows(name)}
    for rule in trained:
        if rule not in tasks.ALIASES and not any(tasks.same(vocab, rule, name) for name in lines):
            given = tasks.typed(vocab, rule).given
            values = (f" --given {name}={VALUES[pipe.kinds[name]]}" for name in given)
            lines[rule] = f'{command} --task="{rule}"{"".join(values)}'
    done = lambda name: task is not None and tasks.same(vocab, name, task)  # noqa: E731
    return [line for name, line in lines.items() if not done(name)][:MOST]
