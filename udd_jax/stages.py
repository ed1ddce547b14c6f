"""The main job: its stages in order. A finished stage is skipped; a killed one continues.

    data -> text tokenizer -> image tokenizer -> token cache -> (dual encoder) -> diffusion
         -> samples and evaluation -> report

The files that a stage leaves in the work folder show that it is done. The folder belongs to one
config. Another config is an error that names the fields, except those in `run_folder.CHANGEABLE`.

Several processes share the folder, on a disk or in a bucket. The first process does the work that
needs only one, and the others wait. All of them write the token cache and train together.
"""

import contextlib
import functools
import pathlib
import tempfile

import jax
import ml_collections

from udd_jax import build, modalities, pipeline
from udd_jax.data import batches, described, reading, sources, survey, token_cache, token_checks
from udd_jax.data.sources import listing
from udd_jax.diffusion import tasks, transition
from udd_jax.errors import UserError
from udd_jax.evaluation import feature_networks, held_out, rules
from udd_jax.evaluation.report import report
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.evaluation.suites import samplers as samplers_suite
from udd_jax.evaluation.suites import tuning
from udd_jax.networks import matching
from udd_jax.runtime import bucket, files, lock, logbook, processes, run_folder, sharding, trees
from udd_jax.tokenizers import image_tokenizer, text_tokenizer
from udd_jax.training import (
    end_to_end,
    further,
    limits,
    optimiser,
    pairs,
    plan,
    recipe,
    start,
    train_diffusion,
    train_dual_encoder,
    train_image_tokenizer,
)

SETTINGS = ("evaluate", "sample", "sample_rules", "begin_with")  # an evaluation may change them
SUITES = ("main", "full", "samplers", "tuning", "judges")
SURVEY = survey.FILE
PLACES = ("data", "data_options.images", "data_options.data_dir")  # of the data, which may move


def run(config: ml_collections.ConfigDict, workdir, until: str | None = None, **options) -> None:
    """Runs every stage that is not done yet, up to the stage `until` if given.

    workdir: a folder, or `gs://bucket/path`. options: `terms`, own terms of the loss, `profile` and
    `tensorboard` (`train_diffusion.train`). ValueError, one line: the config, the data or the
    folder do not fit.
    """
    workdir = files.folder(workdir)
    start.check(config, workdir)
    config = recipe.fill(start.student(config), workdir)
    check(config)
    check_batches(config, workdir, until)
    logbook.begin()
    with lock.hold(workdir, logbook.say), bucket.near(workdir) as here:
        data = open_data(config)
        path = workdir / SURVEY
        moved = path.exists() and survey.same(files.read_json(path), data)
        found = look(config, data, workdir)
        run_folder.claim(config, workdir, PLACES if moved else ())
        _run_stages(config, workdir, here, until, data, found, **options)


def check(config) -> None:
    """ValueError, one line, if a late stage would refuse the config; called before any stage."""
    limits.check(config)
    vocab = plan.vocab_of(config)
    tasks.check_mixture(vocab, config.train.mixture)
    tasks.parse(vocab, config.get("task", "pair"))
    rules.asked(config, vocab)
    train_diffusion.objectives(config, vocab, pad_id=0)
    train_dual_encoder.check(config, vocab)
    optimiser.make_optimiser(config)
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    limits.check_sampling(config, vocab, kernel)


def check_batches(config, workdir, until: str | None = None) -> None:
    """ValueError, one line, if the devices do not divide a batch of a training that is to come.

    until: the last stage. A tokenizer of sounds, or of pictures that the data lack, is not looked
    at.
    """
    mesh, later = sharding.make_mesh(**config.mesh), until != "token cache"
    if mesh is None:
        return
    encoder = train_dual_encoder.wanted(config) and not config.dual_encoder.file
    trained = {
        "vq": not config.vq.file and not (workdir / build.IMAGE).exists(),
        "dual_encoder": later and encoder and not (workdir / matching.FILE).exists(),
        "train": later and not (workdir / build.WEIGHTS).exists(),
    }
    for section, asked in trained.items():
        if asked:
            sharding.check_batch(mesh, config[section].batch_size, f"{section}.batch_size")


