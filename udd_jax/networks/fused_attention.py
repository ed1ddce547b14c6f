"""Attention for TPUs as one kernel: the scores of queries and keys never leave the core.

XLA writes the scores and their softmax, float32[B, H, n, n'], to memory and reads them again, in
the forward and the backward pass. At the published size these are most of the bytes that a training
step moves. JAX's own Pallas kernel (flash attention, Dao et al. 2022) works through them in blocks.
On other platforms, and for lengths that do not divide into blocks, plain JAX computes the same
function.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention
from jax.sharding import PartitionSpec as P

from udd_jax.runtime import sharding

LANES = 128  # the lanes of a TPU; lengths must be multiples of it
BLOCK = 512  # at most so many queries, or keys, in a block


def attention(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Like `layers.dot_product_attention`: q [B, n, H, d], k, v [B, n', H, d] -> [B, n, H, d].

    bias: float, broadcast to [B, H, n, n'], or None. Under a mesh each device computes its own rows
    and heads.
    """
    plain = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    if q.shape[1] % LANES or k.shape[1] % LANES:
        return plain(q, k, v, bias=bias)
    if bias is None:
        return jax.lax.platform_dependent(q, k, v, tpu=_on_mesh, default=plain)
    return jax.lax.platform_dependent(q, k, v, bias, tpu=_on_mesh, default=plain)


def _on_mesh(q, k, v, bias=None):
    arrays = [x.swapaxes(1, 2) for x in (q, k, v)]  # [B, H, n, d]
    if bias is not None:
        arrays.append(jnp.broadcast_to(bias, (*arrays[0].shape[:3], k.shape[1])).astype(q.dtype))
    attend, mesh = kernel, jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        place = sharding.fit(P(sharding.DATA, sharding.MODEL, None, None), arrays[0].shape, mesh)
        places = (place,) * len(arrays)
        attend = jax.shard_map(kernel, mesh=mesh, in_specs=places, out_specs=place, check_vma=False)
    return attend(*arrays).swapaxes(1, 2)


def kernel(q, k, v, bias=None):
    """`attention` with the layout [B, H, n, d], on one TPU."""
    n, m = (max(b for b in range(LANES, BLOCK + 1, LANES) if x.shape[2] % b == 0) for x in (q, k))
    blocks = flash_attention.BlockSizes(
        block_b=1,
        block_q=n,
        block_k_major=m,
        block_k=m,
        block_q_major_dkv=n,
        block_q_dkv=n,
        block_k_major_dkv=m,
        block_k_dkv=m,
        block_q_dq=n,
        block_k_major_dq=m,
        block_k_dq=m,
    )
    scale = 1 / math.sqrt(q.shape[-1])
    return flash_attention.flash_attention(q, k, v, bias, sm_scale=scale, block_sizes=blocks)
