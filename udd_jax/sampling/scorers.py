"""Scorers: differentiable functions of the predicted tokens that steer a chain.

    log p = log p + scale dF/dp,    F(p, x_t, t) -> float[B],   p: float[B, n, K] a modality

p is the network's distribution at each position, a point in the simplex. The gradient of F is taken
at p ("expected"), or at the likeliest tokens as one-hots ("straight_through"). If F is additive
over positions, the gradient is F itself, and the guided marginals are those of p exp(scale F),
renormalised: exact. Semantic Diffusion Guidance (arXiv 2112.05744) guides pixels in this way; on
the simplex of tokens it is ours.

A function of your own goes to `Pipeline.generate(scorers=[(F, scale)])`. Arrays that it needs go
into a `jax.tree_util.Partial(F, arrays)`, so that other arrays need no new compilation.
"""

import functools
import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.errors import UserError

SHADES = 63  # of a channel, in `palette`
FLOOR = 1e-4  # of a probability, in `appears`
LEVELS, LEAST, NEAR, PART = 4, 0.05, 0.15, 0.05  # of `colours`
FORM = "(tokens: float[B, n, K] a modality, x_t int32[B, L], t int32[B]) -> float[B]"


def tilt(score: Callable, scale, x, t, log_p, straight=False):
    """The scorer (`guidance.Scorer`) of a function F: scale times its gradient."""
    p = tuple(map(jnp.exp, log_p))
    if straight:
        p = tuple(jax.nn.one_hot(y.argmax(-1), y.shape[-1], dtype=y.dtype) for y in p)
    gradient = jax.grad(lambda p: score(p, x, t).sum())(p)
    return tuple(scale * y for y in gradient)


# Where the gradient is taken. Made once: compiled functions are found by their identity.
POINTS = {"expected": tilt, "straight_through": functools.partial(tilt, straight=True)}


def partial(function) -> jax.tree_util.Partial:
    """A function as an argument of a compiled one, whose arrays are not a part of the program.

    A `Partial` stays as it is: wrapped once more, it would be a new function with arrays inside.
    """
    wrapped = isinstance(function, jax.tree_util.Partial)
    return function if wrapped else jax.tree_util.Partial(function)


def parse(asked, vocab) -> tuple:
    """[F's with scales, or `guidance.Scorer`s] -> scorers; a scale of 0 leaves its F out.

    An entry is (F, scale), (F, scale, a word of POINTS), or a function that returns terms of log p.
    UserError, one line: a scale that is not a finite number, or an F whose value at uniform tokens
    has another shape, or whose value or gradient there is not finite.
    """
    if callable(asked) or not np.iterable(asked):
        raise UserError("scorers: expected a list of (function, scale) or functions")
    found = []
    for i, entry in enumerate(asked):
        if callable(entry):
            found.append(partial(entry))
            _check_terms(i, found[-1], vocab)
            continue
        if not (isinstance(entry, tuple | list) and len(entry) in (2, 3) and callable(entry[0])):
            raise UserError(f"scorers {i}: {entry!r}, expected (function, scale) or a function")
        score, scale, point = (*entry, "expected")[:3]
        number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
        if not number or not math.isfinite(scale):
            raise UserError(f"scorers {i}: scale {scale!r}, expected a finite number")
        if point not in POINTS:
            raise UserError(f"scorers {i}: {point!r}, expected one of {', '.join(POINTS)}")
        if scale:
            score = partial(score)
            _check(i, score, vocab)
            found.append(jax.tree_util.Partial(POINTS[point], score, jnp.float32(scale)))
    return tuple(found)


def _check_terms(i, scorer, vocab) -> None:
    """UserError unless a function returns terms of log p, one or None for each modality."""
    log_p = tuple(jnp.zeros((1, m.length, m.classes)) for m in vocab.modalities)
    x, t = jnp.full((1, vocab.length), vocab.mask_id), jnp.ones(1, int)
    try:
        terms = jax.eval_shape(scorer, x, t, log_p)
        fits = len(terms) == len(log_p)
        fits = fits and all(
            term is None or jnp.broadcast_shapes(term.shape[1:], of.shape[1:]) == of.shape[1:]
            for term, of in zip(terms, log_p, strict=True)
        )
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise UserError(
            f"scorers {i}: a function without a scale is called with (x, t, log p) and fails "
            f"({why[:120]}), expected (function, scale)"
        ) from error
    if not fits:
        raise UserError(
            f"scorers {i}: a function without a scale returns terms of log p, one or None for each "
            "of the modalities, expected these, or (function, scale)"
        )


def _check(i, score, vocab) -> None:
    tokens = tuple(jnp.full((1, m.length, m.classes), 1 / m.classes) for m in vocab.modalities)
    x, t = jnp.full((1, vocab.length), vocab.mask_id), jnp.ones(1, int)
    shape = list(jax.eval_shape(score, tokens, x, t).shape)
    if shape != [1]:
        raise UserError(
            f"scorers {i} returns the shape {shape} for one sample, expected [1]: {FORM}"
        )
    both = _both(tokens, score, x, t)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both)):
        raise UserError(f"scorers {i} returns NaN or infinity for even tokens: expected numbers")


@jax.jit  # once for each function, whatever its arrays are
def _both(tokens, score, x, t):
    return jax.value_and_grad(lambda tokens: score(tokens, x, t).sum())(tokens)


# ---- Built in -----------------------------------------------------------------------------------


def additive(table):
    """F = sum over places of the value of the image's code there, table float[K] or float[N, K].

    Its gradient is the table itself: a log-linear preference for some codes.
    """
    return jax.tree_util.Partial(_additive, jnp.asarray(table, jnp.float32))


def _additive(table, tokens, x, t):
    return (tokens[0] * jnp.broadcast_to(table, tokens[0].shape)).sum((1, 2))


