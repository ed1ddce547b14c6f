"""Stage experts: copies of the network, each for an interval of times (eDiff-I, 2211.01324).

    expert i answers for rows with  boundaries[i - 1] < t / T <= boundaries[i]

`split` copies a trained network, or trained experts for finer intervals; training goes on with all
copies. A row's time is that of what it generates. An expert without any row in the batch is not
evaluated, so a step of a sampler in which all rows have one time costs as much as one network. So
does a training step, whose times are of one interval (`time_sampling.draw`), but for rows of the
task `independent`.

The parameters are those of the network, under `expert_0`, `expert_1`, and so on.
"""

import bisect
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from udd_jax.diffusion import time_sampling
from udd_jax.errors import UserError
from udd_jax.networks import layers, transformer

NAME = "expert_{}"


class Experts(transformer.Transformer):
    """A `transformer.Transformer` that switches on t, with the same calls and results.

    boundaries: shares of T, ascending; n of them make n + 1 experts. ValueError for others.
    """

    boundaries: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.length_head:
            raise UserError(
                "model.length_head = True with experts, which have no head: expected False"
            )
        ends = (0.0, *self.boundaries, 1.0)
        if not self.boundaries or not all(a < b for a, b in itertools.pairwise(ends)):
            raise UserError(
                f"experts = {tuple(self.boundaries)}, expected shares of T that ascend between 0 "
                "and 1, such as (0.33, 0.66)"
            )

    @nn.compact
    def _run(self, xt, t, free, bias=None, kept=None, keep=None, soft=None, paint=None, without=()):
        options = layers.options(self, transformer.Transformer)
        experts = [NAME.format(i) for i in range(len(self.boundaries) + 1)]
        if self.is_initializing():
            made = [transformer.Transformer(**options, name=name)(xt, t, free) for name in experts]
            return made[0]
        one, params = transformer.Transformer(**options, parent=None), self.variables["params"]

        def answer(name, kept):
            inputs = (xt, t, free, bias, kept, keep, soft, paint)
            return one.apply({"params": params[name]}, *inputs, without=without, method="_run")

        if keep is not None:
            return {name: answer(name, None) for name in experts}
        clock = jnp.where(self.vocab.any_of(free), t, 0).max(axis=1)
        mine = jnp.asarray(time_sampling.interval_of(self.boundaries, self.steps))[clock]  # int[B]
        logits = None
        for i, name in enumerate(experts):
            given = kept[name] if kept else None

            def evaluated(kept, name=name):
                return answer(name, kept)

            def skipped(kept, evaluated=evaluated):
                shapes = jax.eval_shape(evaluated, kept)
                return tuple(jnp.zeros(y.shape, y.dtype) for y in shapes)

            found = lax.cond((mine == i).any(), evaluated, skipped, given)
            if logits is not None:
                own = (mine == i)[:, None, None]
                found = tuple(jnp.where(own, y, x) for x, y in zip(logits, found, strict=True))
            logits = found
        return logits


def split(params: dict, boundaries, of=()) -> dict:
    """The parameters of `Experts`: copies of one network, or of the experts of boundaries `of`.

    Each is a copy of the one that answers for the middle of its interval. So a binary tree of
    experts grows level by level: (0.5,), trained, and then (0.25, 0.5, 0.75).
    """
    ends = (0.0, *boundaries, 1.0)
    parents = [bisect.bisect_left(of, (a + b) / 2) for a, b in itertools.pairwise(ends)]
    found = [params[NAME.format(i)] if of else params for i in parents]
    return {NAME.format(i): jax.tree.map(lambda p: p, tree) for i, tree in enumerate(found)}


def only_learners(new, old, grads: dict):
    """`new`, a state of a training, with the experts that got no gradient as they are in `old`.

    So with their averages and moments; by momentum and weight decay an optimiser would move them.
    The step, and with it the learning rate, is that of the training. grads: {name: of its
    parameters}; all of `new` if none is an expert's.
    """
    learns = {
        name: jnp.stack([jnp.any(g != 0) for g in jax.tree.leaves(tree)]).any()
        for name, tree in grads.items()
        if name.startswith(NAME.format(""))
    }

    def kept(path, after, before):
        names = [key.key for key in path if getattr(key, "key", None) in learns]
        return jnp.where(learns[names[0]], after, before) if names else after

    return jax.tree.map_with_path(kept, new, old) if learns else new
