"""The protocol: what is generated, what is measured, and what is written down with it.

`run` makes the samples of six tasks from held-out conditions (samples.py), measures them
(scores.py), and writes `evaluation.json`:

    suite           "main"
    headline        rows of task, name, value, error, aim, floor, better ("higher", "lower"), met
    scores.TASK     agreement, consistency, reasons, variation; given_tokens_changed
    reader          on shapes: how often the reader fails on the truth
    tokenizer       of images: PSNR, codes in use, reconstructions read right
    bounds.TASK     bits a token on held-out items, and of each modality
    entropy         of captions given scenes, bits a token; whether the bound undercuts it
    errors          what must not happen, in words; [] where all is well
    unmeasured      name -> why
    speed           seconds of each part, samples a second, network calls, memory
    manifest        protocol: what two results must share to be compared; run: hashes of weights and
                    tokenizers; versions, hardware, commit

`samplers` measures every order of reveal at several numbers of calls, into `samplers.json`.
"""

import contextlib
import math
import pathlib
import time

import numpy as np

from udd_jax import checkpoint, logbook, manifest, samples, sampling, scores, tasks
from udd_jax.data import shapes
from udd_jax.metrics import agreement

RESULT, SAMPLERS, FOLDER = "evaluation.json", "samplers.json", "samples"
VARIATION = 0.10  # the most total variation that counts as no collapse
UNMEASURED = {
    "Frechet distance, KID, Inception score, CLIP score": "they need the weights of a feature "
    "network, which this suite does without",
    "BLEU, ROUGE-L, CIDEr-D": "likeness to one reference caption says little where many are right",
}

# Rows of the headline: task, name, where the rate stands, aim, floor.
AIMS = (
    ("t2i", "image agrees with the caption", ("scores", "t2i", "agreement"), 0.95, None),
    ("i2t", "caption agrees with the image", ("scores", "i2t", "agreement"), 0.95, None),
    ("pair", "image and caption agree", ("scores", "pair", "agreement"), 0.90, 0.80),
    ("infill", "consistent with what was given", ("scores", "infill", "consistency"), 0.90, None),
    ("image", "image can be read", ("scores", "image", "readable"), None, None),
    ("text", "caption can be parsed", ("scores", "text", "parsable"), None, None),
    ("tokenizer", "reconstruction is read right", ("tokenizer", "read_right"), 0.99, None),
)


def run(pipe, workdir, *, say=logbook.say) -> dict:
    """The suite "main": makes `workdir/samples/`, measures, writes `workdir/evaluation.json`.

    A result of the same protocol, weights and tokenizers is returned as it is, and so are samples
    that were made before a kill. Every error in the result is said aloud.
    """
    workdir, options = pathlib.Path(workdir), pipe.config.evaluate
    found = finished(pipe, workdir)
    if found:
        return found
    spent = {}
    with _timed(spent, "conditions"):
        items = samples.held_out(pipe, max(options.samples, options.bound_samples))
    drawn = _sampled(pipe, items, workdir / FOLDER, spent)
    result = {"suite": "main", "headline": []}
    with _timed(spent, "scores"):
        scenes, verdicts = _scenes(pipe, items), {}
        result["scores"] = {task: {"count": len(s)} for task, s in drawn.items()}
        for task, s in drawn.items():
            if scenes:
                rates, verdicts[task] = scores.judge(task, s)
                result["scores"][task] |= rates
            if s.kept is not None:
                result["scores"][task]["given_tokens_changed"] = int((~s.kept).sum())
        if scenes:
            result["reader"] = agreement.reader_error(len(items), options.seed)
    with _timed(spent, "tokenizer"):
        shown = pipe.image.decode(items.codes)
        result["tokenizer"] = scores.reconstructions(pipe, items, shown, scenes)
        some = {"images": items.images[: samples.SHOWN], "decoded": shown[: samples.SHOWN]}
        samples.write(workdir / FOLDER / "reconstructions.npz", some)
    with _timed(spent, "bounds"):
        count = min(options.bound_samples, len(items))
        result["bounds"] = scores.bounds(
            pipe, items, count=count, times=options.bound_times, seed=options.seed
        )
        if scenes:
            captions = result["bounds"]["i2t"]
            result["entropy"] = scores.entropy(scenes[:count], pipe.text_length, captions)
    with _timed(spent, "pictures"):
        samples.show(drawn, verdicts, workdir / FOLDER)
    result["headline"] = headline(result)
    result["errors"] = errors(result)
    result["unmeasured"] = dict(UNMEASURED)
    if not scenes:
        why = f"what is right can be read on shapes only, and the data are {items.name}"
        result["unmeasured"] |= dict.fromkeys(("agreement", "variation", "reconstructions"), why)
    result["speed"] = speed(drawn, spent)
    result["manifest"] = manifest.make(pipe, items, "main")
    checkpoint.write_json(workdir / RESULT, result)
    for error in result["errors"]:
        say(f"evaluation: {error}")
    return result