def likeness(vectors, codes, content: float = 1.0, style: float = 1.0):
    """F = content cosine + style likeness of a picture to a reference.

    vectors: float[K, d], the tokenizer's vector of each code; codes: int[N] of the reference.
    Content is the mean cosine at each place of the expected vectors, without their mean (SDG).
    Style is minus the squared distance of Gram matrices, relative to that of the reference, and
    ignores the places. The Gram matrix is the expected one, which is linear in the tokens; that of
    expected vectors is another, and steers a picture that is not known yet to nothing.
    """
    vectors = jnp.asarray(vectors, jnp.float32)
    weights = jnp.float32([content, style])
    return jax.tree_util.Partial(_likeness, vectors, jnp.asarray(codes), weights)


def _likeness(vectors, codes, weights, tokens, x, t):
    around, known = vectors - vectors.mean(0)[None], vectors[codes]
    gram = jnp.einsum("bkd,ke->bde", tokens[0].mean(1)[..., None] * vectors[None], vectors)
    target = known.T @ known / len(known)
    style = -((gram - target[None]) ** 2).sum((1, 2)) / (target**2).sum()
    content = (unit(tokens[0] @ around) * unit(around[codes])[None]).sum(-1).mean(-1)
    return weights[0] * content + weights[1] * style


def palette(patches, codes):
    """F = minus the distance of a picture's colours from those of a reference; additive, and ours.

    patches: float[K, n, c], the pixels that each code paints, 0 to 1; codes: int[N] of the
    reference. A code counts minus the mean squared distance of its pixels from the nearest colour
    of the reference. So colours that the reference lacks go, and how much there is of the others
    stays free.
    """
    from scipy import spatial  # here, so that importing the package stays quick

    patches = np.asarray(patches, np.float32)
    colours = patches[np.asarray(codes)].reshape(-1, patches.shape[-1])
    colours = np.unique((SHADES * colours).round(), axis=0) / SHADES
    far, _ = spatial.KDTree(colours).query(patches)
    return additive(-(far**2).mean(axis=1))


def appears(shown):
    """A scorer for things of which one place is enough: p(x_n | each is shown somewhere); ours.

    shown: float[K, things], 0 to 1, how surely each code shows each thing. As if places were
    independent, a noisy or:

        q_n = sum_k p_nk shown_k
        P(somewhere | x_n = k) = 1 - (1 - shown_k) prod_{m != n} (1 - q_m)

    The gradient of F is the logarithm of that, the mean over things; so a scale of 1 is Bayes' rule
    for places that are independent, and a larger one makes up for those that are not. It ends where
    the thing is there, so several things have their places beside each other.
    """
    return jax.tree_util.Partial(_appears, jnp.asarray(shown, jnp.float32))


def _appears(shown, tokens, x, t):
    nowhere = jnp.log1p(-jnp.clip(tokens[0] @ shown, 0, 1 - FLOOR))  # [B, n, things]
    elsewhere = jnp.exp(nowhere.sum(1, keepdims=True) - nowhere)
    somewhere = 1 - (1 - shown)[None, None] * elsewhere[:, :, None]
    evidence = jax.lax.stop_gradient(jnp.log(somewhere + FLOOR).mean(-1))
    return (tokens[0] * evidence).sum((1, 2))


def colours(patches, codes):
    """`appears` of each colour of a picture.

    patches: float[K, n, c], the pixels that each code paints, 0 to 1; codes: int[N] of the picture.
    Its colours are the mean ones of the cells of a coarse grid of colours that hold at least LEAST
    of its pixels, or of the fullest cell if none does. A code shows a colour surely if PART of its
    pixels are within NEAR of it.
    """
    patches = np.asarray(patches, np.float32)
    own = patches[np.asarray(codes)].reshape(-1, patches.shape[-1])
    cells = np.minimum(LEVELS * own, LEVELS - 1).astype(int)
    _, cell, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts >= min(LEAST * len(own), counts.max()))
    found = np.stack([own[cell.reshape(-1) == i].mean(0) for i in kept])
    near = np.linalg.norm(patches[:, :, None] - found[None, None], axis=-1) < NEAR
    return appears(np.minimum(near.mean(1) / PART, 1))


def unit(u: jax.Array) -> jax.Array:
    """u / |u| along the last axis; its gradient is finite at 0."""
    return u * jax.lax.rsqrt((u**2).sum(-1, keepdims=True) + 1e-12)


def distance(u: jax.Array, v: jax.Array) -> jax.Array:
    """MGAD's distance of unit vectors float[..., d] (arXiv 2209.13360): 2 arcsin^2(|u - v| / 2).

    0 for equal vectors and pi^2 / 2 for opposite ones. float[...].
    """
    half = jnp.sqrt(((u - v) ** 2).sum(-1) + 1e-30) / 2
    return 2 * jnp.arcsin(jnp.minimum(half, 1)) ** 2


def cut_outs(key: jax.Array, images: jax.Array, count: int, share: float = 0.5) -> jax.Array:
    """`count` random squares of each image: float[B, S, S, c] -> float[count, B, s, s, c]."""
    side = max(1, round(share * images.shape[1]))
    corners = jax.random.randint(key, (count, 2), 0, images.shape[1] - side + 1)

    def cut(corner):
        start = (0, corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(images, start, (len(images), side, side, images.shape[3]))

    return jax.vmap(cut)(corners)


def total_variation(images: jax.Array) -> jax.Array:
    """The mean squared difference of neighbours: float[B, h, w, c] -> float[B]."""
    down, right = jnp.diff(images, axis=1), jnp.diff(images, axis=2)
    return (down**2).mean((1, 2, 3)) + (right**2).mean((1, 2, 3))
