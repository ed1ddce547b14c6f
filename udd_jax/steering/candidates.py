"""Candidates, ranked by the model's own bound in the other direction, by the match of the dual
encoder (`networks.matching`), or by a user's function."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import tasks
from udd_jax.errors import UserError


class Ranking(NamedTuple):
    """Candidates in groups of `num`: of `Pipeline.rerank`."""

    order: np.ndarray  # int64[groups, num], the best first
    scores: np.ndarray  # float64[groups, num], in the order of the candidates; larger is better


def directions(pipe, task: str, by="bound") -> tuple[str, ...]:
    """The tasks whose bounds say how well a sample of `task` fits; none unless by is "bound".

    Of a task with given modalities the other way round; else each modality given the others.
    UserError if there is none, or as of `check`.
    """
    check(pipe, by)
    rule = tasks.typed(pipe.vocab, task)
    if by == "match" and not {"image", "text"} <= {*rule.free, *rule.given}:
        raise UserError(f"by = 'match' compares image and text, which task {task!r} does not have")
    if by != "bound":
        return ()
    features = any(m.inputs and m.name in rule.given for m in pipe.vocab.modalities)
    if task == "infill" or len(rule.free + rule.given) < 2 or features:
        raise UserError(f"task {task!r} has no other direction to rank candidates by")
    if rule.given:
        return (f"{','.join(rule.given)}|{','.join(rule.free)}",)
    others = lambda name: ",".join(n for n in rule.free if n != name)  # noqa: E731
    return tuple(f"{name}|{others(name)}" for name in rule.free)


def check(pipe, by) -> None:
    """UserError for another `by`, or for "match" without a dual encoder."""
    if by == "match":
        _ = pipe.dual_encoder
    elif by != "bound" and not callable(by):
        raise UserError(f"rerank: by = {by!r}, expected 'bound', 'match' or a function")


def rank(pipe, tokens: dict, num: int, ways, by="bound", times=8, seed=0) -> Ranking:
    """Ranks rows of {modality: ids int32[n, length]}, `num` consecutive ones at a time.

    ways: of `directions`. by, times, seed: as in `Pipeline.rerank`. Errors as in `check`.
    """
    check(pipe, by)
    if by == "bound":
        parts = [
            pipe.score(tokens, task=task, times=times, seed=seed, common=True).sum(1)
            for task in ways
        ]
        scores = np.sum(parts, axis=0)
    elif by == "match":
        scores = pipe.dual_encoder.match(tokens["image"], tokens["text"])
    else:
        scores, count = np.asarray(by(tokens), np.float64), len(next(iter(tokens.values())))
        if scores.shape != (count,):
            raise UserError(
                f"by: the function returned {list(scores.shape)}, expected [{count}], a number for "
                "each candidate"
            )
    scores = scores.reshape(-1, num)
    return Ranking(np.argsort(-scores, axis=1, kind="stable"), scores)


def best(pipe, tokens, calls, states, num: int, ways, by):
    """Keeps the best of each `num` consecutive samples of a batch."""
    ids = {k: np.asarray(v) for k, v in pipe.vocab.split(jnp.asarray(tokens)).items()}
    order = rank(pipe, ids, num, ways, by).order[:, 0]
    rows = np.arange(len(order)) * num + order
    return tokens[rows], calls[rows], states[rows]
