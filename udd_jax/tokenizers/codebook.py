"""How a codebook of K rows e_k in R^E is learned, without any network.

    nearest         code(z) = argmin_k |z - e_k|^2
    ema_update      e_k = mean of the vectors that chose k, as a moving average (arXiv 1711.00937)
    restart         a row that no vector chooses moves to a vector with a large error
    kmeans          a codebook for given vectors: k-means++ and then Lloyd's steps
    used_codes      from K codes to those that a data set uses

All functions take and return arrays. The moving average keeps n_k (about the vectors of row k in a
batch) and s_k (their sum); e_k = s_k / n_k. The counts n_k get Laplace smoothing, so that a row
with hardly any vectors stays finite.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.errors import UserError


def _square_distance(vectors, codebook):
    """float[n, E], float[K, E] -> |z|^2 - 2 z e + |e|^2, float[n, K]."""
    cross = jnp.matmul(vectors, codebook.T, precision="highest")
    return (vectors**2).sum(-1)[:, None] - 2 * cross + (codebook**2).sum(-1)[None]


def nearest(z, codebook):
    """float[..., E], float[K, E] -> int32[...]: the nearest row; the lowest index of equals."""
    codes = jnp.argmin(_square_distance(z.reshape(-1, z.shape[-1]), codebook), axis=-1)
    return codes.astype(jnp.int32).reshape(z.shape[:-1])


def perplexity(codes, size):
    """int32[...] -> exp of the entropy of their histogram over `size` codes: 1 .. size."""
    p = jnp.bincount(codes.ravel(), length=size) / codes.size
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p)))


@flax.struct.dataclass
class Averages:
    """Moving averages of a codebook: counts float32[K], sums float32[K, E]."""

    counts: jax.Array
    sums: jax.Array


def averages(codebook, vectors_per_batch):
    """Averages that leave the codebook unchanged, with all rows equally used."""
    count = vectors_per_batch / len(codebook)
    return Averages(jnp.full(len(codebook), count, codebook.dtype), codebook * count)


def ema_update(state, z, codes, decay=0.99, epsilon=1e-5):
    """One step of the moving averages -> (Averages, codebook float[K, E]).

    z float[..., E], codes int32[...]. n <- decay n + (1 - decay) n_batch, the sums likewise;
    e_k = s_k / n'_k with n'_k = (n_k + epsilon) / (n + K epsilon) n and n the total.
    """
    size = len(state.counts)
    z, codes = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    counts = jax.ops.segment_sum(jnp.ones(len(codes), z.dtype), codes, size)
    sums = jax.ops.segment_sum(z, codes, size)
    counts = decay * state.counts + (1 - decay) * counts
    sums = decay * state.sums + (1 - decay) * sums
    total = counts.sum()
    smooth = (counts + epsilon) / (total + size * epsilon) * total
    return Averages(counts, sums), sums / smooth[:, None]


def restart(key, state, codebook, z, codes, threshold=0.02, factor=0.0):
    """Move dead rows to vectors of the batch -> (Averages, codebook, restarted int32[]).

    A row is dead if its count is below `threshold` times the mean count. Its new vector is drawn
    without replacement in proportion to the squared error, as in k-means++. Only vectors whose
    error exceeds `factor` times the root mean square take part, so that a row is not wasted on
    splitting the noise around another row. A moved row starts with the mean count.
    """
    z, codes = z.reshape(-1, z.shape[-1]), codes.reshape(-1)
    mean = state.counts.mean()
    dead = state.counts < threshold * mean
    errors = ((z - codebook[codes]) ** 2).sum(-1)
    score = jnp.where(errors > factor**2 * errors.mean(), jnp.log(errors), -jnp.inf)
    score += jax.random.gumbel(key, score.shape)
    score, order = jax.lax.top_k(score, min(len(z), len(codebook)))
    rank = jnp.cumsum(dead) - 1  # the i-th dead row takes the i-th vector, while there are some
    found = dead & (rank < len(order)) & (score[jnp.minimum(rank, len(order) - 1)] > -jnp.inf)
    vectors = z[order[jnp.clip(rank, 0, len(order) - 1)]]
    codebook = jnp.where(found[:, None], vectors, codebook)
    counts = jnp.where(found, mean, state.counts)
    sums = jnp.where(found[:, None], vectors * mean, state.sums)
    return Averages(counts, sums), codebook, found.sum()


@functools.partial(jax.jit, static_argnums=(2, 3))
def kmeans(key, vectors, size, steps=20):
    """float[n, E] -> centres float[size, E] and the mean squared distance to the nearest, float[].

    k-means++: each centre is a vector drawn in proportion to its squared distance from the previous
    centres. Then Lloyd's steps; a centre without vectors stays where it is.
    """

    def from_centre(centre):
        return ((vectors - centre[None]) ** 2).sum(-1)

    def seed(i, carry):
        centres, distance = carry
        index = jax.random.categorical(jax.random.fold_in(key, i), jnp.log(distance))
        distance = jnp.minimum(distance, from_centre(vectors[index]))
        return centres.at[i].set(vectors[index]), distance

    first = vectors[jax.random.randint(jax.random.fold_in(key, 0), (), 0, len(vectors))]
    start = jnp.zeros((size, vectors.shape[1]), vectors.dtype).at[0].set(first), from_centre(first)
    centres, _ = jax.lax.fori_loop(1, size, seed, start)

    def lloyd(_, centres):
        codes = assign(centres)
        counts = jax.ops.segment_sum(jnp.ones(len(codes)), codes, size)
        sums = jax.ops.segment_sum(vectors, codes, size)
        return jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centres)

    def assign(centres):  # in chunks of 1024 vectors, so that the array of distances stays small
        return jax.lax.map(lambda z: nearest(z, centres), vectors, batch_size=1024)

    centres = jax.lax.fori_loop(0, steps, lloyd, centres)
    return centres, jnp.mean(((vectors - centres[assign(centres)]) ** 2).sum(-1))


def used_codes(counts, codebook, closer_than=0.0, least=1):
    """(the map to the codes that a data set uses, int32[K] -> 0 .. used - 1; these codes).

    Args:
        counts: int[K], how often the data set uses each code.
        codebook: float[K, E].
        closer_than: a code that is nearer than this to a more used code is replaced by that code,
            because the two only divide noise.
        least: keep at least so many codes, also unused ones.

    The used codes, int32[used], are numbered in rising order. Every other code gets the number of
    the nearest used one. Raises ValueError if no code is used.
    """
    counts, codebook = np.asarray(counts), np.asarray(codebook, np.float64)
    if not counts.any():
        raise UserError("used_codes: counts are all 0, expected the codes of a data set")
    kept, order = [], np.argsort(-counts, kind="stable")
    for code in order[: np.count_nonzero(counts)]:
        apart = ((codebook[kept] - codebook[code]) ** 2).sum(-1)
        if not kept or apart.min() >= closer_than**2:
            kept.append(code)
    kept += [code for code in order if code not in kept][: max(0, least - len(kept))]
    kept = np.sort(kept)
    parts = np.array_split(codebook, -(-len(codebook) // 64))  # few are in memory at once
    full = [((part[:, None] - codebook[kept][None]) ** 2).sum(-1).argmin(1) for part in parts]
    full = np.concatenate(full)
    full[kept] = np.arange(len(kept))
    return full.astype(np.int32), kept.astype(np.int32)
