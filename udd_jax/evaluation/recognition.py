"""Is it recognised? A classifier of names, trained on the real pictures of the training split.

It also hears: the spectrogram of a sound is a picture (listening.py). It knows colours only, so it
sees grey pictures as colours, and what is clear over white.

The first caption of a picture is its name. A small network (`networks.classifier`) learns the names
that training pictures have; colours are changed at random while it learns, so that colour alone is
not enough. What it says of held-out real pictures stands beside what it says of generated ones: the
first is what a perfect model would reach.

A picture is right among n if its own name has a higher score than n - 1 other names, drawn from all
C. With r names that score at least as high as its own, the probability of that is exact, and no
names are drawn:

    p = prod_{i = 0 .. n - 2} (C - 1 - r - i) / (C - 1 - i)
"""

import functools
import hashlib
import itertools
import pathlib
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from udd_jax import modalities
from udd_jax.data import pixels, reading
from udd_jax.evaluation import held_out, samples
from udd_jax.evaluation.metrics import frechet, intervals
from udd_jax.evaluation.report import contact_sheet
from udd_jax.networks import classifier
from udd_jax.runtime import logbook, trees
from udd_jax.tokenizers import image_tokenizer

FOLDER = "recognition"  # of the classifier, in the folder of the run
KEPT = "recognition.npz"  # next to the samples: what the page shows
STEPS, BATCH, RATE, DECAY, SMOOTHING = 1500, 64, 2e-3, 1e-2, 0.1
SHIFT = 5 / 64  # of the side of a picture, to each side
AMONG = (20, 100)
NEIGHBOURS = 10  # names around the true one
SHOWN, SHEET, BLOCK = 16, 8, 1024  # samples on the page, of each task on the sheet
MOST = 20_000  # training pictures that are read
LEAST = 2.0  # pictures of a name, on average: with fewer, captions are not names


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A trained classifier. names: str of each class, in alphabetical order."""

    module: classifier.Classifier
    params: dict
    names: list[str]
    words: frozenset[str]  # of all captions of the training split

    @functools.cached_property
    def number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def read(self, images) -> tuple[np.ndarray, np.ndarray]:
        """uint8[n, S, S, channels] -> features float32[n, F], logits float32[n, C]."""
        parts = [_apply(self.module, self.params, part) for part in _rows(images)]
        return tuple(np.concatenate(part)[: len(images)] for part in zip(*parts, strict=True))

    def name(self, caption: str) -> int:
        """The class that a caption names, all of it or all before one of its commas; -1: none."""
        words = caption.casefold().split(",")
        said = (",".join(words[:n]).strip() for n in range(len(words), 0, -1))
        return next((self.number[name] for name in said if name in self.number), -1)

    @functools.cached_property
    def near(self) -> np.ndarray:
        """int32[C, NEIGHBOURS]: the names nearest to each name, itself first."""
        vectors = self.params["names"] / np.linalg.norm(self.params["names"], axis=1, keepdims=True)
        return np.argsort(-vectors @ vectors.T, axis=1, kind="stable")[:, :NEIGHBOURS]


@functools.partial(jax.jit, static_argnums=0)
def _apply(module, params, images):
    return module.apply({"params": params}, image_tokenizer.to_unit(images))


def _rows(images, size: int = 64):
    """Parts of equal size; the last one is filled up."""
    for start in range(0, len(images), size):
        part = np.asarray(images[start : start + size])
        yield np.pad(part, [(0, size - len(part))] + [(0, 0)] * (part.ndim - 1))


# ---- Training -----------------------------------------------------------------------------------


def obtain(pipe, workdir, steps: int = STEPS) -> Recogniser | intervals.Unmeasured:
    """The classifier of a run, from `workdir` or trained now; the reason if captions are not names.

    It depends on the training split, the size of the images and the seed only.
    """
    path = pathlib.Path(workdir) / FOLDER / "classifier"
    names, pictures, words = [], [], set()
    for example in _training(pipe):
        names.append(example.captions[0].casefold())
        pictures.append(pixels.as_rgb(example.pixels[0]))
        words.update(word for text in example.captions for word in _words(text))
    if len(set(names)) <= AMONG[0]:
        few = f"{len(set(names))} of them, expected more than {AMONG[0]}"
        return intervals.Unmeasured(f"captions are not names: {few}")
    return learned(path, names, np.stack(pictures), frozenset(words), steps, pipe.config.seed)


def learned(
    path, names: list[str], pictures, words: frozenset, steps: int, seed: int
) -> Recogniser | intervals.Unmeasured:
    """The classifier of pictures uint8[n, height, width, channels] with names, one each.

    It is read from `path` if it was trained on the same, else trained and written there. The reason
    if there are too few pictures of a name.
    """
    known, labels = np.unique(names, return_inverse=True)
    if len(names) < LEAST * len(known):
        return intervals.Unmeasured(
            f"captions are not names: {len(known)} of them for {len(names)} training pictures, "
            f"expected {LEAST:.0f} pictures of each"
        )
    module = classifier.Classifier(len(known))
    digest = hashlib.sha256("\0".join(names).encode() + pictures.tobytes()).hexdigest()[:16]
    about = {"training": digest, "steps": steps, "seed": seed}
    if path.exists():
        params, found = trees.load_tree(path)
        if found == about:
            return Recogniser(module, params, known.tolist(), words)
    params = train(module, pictures, labels, steps, seed)
    trees.save_tree(path, params, about)
    return Recogniser(module, params, known.tolist(), words)


def _training(pipe):
    """Yields the readable examples among the first MOST records of the training split."""
    source = held_out.source(pipe, "train")
    count = min(MOST, len(source))
    views = modalities.views(pipe.config)
    for example in reading.examples(source, 0, count, views):
        if example.pixels is not None:
            yield example


def train(module, pictures, labels, steps: int, seed: int) -> dict:
    """The parameters after so many steps of AdamW on softmax cross-entropy with smoothed labels.

    pictures: uint8[n, S, S, 3]; labels: int[n].
    """
    key = jax.random.key(seed)
    tx = optax.adamw(optax.cosine_onecycle_schedule(steps, RATE), weight_decay=DECAY)
    params = jax.jit(module.init)(key, jnp.zeros((1, *pictures.shape[1:])))["params"]

    def loss(params, x, labels):
        _, logits = module.apply({"params": params}, x)
        wanted = optax.smooth_labels(jax.nn.one_hot(labels, module.classes), SMOOTHING)
        return optax.softmax_cross_entropy(logits, wanted).mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, key, images, labels):
        x = changed(key, image_tokenizer.to_unit(images))
        gradient = jax.grad(loss)(params, x, labels)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state, rng = tx.init(params), np.random.default_rng(seed)
    with logbook.progress(steps, "classifier", unit="step") as bar:
        for number in range(steps):
            rows = rng.integers(len(pictures), size=BATCH)
            batch = pictures[rows], labels[rows].astype(np.int32)
            params, opt_state = step(params, opt_state, jax.random.fold_in(key, number), *batch)
            bar.update(1)
    return jax.device_get(params)


def changed(key, x):
    """Pictures float32[B, height, width, channels] in [-1, 1] in other places and other colours.

    Each is moved by up to SHIFT of its height. Its colours are mixed: between its own and a
    permutation of them, then between that and grey. A spectrogram has no colours.
    """
    count, height = x.shape[:2]
    reach, keys = max(1, round(SHIFT * height)), jax.random.split(key, 4)
    wide = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    corner = jax.random.randint(keys[0], (count, 2), 0, 2 * reach + 1)
    cut = lambda a, at: jax.lax.dynamic_slice(a, (at[0], at[1], 0), x.shape[1:])  # noqa: E731
    if x.shape[-1] == 1:
        return jax.vmap(cut)(wide, corner)
    order = jax.vmap(lambda k: jax.random.permutation(k, 3))(jax.random.split(keys[1], count))
    turned = jax.nn.one_hot(order, 3)
    much, grey = (jax.random.uniform(k, (count, 1, 1)) ** 2 for k in keys[2:])
    mix = (1 - much) * jnp.eye(3)[None] + much * turned
    mix = (1 - grey) * mix + grey * jnp.full((1, 3, 3), 1 / 3)
    return jnp.einsum("bhwc,bdc->bhwd", jax.vmap(cut)(wide, corner), mix)


# ---- Measuring ----------------------------------------------------------------------------------


def ranks(logits, truth) -> np.ndarray:
    """int64[n]: how many other names score at least as high as the true one of each row."""
    own = np.take_along_axis(logits, truth[:, None], axis=1)
    return (logits >= own).sum(axis=1) - 1


def right(rank, classes: int, among: int) -> np.ndarray:
    """float64[n]: the probability of being right among so many names; see the top of this file."""
    i = np.arange(among - 1)
    return np.prod(np.maximum(classes - 1 - rank[:, None] - i, 0) / (classes - 1 - i), axis=1)


def recognised(found: Recogniser, images, truth) -> dict:
    """Shares of pictures whose name `truth` int[n] is recognised; those with -1 do not count."""
    known = truth >= 0
    if not known.any():
        return {"among 20": intervals.Unmeasured("no picture has a name of the training split")}
    rank, classes = ranks(found.read(images[known])[1], truth[known]), len(found.names)
    sizes = [n for n in AMONG if n <= classes]
    return {f"among {n}": intervals.bootstrap(right(rank, classes, n)) for n in sizes} | {
        f"of all {classes} names": intervals.bootstrap(rank == 0)
    }


def named(found: Recogniser, captions: list[str], images, truth) -> dict:
    """What captions of pictures are worth: shares that are the name of their picture, `truth`
    int[n] (-1: it has none); that name what is recognised; that have words of the training only."""
    said, known = np.array([found.name(text) for text in captions]), truth >= 0
    near = found.near[np.maximum(truth, 0)]
    return {
        "the name": _share(said == truth, known),
        f"one of the {near.shape[1]} names around it": _share(
            (near == said[:, None]).any(axis=1), known
        ),
        **recognised(found, images, said),
        "without broken words": _share([found.words >= {*_words(text)} for text in captions]),
    }


def measure(pipe, items, drawn: dict, workdir, folder, steps: int = STEPS) -> dict:
    """All of this file on the samples of a run. folder: of the samples, for what the page shows.

    drawn: {task: samples} with "t2i", "i2t" and "pair"; steps: of the classifier's training.
    """
    if items.world:
        return {"names": intervals.Unmeasured(f"{items.name} can be read exactly")}
    found = obtain(pipe, workdir, steps)
    if isinstance(found, intervals.Unmeasured):
        return {"names": found}
    truth = np.array([found.name(texts[0]) for texts in items.references])
    made, told, pairs = (drawn[task] for task in ("t2i", "i2t", "pair"))
    real, of_texts, of_pairs = (
        pixels.as_rgb(images) for images in (items.images, made.images, pairs.images)
    )
    grey = real.mean(axis=-1, keepdims=True).round().astype(np.uint8)
    in_pairs = np.array([found.name(text) for text in pairs.captions])
    report = {
        "real held-out pictures": recognised(found, real, truth),
        "the same in grey": recognised(found, np.repeat(grey, 3, axis=-1), truth),
        "text to image": recognised(found, of_texts, truth[: len(made)]),
        "image to text": named(found, told.captions, real[: len(told)], truth[: len(told)]),
        "pairs": {
            "caption is a name": _share(in_pairs >= 0),
            **recognised(found, of_pairs, in_pairs),
        },
    }
    features, logits = found.read(of_texts)
    of_items = found.read(real)[0]
    report["text to image"]["Frechet distance in its features"] = _fid(
        features, of_items[: len(made)]
    )
    cosines, near = _nearest(pipe, found, {"samples": features, "held-out pictures": of_items})
    report["cosine to the nearest training picture"] = cosines
    _show(found, made, told, pairs, real, logits, truth, near, folder)
    return report


def _share(values, known=None):
    values = np.asarray(values, bool)
    values = values if known is None else values[known]
    return intervals.bootstrap(values) if len(values) else intervals.Unmeasured("no item")


def _words(text: str) -> list[str]:
    return text.casefold().replace(",", " ").split()


def _fid(made, real):
    if min(len(made), len(real)) < 20:
        return intervals.Unmeasured(f"{len(made)} pictures, expected 20 or more")
    return frechet.fid(made, real)


def _nearest(pipe, found, groups: dict) -> tuple[dict, np.ndarray]:
    """Cosines of features to those of the nearest training picture, by group; and the pictures that
    are nearest to the first SHOWN of the first group.

    groups: {name: features float32[n, F]}.
    """
    best, (first, *_) = {name: np.full(len(f), -2.0) for name, f in groups.items()}, groups
    shape = pipe.tokenizers["image"].shape
    near = np.zeros((min(SHOWN, len(groups[first])), *shape), np.uint8)
    training = _training(pipe)
    while block := list(itertools.islice(training, BLOCK)):
        pictures = np.stack([example.pixels[0] for example in block])
        there = found.read(pixels.as_rgb(pictures))[0].T
        for name, own in groups.items():
            cosine = own @ there
            if name == first:
                closer = cosine.max(axis=1)[: len(near)] > best[name][: len(near)]
                near[closer] = pictures[cosine.argmax(axis=1)[: len(near)][closer]]
            best[name] = np.maximum(best[name], cosine.max(axis=1))
    return {name: intervals.bootstrap(value) for name, value in best.items()}, near


def _show(found, made, told, pairs, real, logits, truth, near, folder):
    """Keeps samples of text to image with the verdict of the classifier for the page, and a sheet
    of the first SHEET samples of each task.

    A picture is right if its name would be right among 20 more often than not; a caption if it is
    the name of its picture. logits: of text to image; truth: int[n], of the items.
    """
    shown = min(SHOWN, len(made))  # there may be more items than samples
    fine, seen = _verdicts(found, logits[:shown], truth[:shown])
    own = [found.names[i] if i >= 0 else "(no name)" for i in truth]
    kept = {"images": made.images[:shown], "near_images": near, "names": own[:shown], "seen": seen}
    samples.write(folder / KEPT, kept | {"right": fine})
    said, in_pairs = (
        np.array([found.name(text) for text in drawn.captions[:SHEET]]) for drawn in (told, pairs)
    )
    named_right = (said == truth[: len(said)]) & (said >= 0)
    of_pairs = found.read(pixels.as_rgb(pairs.images[:SHEET]))[1]
    pair_fine, pair_seen = _verdicts(found, of_pairs, in_pairs)
    rows = (  # pictures, texts of right ones, two texts of wrong ones, which are right
        (made.images, own, own, seen, fine),
        (real, told.captions, own, told.captions, named_right),
        (pairs.images, pairs.captions, pairs.captions, pair_seen, pair_fine),
    )
    cells = [cell for row in rows for cell in itertools.islice(zip(*row, strict=False), SHEET)]
    texts = [text if ok else f"{a}: {b}?" for _, text, a, b, ok in cells]
    marks = [bool(ok) for *_, ok in cells]
    sheet = contact_sheet.sheet([image for image, *_ in cells], texts, SHEET, marks=marks)
    pixels.write_png(folder / "recognition-sheet.png", sheet)


def _verdicts(found, logits, truth) -> tuple[np.ndarray, list[str]]:
    """(whether each picture shows its name int[n], -1 for none; the name that is seen)."""
    fine = right(ranks(logits, np.maximum(truth, 0)), len(found.names), AMONG[0]) > 0.5
    return fine & (truth >= 0), [found.names[i] for i in logits.argmax(axis=1)]