def _run_stages(
    config, workdir, here, until, data, found, profile=None, tensorboard=False, terms=None
):
    """here: the local folder for `workdir`; the two are the same if `workdir` is not a bucket."""
    stage = functools.partial(run_folder.timed, workdir)
    on_disk = functools.partial(bucket.on_disk, workdir, here)
    tokenizers, cache = {}, None
    with stage("text tokenizer"), processes.in_turn(), on_disk(build.TEXT):
        tokenizers["text"] = make_text_tokenizer(config, here, data["train"])
    with stage("data"):
        tell(config, data, found, tokenizers["text"], workdir)
    with stage("image tokenizer"):
        tokenizers["image"] = make_image_tokenizer(config, workdir, data, tensorboard)
        processes.wait_for_all("image tokenizer")  # process 0 writes it, all read it
    for name in modalities.further(config):
        with stage(f"{name} tokenizer"):
            tokenizers[name] = further.make_tokenizer(config, name, workdir, data)
    if config.cache or until == "token cache":
        with stage("token cache"):
            with on_disk("tokens"):
                write_shards(config, here, data["train"], tokenizers)
            processes.wait_for_all("token cache")
            with processes.in_turn(), on_disk("tokens"):
                cache = token_cache.finish(
                    here / "tokens", config.get("skip_limit", token_checks.LIMIT)
                )
    if until == "token cache":
        return
    if train_dual_encoder.wanted(config):
        with stage("dual encoder"):
            train_dual_encoder.make(config, workdir, cache, tokenizers)
    with stage("diffusion"):
        options = {"profile": profile, "tensorboard": tensorboard, "terms": terms}
        params = make_weights(config, workdir, cache, tokenizers, data, **options)
        tokenizers["image"] = end_to_end.finish(workdir, tokenizers["image"])
    if until == "diffusion":
        return
    if here != workdir and jax.process_count() > 1:
        logbook.say(f"evaluate in one process: --mode=evaluate --workdir={workdir}")
        return
    pipe = held_out.measurable(pipeline.Pipeline.assemble(config, tokenizers, params), data)
    with stage("evaluation"), on_disk(main_suite.FOLDER, main_suite.RESULT):
        main_suite.run(pipe, here, say=logbook.say)
    with stage("report"), on_disk():
        if jax.process_index() == 0:
            logbook.say(f"report: {report.write(here)}")


# ---- The stages ---------------------------------------------------------------------------------


def open_data(config) -> dict:
    """{split: source} for the three splits of `config.data`."""
    options = modalities.source_options(config)
    return {s: sources.open_source(config.data, s, **options) for s in listing.SPLITS}


def look(config, data: dict, workdir=None) -> dict:
    """The survey of the data (`survey.survey`), read from the work folder if it fits these data.

    ValueError: too much cannot be used, or the evaluation asks for what the data do not have.
    """
    incomplete, path = config.get("incomplete", False), workdir and workdir / SURVEY
    limit = config.get("skip_limit", token_checks.LIMIT)
    known = survey.stored(path, data) if path else None
    if known is not None and not survey.usable(known, limit):
        known = None  # the files may be mended
    found = known or survey.survey(data, incomplete=incomplete)
    if known is None:
        logbook.say(described.describe(found, config.data))
    named = rules.named(config, plan.vocab_of(config)) if incomplete else ()
    asked = {name: config.evaluate.get(name, usual) for name, usual in held_out.MEASURED.items()}
    try:
        survey.check(found, limit)
        count = survey.asked(data, **asked, incomplete=incomplete, rules=named)
    except UserError:
        if known is not None:
            logbook.say(described.describe(found, config.data))
        raise
    logbook.say(described.asked(**asked, count=count, size=len(data[asked["split"]])))
    return found


def tell(config, data: dict, found: dict, text_tokenizer, workdir=None) -> None:
    """Adds to the survey how the tokenizer fits the captions, prints that, writes the survey."""
    if "text" in found:
        return
    found["text"] = survey.texts(data, text_tokenizer, config.text.length)
    if found["text"]["captions"]:
        logbook.say("\n".join(described.describe_texts(found["text"])))
    if workdir is not None and jax.process_index() == 0:
        files.write_json(workdir / SURVEY, found)


