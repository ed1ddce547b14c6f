"""The built-in scorers by name: functions F for `sampling.scorers`, made from what a user types.

    match     the dual encoder's match with a text          scale 9
    shows     a word or phrase for one thing, somewhere     scale 6
    clip      CLIP's cosine with a text, through the image tokenizer's decoder; files of the user
    like      likeness to a picture: content and style      `sampling.scorers.likeness`
    content   the same places look alike
    style     the same codes, anywhere: Gram matrices
    palette   no colours but those of a picture             scale 64
    colours   all colours of a picture, somewhere           scale 8
    pixels    a function of your own of the decoded picture, such as a classifier; from Python

To add one, add a maker to `MAKERS`.
"""

import functools
import inspect
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax import values
from udd_jax.errors import UserError
from udd_jax.networks import pretrained
from udd_jax.sampling import scorers
from udd_jax.tokenizers import image_tokenizer, reconstruction, text_tokenizer


def make(pipe, name: str, value, **options):
    """The scorer F of a name and its text or picture. UserError, one line.

    options: of its maker; for "clip", `weights`, the folder with its files, and `read`, which
    reads one.
    """
    if name not in MAKERS:
        raise UserError(f"scorer {name!r} does not exist, expected one of {', '.join(MAKERS)}")
    if pipe.vocab.coarse is not None:
        raise UserError(
            f"scorer {name!r} knows pictures of one level of codes only, this run has two: pass a "
            "function of your own"
        )
    known = list(inspect.signature(MAKERS[name]).parameters)[2:]  # after pipe and value
    for option in options:
        if option not in known:
            takes = f"expected some of {', '.join(known)}" if known else "it has no options"
            raise UserError(f"scorer {name!r}: {option} is unknown, {takes}")
    return MAKERS[name](pipe, value, **options)


def match(pipe, text):
    """`networks.matching.Matcher.scorer`. UserError if it was trained with another T."""
    known, steps = pipe.dual_encoder.model.steps, pipe.kernel.steps
    if known != steps:
        raise UserError(
            f"scorer match: the dual encoder knows T = {known}, this run has {steps}: expected one "
            "of the same diffusion.steps"
        )
    score = pipe.dual_encoder.scorer(_one(values.ids(pipe, "text", text), "match"))
    return of_image(pipe.vocab, score)


def shows(pipe, text):
    """That a word, or a phrase for one thing, is seen somewhere in the image.

    The dual encoder says for each code alone how much likelier it makes the text. That, less what
    the usual code has, as a share of the most, and squared, is how surely the code shows it
    (`scorers.appears`): two codes that half say it do not show it. UserError if no code makes it
    twice as likely as the usual one.
    """
    match = pipe.dual_encoder.of_codes(_one(values.ids(pipe, "text", text), "shows"))
    usual = np.exp(np.median(match) - match.max())
    if usual > 0.5:
        raise UserError(
            f"scorer shows: no code of an image says {values.texts(text)[0]!r} by itself, expected "
            "a word for one thing: take the scorer match"
        )
    shown = np.clip((np.exp(match - match.max()) - usual) / (1 - usual), 0, 1)
    return of_image(pipe.vocab, scorers.appears(shown[:, None] ** 2))


def likeness(pipe, picture, content=0.0, style=0.0):
    """Likeness to a picture, by the vectors of the image tokenizer's codes."""
    codes = _one(values.ids(pipe, "image", picture), "a picture")[0]
    return of_image(
        pipe.vocab, scorers.likeness(pipe.tokenizers["image"].vectors, codes, content, style)
    )


def palette(pipe, picture):
    """The colours of a picture and no others, by the pixels that each code paints."""
    return of_image(pipe.vocab, scorers.palette(*_painted(pipe, picture)))


def colours(pipe, picture):
    """All colours of a picture, each somewhere, by the pixels that each code paints."""
    return of_image(pipe.vocab, scorers.colours(*_painted(pipe, picture)))


