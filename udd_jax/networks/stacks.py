"""How the blocks of a network are connected. Each way is a function in the table `STACKS`.

    stack(block, settings, keep, layers=, unroll=, remat=) -> (h, *context) -> (h, kept)

`block(settings, keep)` makes a module. Its call takes `h` and the context: the times, the attention
bias, the modalities that attend to themselves only, and the kept keys and values. The first three
are shared by all layers; the last has a leading axis of layers. A stack is called inside the
network's forward pass. Its modules therefore belong to the network, and their names are parameter
names. If `model.decoder_layers` is not 0, the stack gets it, too.

All stacks here have the parameters of `plain`, so a run of one can start from the weights of
another (`init_from`). Those with skips add the projections of `Skips`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.networks import layers as parts
from udd_jax.runtime import sharding

DOTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def plain(block, settings, keep, *, layers: int, unroll: int, remat: str):
    """`layers` equal blocks in sequence; their parameters have a leading axis of layers.

    unroll: blocks in one iteration of the loop. remat: "none", "full" (the backward pass recomputes
    every block), or "dots" (it keeps the results of matrix products and recomputes the rest).
    """
    if remat != "none":
        block = nn.remat(block, prevent_cse=False, policy=DOTS if remat == "dots" else None)
    scanned = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=layers,
        unroll=unroll,
    )
    return scanned(settings, keep, name="blocks")


def long_skips(block, settings, keep, *, layers: int, unroll: int, remat: str):
    """The second half takes the outputs of the first half, the last one first (U-ViT, 2209.12152).

    A block in the middle of an odd number has no skip.
    """
    skips = tuple(reversed(range(layers // 2)))
    return _with_skips(block, settings, keep, skips, layers=layers, unroll=unroll, remat=remat)


def encoder_decoder(
    block, settings, keep, *, layers: int, unroll: int, remat: str, decoder_layers: int = 0
):
    """The last D = `decoder_layers` blocks take outputs of the first E = `layers` - D.

    Block j of the decoder takes the output of block floor((D - 1 - j) E / D) of the encoder. This
    rule is ours, the idea is that of ASCEND (2212.13771). D = 0 is `plain`, D = E `long_skips`.
    """
    encoder = layers - decoder_layers
    skips = tuple(
        (decoder_layers - 1 - j) * encoder // decoder_layers for j in range(decoder_layers)
    )
    return _with_skips(block, settings, keep, skips, layers=layers, unroll=unroll, remat=remat)


class Skips(nn.Module):
    """The projections of `count` skips: h <- h + [h; skip] W + b, with W = 0 and b = 0 at first.

    [h; skip] is thus projected by [I 0] + W, which starts at [I 0]. With the identity apart, the
    start is bit for bit the network without skips, however a device rounds its products. Returns
    the weights of a Dense layer with a leading axis: kernel [count, 2 D, D], bias [count, D].
    """

    count: int

    @nn.compact
    def __call__(self, width: int):
        zeros = nn.initializers.zeros
        return {
            "kernel": self.param("kernel", zeros, (self.count, 2 * width, width)),
            "bias": self.param("bias", zeros, (self.count, width)),
        }


def _with_skips(block, settings, keep, skips: tuple[int, ...], *, layers, unroll, remat):
    """The last len(skips) blocks take the output of block skips[j] in addition to h."""
    blocks = plain(block, settings, keep, layers=layers, unroll=unroll, remat=remat)
    if not skips:
        return blocks
    first = layers - len(skips)  # blocks without a skip
    one = block(settings, keep, parent=None)

    def run(h, time, bias, alone, kept):
        projections = Skips(len(skips), name="skip")(h.shape[-1])
        if blocks.is_initializing():
            return blocks(h, time, bias, alone, kept)  # makes the parameters
        project = parts.Dense(h.shape[-1], dtype=settings.dtype, parent=None)

        def layer(h, inputs):
            params, kept, skip = inputs
            if skip is not None:
                weights, earlier = skip
                both = jnp.concatenate([h, earlier], axis=-1)
                h = h + project.apply({"params": weights}, both)
                h = sharding.constrain(h, "data", None, None)
            h, to_keep = one.apply({"params": params}, h, time, bias, alone, kept)
            return h, (h if skip is None else None, to_keep)

        if remat != "none":
            policy = DOTS if remat == "dots" else None
            layer = jax.checkpoint(layer, prevent_cse=False, policy=policy)
        stacked = blocks.variables["params"], kept
        begin = jax.tree.map(lambda p: p[:first], stacked)
        end = jax.tree.map(lambda p: p[first:], stacked)
        h, (outputs, early) = jax.lax.scan(layer, h, (*begin, None), unroll=unroll)
        skipped = projections, outputs[np.array(skips)]
        h, (_, late) = jax.lax.scan(layer, h, (*end, skipped), unroll=unroll)
        return h, jax.tree.map(lambda *a: jnp.concatenate(a), early, late)

    return run


STACKS = {"plain": plain, "long_skips": long_skips, "encoder_decoder": encoder_decoder}