def finished(pipe, workdir) -> dict | None:
    """The result in `workdir` if it is the one that `run` would come to again."""
    path = pathlib.Path(workdir) / RESULT
    if not path.exists():
        return None
    result = checkpoint.read_json(path)
    old, asked = result.get("manifest", {}), manifest.protocol(pipe, "main")
    same = {name: old.get("protocol", {}).get(name) for name in asked} == asked
    return result if same and old.get("run") == manifest.made_of(pipe) else None


def _sampled(pipe, items, folder, spent) -> dict[str, samples.Samples]:
    """The samples of every task by name. One batch size, so that they share a compilation."""
    options, made_of, drawn = pipe.config.evaluate, manifest.made_of(pipe), {}
    total = len(samples.TASKS) * options.samples
    with logbook.progress(total, "samples", unit="sample") as bar:
        for task in samples.TASKS:
            with _timed(spent, task):
                drawn[task] = samples.obtain(
                    pipe,
                    items,
                    task,
                    folder / f"{task}.npz",
                    count=options.samples,
                    batch_size=min(options.batch_size, options.samples, len(items)),
                    seed=options.seed,
                    made_of=made_of,
                )
            bar.update(options.samples)
    return drawn


def _scenes(pipe, items) -> list | None:
    """The scenes of the items where they are known and can be read from images of this size."""
    if pipe.config.data != "shapes" or pipe.config.image_size != shapes.IMAGE_SIZE:
        return None
    return [shapes.all_scenes()[extra["scene"]] for extra in items.extra]


# ---- What comes first ---------------------------------------------------------------------------


def headline(result: dict) -> list[dict]:
    """The rates with their aims and floors, then each task's total variation from the true law."""
    rows = []
    for task, name, path, aim, floor in AIMS:
        value = result
        for key in path:
            value = value.get(key, {})
        if value:
            rows.append(_row(task, name, value["rate"], value["error"], aim, floor, "higher"))
    for task, rates in result["scores"].items():
        for name, value in rates.get("variation", {}).items():
            aim = VARIATION if task in agreement.TASKS else None
            name = f"total variation of {name}"
            rows.append(_row(task, name, value["tv"], value["noise"], aim, None, "lower"))
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
    """What no correct program does, whatever it has learned."""
    found = []
    for task, rates in result["scores"].items():
        changed = rates.get("given_tokens_changed")
        if changed:
            found.append(f"{task}: given tokens were changed in {changed} samples")
    if result.get("entropy", {}).get("undercut"):
        found.append(
            f"the bound on captions given images, {result['bounds']['i2t']['value']:.4f} bits a "
            f"token, undercuts their entropy, {result['entropy']['value']:.4f}, by more than 3 "
            "standard errors"
        )
    return found


# ---- Seconds ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _timed(spent: dict, name: str):
    started = time.perf_counter()
    yield
    spent[name] = round(time.perf_counter() - started, 3)


