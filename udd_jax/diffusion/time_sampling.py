"""The time of a training sample: importance sampling on the size of the loss.

`p(t)` is proportional to the running `sqrt(E[L_t^2])` once every t has been seen more than 10
times, and uniform before (Nichol & Dhariwal 2021, as in VQ-Diffusion and UniD3). p(1) takes the
value of p(2), because the term at t = 1 is the decoder's. The loss is weighted by 1/p(t), so its
mean does not depend on p.

There is one history for each set of modalities that carry loss: image only, text only, both (the
last one is the published rule). Rows with independent times are uniform and enter no history. The
histories are part of the train state, so they survive a restart. They are updated from the whole
batch, so they are the same on every mesh.

With stage experts (`networks.experts`) all times of a batch are of one interval, each as often, so
that one expert learns from it.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

DECAY = 0.9
WARM = 10  # visits of every t before the histories are used


@flax.struct.dataclass
class TimeSampler:
    """square: float32[H, T+1], the running mean of L_t^2; seen: int32[H, T+1]. Entry 0 is unused.

    History `h` belongs to the set of modalities whose bits are set in `h + 1`.
    """

    square: jax.Array
    seen: jax.Array


def create(steps: int, modalities: int) -> TimeSampler:
    shape = (2**modalities - 1, steps + 1)
    return TimeSampler(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32))


def probabilities(sampler: TimeSampler) -> jax.Array:
    """p(t), float32[H, T+1], with p(0) = 0; each row sums to 1."""
    size = jnp.sqrt(sampler.square + 1e-10) + 1e-4
    size = size.at[:, 1].set(size[:, 2])
    warm = (sampler.seen[:, 1:] > WARM).all(axis=1, keepdims=True)
    size = jnp.where(warm, size, 1.0).at[:, 0].set(0.0)
    return size / size.sum(axis=1, keepdims=True)


def history(loss_in: jax.Array) -> jax.Array:
    """The index of the history, int32[B], from the modalities with loss (one at least), [B, M]."""
    bits = 2 ** jnp.arange(loss_in.shape[1], dtype=jnp.int32)
    return (loss_in * bits[None]).sum(axis=1) - 1


def interval_of(boundaries, steps: int) -> np.ndarray:
    """int[T+1]: for each time t the i with  boundaries[i - 1] < t / T <= boundaries[i]."""
    ends = np.round(np.asarray(boundaries, float) * steps, 6)  # .29 of 100 is 29, not less
    return (np.arange(steps + 1)[:, None] > ends).sum(axis=1)


def draw(
    sampler: TimeSampler,
    key: jax.Array,
    histories: jax.Array,
    independent: jax.Array,
    count: int,
    boundaries: tuple[float, ...] = (),
) -> tuple[jax.Array, jax.Array]:
    """Times and their probabilities, int32[B, M] and float32[B, M], for `count` = M modalities.

    histories: int32[B]; independent: bool[B]. The draws of a batch are spread evenly over the
    distribution function (systematic sampling): each has the law p(t), and the batch varies less.
    boundaries: those of experts, as shares of T. Then one of their intervals is drawn, all equally
    likely, and all times of rows that are not independent are drawn from p(t) in it.
    """
    batch, steps = histories.shape[0], sampler.square.shape[1] - 1
    key_shift, key_order, key_free = jax.random.split(key, 3)
    place = jax.random.permutation(key_order, batch)
    u = (place + jax.random.uniform(key_shift, (batch,))) / batch
    p, first, last, share = probabilities(sampler), 1, steps, 1.0
    if boundaries:
        of = interval_of(boundaries, steps)[1:]
        firsts = np.unique(of, return_index=True)[1] + 1  # of the intervals that have a time
        lasts, share = np.append(firsts[1:] - 1, steps), 1 / len(firsts)
        chosen = jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(firsts))
        first, last = jnp.asarray(firsts)[chosen], jnp.asarray(lasts)[chosen]
        t = jnp.arange(steps + 1)
        p = jnp.where((t >= first) & (t <= last), p, 0)
        p = p / p.sum(axis=1, keepdims=True)
    reached = jnp.cumsum(p, axis=1)[histories]  # [B, T+1]
    total = reached[:, -1:]
    t = jnp.clip((reached < u[:, None] * total).sum(axis=1), first, last)
    shared = jnp.broadcast_to(t[:, None], (batch, count))
    p_shared = jnp.broadcast_to((share * p)[histories, t][:, None], (batch, count))
    own = jax.random.randint(key_free, (batch, count), 1, steps + 1)
    rows = independent[:, None]
    return jnp.where(rows, own, shared), jnp.where(rows, 1 / steps, p_shared)


def spread(key: jax.Array, independent: jax.Array, count: int) -> jax.Array:
    """Times in (0, 1], float32[B, M], low-discrepancy: one in each of B equal parts.

    t_i = 1 - ((u + i/B) mod 1), in random order (arXiv 2107.00630). Rows that are `independent`,
    bool[B], have one such time for each modality; the others have one for all `count` = M of them.
    """
    batch = independent.shape[0]

    def one(key):
        key_shift, key_order = jax.random.split(key)
        place = jax.random.permutation(key_order, batch) / batch
        return 1 - jnp.mod(place + jax.random.uniform(key_shift), 1)

    own = jax.vmap(one)(jax.random.split(key, count)).T
    return jnp.where(independent[:, None], own, own[:, :1])


def update(
    sampler: TimeSampler, histories: jax.Array, t: jax.Array, loss: jax.Array, used: jax.Array
) -> TimeSampler:
    """One step of the running averages.

    histories, t: int32[B]; loss: float[B], the mean L_t of a free position; used: bool[B]. Times
    that repeat in the batch (with `train.accumulate` in a part of it) enter as their mean, in one
    step.
    """
    used = used.astype(jnp.float32)
    count = jnp.zeros_like(sampler.square).at[histories, t].add(used)
    total = jnp.zeros_like(sampler.square).at[histories, t].add(used * loss**2)
    mean = total / jnp.maximum(count, 1)
    square = jnp.where(count > 0, DECAY * sampler.square + (1 - DECAY) * mean, sampler.square)
    return TimeSampler(square, sampler.seen + count.astype(jnp.int32))
