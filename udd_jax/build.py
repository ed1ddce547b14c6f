"""Makes the parts of a run from its config or its folder: vocabulary, schedules, network, weights.

`pipeline`, the trainers and the evaluation all use these functions, so a config is read in one
place. The folder of a run has the files named here, and samples, metrics and a report.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from udd_jax import modalities
from udd_jax.diffusion import objective, schedules, tasks, transition
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.errors import NotFound, UserError
from udd_jax.networks import autoregressive, experts, transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.runtime import files, run_folder, trees
from udd_jax.sampling import autoregressive as one_by_one
from udd_jax.sampling import painting, reverse, weights
from udd_jax.sampling.settings import IN_ORDER

TEXT, IMAGE, WEIGHTS = modalities.TEXT, modalities.IMAGE, "weights"
PAINTER = "vq/end_to_end"  # the image tokenizer whose decoder was trained with the diffusion
CONFIG = run_folder.CONFIG
DROPPED = 0.1  # share of the rows of a training from which given features are left out


def make_vocab(config, tokenizers: dict) -> Vocab:
    """The vocabulary of a run. tokenizers: {modality: tokenizer}."""
    found = []
    for name, row in modalities.rows(config).items():
        shape = modalities.KINDS[row["kind"]].shape(tokenizers[name], config)
        inputs = row.get("width", 0)  # of features
        own = {"inputs": inputs, "dropped": row.get("dropped", DROPPED)} if inputs else {}
        like = {"like": row.get("like", ""), "segment": row.get("segment", "")}
        if modalities.KINDS[row["kind"]].level:
            own = {"level_of": "image", "noise": row.get("noise", 0.0)}
        found.append(Modality(name, *shape, **like, **own))
    return Vocab(tuple(found))


def make_schedules(config, vocab: Vocab) -> list[schedules.Schedule]:
    """`config.diffusion` -> one noise schedule for each modality. ValueError for a bad option."""
    rows = modalities.rows(config)
    return [
        schedules.make(
            config.diffusion.get(f"{m.name}_schedule")
            or rows.get(m.name, {}).get("schedule")
            or config.diffusion.schedule,
            config.diffusion.steps,
            **config.diffusion.schedule_options,
        )
        for m in vocab.modalities
    ]


def diffuses(config) -> bool:
    """Whether a run is a diffusion, whose predictions can be mixed and steered."""
    return config.model.get("kind", "diffusion") == "diffusion"


def in_order(config) -> bool:
    """Whether the network of a run can draw one token after another: as a diffusion that has
    learned it, too (`prefix_share`), or because it can do nothing else (`only_in_order`)."""
    return config.train.get("prefix_share", 0.0) > 0 or only_in_order(config)


def only_in_order(config) -> bool:
    """Whether a run draws one token after another, whatever the sampler of its config is."""
    return config.model.get("kind") == IN_ORDER


def make_model(config, vocab: Vocab, pad_id: int = 0) -> transformer.Transformer:
    """`config.model` and `config.experts` -> the network. ValueError for a bad option.

    pad_id: the text's padding id, used with `mask_padding`.
    """
    options = {name: value for name, value in config.model.items() if name != "kind"}
    options["dtype"] = jnp.dtype(options.get("dtype", "float32"))
    options["padding"] = pad_id if options.pop("mask_padding", False) else None
    places = [m.place for m in vocab.modalities]
    if options.get("attention") == "mutual" and len(set(places)) < len(places):
        raise UserError(
            "model.attention = 'mutual' has weights of its own for each modality, so those of one "
            "segment would not be alike: expected 'self', or no modalities.NAME.segment"
        )
    if options.get("length_head") and vocab.has("length"):
        raise UserError(
            "model.length_head and a modality called length: expected one of them, or another name"
        )
    if options.get("absent") and config.model.get("kind") == "autoregressive":
        del options["absent"]  # nothing sees an absent modality there
    kind, loss = config.model.get("kind", "diffusion"), config.get("train", {}).get("loss", "")
    if modalities.features(config) and (
        kind != "diffusion" or loss or options.get("block_attention")
    ):
        raise UserError(
            f"features with model.kind = {kind!r}, train.loss = {loss!r} and model.block_attention "
            f"= {options.get('block_attention', False)}, expected 'diffusion', '' and False"
        )
    network = NETWORKS.get(config.model.get("kind"), transformer.Transformer)
    if config.get("experts"):
        if network is not transformer.Transformer:
            raise UserError(
                f"experts = {tuple(config.experts)} with model.kind = {config.model.kind!r}, "
                "expected 'diffusion', or no experts"
            )
        network, options["boundaries"] = experts.Experts, tuple(config.experts)
    return network(vocab, config.diffusion.steps, **options)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The generator: two functions of the weights. Every kind of generator has these two."""

    kernel: transition.Kernel
    model: transformer.Transformer

    def sample(
        self,
        params,
        keys,
        x,
        free,
        absent,
        settings,
        negative,
        trace,
        still,
        guide,
        scorers,
        paint=None,
        weigh=None,
        features=None,
        without=None,
    ) -> reverse.Sample:
        """Tokens from noise: `reverse.run`. `still`: a fully given modality that is computed once
        for the chain, or None; paint: `painting.Paint`, or None; weigh: float32[B, M], weights of
        what is given (`weights`), or None; features: as `Vocab.features`; without: names of
        modalities that need not be computed (`Transformer`)."""
        if settings.sampler == IN_ORDER:
            prefixes = Autoregression(self.kernel, autoregressive.of(self.model))
            options = (x, free, absent, settings, negative, trace, still, guide, scorers)
            return prefixes.sample(params, keys, *options)
        strength = None if paint is None else painting.attention(self.kernel, paint)
        bias = None if weigh is None else weights.attention(self.kernel.vocab, weigh)
        rest = {"features": features, "without": without}
        denoise_fn = Denoiser(self.model, params, still, strength, bias, **rest)
        if paint is not None and paint.evidence:
            plain = Denoiser(self.model, params, bias=bias, **rest)
            masks = tasks.Masks(free, absent)
            prior = transition.prior_sample(self.kernel, keys, len(x))
            scorers = (painting.evidence(self.kernel, plain, masks, prior, paint), *scorers)
        options = (x, free, absent, settings, negative, trace, guide, scorers)
        return reverse.run(self.kernel, denoise_fn, keys, *options)

    def bound(
        self, params, keys, x0, masks, times, calls, still, each=False, without=None
    ) -> jax.Array:
        """An upper bound on -log p in nats, float32[B, M]: `objective.bound`."""
        denoise_fn = Denoiser(self.model, params, still, without=without)
        return objective.bound(self.kernel, denoise_fn, keys, x0, *masks, times, calls, each)


