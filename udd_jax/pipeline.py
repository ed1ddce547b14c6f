"""The Python face: load a run, generate, caption, infill, score.

    pipe = Pipeline.load("runs/t2i")
    pipe.text_to_image(["a small red circle"], seed=0).images       # uint8[1, S, S, 3]

Images are uint8[B, S, S, 3] at the run's size, captions lists of strings. Every method takes the
fields of `sampling.settings.Settings` as keywords (`steps=20, guidance=2.0, top_r=0.9, ...`); the
others are as in the run's config. Sample b of a call draws from its own key, so that a result does
not depend on `batch_size`.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from udd_jax import build
from udd_jax.data import pixels
from udd_jax.diffusion import objective, tasks, transition
from udd_jax.diffusion import vocab as vocabs
from udd_jax.networks import transformer
from udd_jax.runtime import sharding, trees
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings
from udd_jax.tokenizers import text_tokenizer, vqgan

LN2 = math.log(2)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What a call generated.

    images: uint8[n, S, S, 3], or None where the image is absent; captions: n strings, or None;
    tokens: int32[n, L]; calls: network steps a sample, int32[n]; states: int32[trace, n, L].
    """

    images: np.ndarray | None
    captions: list[str] | None
    tokens: np.ndarray
    calls: np.ndarray
    states: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A finished run: two tokenizers, the kernel and the network with its averaged weights."""

    config: ml_collections.ConfigDict
    text: text_tokenizer.Tokenizer
    image: vqgan.ImageTokenizer
    vocab: vocabs.Vocab
    kernel: transition.Kernel
    model: transformer.Transformer
    params: dict
    mesh: jax.sharding.Mesh | None = None

    @classmethod
    def load(cls, directory) -> "Pipeline":
        """Reads a run's folder. FileNotFoundError or ValueError, one line, where it is no run."""
        directory = pathlib.Path(directory)
        config = build.read_config(directory)
        text, image = build.load_tokenizers(directory)
        return cls.assemble(config, text, image, build.load_weights(directory))

    @classmethod
    def assemble(cls, config, text, image, params) -> "Pipeline":
        """The same from its parts."""
        vocab = build.make_vocab(config, text, image)
        kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
        model = build.make_model(config, vocab, text.pad_id)
        expected = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
        trees.require_fit(
            trees.flatten(expected),
            {n: (a.shape, a.dtype) for n, a in trees.flatten(params).items()},
            "weights",
        )
        mesh = sharding.make_mesh(**config.mesh)
        return cls(config, text, image, vocab, kernel, model, jax.device_put(params), mesh)

    def with_config(self, **sections) -> "Pipeline":
        """A copy whose config differs: `pipe.with_config(sample={"top_r": 0.9})`.

        What was compiled is shared, so the network, its kernel and the mesh must stay as they are.
        """
        config = ml_collections.ConfigDict(self.config.to_dict())
        with config.unlocked():
            for name, changes in sections.items():
                config[name].update(changes)
        other = dataclasses.replace(self, config=config)
        other.__dict__.update(_sample=self._sample, _bound=self._bound)
        return other

    # ---- Six tasks --------------------------------------------------------------------------

    def text_to_image(self, captions: Sequence[str], *, seed=0, negative=None, **settings) -> Pairs:
        """An image for each caption; `negative`, a caption that guidance leads away from.

        >>> pipe.text_to_image(["a small red circle"], seed=0).images.shape
        (1, 32, 32, 3)
        """
        ids = self.text.encode(list(captions), self.text_length, strict=True)
        if negative is not None:
            row = self.text.encode([negative], self.text_length, strict=True)
            negative = np.repeat(row, len(ids), axis=0)
        return self.generate("t2i", len(ids), text=ids, negative=negative, seed=seed, **settings)

    def image_to_text(self, images, *, seed=0, **settings) -> Pairs:
        """A caption for each image, uint8[B, S, S, 3].

        >>> len(pipe.image_to_text(pipe.images(2).images).captions)
        2
        """
        codes = self.image.encode(images)
        return self.generate("i2t", len(codes), image=codes, seed=seed, **settings)

    def pairs(self, count: int, *, seed=0, **settings) -> Pairs:
        """Images with their captions, from nothing.

        >>> len(pipe.pairs(2).captions)
        2
        """
        return self.generate("pair", count, seed=seed, **settings)

    def images(self, count: int, *, seed=0, **settings) -> Pairs:
        """Images alone, the text absent.

        >>> pipe.images(2).captions is None
        True
        """
        return self.generate("image", count, seed=seed, **settings)

    def texts(self, count: int, *, seed=0, **settings) -> Pairs:
        """Captions alone, the image absent.

        >>> pipe.texts(2).images is None
        True
        """
        return self.generate("text", count, seed=seed, **settings)

    def infill(
        self, images=None, image_mask=None, captions=None, *, blank_tokens=1, seed=0, **settings
    ) -> Pairs:
        """Fills in the missing parts of images, of captions, or of both at once.

        image_mask: bool[S, S] or bool[B, S, S], True where the image is generated; a code is free
        if any pixel of its cell is. In a caption `___` stands for one word, of `blank_tokens`
        tokens; the other words, and the end of the caption, stay. A modality that is not passed
        is absent.

        >>> pipe.infill(captions=["a ___ circle"]).captions[0].startswith("a")
        True
        """
        if images is None and captions is None:
            raise ValueError("infill: images and captions are both missing, expected one at least")
        count = len(images) if images is not None else len(captions)
        given, free, absent = {}, [], []
        if images is None:
            free.append(np.zeros((count, self.vocab.modalities[0].length), bool))
        else:
            images = np.asarray(images)
            mask = (
                np.zeros(images.shape[:3], bool) if image_mask is None else np.asarray(image_mask)
            )
            mask = np.broadcast_to(mask, images.shape[:3])
            hidden = np.stack([pixels.hide(i, m) for i, m in zip(images, mask, strict=True)])
            given["image"] = self.image.encode(hidden)
            cells = [pixels.code_mask(m, self.image.grid).reshape(-1) for m in mask]
            free.append(np.stack(cells))
        if captions is None:
            free.append(np.zeros((count, self.text_length), bool))
        else:
            if len(captions) != count:
                raise ValueError(f"infill: {count} images and {len(captions)} captions")
            rows = [
                self.text.encode_with_blanks(c, self.text_length, blank_tokens) for c in captions
            ]
            given["text"] = np.stack([ids for ids, _ in rows])
            free.append(np.stack([blank for _, blank in rows]))
        absent = np.broadcast_to([images is None, captions is None], (count, 2))
        free = np.concatenate(free, axis=1)
        if not free.any(axis=1).all():
            raise ValueError("infill: nothing is missing, expected white in the mask or a ___")
        masks = tasks.Masks(free, absent)
        return self.generate("infill", count, masks=masks, seed=seed, **given, **settings)

    def reconstruct(self, images) -> np.ndarray:
        """Images through the image tokenizer and back: the best that any sample can look.

        >>> pipe.reconstruct(pipe.images(2).images).shape
        (2, 32, 32, 3)
        """
        return self.image.decode(self.image.encode(images))

    # ---- Scores -----------------------------------------------------------------------------

    def log_likelihood(
        self, images, captions: Sequence[str], *, task="pair", times=16, seed=0
    ) -> np.ndarray:
        """A lower bound on log2 p in bits: of pairs, or of what `task` generates given the rest.

        task: "pair", "t2i" (image given text), "i2t", "image" or "text". `times` noise levels an
        item estimate it. Returns float64[B, M], a column a modality; their sum is the bound.

        >>> pipe.log_likelihood(*pipe.example(2)).shape
        (2, 2)
        """
        codes = self.image.encode(images)
        ids = self.text.encode(list(captions), self.text_length)
        return self.score({"image": codes, "text": ids}, task=task, times=times, seed=seed)

    def score(
        self, tokens: dict, *, task="pair", times=16, seed=0, common=False, calls=0
    ) -> np.ndarray:
        """`log_likelihood` of tokens, local ids by name; `common`: one noise for all rows, so that
        what they are compared by is not theirs; `calls`: of a chain of so many steps, 0 is T."""
        x0 = np.asarray(self.vocab.fuse(tokens))
        masks = tasks.masks(self.vocab, task, len(x0))
        if np.asarray(self._feasible(task, masks).absent != masks.absent).any():
            raise ValueError(
                f"task {task!r} has no bound: this network knows one time for both modalities, "
                "so that none can be absent"
            )
        # Every time of the bound draws an absent modality anew: only a given one stays as it is.
        still = None if np.asarray(masks.absent).any() else self._still(masks)
        numbers = jnp.zeros(len(x0), int) if common else jnp.arange(len(x0))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)

        def part(rows, keys):
            here = tasks.Masks(masks.free[: len(keys)], masks.absent[: len(keys)])
            return self._bound(self.params, keys, x0[rows], here, times, calls, still)

        nats = self._in_batches(part, keys, min(self.config.evaluate.batch_size, len(x0)))
        return -np.asarray(nats, np.float64) / LN2

    def example(self, count: int, split="test") -> tuple[np.ndarray, list[str]]:
        """Images and captions of the run's own data."""
        from udd_jax.data import reading, sources

        source = sources.open_source(self.config.data, split, **self.config.data_options)
        views = reading.Views(self.config.image_size)
        found = []
        for example in reading.examples(source, 0, min(len(source), 2 * count), views):
            if example.pixels is not None and example.captions:
                found.append((example.pixels[0], example.captions[0]))
        return np.stack([image for image, _ in found[:count]]), [c for _, c in found[:count]]

    # ---- Below the tasks --------------------------------------------------------------------

    @property
    def text_length(self) -> int:
        return self.vocab.modalities[self.vocab.index("text")].length

    @property
    def guidable(self) -> bool:
        """Whether the network has seen absent conditions, which guidance needs."""
        mixture = self.config.train.mixture.to_dict()
        trained = [task for task, weight in mixture.items() if weight > 0]
        leaves_out = [np.asarray(tasks.masks(self.vocab, task, 1).absent).any() for task in trained]
        return "independent" in trained or any(leaves_out)

    def settings(self, **changes) -> Settings:
        """The run's sampler settings with these changes; ValueError for a bad one."""
        fields = {f.name for f in dataclasses.fields(Settings)}
        for name in changes:
            if name not in fields:
                raise ValueError(
                    f"sample.{name} is not a setting, expected one of {sorted(fields)}"
                )
        settings = Settings(**{**self.config.sample, **changes})
        settings.check(self.kernel, self.guidable)
        return settings

    def generate(
        self,
        task,
        count,
        *,
        masks=None,
        image=None,
        text=None,
        negative=None,
        seed=0,
        batch_size=64,
        trace=0,
        first=0,
        guide=None,
        scorers=(),
        **settings,
    ) -> Pairs:
        """Runs the sampler: the base of all the above, from tokens to `Pairs`.

        image: int32[count, N], text: int32[count, M], local ids of what is given; masks: of
        the task unless passed; negative: like text (or image, for "i2t"); first: the number of the
        first sample, so that a call in parts draws what one call would. guide, scorers: functions
        of your own that steer (`sampling.guidance`); each other one is compiled anew.
        """
        if count < 1:
            raise ValueError(f"num = {count}, expected at least 1")
        settings = self.settings(**settings)
        masks = tasks.masks(self.vocab, task, count) if masks is None else masks
        given = {"image": image, "text": text}
        fill = {
            m.name: np.zeros((count, m.length), np.int32)
            if given[m.name] is None
            else np.asarray(given[m.name], np.int32)
            for m in self.vocab.modalities
        }
        x = np.asarray(self.vocab.fuse(fill))
        against = None
        if negative is not None:
            name = "image" if task == "i2t" else "text"
            against = np.full_like(x, self.vocab.mask_id)
            m = self.vocab.index(name)
            against[:, self.vocab.slices[m]] = np.asarray(negative) + self.vocab.offsets[m]
        left_out = np.asarray(masks.absent)[0]
        masks = self._feasible(task, masks)
        still = self._still(masks)
        free, absent = np.asarray(masks.free), np.asarray(masks.absent)
        numbers = jnp.arange(first, first + count)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)

        def part(rows, keys):
            away = None if against is None else against[rows]
            result = self._sample(
                self.params,
                keys,
                x[rows],
                free[rows],
                absent[rows],
                away,
                settings,
                trace,
                still,
                guide,
                tuple(scorers),
            )
            return result.tokens, result.calls, jnp.swapaxes(result.states, 0, 1)

        tokens, calls, states = self._in_batches(part, keys, min(batch_size, count))
        split = {k: np.asarray(v) for k, v in self.vocab.split(jnp.asarray(tokens)).items()}
        has = dict(zip((m.name for m in self.vocab.modalities), ~left_out, strict=True))
        return Pairs(
            images=self.image.decode(split["image"]) if has["image"] else None,
            captions=self.decode_text(split["text"]) if has["text"] else None,
            tokens=tokens,
            calls=calls,
            states=np.swapaxes(states, 0, 1),
        )

    def _feasible(self, task, masks: tasks.Masks) -> tasks.Masks:
        """The masks as this network can take them; ValueError for a task that it cannot do.

        A network with one shared time has never seen an absent modality: it generates both, and
        one is left out of the result. A conditional one generates its own modality only.
        """
        free, absent = np.asarray(masks.free), np.asarray(masks.absent)
        if self.model.time == "shared":
            free, absent = free | absent[:, self.vocab.modality_of], np.zeros_like(absent)
        if self.model.network != "joint":
            name = self.model.network.partition("_from_")[0]
            own = self.vocab.modality_of == self.vocab.index(name)
            if free[:, ~own].any() or absent.any():
                can = {"image": "t2i", "text": "i2t"}[name]
                raise ValueError(
                    f"task {task!r} is not for the network of this run, {self.model.network}: "
                    f"expected {can!r}, or 'infill' of the {name} with the rest given"
                )
        return tasks.Masks(free, absent)

    def decode_text(self, ids) -> list[str]:
        """int32[B, M], masks among them allowed -> strings."""
        ids = np.where(ids >= self.text.vocab_size, self.text.pad_id, ids)
        return [caption.strip() for caption in self.text.decode(ids)]

    def _in_batches(self, function, keys, batch_size):
        """Calls function(rows, keys) on batches of one size (the last is filled up with its own
        last row), and joins what it returns."""
        count, parts = len(keys), []
        for start in range(0, count, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), count - 1)
            with sharding.use(self.mesh):
                result = jax.device_get(function(rows, keys[rows]))
            keep = min(batch_size, count - start)
            parts.append(jax.tree.map(lambda a, keep=keep: a[:keep], result))
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    def _still(self, masks: tasks.Masks) -> str | None:
        """The modality of which nothing is generated in any sample, if the network profits."""
        if not self.model.block_attention:
            return None
        free = np.asarray(masks.free).any(axis=0)
        modalities = zip(self.vocab.modalities, self.vocab.slices, strict=True)
        names = [m.name for m, where in modalities if not free[where].any()]
        return names[0] if len(names) == 1 else None

    @functools.cached_property
    def _sample(self):
        def run(params, keys, x, free, absent, negative, settings, trace, still, guide, scorers):
            return reverse.run(
                self.kernel,
                transformer.Denoiser(self.model, params, still),
                keys,
                x,
                free,
                absent,
                settings,
                negative,
                trace,
                guide,
                scorers,
            )

        return jax.jit(run, static_argnames=("trace", "still", "guide", "scorers"))

    @functools.cached_property
    def _bound(self):
        def run(params, keys, x0, masks, times, calls, still):
            denoise_fn = transformer.Denoiser(self.model, params, still)
            return objective.bound(self.kernel, denoise_fn, keys, x0, *masks, times, calls)

        return jax.jit(run, static_argnames=("times", "calls", "still"))
