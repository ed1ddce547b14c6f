"""The suite "main": generates samples, measures them, and writes the result.

`run` generates samples of six tasks from held-out conditions (samples.py), measures them
(scores.py), and writes `evaluation.json`:

    suite           "main" or "full"
    headline        rows of task, name, value, error, aim, floor, better ("higher", "lower"), met
    aims            whether the rates are compared with the world's aims (`evaluate.aims`)
    scores.TASK     agreement, consistency, reasons, variation; given_tokens_changed
    world           for an embedded world: its name, and words for the report
    reader          for an embedded world: how often reading fails on the truth
    tokenizer       of images: PSNR, codes in use, reconstructions read right
    bounds.TASK     bits per token on held-out items, in total and for each modality
    entropy         of captions given scenes, bits per token; whether the bound undercuts it
    rules           the rates of each of `evaluate.rules` (rules.py), if there are any
    listener        how well sounds of stored data are heard (listening.py), if there is one
    full            the measures of the suite "full" (full.py)
    errors          impossible results, in words; [] if there are none
    unmeasured      {name: reason}
    speed           seconds of each part, samples a second, network calls, memory
    manifest        protocol: equal for results that can be compared; run: hashes of weights and
                    tokenizers; item ids, samples, versions, hardware, commit, seconds (manifest.py)

Several processes share the work of sampling; the first one measures and writes. Held-out images
that are also training images are left out; it is an error if none remains. `judge` adds the answers
of human judges later. compare.py compares two results.
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from udd_jax.data.sources.worlds import World
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.evaluation import (
    feature_networks,
    held_out,
    image_sets,
    manifest,
    nearest_training,
    rules,
    samples,
    scores,
)
from udd_jax.evaluation.metrics import agreement, java
from udd_jax.evaluation.suites import full as full_suite
from udd_jax.evaluation.suites import judges
from udd_jax.evaluation.suites import rules as rules_suite
from udd_jax.runtime import files, logbook, processes, provenance, sharding

RESULT, FOLDER = "evaluation.json", samples.FOLDER
UNMEASURED = dict.fromkeys(
    (
        "Frechet distance, KID, Inception score, precision and recall, CLIP score, LPIPS",
        "BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE",
        "retrieval, round trips, nearest training pairs, speed cold and warm, human judges",
    ),
    "this is the suite main; --mode=evaluate --suite=full measures them",
)

WHOLE = ("any", "independent")  # of a mixture: they train all rules of whole modalities
# Rows of the headline: task, name, path of the rate in the result. Aims come from the world.
CHANCE = 2.0  # standard errors by which a total variation may be above its aim
RATES = (
    ("t2i", "image agrees with the caption", ("scores", "t2i", "agreement")),
    ("i2t", "caption agrees with the image", ("scores", "i2t", "agreement")),
    ("pair", "image and caption agree", ("scores", "pair", "agreement")),
    ("infill", "consistent with what was given", ("scores", "infill", "consistency")),
    ("image", "image can be read", ("scores", "image", "readable")),
    ("text", "caption can be parsed", ("scores", "text", "parsable")),
    ("tokenizer", "reconstruction is read right", ("tokenizer", "read_right")),
)


def run(pipe, workdir, suite: str = "main", *, say=logbook.say) -> dict:
    """Runs a suite: generates `workdir/samples/`, measures, writes `workdir/evaluation.json`.

    An existing result with the same protocol, weights and tokenizers is returned unchanged (a
    result of "full" also serves for "main"). Existing samples are reused. `say` prints every error
    in the result. With several processes all but the first return {}. If no held-out record is
    whole, only the rules are measured (suites/rules.py).

    Raises:
        ValueError: all items are training items, too.
    """
    workdir, options, nets = pathlib.Path(workdir), pipe.config.evaluate, {}
    if suite == "full":
        if lacks := [task for task in samples.TASKS if not pipe.can(task)]:
            raise UserError(
                f"suite 'full' needs all tasks, and this network cannot do {', '.join(lacks)}: "
                "--suite=main measures the others"
            )
        nets = feature_networks.load(options.weights)
    found = finished(pipe, workdir, suite, nets)
    if found:
        return found
    if jax.process_count() > 1:  # each process works alone, on its own devices
        pipe = dataclasses.replace(pipe, mesh=sharding.local_mesh())
    if not held_out.whole(pipe):
        result = {} if jax.process_index() else rules_suite.measure(pipe, workdir, suite, say)
        return _finish(workdir, result, say)
    spent = {}
    timed = functools.partial(logbook.timed, spent)
    with timed("conditions"):
        items = held_out.read(pipe, max(options.samples, options.bound_samples))
        training = nearest_training.open_cache(workdir)
        learned = held_out.split_of(pipe) == "train"
        if training is not None and not learned:
            items = nearest_training.not_learned(pipe, training, items, say)
    prepared = image_sets.ready(pipe, workdir, items.left_out) if suite == "full" else None
    drawn = _sampled(pipe, items, workdir / FOLDER, spent)
    if jax.process_index() > 0:
        return _finish(workdir, {}, say)
    result = {"suite": suite, "headline": []}
    with timed("scores"):
        world, verdicts = items.world, {}
        result["scores"] = {task: {"count": len(s)} for task, s in drawn.items()}
        for task, s in drawn.items():
            if world:
                rates, verdicts[task] = scores.verdicts(world, task, s)
                result["scores"][task] |= rates
            if s.kept is not None:
                result["scores"][task]["given_tokens_changed"] = int((~s.kept).sum())
        if world:
            result["world"] = {
                "name": world.name,
                "about": world.about,
                "held_out": world.held_out,
                "reasons": dict(world.reasons),
            }
            asked = {"size": len(items), "seed": options.seed, "captions_per_image": 1}
            fresh = held_out.source(pipe, held_out.split_of(pipe), **asked)
            result["reader"] = agreement.reader_error(world, list(fresh))
    with timed("tokenizer"):
        shown = pipe.tokenizers["image"].decode(items.codes)
        result["tokenizer"] = scores.reconstructions(pipe, items, shown)
        some = {"images": items.images[: samples.SHOWN], "decoded": shown[: samples.SHOWN]}
        samples.write(workdir / FOLDER / "reconstructions.npz", some)
    with timed("bounds"):
        count = min(options.bound_samples, len(items))
        result["bounds"] = scores.bounds(
            pipe, items, count=count, times=options.bound_times, seed=options.seed
        )
        if world and world.entropy and "i2t" in result["bounds"]:
            bits, captions = world.entropy(items.scenes[:count]), result["bounds"]["i2t"]
            result["entropy"] = scores.entropy(bits, pipe.text_length, captions)
    if rules.asked(pipe.config, pipe.vocab):
        with timed("rules"):
            made_of = manifest.made_of(pipe)
            result |= rules.sections(pipe, items, workdir, workdir / FOLDER, made_of, say)
    with timed("sheets"):
        samples.show(drawn, verdicts, workdir / FOLDER)
    result["unmeasured"] = dict(UNMEASURED)
    if suite == "full":
        result["full"] = full_suite.measure(pipe, workdir, items, drawn, prepared, nets, timed)
        result["unmeasured"] = full_suite.unmeasured(result["full"])
    for task in scores.BOUNDS:
        if task not in result["bounds"]:
            result["unmeasured"][f"bound: {task}"] = "the network of this run has none"
    for task in samples.TASKS:
        if task not in drawn:
            result["unmeasured"][f"samples: {task}"] = "the network of this run cannot do it"
    result["aims"] = aimed(pipe)
    trained = trained_tasks(pipe.vocab, pipe.config.train.mixture)
    result["headline"] = headline(result, world if result["aims"] else None, trained)
    if not world:
        why = (
            "what is right can be read in an embedded world only, at its own size, and the data "
            f"are {items.name}"
        )
        result["unmeasured"] |= dict.fromkeys(("agreement", "variation", "reconstructions"), why)
    if learned:
        why = "the pictures of the training are measured, since there are none to hold out"
        result["unmeasured"]["overlap with training"] = why
    elif training is None:
        why = "there is no token cache of the training data in the run's folder"
        result["unmeasured"]["overlap with training"] = why
    result["speed"] = speed(drawn, spent)
    result["manifest"] = manifest.make(
        pipe,
        items,
        suite,
        _measured_by(nets),
        counts={task: len(s) for task, s in drawn.items()},
        seconds=result["speed"]["total_seconds"],
    )
    return _finish(workdir, result, say)


def _finish(workdir, result: dict, say) -> dict:
    """Writes the result of the first process, with its errors, and returns it."""
    if result:
        result["errors"], path = errors(result), workdir / RESULT
        if "full" not in result and path.exists() and "full" in files.read_json(path):
            say(f"evaluation: the result of the suite full is kept as {files.aside(path)}")
        files.write_json(path, result)
        for error in result["errors"]:
            say(f"evaluation: {error}")
    processes.wait_for_all("evaluation")
    return result


def finished(pipe, workdir, suite: str = "main", nets: dict | None = None) -> dict | None:
    """The result in `workdir` if `run` would give the same, or a part of it; else None."""
    path = pathlib.Path(workdir) / RESULT
    if not path.exists():
        return None
    result = files.read_json(path)
    old = result.get("manifest", {}).get("protocol", {})
    asked = manifest.protocol(pipe, suite) | _measured_by(nets or {})
    known = old.get("suite") in ((suite, "full") if suite == "main" else (suite,))
    if suite == "main":
        asked, old = map(manifest.of_main, (asked, old))
    same = known and {name: old.get(name) for name in asked} == asked
    same = same and result.get("aims", True) == aimed(pipe)
    return result if same and result["manifest"].get("run") == manifest.made_of(pipe) else None


def _measured_by(nets: dict) -> dict:
    """The entries that the suite "full" adds to the protocol."""
    if not nets:
        return {}
    return {
        "features": {name: getattr(net, "hash", None) for name, net in nets.items()},
        "resize": feature_networks.RESIZE,
        "caption_tokenizer": "plain" if java.missing() else "PTB",
    }


def judge(workdir) -> dict:
    """The suite "judges": adds the answers of human judges to the result of the suite "full".

    ValueError if the result is of the suite "main".
    """
    path = pathlib.Path(workdir) / RESULT
    result = files.read_json(path)
    if "full" not in result:
        raise UserError(f"{path} is of the suite main: --suite=full makes the sheets for judges")
    result["full"]["judges"] = full_suite.plain(
        judges.score(pathlib.Path(workdir) / full_suite.JUDGES)
    )
    result["unmeasured"] = {n: why for n, why in result["unmeasured"].items() if n != "judges"}
    result["unmeasured"] |= full_suite.unmeasured({"judges": result["full"]["judges"]})
    files.write_json(path, result)
    return result["full"]["judges"]


def _sampled(pipe, items, folder, spent) -> dict[str, samples.Samples]:
    """{task: samples} of the tasks that the network can do, all with one batch size, so that they
    share a compilation.

    Each process generates its share; the first one joins them.
    """
    options, drawn = pipe.config.evaluate, {}
    able = [task for task in samples.TASKS if pipe.can(task)]
    asked = {
        "count": options.samples,
        "batch_size": min(options.batch_size, options.samples, len(items)),
        "seed": options.seed,
        "made_of": manifest.made_of(pipe),
    }
    if jax.process_count() > 1:
        for task in able:
            samples.make(pipe, items, task, folder / f"{task}.npz", **asked)
        processes.wait_for_all("samples")
        if jax.process_index() > 0:
            return {}
    total = len(able) * options.samples
    with logbook.progress(total, "samples", unit="sample", compiles=False) as bar:
        for task in able:
            with logbook.timed(spent, task):
                path = folder / f"{task}.npz"
                drawn[task] = samples.obtain(pipe, items, task, path, **asked)
            bar.update(options.samples)
    return drawn


# ---- What comes first ---------------------------------------------------------------------------


def aimed(pipe) -> bool:
    """Whether the rates are compared with aims; off for a config that is too small to be good."""
    return pipe.config.evaluate.get("aims", True)


def trained_tasks(vocab, mixture) -> list[str]:
    """The tasks that a mixture trains; "any" and "independent" train each one but "infill"."""
    return [
        task
        for task in samples.TASKS
        if any(
            share and (tasks.same(vocab, rule, task) or (rule in WHOLE and task != "infill"))
            for rule, share in mixture.items()
        )
    ]


def headline(result: dict, world: World | None, trained=samples.TASKS) -> list[dict]:
    """The rows of the headline: rates with aims and floors, then total variations.

    Aims and floors are those of the world, for the tasks of `trained` and for the tokenizer; None
    for others and without a world. A total variation meets its aim within CHANCE standard errors.
    """
    rows, aims, floors = [], *((world.aims, world.floors) if world else ({}, {}))
    asked_of = {*trained, "tokenizer"}
    for task, name, path in RATES:
        value = result
        for key in path:
            value = value.get(key, {})
        if value:
            asked = (aims.get(task), floors.get(task)) if task in asked_of else (None, None)
            rows.append(_row(task, name, value["rate"], value["error"], *asked, "higher"))
    for task, rates in result["scores"].items():
        for name, value in rates.get("variation", {}).items():
            measured = task in agreement.TASKS and task in asked_of
            aim = aims.get("variation") if measured else None
            name = f"total variation of {name}"
            row = _row(task, name, value["tv"], value["error"], aim, None, "lower")
            if aim is not None:  # chance alone may carry it over the aim
                row["met"] = value["tv"] <= aim + CHANCE * value["error"]
            rows.append(row)
    return rows


def _row(task, name, value, error, aim, floor, better) -> dict:
    met = None
    if aim is not None:
        met = value >= aim if better == "higher" else value <= aim
    return {
        "task": task,
        "name": name,
        "value": value,
        "error": error,
        "aim": aim,
        "floor": floor,
        "better": better,
        "met": met,
    }


def errors(result: dict) -> list[str]:
    """Results that are impossible for a correct program, however bad the model is."""
    found = []
    for task, rates in result["scores"].items():
        changed = rates.get("given_tokens_changed")
        if changed:
            found.append(f"{task}: given tokens were changed in {changed} samples")
    for rule, rates in result.get("rules", {}).items():
        if rates["given_tokens_changed"]:
            changed = rates["given_tokens_changed"]
            found.append(f"{rule}: given tokens were changed in {changed} samples")
    if result.get("entropy", {}).get("undercut"):
        found.append(
            f"the bound on captions given images, {result['bounds']['i2t']['value']:.4f} bits a "
            f"token, undercuts their entropy, {result['entropy']['value']:.4f}, by more than 3 "
            "standard errors"
        )
    return found


# ---- Seconds ----------------------------------------------------------------------------------


def speed(drawn: dict, spent: dict) -> dict:
    """Seconds of each part in this process, and the seconds in which the samples were generated.

    The two differ after a restart. The first task includes compilation, so samples a second are of
    the other tasks, where there are some.
    """
    first, *warm = drawn.values()
    seconds = max(sum(s.about["seconds"] for s in warm), 1e-3)
    rate = {"samples_a_second": round(sum(map(len, warm)) / seconds, 2)} if warm else {}
    return {
        "seconds": spent,
        "total_seconds": round(sum(spent.values()), 3),
        "sampling_seconds": {task: s.about["seconds"] for task, s in drawn.items()},
        "with_compilation": first.about["task"],
        **rate,
        "calls_a_sample": {task: float(np.mean(s.calls)) for task, s in drawn.items()},
        "peak_memory_gib": provenance.peak_gib(),
    }