def describe_data(config) -> None:
    """`--mode=data`: surveys the data and prints the result. Writes no file. Raises as `look`."""
    config = recipe.fill(config)
    data = open_data(config)
    found = look(config, data)
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(data["train"], listing.Listing):
            tokenizer = make_text_tokenizer(config, pathlib.Path(folder), data["train"])
            tell(config, data, found, tokenizer)


def views(config) -> reading.Views:
    options = {"flip": config.flip, "incomplete": config.get("incomplete", False)}
    return modalities.views(config, config.views, seed=config.seed, **options)


def make_text_tokenizer(config, workdir, source) -> text_tokenizer.Tokenizer:
    path = workdir / build.TEXT
    if path.exists():
        return text_tokenizer.load(path)
    if config.text.file:
        tokenizer = text_tokenizer.load(config.text.file)
        tokenizer.save(path)
        return tokenizer
    texts = reading.texts(source, modalities.texts(config))
    tokenizer = text_tokenizer.train_sentencepiece(texts, path, config.text.vocab_size)
    logbook.say(f"text tokenizer: {tokenizer.vocab_size} pieces")
    return tokenizer


def make_image_tokenizer(config, workdir, data, tensorboard=False):
    """The image tokenizer of the run: loaded, or trained on the split "train" of `data`.

    data: of `open_data`; the split "validation" gives the scores.
    """
    path = workdir / build.IMAGE
    if path.exists():
        return image_tokenizer.load(path)
    held_out = data["validation"] if survey.pictured(data["validation"]) else None
    if config.vq.file:
        tokenizer = modalities.fitting(config, image_tokenizer.load(config.vq.file))
        taken = config.get("init_from") and config.vq.file.startswith(config.init_from)
        name = "init_from" if taken else "vq.file"
        field = f"--config.{name}={config[name] if taken else config.vq.file}"
        train_image_tokenizer.tell_worth(config, tokenizer, held_out or data["train"], field)
        if jax.process_index() == 0:
            image_tokenizer.save(path, tokenizer)
        return tokenizer
    options = {"held_out": held_out, "perceptual": perceptual(config)}
    shown = options | {"tensorboard": tensorboard}
    folder, source = workdir / "vq", data["train"]
    if not config.vq.rebuild.codes:
        return train_image_tokenizer.train(config, folder, source, **shown)
    first = folder / "first"
    if (first / train_image_tokenizer.FILE).exists():
        tokenizer = image_tokenizer.load(first / train_image_tokenizer.FILE)
    else:
        tokenizer = train_image_tokenizer.train(config, first, source, **shown)
    return train_image_tokenizer.rebuild(config, folder, tokenizer, source, **options)


def perceptual(config):
    """LPIPS for the training of the image tokenizer; None if its weight is 0 or it has no files."""
    c = config.vq
    if c.perceptual and not c.weights:
        logbook.say("image tokenizer: no perceptual loss, vq.weights names no folder with LPIPS")
    return feature_networks.perceptual(c.weights) if c.perceptual and c.weights else None


def export(workdir, out) -> None:
    """Copies the files of a finished run that sampling needs to the folder `out`.

    The weights become float16. ValueError if `out` has a run already, or is not a folder of a disk.
    """
    files.require_disk(out)
    workdir, out = files.folder(workdir), pathlib.Path(out)
    if (out / build.CONFIG).exists():
        raise UserError(f"{out} holds a run already: choose another --out")
    weights, metadata = trees.load_tree(workdir / build.WEIGHTS)
    trees.save_tree(out / build.WEIGHTS, weights, metadata, half=True)
    names = modalities.tokenizer_files(build.read_config(workdir))
    for name in [*names, build.PAINTER, matching.FILE, main_suite.RESULT, build.CONFIG]:
        if (workdir / name).exists():
            files.write_bytes(out / name, (workdir / name).read_bytes())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    logbook.say(f"exported {out}: {size / 1e6:.1f} MB")


