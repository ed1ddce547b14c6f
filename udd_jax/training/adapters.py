"""Low-rank adapters: few pictures change each matrix of a finished run by a product of two.

    W' = W + down up,      W [n, in, out], down [n, in, r], up [n, r, out]

for the matrices of the n blocks (Hu et al. 2021, arXiv 2106.09685). All other parameters stay.
`up` is zero at first, so the training starts at the finished run. The trainer's parameters are the
adapters alone, and what it leaves in the folder of the run are the merged weights W'. Therefore
only the training knows of adapters: sampling, export and conversion see an ordinary run.
"""

import jax
import jax.numpy as jnp
from flax import traverse_util


def rank_of(config) -> int:
    """`train.adapters.rank`; 0 for a config that is older than adapters."""
    return config.train.get("adapters", {}).get("rank", 0)


def begin(config, start: dict | None, key: jax.Array) -> tuple[dict | None, dict | None]:
    """(what stays the same, the parameters to begin with); nothing stays without adapters."""
    rank = rank_of(config)
    return (start, create(start, rank, key)) if rank else (None, start)


def create(base: dict, rank: int, key: jax.Array) -> dict:
    """Adapters for the matrices of the blocks of `base`: {..., "kernel": {"down", "up"}}.

    down is N(0, 1 / in), up is 0; both are float32.
    """
    made = {}
    for number, (path, p) in enumerate(sorted(traverse_util.flatten_dict(base).items())):
        if path[-1] == "kernel" and p.ndim == 3:
            layers, inputs, outputs = p.shape
            noise = jax.random.normal(jax.random.fold_in(key, number), (layers, inputs, rank))
            made[*path, "down"] = noise * inputs**-0.5
            made[*path, "up"] = jnp.zeros((layers, rank, outputs))
    return traverse_util.unflatten_dict(made)


def merge(base: dict | None, adapters: dict) -> dict:
    """The weights W + down up, with the names and shapes of `base`; without one, `adapters`."""
    if base is None:
        return adapters
    low, merged = traverse_util.flatten_dict(adapters), traverse_util.flatten_dict(base)
    for *path, name in low:
        if name == "down":
            change = jnp.matmul(low[*path, "down"], low[*path, "up"])
            merged[tuple(path)] = merged[tuple(path)] + change
    return traverse_util.unflatten_dict(merged)


def over(loss_fn, base: dict | None):
    """`loss_fn` as a function of the adapters of `base`; without a base, `loss_fn` itself."""
    if base is None:
        return loss_fn
    return lambda adapters, *inputs: loss_fn(merge(base, adapters), *inputs)