def speed(drawn: dict, spent: dict) -> dict:
    """Seconds of each part as spent now; of samples also when they were made, which may have been
    before a restart. The first task's include compilation, so samples a second are of the others.
    """
    first, *warm = drawn.values()
    seconds = sum(s.about["seconds"] for s in warm)
    return {
        "seconds": spent,
        "total_seconds": round(sum(spent.values()), 3),
        "sampling_seconds": {task: s.about["seconds"] for task, s in drawn.items()},
        "with_compilation": first.about["task"],
        "samples_a_second": round(sum(map(len, warm)) / max(seconds, 1e-3), 2),
        "calls_a_sample": {task: float(np.mean(s.calls)) for task, s in drawn.items()},
        "peak_memory_gib": manifest.peak_gib(),
    }


# ---- Two results --------------------------------------------------------------------------------


def compare(a, b) -> str:
    """Two results side by side; each is a run's folder or the path of its evaluation.json.

    The last column is the difference in standard errors. Bits a token are compared where the
    tokens are the same.

    Raises:
        ValueError: their protocols differ (every field is named), or one is no result.
    """
    first, second = _read(a), _read(b)
    one, two = (flat(result["manifest"]["protocol"]) for result in (first, second))
    missing = "nothing"
    fields = [
        f"{name} ({one.get(name, missing)} and {two.get(name, missing)})"
        for name in one | two
        if one.get(name, missing) != two.get(name, missing)
    ]
    if fields:
        raise ValueError(f"not comparable, the protocols differ in {', '.join(fields)}")
    numbers, others = _numbers(first), _numbers(second)
    lines = [f"{'':52}{'A':>9}{'B':>9}{'B - A':>10}{'/ error':>9}"]
    for name, (value, error) in numbers.items():
        if name in others:
            other, other_error = others[name]
            error = math.hypot(error or 0, other_error or 0)
            apart = f"{(other - value) / error:+9.1f}" if error else f"{'':9}"
            lines.append(f"{name:52}{value:9.4f}{other:9.4f}{other - value:+10.4f}{apart}")
    return "\n".join(lines)


def _read(path) -> dict:
    path = pathlib.Path(path)
    path = path / RESULT if path.is_dir() else path
    result = checkpoint.read_json(path)
    if not isinstance(result, dict) or "protocol" not in result.get("manifest", {}):
        raise ValueError(f"{path} is no result of an evaluation: it has no manifest.protocol")
    return result


def flat(tree, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}.{name}" if prefix else name)
    return found


def _numbers(result: dict) -> dict[str, tuple[float, float | None]]:
    """Name -> (value, standard error)."""
    rows = result["headline"]
    found = {f"{row['task']}: {row['name']}": (row["value"], row["error"]) for row in rows}
    psnr = result["tokenizer"]["psnr"]
    found["tokenizer: PSNR"] = psnr["value"], psnr["standard_error"]
    run = result["manifest"]["run"]
    tokens = f"{run['image_tokenizer'][:4]} {run['text_tokenizer'][:4]}"
    for task, bits in result["bounds"].items():
        name = f"{task}: bits a token (tokens {tokens})"
        found[name] = bits["value"], bits["standard_error"]
    return found


# ---- The samplers -------------------------------------------------------------------------------