@dataclasses.dataclass(frozen=True)
class Autoregression:
    """The autoregressive baseline (`networks/autoregressive.py`)."""

    kernel: transition.Kernel
    model: autoregressive.Autoregressive

    def sample(
        self, params, keys, x, free, absent, settings, negative, trace, still, guide, scorers
    ) -> reverse.Sample:
        """One token after another."""
        predictor, sequence = autoregressive.Predictor(self.model, params), self._sequence
        options = (x, free, absent, settings, negative, trace, guide, scorers)
        return one_by_one.run(self.kernel, predictor, sequence, keys, *options)

    def bound(self, params, keys, x0, masks, times, calls, still, each=False) -> jax.Array:
        """-log p in nats, float32[B, M], exact: keys, times and calls change nothing. each: of
        each token given those before it, float32[B, L]."""
        vocab, (free, absent) = self.kernel.vocab, masks
        t = jnp.where(absent, self.kernel.steps, 0)
        logits = autoregressive.Predictor(self.model, params)(x0, t, free)
        nll = objective.negative_log_likelihood(vocab, logits, x0, free)
        if each:
            return nll
        return jnp.stack([nll[:, where].sum(axis=1) for where in vocab.slices], axis=1)

    @property
    def _sequence(self):
        return autoregressive.order(self.kernel.vocab)


GENERATORS = {"diffusion": Diffusion, "autoregressive": Autoregression}
NETWORKS = {"autoregressive": autoregressive.Autoregressive}  # of the kinds with one of their own


def make_generator(config, kernel: transition.Kernel, model):
    """The generator `config.model.kind`, by default "diffusion". ValueError for an unknown kind.

    Its loss is an entry of `train_diffusion.LOSSES`.
    """
    kind = config.model.get("kind", "diffusion")
    if kind not in GENERATORS:
        raise UserError(f"model.kind = {kind!r}, expected one of {', '.join(GENERATORS)}")
    return GENERATORS[kind](kernel, model)


# ---- A run's folder -----------------------------------------------------------------------------


def read_config(directory) -> ml_collections.ConfigDict:
    """The config of a run. FileNotFoundError if `directory` is not the folder of a run."""
    path = pathlib.Path(directory) / CONFIG
    if not path.exists():
        raise NotFound(f"{directory} has no {CONFIG}: it is not the folder of a run")
    try:
        return ml_collections.ConfigDict(files.read_json(path)["config"])
    except trees.BROKEN as error:
        raise UserError(f"{path} is damaged ({error}): restore it") from None


def image_file(directory: pathlib.Path) -> str:
    """The file in a run's folder of the image tokenizer that decodes its samples."""
    return PAINTER if (directory / PAINTER).exists() else IMAGE


def load_tokenizers(directory, config=None) -> dict:
    """The tokenizers of a run, {modality: tokenizer}. config: of the run, unless it has to be read.

    FileNotFoundError, one line, if one is missing.
    """
    directory = pathlib.Path(directory)
    if config is None:
        config = read_config(directory)
    found = {}
    for name, row in modalities.own(config).items():
        file = modalities.tokenizer_file(config, name)
        file = image_file(directory) if file == IMAGE else file
        if file and not (directory / file).exists():
            raise NotFound(f"{directory} has no file {file!r}, the tokenizer of the {name}")
        found[name] = modalities.KINDS[row["kind"]].load(directory / file, row)
    return modalities.with_references(config, found)


def load_weights(directory) -> dict:
    """The averaged weights of a finished run. FileNotFoundError if the run is not finished."""
    path = pathlib.Path(directory) / WEIGHTS
    if not path.exists():
        raise NotFound(
            f"{directory} has no file {WEIGHTS!r}: its training is not finished; run the main job"
        )
    return trees.load_tree(path)[0]
