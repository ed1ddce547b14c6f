"""The Python interface: load a run, generate, caption, infill, score.

    pipe = Pipeline.load("runs/t2i")
    pipe.text_to_image("a small red circle", num=4, seed=0).images       # uint8[4, S, S, C]
    pipe.generate("image|text", given={"text": ["a small red circle"]}).values["image"]

A prompt is a string or a list of strings, a picture is an array, an image of Pillow or a path, one
or many (`values.py`). Results are uint8[n, S, S, C] at the size of the run (`Result.pil` has them
as images of Pillow), and lists of strings. C is 3, or 1 or 4 in a run of such `image_channels`.
Every method that generates takes the fields of `sampling.settings.Settings` as keywords
(`top_r=0.9, guidance=2.0, ...`); the defaults are those of the run's config. A keyword that would
change nothing is refused. Each sample of a call has its own key, so the result does not depend on
`batch_size`. A batch is filled up to a power of two, so that calls for other numbers of samples
need no new compilation, and compiled programs are kept on the disk (`runtime/compiled.py`).

In one file, though it is long, since it is all that a user calls.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from udd_jax import build, hub, modalities, values
from udd_jax.convert import tensor_files
from udd_jax.diffusion import tasks, transition
from udd_jax.diffusion import vocab as vocabs
from udd_jax.errors import UserError
from udd_jax.networks import matching, transformer
from udd_jax.runtime import compiled, files, sharding, trees
from udd_jax.sampling import settings as sampling
from udd_jax.sampling.settings import IN_ORDER, Settings
from udd_jax.steering import (
    candidates,
    chains,
    edits,
    infilling,
    lengths,
    scoring,
    stepwise,
    upscaling,
)
from udd_jax.tokenizers import codecs
from udd_jax.values import Result

LN2 = math.log(2)
LEAST = 4  # rows of a batch
PACKAGED = pathlib.Path(__file__).parent / "assets" / "shapes"  # the run of the package


def sample_keys(seed: int, count: int, first: int = 0) -> jax.Array:
    """The keys of samples `first`, `first` + 1, ... of a call with this seed: [count]."""
    each = jnp.arange(first, first + count)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), each)


class ReadOnly(dict):
    """The tokenizers of a pipeline: compiled functions do not see another one that is put in."""

    def _refuse(self, *_, **__):
        raise TypeError("the tokenizers of a pipeline are read-only: use pipe.with_tokenizer")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self):
        return ReadOnly, (dict(self),)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """A finished run: tokenizers by modality, the kernel, the network and its averaged weights."""

    config: ml_collections.ConfigDict
    tokenizers: Mapping[str, Any]  # read-only: `with_tokenizer` puts in another one
    vocab: vocabs.Vocab
    kernel: transition.Kernel
    model: transformer.Transformer
    params: dict
    mesh: jax.sharding.Mesh | None = None
    folder: pathlib.Path | None = None  # where it was loaded from
    matcher: matching.Matcher | None = None  # the dual encoder of another run

    def __post_init__(self):
        object.__setattr__(self, "tokenizers", ReadOnly(self.tokenizers))

    def __getstate__(self):
        """The fields alone: what is compiled or made of them is made again where it is needed."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def load(cls, directory=PACKAGED) -> "Pipeline":
        """Reads the folder of a run, by default that of the package, or of `save_pretrained`.

        FileNotFoundError or ValueError, one line, if it has none.
        """
        directory = pathlib.Path(directory)
        if hub.is_one(directory):
            return cls.from_pretrained(directory)
        compiled.keep()
        config = build.read_config(directory)
        tokenizers = build.load_tokenizers(directory, config)
        pipe = cls.assemble(config, tokenizers, build.load_weights(directory))
        return dataclasses.replace(pipe, folder=directory)

    @classmethod
    def from_pretrained(cls, folder, revision: str | None = None, **options) -> "Pipeline":
        """Reads a folder that `save_pretrained` wrote, the folder of a run, or a model of a hub.

        folder: a path, or "org/name" where no such folder exists. revision: its branch, tag or
        commit; options: token, cache_dir and others (`hub.fetch`).

        FileNotFoundError or ValueError, one line. A folder of the first kind is refused if it has
        links or files that could run code (`hub.check`).
        """
        name, folder, links = str(folder), pathlib.Path(folder), None
        if not folder.exists() and hub.NAME.fullmatch(name):
            folder = hub.fetch(name, revision, **options)
            links = folder.parent.parent  # the cache keeps a file once, for all revisions
        elif revision is not None or options:
            given = ", ".join([*(["revision"] if revision is not None else []), *options])
            raise UserError(f"{name!r} is a folder or no name of a model: leave out {given}")
        if not hub.is_one(folder):
            return cls.load(folder)
        compiled.keep()
        return dataclasses.replace(cls.assemble(*hub.read(folder, links)), folder=folder)

    def push_to_hub(
        self, name: str, *, license="unknown", dtype="float32", shard=hub.SHARD, **options
    ) -> str:
        """Uploads this pipeline as the model "org/name" of a hub; returns the address.

        license, dtype, shard: as of `save_pretrained`. options: private, message, token, endpoint
        (`hub.push`). UserError, one line.
        """
        hub.require_name(name)  # before anything is written
        with tempfile.TemporaryDirectory() as place:
            folder = pathlib.Path(place) / "model"
            self.save_pretrained(folder, license, dtype, shard, name)
            return hub.push(folder, name, **options)

    def save_pretrained(
        self, folder, license="unknown", dtype="float32", shard=hub.SHARD, name="THIS FOLDER"
    ) -> None:
        """Writes the files of this pipeline and its model card to a new folder (`hub.py`).

        license: the identifier for the card, such as "apache-2.0". dtype: float32, or bfloat16 for
        half of the bytes, which no longer keeps every bit. shard: the most bytes of a file of
        weights. name: how the card says to load it. The card has the results of `evaluation.json`
        where the pipeline was loaded from. The dual encoder is not written (`with_dual_encoder`
        takes that of a run). UserError if the folder has files.
        """
        path = self.folder and self.folder / hub.RESULT
        evaluation = files.read_json(path) if path and path.exists() else None
        card = hub.card(self.config, self.vocab, self._size, evaluation, license, name)
        params = jax.device_get(self.params)
        hub.write(folder, self.config, self.tokenizers, params, evaluation, card, dtype, shard)

    @classmethod
    def assemble(cls, config, tokenizers: dict, params) -> "Pipeline":
        """Makes a pipeline from its parts. ValueError if the weights do not fit the config."""
        vocab = build.make_vocab(config, tokenizers)
        kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
        model = build.make_model(config, vocab, tokenizers["text"].pad_id)
        expected = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
        trees.require_fit(
            trees.flatten(expected),
            {n: (a.shape, a.dtype) for n, a in trees.flatten(params).items()},
            "weights",
        )
        mesh = sharding.make_mesh(**config.mesh)
        return cls(config, tokenizers, vocab, kernel, model, jax.device_put(params), mesh)

    @property
    def _size(self) -> int:
        """The number of parameters."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))

    def __repr__(self) -> str:
        parts = [f"{m.name} ({m.length} tokens of {m.classes})" for m in self.vocab.modalities]
        mixture = self.config.train.mixture.to_dict()
        trained = ", ".join(task for task, weight in mixture.items() if weight > 0)
        return (
            f"Pipeline {self.config.name}: {', '.join(parts)}; trained on {trained}; "
            f"{self._size:,} parameters; data {self.config.data}"
        )

    def with_config(self, **sections) -> "Pipeline":
        """A copy with another config: `pipe.with_config(sample={"top_r": 0.9})`.

        The copy shares compiled functions, unless `model` changes. It keeps the kernel, the network
        and the mesh, so that another `diffusion` or `model` changes nothing (`assemble` takes one).
        A rule with settings of its own in `sample_rules` keeps them. UserError for a section that
        the config does not have, or no setting of the sampler.
        """
        known = {*self.config.keys(), "sample_rules", "begin_with"}  # the last two are newer
        settings = {f"sample.{field.name}" for field in dataclasses.fields(Settings)}
        asked = {*sections, *(f"sample.{name}" for name in sections.get("sample", {}))}
        rules = sections.get("sample_rules", {})
        asked |= {f"sample.{name}" for own in rules.values() for name in own}
        for name in sorted(asked - known - settings):
            raise UserError(f"with_config: {name!r} is not a field of the config of this run")
        config = ml_collections.ConfigDict(self.config.to_dict())
        try:
            with config.unlocked():
                config.update(sections)
        except TypeError as error:
            raise UserError(f"with_config: {error}") from None
        other = dataclasses.replace(self, config=config)
        if "model" not in sections:
            other.__dict__.update(_sample=self._sample, _bound=self._bound)
        return other

    def with_network(self, **options) -> "Pipeline":
        """A copy with other options of the network that change no result, such as `unroll`."""
        return dataclasses.replace(self, model=self.model.clone(**options))

    def with_tokenizer(self, name: str, tokenizer) -> "Pipeline":
        """A copy with another tokenizer of a modality, and of those that are like it.

        It has to have the same codes, as its `hash` says; so it may be that of the run with another
        vocoder. UserError, one line.
        """
        if name not in self.tokenizers:
            known = ", ".join(self.tokenizers)
            raise UserError(f"with_tokenizer: {name!r} is not a modality, expected one of {known}")
        old, found = self.tokenizers[name], getattr(tokenizer, "hash", None)
        if found != old.hash:
            raise UserError(
                f"with_tokenizer: the hash of the tokenizer of {name!r} is {found!r}, expected "
                f"{old.hash!r}: this network knows the codes of no other one"
            )
        alike = [other for other, own in self.tokenizers.items() if own is old]
        tokenizers = self.tokenizers | dict.fromkeys(alike, tokenizer)
        other = dataclasses.replace(self, tokenizers=tokenizers)
        other.__dict__.update(_sample=self._sample, _bound=self._bound)
        return other

    # ---- Six tasks --------------------------------------------------------------------------

    def text_to_image(
        self, captions=None, *, num=1, negative: str | None = None, seed=0, **settings
    ) -> Result:
        """`num` images of each caption, a string or a list of strings.

        `negative` is a negative prompt for guidance, a caption. `prompts=[(caption, weight), ...]`
        instead of captions combines several.

        >>> pipe.text_to_image("a small red circle", num=2, seed=0).images.shape
        (2, 32, 32, 3)
        """
        given = None if captions is None else {"text": captions}
        against = None if negative is None else {"text": negative}
        return self.generate("t2i", given=given, num=num, negative=against, seed=seed, **settings)

    def image_to_text(self, images, *, num=1, length=None, seed=0, **settings) -> Result:
        """`num` captions of each image.

        length: how many tokens a caption has, a number or one for each image, or "drawn" by the
        length head (`steering.lengths`); by default the padding is generated like the tokens.

        >>> len(pipe.image_to_text(pipe.images(2).pil).captions)
        2
        """
        if length is not None:
            first = values.whole("first", settings.get("first", 0), 0)
            given, masks = lengths.inputs(self, images, length, num, seed, first)
            settings = stepwise.repeated(self, num, settings)
            return self.generate("i2t", given=given, masks=masks, seed=seed, **settings)
        return self.generate("i2t", given={"image": images}, num=num, seed=seed, **settings)

    def pairs(self, count: int, *, seed=0, **settings) -> Result:
        """Images with their captions, without a condition.

        If `begin_with` of the run names the image, it is drawn first, and then the text given it,
        each in as many `steps` as are asked for. begin_with=() draws both in one chain.

        >>> len(pipe.pairs(2).captions)
        2
        """
        return self.generate("pair", count, seed=seed, **settings)

    def images(self, count: int, *, seed=0, **settings) -> Result:
        """Images alone; the text is absent.

        >>> pipe.images(2).captions is None
        True
        """
        return self.generate("image", count, seed=seed, **settings)

    def texts(self, count: int, *, seed=0, **settings) -> Result:
        """Captions alone; the image is absent.

        >>> pipe.texts(2).images is None
        True
        """
        return self.generate("text", count, seed=seed, **settings)

    def infill(
        self,
        images=None,
        image_mask=None,
        captions=None,
        *,
        blank_tokens=1,
        num=1,
        seed=0,
        **settings,
    ) -> Result:
        """Fills in the missing parts of images, of captions, or of both at once, `num` times each.

        image_mask: bool[S, S] or bool[B, S, S], True where the image is generated, or images of
        Pillow, white there. A picture of another size may have a mask of its own size. A code is
        free if any pixel of its cell is True. In a caption `___` stands for one word of
        `blank_tokens` tokens; the other words and the end of the caption stay. One image, mask or
        caption counts for several of the others. A modality that is not passed is absent.
        ValueError if nothing is passed or nothing is missing.

        >>> pipe.infill(captions=["a ___ circle"]).captions[0].startswith("a")
        True
        """
        given, masks = self.infilling(images, image_mask, captions, blank_tokens)
        return self.generate("infill", given=given, masks=masks, num=num, seed=seed, **settings)

    def edit(
        self,
        images,
        captions,
        *,
        share=edits.SHARE,
        rounds=edits.ROUNDS,
        num=1,
        seed=0,
        batch_size=64,
        trace=0,
        **settings,
    ) -> Result:
        """Changes images to follow new captions, without a mask (Muse, arXiv 2301.00704).

        Each of `rounds` rounds masks a random `share` of the image's codes anew and draws them
        given the others and the caption, like a Gibbs sampler. More rounds, a larger share and more
        guidance follow the caption further. The guidance is `edits.GUIDANCE` unless given. trace:
        the number of rounds whose results are returned as states.

        >>> images, captions = pipe.example(1)
        >>> pipe.edit(images, "a blue circle", rounds=1).images.shape
        (1, 32, 32, 3)
        """
        options = {"num": num, "seed": seed, "batch_size": batch_size, "trace": trace}
        return edits.edit(self, images, captions, share, rounds, **options, **settings)

    def outpaint(
        self, images, captions=None, *, extend: dict[str, int], num=1, seed=0, **settings
    ) -> np.ndarray:
        """Adds pixels at the sides of images: uint8[n, S + top + bottom, S + left + right, C].

        extend: {"left", "right", "top" or "bottom": pixels}. Windows of the model's size are
        infilled one after the other (`sampling.outpainting`). captions: of the whole, or none.

        >>> pipe.outpaint(pipe.example(1)[0], extend={"left": 8}).shape
        (1, 32, 40, 3)
        """
        return edits.outpaint(self, images, captions, extend, num, seed, **settings)

    def upscale(
        self, images, captions=None, *, factor=None, num=1, seed=0, **settings
    ) -> np.ndarray:
        """Draws small pictures at a larger size: uint8[n, factor H, factor W, C].

        For a run whose pictures have two levels (a modality of kind coarse): the small picture
        gives the coarse codes, and the fine ones are generated. images: arrays uint8[n, H, W, C],
        images of Pillow or paths, all of one size. factor: 2 or 4; by default what makes a picture
        as large as those of the run, which is 1 for a preview. A larger result is made by windows
        of the fine grid (`sampling.outpainting`), also larger than any in training. captions: of
        the whole, or none. UserError, one line.
        """
        return upscaling.upscale(self, images, captions, factor, num, seed, **settings)

    def reconstruct(self, images) -> np.ndarray:
        """Encodes and decodes images with the image tokenizer: an upper limit for all samples.

        >>> pipe.reconstruct(pipe.images(2).images).shape
        (2, 32, 32, 3)
        """
        tokenizer = self.tokenizers["image"]
        return tokenizer.decode(tokenizer.encode(values.plain(self, "image", images)))

    def infilling(
        self, images=None, image_mask=None, captions=None, blank_tokens=1
    ) -> tuple[dict, tasks.Masks]:
        """The input of `infill`: ({modality: local ids}, masks); see `steering.infilling`."""
        return infilling.inputs(self, images, image_mask, captions, blank_tokens)

    # ---- Scores -----------------------------------------------------------------------------

    def log_likelihood(
        self, images=None, captions=None, *, task="pair", times=16, seed=0, each=False
    ) -> np.ndarray:
        """A lower bound on log2 p, in bits, of the modalities that `task` generates given the rest.

        task: "pair", "t2i" (image given text), "i2t", "image" or "text"; what it leaves out may be
        None. captions: a string or a list of strings. The estimate uses `times`
        noise levels for each item. Returns float64[B, M], one column for each modality; their sum
        is the bound. each: return the part of each token, float64[B, L]. ValueError for a task that
        the network cannot do.

        >>> pipe.log_likelihood(*pipe.example(2)).shape
        (2, 2)
        """
        given = {"image": images, "text": captions}
        given = {name: rows for name, rows in given.items() if rows is not None}
        tokens = {name: values.ids(self, name, rows) for name, rows in given.items()}
        return self.score(tokens, task=task, times=times, seed=seed, each=each)

    def score(
        self, tokens: dict, *, task="pair", times=16, seed=0, common=False, calls=0, each=False
    ) -> np.ndarray:
        """`log_likelihood` of tokens, {modality: local ids int32[B, length]}.

        Modalities that are absent in the task may be missing. UserError, one line: another one is
        missing, or has other ids than its own.

        common: use the same noise for every row, so that scores can be compared. calls: the number
        of steps of the chain that the bound is for, at most T; 0 means T. each: float64[B, L], the
        part of each token.
        """
        values.whole("times", times, 1), values.seed(seed)
        if values.whole("calls", calls, 0) > self.kernel.steps:
            raise UserError(f"calls = {calls}, expected at most T = {self.kernel.steps}")
        for name in set(modalities.features(self.config)) & set(
            tasks.parse(self.vocab, task).given
        ):
            raise UserError(f"score: task {task!r} gives {name!r}, features, which it cannot take")
        tokens = chains.scored(self.vocab, task, tokens)
        x0 = np.asarray(self.vocab.fuse(tokens))
        masks = tasks.masks(self.vocab, task, len(x0))
        if not chains.has_bound(self, task):
            raise UserError(
                f"task {task!r} has no bound: this network knows one time for both modalities, "
                "so that none can be absent"
            )
        free, absent = np.asarray(masks.free), np.asarray(masks.absent)
        # The bound draws an absent modality anew for each time: only a given one is constant.
        still = None if np.asarray(masks.absent).any() else chains.still(self, masks)
        each_number = jnp.zeros(len(x0), int) if common else jnp.arange(len(x0))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), each_number)
        # Not every generator has these.
        named = {"each": each, "without": chains.without(self, masks)}
        named = {name: value for name, value in named.items() if value}

        def part(rows, keys):
            here = tasks.Masks(free[rows], absent[rows])
            return self._bound(self.params, keys, x0[rows], here, times, calls, still, **named)

        nats = list(self._in_batches(part, keys, self.config.evaluate.batch_size))
        return -np.concatenate(nats).astype(np.float64) / LN2

    def rerank(
        self, images, captions, *, num: int, task="t2i", by="bound", times=8, seed=0
    ) -> candidates.Ranking:
        """Ranks candidates, `num` consecutive rows each, by how well image and caption fit.

        task: what was generated. by: "bound", the model's bound on log2 p in the other direction
        (of a caption given its generated image, of an image given its generated caption, of both
        for a pair), with the same noise for all (arXiv 2212.12249; the bound is ours); "match", the
        dual encoder's score, far faster; or your own function of {modality: ids int32[n, length]}
        -> float[n], larger is better.

        >>> images, captions = pipe.example(2)
        >>> pipe.rerank(images, captions[:1] * 2, num=2).order.shape
        (1, 2)
        """
        given = {"image": images, "text": captions}
        tokens = {name: values.ids(self, name, rows) for name, rows in given.items()}
        count = values.count(None, tokens)
        if count % values.whole("num", num, 1):
            raise UserError(f"rerank: {count} candidates are not a multiple of num = {num}")
        ways = candidates.directions(self, task, by)
        return candidates.rank(self, tokens, num, ways, by, times, seed)

    def example(self, count: int, split="test") -> tuple[np.ndarray, list[str]]:
        """The first `count` images with a caption of a split of the run's data, uint8[n, H, W, C],
        and their captions; maybe fewer. UserError if the split has none."""
        from udd_jax.data import reading, sources

        options = modalities.source_options(self.config)
        source = sources.open_source(self.config.data, split, **options)
        views = modalities.views(self.config)
        whole = (
            (example.pixels[0], example.captions[0])
            for example in reading.examples(source, 0, len(source), views)
            if example.pixels is not None and example.captions
        )
        found = list(itertools.islice(whole, count))
        if not found:
            raise UserError(f"split {split!r} of {source.name} has no picture with a caption")
        images, captions = zip(*found, strict=True)
        return np.stack(images), list(captions)

    @functools.cached_property
    def dual_encoder(self) -> matching.Matcher:
        """That of `with_dual_encoder`, or in the folder of the run. UserError if there is none."""
        if self.matcher is not None:
            return self.matcher
        path = self.folder and self.folder / matching.FILE
        if not path or not path.exists():
            raise UserError(
                "this run has no dual encoder: train one with its main job and "
                "--config.dual_encoder.steps=2500, or take that of another run with the same "
                "tokenizers (--dual_encoder=RUN, Pipeline.with_dual_encoder)"
            )
        return matching.load(path, matching.hashes(self.tokenizers))

    def with_dual_encoder(self, run) -> "Pipeline":
        """A copy with the dual encoder of another run, a folder, with the same tokenizers.

        FileNotFoundError or UserError, one line.
        """
        matcher = matching.load(pathlib.Path(run) / matching.FILE, matching.hashes(self.tokenizers))
        other = dataclasses.replace(self, matcher=matcher)
        other.__dict__.update(_sample=self._sample, _bound=self._bound)
        return other

    def embed(self, inputs, modality: str = "image") -> np.ndarray:
        """The vectors of images, or of texts, by the dual encoder: float32[n, E], of length 1.

        The product of two vectors is the cosine of their angle: `pipe.embed(a) @ pipe.embed(b).T`.
        UserError if the run has no dual encoder.
        """
        ids = values.ids(self, modality, inputs)
        values.count(None, {modality: ids})
        return self.dual_encoder.encode(modality, ids).whole

    def scorer(self, name: str, value, **options):
        """A built-in scorer F for `scorers=[(F, scale)]` (`steering.scoring`).

        name: "match" or "shows", by the dual encoder, or "clip", with a text; "palette", "colours",
        "like", "content" or "style" with a picture. options: for "clip" `weights`, the folder with
        its files.

        >>> callable(pipe.scorer("style", pipe.example(1)[0]))
        True
        """
        if name == "clip":
            options = {"read": tensor_files.read, **options}
        return scoring.make(self, name, value, **options)

    @property
    def text_length(self) -> int:
        return self.vocab.modalities[self.vocab.index("text")].length

    # ---- Below the tasks: any modalities ----------------------------------------------------

    @functools.cached_property
    def codecs(self) -> dict[str, codecs.Codec]:
        """{modality: its codec}, which turns values into ids and ids into values."""
        return codecs.make(self.vocab, self.tokenizers, self.kinds)

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """{modality: its kind}, such as "image" or "sound"."""
        return modalities.kinds(self.config)

    @property
    def guidable(self) -> bool:
        """Whether the network was trained with absent conditions, as guidance needs."""
        mixture = self.config.train.mixture.to_dict()
        trained = [task for task, weight in mixture.items() if weight > 0]
        own = [not m.inputs for m in self.vocab.modalities]  # features are never generated
        absent = [np.asarray(tasks.masks(self.vocab, task, 1).absent)[0, own] for task in trained]
        some = {"independent", "any"} & {*trained} or self.config.get("incomplete", False)
        return bool(some) or any(row.any() for row in absent)

    def can(self, task: str) -> bool:
        """Whether the network of this run can do a task, a rule or an alias of one.

        >>> pipe.can("image|text")
        True
        """
        try:
            chains.feasible(self, task, tasks.masks(self.vocab, task, 1))
        except UserError:
            return False
        return True

    def settings(self, task: str | None = None, **changes) -> Settings:
        """The sampler settings of the run with these changes. ValueError for a bad one.

        task: the rule that is generated, whose own settings in `sample_rules` then hold. The
        autoregressive baseline has one sampler, whatever its config says; another is refused.
        """
        fields = {f.name for f in dataclasses.fields(Settings)}
        for name in changes:
            if name not in fields:
                raise UserError(f"sample.{name} is not a setting, expected one of {sorted(fields)}")
        found = dict(self.config.sample)
        for rule, own in (self.config.get("sample_rules", {}) if task else {}).items():
            if tasks.same(self.vocab, rule, task):
                found |= own.to_dict()
        if build.only_in_order(self.config):
            typed = {} if sampling.whole(changes) else changes
            for name, only in (("sampler", IN_ORDER), ("steps", None)):
                if typed.get(name, only) != only:
                    raise UserError(
                        f"sample.{name} = {changes[name]!r} changes nothing, model.kind = "
                        f"{IN_ORDER!r} draws one token after another: leave it out"
                    )
            changes = {**changes, "sampler": IN_ORDER}
        settings = Settings(**found | changes)
        settings.check(self.kernel, self.guidable, build.in_order(self.config))
        return settings

    def generate(self, task: str, count: int | None = None, **options) -> Result:
        """Generates any modalities from any others. All methods above call this one.

        It takes the arguments of `stream`, and joins the batches.

        >>> pipe.generate("text", 2, seed=1).values["text"] == pipe.texts(2, seed=1).captions
        True
        """
        return Result.join(list(self.stream(task, count, **options)))

    def stream(
        self,
        task: str,
        count: int | None = None,
        *,
        given: dict | None = None,
        num: int = 1,
        masks: tasks.Masks | None = None,
        negative: dict | None = None,
        seed=0,
        batch_size=64,
        trace=0,
        first=0,
        keys=None,
        prompts=None,
        best_of=1,
        by="bound",
        guide=None,
        scorers=(),
        paint=(),
        weigh=None,
        begin_with=None,
        begin_steps=None,
        **settings,
    ) -> Iterator[Result]:
        """Checks the arguments, then generates and returns one batch of samples after the other.

        Args:
            task: a rule such as "image|text", or an alias of one (`tasks.ALIASES`).
            count: the number of samples n; by default the number of given values.
            given: {modality: n values (strings, images), or local ids int[n, length]} for exactly
                the modalities to the right of the bar. A single value may stand alone, and counts
                for all values of another modality.
            num: how many samples of each given value; n is then that many times larger.
            masks: free bool[n, L] and absent bool[n, M], instead of those of the task, as in
                infilling; a single row holds for all. Then any modality may be given.
            negative: a negative prompt for guidance, like `given`; as many, or one.
            batch_size: most samples at once.
            seed, first: sample b has the key fold_in(key(seed), first + b), so that several calls
                can draw the samples of one call.
            keys: the keys of the samples, [n], instead of those of `seed` and `first`; those of
                candidates follow from them.
            trace: the number of intermediate states to return.
            prompts: [(prompt, weight) or (prompt, weight, schedule), ...], several conditions at
                once (`sampling.prompts`). A prompt is a text or, like `given`, {modality: values}.
            best_of, by: draw so many candidates of each sample and keep the best one (`rerank`).
            guide: your own function that makes branches (`sampling.guidance`).
            scorers: [(F, scale), ...], differentiable functions of the predicted tokens
                (`sampling.scorers`), or functions whose value is added to log p. Each new function
                needs a new compilation, but the arrays of a `jax.tree_util.Partial` do not.
            paint: [(phrase, mask) or (phrase, mask, weight), ...]: words of the given text that
                belong where the mask, as in `infill`, is white (`sampling.painting`). A phrase or
                mask may be a list, one for each given text.
            begin_with: modalities that are generated first, such as "length"; the rest is then
                generated given them (`steering.stepwise`). The result leaves out those that the
                task does not name. By default that of the config. Both steps are guided away from
                `negative` and weigh what is given; scorers and paint are for the second alone. A
                picture of two levels begins with the coarse one, unless something here needs one
                chain for both.
            begin_steps: the `steps` of what is generated first.
            weigh: {modality: weight} of what is given: how much attention it gets. 1 is off, 0 is
                as if it had no keys (`sampling.weights`). A weight may be a list, with one for
                each given value.

        Raises:
            ValueError: one line; a rule, setting or value does not fit the run.

        >>> tuple(len(part.captions) for part in pipe.stream("text", 6, batch_size=4))
        (4, 2)
        """
        tasks.parse(self.vocab, task)
        values.whole("batch_size", batch_size, 1), values.seed(seed)
        values.whole("trace", trace, 0), values.whole("first", first, 0)
        if guide is not None and not callable(guide):
            raise UserError(f"guide = {guide!r}, expected a function (guidance= is a number)")
        values.by_name("given", given, "{modality: values} such as {'text': 'a red circle'}")
        values.by_name("negative", negative, "{'text': what to lead away from}")
        values.by_name("weigh", weigh, "{modality: weight} such as {'text': 0.5}")
        if begin_with and (masks is not None or prompts is not None):
            raise UserError("begin_with goes with a rule and given values alone")
        plain = masks is prompts is guide is None and not (scorers or paint)
        if begin_with is None and plain:
            begin_with = stepwise.usual(self, task)
        asked = (task, begin_with, plain, begin_steps)
        guided = stepwise.require_read(self, *asked, settings)
        if negative and not (guided or prompts is not None or guide is not None):
            raise UserError("negative changes nothing, guidance is off: set guidance=2")
        if masks is guide is None:
            stepwise.require_led(self, *asked[:3], negative)
        if by != "bound" and best_of == 1:
            raise UserError(f"by = {by!r} changes nothing with best_of = 1: set best_of=2 or more")
        aside = stepwise.aside(self, task, begin_with or ())
        best_of = values.whole("best_of", best_of, 1)

        def keys_of(count, each=1):
            if keys is None:
                return sample_keys(seed, count, first * each)
            if np.ndim(keys) < 1 or len(keys) != count // each:
                found = len(keys) if np.ndim(keys) else "a single one"
                raise UserError(f"keys: {found}, expected {count // each}, one for each sample")
            numbered = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
            return keys if each == 1 else numbered(keys, np.arange(each)).reshape(count)

        call = stepwise.Call(task, count, given, values.whole("num", num, 1), negative, weigh)
        options = {"batch_size": batch_size, "trace": trace, **settings}
        call, judged, each = stepwise.earlier(
            self, call, begin_with, plain, best_of, keys_of, begin_steps, **options
        )
        ways = candidates.directions(self, judged, by) if best_of > 1 else ()
        chain = chains.prepare(
            self,
            call.task,
            call.count,
            call.given,
            call.num * each,
            masks=masks,
            negative=call.negative,
            prompts=prompts,
            guide=guide,
            scorers=scorers,
            paint=paint,
            weigh=call.weigh,
            options=settings,
        )
        keys = keys_of(len(chain.x), best_of)
        before = call.spent(len(chain.x))

        def part(rows, keys):
            inputs, named = chain.inputs(rows, trace)
            result = self._sample(self.params, keys, *inputs, **named)
            states = call.traced(jnp.swapaxes(result.states, 0, 1), rows, len(before))
            return result.tokens, result.calls + before[rows], states

        batches = self._in_batches(part, keys, max(batch_size // best_of, 1) * best_of)
        if best_of > 1:
            batches = (candidates.best(self, *batch, best_of, ways, by) for batch in batches)
        shown = [name for name in chain.shown if name not in aside]
        branches = (*call.branches, chain.branches)
        most = max(branches) if all(branches) else 0
        return (self._result(shown, *batch, most) for batch in batches)

    def _result(self, names, tokens, calls, states, branches) -> Result:
        """The samples of a batch. names: the modalities to decode; states: int32[n, trace, L]."""
        ids = {k: np.asarray(v) for k, v in self.vocab.split(jnp.asarray(tokens)).items()}
        found = {n: self.codecs[n].decode(self.vocab.joined(n, ids)) for n in names}
        return Result(found, tokens, calls, np.swapaxes(states, 0, 1), branches)

    def _in_batches(self, function, keys, most):
        """Yields function(rows, keys) of batches of equal size, at most `most`.

        The size is `most`, or for fewer keys the next power of two from LEAST on, so that few sizes
        are ever compiled. The last batch is filled by repeating its last row.
        """
        count = len(keys)
        size = min(most, max(LEAST, 1 << (count - 1).bit_length()))
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            with sharding.use(self.mesh):
                result = jax.device_get(function(rows, keys[rows]))
            yield jax.tree.map(lambda a, keep=count - start: a[:keep], result)

    @functools.cached_property
    def _generator(self):
        return build.make_generator(self.config, self.kernel, self.model)

    @functools.cached_property
    def _sample(self):
        return self._compiled(self._generator.sample, "trace", "still", "without")

    @functools.cached_property
    def _bound(self):
        names = ("times", "calls", "still", "each", "without")
        return self._compiled(self._generator.bound, *names)

    @staticmethod
    def _compiled(function, *static):
        """`function`, compiled for each value of the static arguments, where it has them."""
        known = inspect.signature(function).parameters
        return jax.jit(function, static_argnames=[name for name in static if name in known])
