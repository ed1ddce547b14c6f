"""How the blocks of a network are connected. Each way is a function in the table `STACKS`.

    stack(block, settings, keep, layers=, unroll=, remat=) -> (h, *context) -> (h, kept)

`block(settings, keep)` makes a module. Its call takes `h` and the context: the times, the attention
bias, the modalities that attend to themselves only, and the kept keys and values. The first three
are shared by all layers; the last has a leading axis of layers. A stack is called inside the
network's forward pass. Its modules therefore belong to the network, and their names are parameter
names.
"""

import flax.linen as nn
import jax


def plain(block, settings, keep, *, layers: int, unroll: int, remat: str):
    """`layers` equal blocks in sequence; their parameters have a leading axis of layers.

    unroll: blocks in one iteration of the loop. remat: "none", "full" (the backward pass recomputes
    every block), or "dots" (it keeps the results of matrix products and recomputes the rest).
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