def _painted(pipe, picture):
    """(the pixels that each code paints float[K, n, c], 0 to 1; the codes int[N] of a picture)"""
    tokenizer = pipe.tokenizers["image"]
    codes = _one(values.ids(pipe, "image", picture), "a picture")[0]
    patches = reconstruction.seen(tokenizer.patches)
    return patches.reshape(tokenizer.codes, -1, tokenizer.shape[-1]) / 255, codes


def clip(pipe, text, weights=None, read=None):
    """CLIP's cosine of a text and the picture of the expected vectors."""
    if not weights:
        raise UserError(
            f"the scorer clip needs its files: name their folder with --weights=, {CLIP}"
        )
    state = read(pretrained.find_weights(weights, "clip"))
    parts = pretrained.clip_parts(state)
    merges = pathlib.Path(weights) / pretrained.MERGES
    if not merges.exists():
        raise UserError(f"{weights} has no {pretrained.MERGES}: the scorer clip needs {CLIP}")
    (text,) = _one(np.array(values.texts(text)), "clip")
    pieces = text_tokenizer.load(merges, pretrained.CLASSES).pieces(str(text))
    target = parts.text.apply(
        parts.text_variables, jnp.asarray(pretrained.clip_ids([pieces], parts.context))
    )
    cosine = functools.partial(_clip, parts.image, parts.size)
    arrays = jax.tree.map(jnp.asarray, (parts.image_variables, scorers.unit(target)))
    return pixels(pipe, jax.tree_util.Partial(cosine, *arrays))


CLIP = f"{pretrained.WEIGHTS['clip'][0]}.pt and {pretrained.MERGES}"


def _clip(network, size, variables, target, images):
    images = image_tokenizer.as_rgb(images)
    images = jax.image.resize(images, (len(images), size, size, 3), "bicubic")
    seen = pretrained.normalise_for_clip((images + 1) / 2)
    return (scorers.unit(network.apply(variables, seen)) * target).sum(-1)


def pixels(pipe, function):
    """F = function(images), of the pictures of the expected vectors.

    function: float[B, h, w, c] of `image_tokenizer.to_unit`, -1 to 1 -> float[B], a
    `jax.tree_util.Partial` if it has arrays. A classifier steers towards a class by its log p:
    `lambda x: jax.nn.log_softmax(f(x))[:, 3]`.
    """
    if not callable(function):
        raise UserError(
            f"scorer pixels: {function!r}, expected a function of images, from Python: "
            'pipe.scorer("pixels", function)'
        )
    tokenizer = pipe.tokenizers["image"]
    seen = functools.partial(_pixels, tokenizer.module)
    arrays = jax.tree.map(jnp.asarray, (tokenizer.params, tokenizer.vectors))
    score = jax.tree_util.Partial(seen, *arrays, scorers.partial(function))
    return of_image(pipe.vocab, score)


def of_image(vocab, score):
    """A scorer of the first modality as one of the image, which is not the first in every run."""
    m = vocab.index("image")
    return jax.tree_util.Partial(_picked(m), score) if m else score


@functools.cache  # made once: compiled functions are found by their identity
def _picked(m):
    return lambda score, tokens, x, t: score(tokens[m:], x, t)


def _pixels(decoder, params, vectors, function, tokens, x, t):
    mean = (tokens[0] @ vectors).reshape(len(t), *decoder.grid, -1)
    images = decoder.apply({"params": params}, mean, method="decode")  # [B, h, w, c]
    return function(jnp.clip(images, -1, 1))  # as the picture is that one sees


def _one(rows: np.ndarray, what: str) -> np.ndarray:
    if len(rows) != 1:
        raise UserError(f"scorer: {len(rows)} values for {what}, expected one for all samples")
    return rows


MAKERS = {
    "match": match,
    "shows": shows,
    "clip": clip,
    "like": functools.partial(likeness, content=1.0, style=1.0),
    "content": functools.partial(likeness, content=1.0),
    "style": functools.partial(likeness, style=1.0),
    "palette": palette,
    "colours": colours,
    "pixels": pixels,
}
