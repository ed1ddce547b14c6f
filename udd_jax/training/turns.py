"""Whose turn is a step: which rows of the mixture it has, and whether its loss is that of prefixes.

Both are spread evenly over the steps by multiples of an irrational number, less their whole parts.
A step is told apart by the seed and its own number only, so a run that goes on with the same
`train.steps` takes the same turns.
"""

import math
from collections.abc import Callable

import numpy as np

from udd_jax.diffusion import tasks
from udd_jax.diffusion.vocab import Vocab

GOLDEN = (math.sqrt(5) - 1) / 2


def parts(config, vocab: Vocab) -> dict[tuple[str, ...], dict[str, float]]:
    """{names of modalities that a step leaves out: the mixture of its rows}."""
    mixture = config.train.mixture.to_dict()
    if config.model.get("absent") == "left_out" and not config.get("incomplete"):
        return tasks.by_absent(vocab, mixture)
    return {(): mixture}


def prefix_steps(config) -> int:
    """How many first steps have the loss of prefixes: none from a finished run, and at most two
    thirds of all, so that a short training still has steps for the diffusion. A run that was short
    and is continued with more `train.steps` counts anew."""
    if config.get("init_from"):
        return 0
    return min(config.train.get("prefix_steps", 0), 2 * config.train.steps // 3)


def prefix_share(config) -> float:
    """The share of the later steps that have it."""
    return config.train.get("prefix_share", 0.0)


def prefix_weight(config) -> float:
    """What that loss is multiplied by. Where both losses go on, a token weighs alike in them: in
    the mean over the times, -log p has weight lambda T in the auxiliary loss, and 1 in the bound.
    """
    return 1 + config.train.auxiliary * config.diffusion.steps if prefix_share(config) else 1


def of(config, shares) -> Callable[[int], tuple[int, bool]]:
    """step -> (the number of its part, whether its loss is that of prefixes).

    shares: the weight of each part. Each has its share of all steps, and of those with prefixes.
    """
    first, kept, ends = prefix_steps(config), prefix_share(config), np.cumsum(shares)

    def turn(step):
        number = config.seed + step
        part = int(np.searchsorted(ends, number * GOLDEN % 1 * ends[-1], side="right"))
        return part, step < first or number * math.sqrt(2) % 1 < kept

    return turn
