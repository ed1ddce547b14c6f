"""How well the words of a caption are predicted from the image, by kind of word.

On `shapes` every word has a kind: it names a shape, a colour, a size, the relation of two objects
or the place of one object. All other tokens ("a", "with", "of", padding) are of kind "other". The
image is given. Two measures, both -log p(word | visible tokens) in nats:

    hidden:KIND    all words of one kind are masked and everything else is given
    noise:T        each word is masked with the probability of time T; one mean for each kind

The first measures what the network can read from the image, since the image and the other words
decide most of the answer. For example, the true entropy of a relation is 0 if the other words tell
which object comes first. The second also includes the free choices of the caption's author.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.data.sources import shapes
from udd_jax.diffusion import transition
from udd_jax.diffusion.denoiser import DenoiseFn
from udd_jax.errors import UserError

KINDS = ("other", "shape", "colour", "size", "relation", "place")
_WHERE = frozenset({"above", "below", "left", "right", "upper", "lower"})


def kinds(captions: Sequence[str], tokenizer, length: int) -> np.ndarray:
    """The kind of each token, an index into KINDS, int32[B, length].

    ValueError if the tokenizer has a token that covers parts of two words.
    """
    found = np.zeros((len(captions), length), np.int32)
    for row, caption in enumerate(captions):
        meaning = shapes.grammar.parse_caption(caption)
        where = "relation" if meaning and meaning.relation else "place"
        pieces, of = [], []
        for word in caption.split():
            own = tokenizer.pieces(word)
            pieces += own
            of += [KINDS.index(_kind(word, where))] * len(own)
        if pieces != list(tokenizer.pieces(caption)):
            raise UserError(f"{caption!r}: the pieces of its words are not those of the caption")
        found[row, : len(of)] = of[:length]
    return found


def _kind(word: str, where: str) -> str:
    if word in _WHERE:
        return where
    known = {
        "shape": shapes.scenes.SHAPES,
        "colour": shapes.scenes.COLOURS,
        "size": shapes.scenes.SIZES,
    }
    return next((kind for kind, words in known.items() if word in words), "other")


def losses(
    kernel: transition.Kernel,
    denoise_fn: DenoiseFn,
    key: jax.Array,
    x0: jax.Array,
    kind: jax.Array,
    noise: Sequence[int] = (),
) -> dict[str, jax.Array]:
    """Mean nats per token: {"hidden:KIND": ..., "noise:T:KIND": ...}, all float32[].

    x0: int32[B, L]; kind: int32[B, M_text] from `kinds`; noise: times in 1..T. The value is NaN if
    no word of a kind is masked. Jit it with `noise` as a constant.
    """
    vocab = kernel.vocab
    text = vocab.index("text")
    where = vocab.slices[text]
    free = jnp.broadcast_to(vocab.modality_of == text, x0.shape)
    mask_rate = kernel.gamma_bar[text, 1:]

    def nll(masked, t):  # masked: bool[B, M_text]; t: int32[B]
        hidden = jnp.zeros(x0.shape, bool).at[:, where].set(masked)
        xt = jnp.where(hidden, vocab.mask_id, x0)
        times = jnp.zeros((len(x0), len(vocab.modalities)), jnp.int32).at[:, text].set(t)
        logits = denoise_fn(xt, times, free)[text]
        truth = vocab.local(text, x0[:, where])[..., None]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), truth, axis=-1)[..., 0]

    def mean(values, chosen):
        return jnp.where(chosen, values, 0).sum() / chosen.sum()

    found = {}
    for number, name in enumerate(KINDS[1:], 1):
        masked = kind == number
        # The time at which so many words are masked on average.
        t = 1 + jnp.searchsorted(mask_rate, masked.mean(axis=1))
        found[f"hidden:{name}"] = mean(nll(masked, t), masked)
    for t in noise:
        key_mask = jax.random.fold_in(key, t)
        masked = jax.random.bernoulli(key_mask, mask_rate[t - 1], kind.shape)
        values = nll(masked, jnp.full(len(x0), t))
        for number, name in enumerate(KINDS):
            found[f"noise:{t}:{name}"] = mean(values, masked & (kind == number))
    return found


def make_measure(kernel, model, x0, kind, noise=(50, 100), batch_size: int = 64, seed: int = 0):
    """Returns `params -> {name: float}`, the mean of `losses` over fixed batches.

    x0: int32[n, L]; kind: int32[n, M_text]. Rows after the last full batch are left out.
    """
    count = len(x0) // batch_size
    parts = [a[: count * batch_size].reshape(count, batch_size, -1) for a in (x0, kind)]

    @jax.jit
    def measure(params, x0, kind):
        denoise_fn = functools.partial(model.apply, {"params": params})

        def one(_, numbered):
            number, x0, kind = numbered
            key = jax.random.fold_in(jax.random.key(seed), number)
            return None, losses(kernel, denoise_fn, key, x0, kind, noise)

        found = jax.lax.scan(one, None, (jnp.arange(count), x0, kind))[1]
        return jax.tree.map(jnp.nanmean, found)

    parts = [jnp.asarray(part) for part in parts]
    return lambda params: {k: float(v) for k, v in measure(params, *parts).items()}
