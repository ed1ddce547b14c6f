"""How blocks follow one another: a function in a table.

    stack(block, settings, keep, layers=, unroll=, remat=) -> (h, *context) -> (h, kept)

`block(settings, keep)` is a module whose call takes `h` and the context of all layers: times,
bias, which modalities stand alone, and, a layer each, the keys and values that are kept. A stack
is called inside the network's forward pass, so the modules that it makes are the network's own,
and the names that it gives them are names of parameters.
"""

import flax.linen as nn
import jax


def plain(block, settings, keep, *, layers: int, unroll: int, remat: str):
    """`layers` equal blocks, one after another; their parameters have a leading axis of layers.

    unroll: blocks compiled in one turn of the loop; remat: "none", "full", or "dots", which keeps
    the results of matrix products and recomputes the rest in the backward pass.
    """
    if remat != "none":
        dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        block = nn.remat(block, prevent_cse=False, policy=dots if remat == "dots" else None)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=layers,
        unroll=unroll,
    )
    return scanned(settings, keep, name="blocks")


STACKS = {"plain": plain}