def samplers(pipe, workdir, *, count: int = 128, say=logbook.say) -> dict:
    """The suite "samplers", for shapes: agreement against network calls and seconds.

    `count` samples of each of t2i, i2t and pair, in one call, for every entry of `grid`; one that
    does not fit the run's schedule is left out with the reason. Written to `workdir/samplers.json`
    after each entry, so that a stopped suite goes on. The bound is the network's and the same for
    all of them: it stands in evaluation.json.
    """
    path, seed = pathlib.Path(workdir) / SAMPLERS, pipe.config.evaluate.seed
    items = samples.held_out(pipe, count)
    if _scenes(pipe, items) is None:
        raise ValueError(f"suite 'samplers' needs data that can be read: shapes, not {items.name}")
    about = manifest.make(pipe, items, "samplers")
    result = {"suite": "samplers", "rows": [], "left_out": [], "manifest": about}
    if path.exists():
        old = checkpoint.read_json(path)
        if all(old["manifest"][name] == about[name] for name in ("protocol", "run")):
            result = old
    done = [row["settings"] for row in result["rows"] + result["left_out"]]
    for changes in grid(pipe):
        if changes in done:
            continue
        try:
            pipe.settings(**changes)
        except ValueError as error:
            result["left_out"].append({"settings": changes, "reason": str(error)})
        else:
            row = _measure(pipe, items, changes, seed)
            result["rows"].append(row)
            name = ", ".join(str(value) for value in changes.values())
            say(f"{name}: {row['calls']:.1f} calls, agreement {row['agreement']['rate']:.3f}")
        checkpoint.write_json(path, result)
    result["best"] = best(result["rows"], pipe.config.diffusion.steps)
    checkpoint.write_json(path, result)
    return result


def grid(pipe) -> list[dict]:
    """Settings to compare: every sampler, at several numbers of calls."""
    steps = pipe.config.diffusion.steps
    longest = max(m.length for m in pipe.vocab.modalities)
    counts = sorted({max(1, steps // part) for part in (20, 10, 4, 1)})
    few = sorted({max(1, longest // part) for part in (8, 4, 2, 1)})
    by_time = [{"sampler": s, "steps": n} for s in sampling.BY_TIME for n in counts]
    by_count = [{"sampler": s, "steps": n} for s in sampling.BY_COUNT for n in few]
    others = [
        {"sampler": sampler, field: value}
        for sampler, field, values in (
            ("best_first", "group", (1, 2, 4)),
            ("first_hitting", "group", (1, 2, 4)),
            ("threshold", "threshold", (0.5, 0.8, 0.95)),
            ("entropy_bounded", "bound", (1.0, 0.3, 0.1)),
        )
        for value in values
    ]
    return by_time + by_count + others


def _measure(pipe, items, changes: dict, seed: int) -> dict:
    """One row: three tasks in one call, after a first one that compiles."""
    count, names = len(items), agreement.TASKS
    parts = [tasks.masks(pipe.vocab, task, count) for task in names]
    masks = tasks.Masks(*(np.concatenate(field) for field in zip(*parts, strict=True)))
    given = {"image": np.tile(items.codes, (3, 1)), "text": np.tile(items.ids, (3, 1))}
    options = {"masks": masks, "seed": seed, "batch_size": count, **given, **changes}
    few = {"masks": parts[0], **{name: ids[:count] for name, ids in given.items()}}
    pipe.generate("pair", count, **options | few)
    started = time.perf_counter()
    pairs = pipe.generate("pair", 3 * count, **options)
    seconds = time.perf_counter() - started
    row = {"settings": changes, "seconds": round(seconds, 3)}
    row |= {"samples_a_second": 3 * count / seconds, "calls": float(np.mean(pairs.calls))}
    agreed = []
    for k, task in enumerate(names):
        here = slice(k * count, (k + 1) * count)
        shown = items.images if task == "i2t" else pairs.images[here]
        good, rates = agreement.agreement(shown, pairs.captions[here])
        row[task] = rates["agreement"]
        agreed.append(good)
    return row | {"agreement": agreement.rate(np.concatenate(agreed))}


def best(rows: list[dict], steps: int) -> dict:
    """The ancestral chain with all its calls, the best row with a quarter of them, and the gap."""
    full = [r for r in rows if r["settings"] == {"sampler": "ancestral", "steps": steps}]
    quarter = [r for r in rows if r["calls"] <= steps / 4]
    if not full or not quarter:
        return {}
    top = max(quarter, key=lambda r: r["agreement"]["rate"])
    gap = full[0]["agreement"]["rate"] - top["agreement"]["rate"]
    return {"full": full[0], "quarter": top, "points_lost": 100 * gap}