def evaluate_run(workdir, suite="main", config=None, weights=None, fields=None) -> None:
    """Runs a suite on a finished run, as far as its results are missing, and writes the report.

    config: its sections SETTINGS replace those of the run; what is open in it stays. weights:
    replaces `evaluate.weights`. fields: of `held_out.typed`. ValueError for an unknown suite.
    """
    if suite not in SUITES:
        raise UserError(f"suite {suite!r} does not exist, expected one of {', '.join(SUITES)}")
    if jax.process_count() > 1 and (suite not in ("main", "full") or files.in_bucket(workdir)):
        raise UserError(
            f"--mode=evaluate --suite={suite} --workdir={workdir} with {jax.process_count()} "
            "processes: only the suites main and full, of a folder on a disk, are shared among "
            "processes; start one, without UDD_DISTRIBUTED"
        )
    logbook.begin()
    with bucket.whole(workdir) as here:
        _evaluate(here, suite, config, weights, fields)


def _evaluate(workdir, suite, config, weights, fields):
    if suite == "judges":
        main_suite.judge(workdir)
    else:
        pipe = pipeline.Pipeline.load(workdir)
        if config is not None:
            asked = recipe.kept(config, workdir)
            pipe = pipe.with_config(**{name: asked[name] for name in SETTINGS if name in asked})
        pipe = held_out.typed(pipe, workdir, fields or {})
        limits.check_evaluation(pipe.config)
        if fields or config is not None:
            limits.check_sampling(pipe.config, pipe.vocab, pipe.kernel)
        if suite in ("main", "full"):
            held_out.require_read(pipe, fields or {})
        pipe = held_out.measurable(pipe)
        if suite == "full" and (category := pipe.config.evaluate.get("category")):
            split = held_out.split_of(pipe)  # before hours of sampling
            survey.asked({split: held_out.source(pipe, split)}, split, category=category)
        if weights is not None:
            pipe = pipe.with_config(evaluate={"weights": weights})
        if suite == "samplers":
            samplers_suite.run(pipe, workdir)
        elif suite == "tuning":
            tuning.require_read(fields or {})
            tuning.run(pipe, workdir)
            return
        else:
            main_suite.run(pipe, workdir, suite, say=logbook.say)
    if jax.process_index() == 0:
        logbook.say(f"report: {report.write(workdir)}")


def write_shards(config, workdir, source, tokenizers: dict) -> None:
    """Writes the share of this process of the token cache."""
    settings = {name: tokenizer.hash for name, tokenizer in tokenizers.items()}
    settings["length"] = config.text.length
    most = max(m.classes for m in build.make_vocab(config, tokenizers).modalities)
    with logbook.progress(len(source), "token cache", unit="image") as bar:
        token_cache.write_shards(
            source,
            tokenizers["image"].encode,
            functools.partial(tokenizers["text"].encode, length=config.text.length),
            workdir / "tokens",
            settings=settings,
            dtype="uint16" if most <= 2**16 else "uint32",
            views=views(config),
            encode_further=further.encoders(config, tokenizers),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=config.workers,
            skip_limit=config.get("skip_limit", token_checks.LIMIT),
            progress=bar.update,
        )


def make_weights(config, workdir, cache, tokenizers: dict, data, terms=None, **options) -> dict:
    """The averaged weights after `config.train.steps` steps; trains as far as needed.

    terms, options: those of `train_diffusion.train`.
    """
    if (workdir / build.WEIGHTS).exists():
        params, metadata = trees.load_tree(workdir / build.WEIGHTS)
        if metadata["step"] >= config.train.steps:
            return params
    vocab = build.make_vocab(config, tokenizers)
    seed, size = config.seed, config.train.batch_size
    share = sharding.process_share(sharding.make_mesh(**config.mesh))
    items = data["train"] if cache is None else cache
    if cache is None:
        ahead = batches.Ahead(
            pairs.straight(config, workdir, data["train"], tokenizers, share, views(config))
        )
    else:
        masks = {m.name: m.classes for m in vocab.modalities}
        ahead = batches.Ahead(lambda step: batches.make(cache, seed, step, size, *share, masks))
    options |= {
        "terms": end_to_end.from_config(config, vocab, tokenizers["image"]) | (terms or {}),
        "start": start.weights(config, vocab),
        "held_out": pairs.held_out(config, data["validation"], tokenizers),
        "ids_at": lambda step: batches.indices(seed, step, size, len(items)),
    }
    with contextlib.closing(ahead):
        return train_diffusion.train(
            config, workdir, vocab, tokenizers["text"].pad_id, ahead, **options
        )
