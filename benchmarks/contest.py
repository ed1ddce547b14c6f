"""The ways of the literature side by side, each trained for the same time.

    python -m benchmarks contest --config=configs/t2i.py --minutes=10 --workdir=runs/contest
                                 [--seeds=3] [--recipes=ours,autoregressive] [--set=FIELD=VALUE ...]

All runs share the tokenizers and the token cache of the first one. A recipe changes the config. The
seconds of every recipe's train step are measured first (paces.json), one recipe after the other
before any training, and the number of its steps is what the minutes allow: the learning rate needs
to know it. So the machine should be quiet in the first minutes; later it need not be. Every run is
a run of the main job in a folder of its own. A finished one is not repeated, a killed one goes on.
After each, table.md and contest.json are written. Data that are no embedded world are measured by
retrieval and recognition (the suite "full"), where the network can do all tasks.

An interval of several seeds is Student's, at 95 %; that of one seed is over its items, and says
nothing of another training. What the recipes leave out of the papers is in their docstrings.
"""

import argparse
import math
import os
import pathlib
import time

import jax
import numpy as np

from benchmarks import sizes, training
from benchmarks.options import named
from udd_jax import build, modalities, stages
from udd_jax.diffusion import transition
from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import intervals
from udd_jax.runtime import config_files, files, logbook
from udd_jax.training import end_to_end, turns

WARM, TIMED = 3, 8  # steps
# Of data that are no embedded world: {part of the suite "full": its rates that the table has}
READ = {"retrieval": ("first 1",), "recognition": ("among 20", "without broken words")}


def ours(c):
    """The config as it is."""


def unid3(c):
    """UniD3 as published: pairs alone, one time, AdamW, no gains. A given modality is set back in
    every step. The sizes stay those of the config; the learning rate is at most .001."""
    c.train.mixture = {"pair": 1.0}
    c.train.update({"optimiser": "adamw", "auxiliary": 0.01, "beta2": 0.96, "weight_decay": 4.5e-2})
    c.train.learning_rate = min(c.train.learning_rate, 1e-3)  # not Muon's
    c.model.update({"time": "shared", "time_table": "untied", "given_vector": False})
    c.model.update({"mutual_gain": 0.0, "rotary": False, "qk_norm": False, "activation": "gelu"})
    c.model.absent = "noise"
    _no_prefixes(c)
    c.begin_with = ()


def vq_diffusion(c):
    """VQ-Diffusion: text to image alone, a tenth of it without the text, for guidance."""
    c.train.mixture = {"t2i": 0.9, "image": 0.1}
    _no_prefixes(c)


def masked(c):
    """MDLM and UniDisc: a schedule that only masks, the continuous bound, self-attention."""
    c.diffusion.schedule, c.model.attention = "absorbing", "self"
    c.train.update({"objective": "continuous", "auxiliary": 0.0})
    _no_prefixes(c)


def muse(c):
    """MaskGIT and Muse: the cosine schedule, all times with one weight. The weight is that of the
    auxiliary loss, twenty times the bound's."""
    c.diffusion.schedule, c.train.auxiliary = "cosine", 20.0
    c.sample.update({"sampler": "maskgit", "steps": 12})
    c.sample_rules = {}
    _no_prefixes(c)


def self_attention(c):
    c.model.attention = "self"


def autoregressive(c):
    """Prefix attention, text before image, self-attention (DALL-E, ERNIE-ViLG)."""
    c.model.kind, c.model.attention = "autoregressive", "self"
    _no_prefixes(c)
    c.begin_with = ()


def _contrastive(kind, weight, form="bounded"):
    def change(c):
        c.train.contrastive.update({kind: weight, "form": form})

    return change


def round_trip(c):
    c.train.round_trip = 0.3


def matching(c):
    c.train.matching = 0.1


def end_to_end_decoder(c):
    c.train.end_to_end.weight = 1.0


def length(c):
    """Concentrated attention with the length head; the evaluation's captions have a free length."""
    concentrated(c)
    c.model.length_head, c.train.length = True, 0.1


def long_skips(c):
    c.model.stack = "long_skips"


def encoder_decoder(c):
    """A quarter of the layers are the decoder."""
    c.model.stack, c.model.decoder_layers = "encoder_decoder", max(1, c.model.layers // 4)


def experts(c):
    """Two, copies of `ours` after half of the time (`BEGUN_BY`), as in eDiff-I."""
    c.experts = (0.5,)
    _no_prefixes(c)


def concentrated(c):
    """DDCap's attention, its best-first sampler and its guidance; no length is drawn first."""
    c.model.concentrated = True
    c.sample.update({"sampler": "best_first", "guidance": 1.06})
    c.sample_rules = {}
    _no_prefixes(c)


def block_attention(c):
    c.model.block_attention, c.model.absent = True, "noise"
    _no_prefixes(c)


def _no_prefixes(c):
    """A recipe whose network has no such loss, or whose paper has no such start."""
    c.train.prefix_steps, c.train.prefix_share = 0, 0.0


RECIPES = {
    "ours": ours,
    "unid3": unid3,
    "vq_diffusion": vq_diffusion,
    "masked": masked,
    "muse": muse,
    "self_attention": self_attention,
    "autoregressive": autoregressive,
    "cdcd_step_intra": _contrastive("step_intra", 0.05),
    "cdcd_step_inter": _contrastive("step_inter", 0.05),
    "cdcd_sample_intra": _contrastive("sample_intra", 0.05),
    "cdcd_sample_inter": _contrastive("sample_inter", 0.05),
    "cdcd_released": _contrastive("step_intra", 5e-5, "released"),
    "round_trip": round_trip,
    "matching": matching,
    "end_to_end": end_to_end_decoder,
    "length": length,
    "long_skips": long_skips,
    "encoder_decoder": encoder_decoder,
    "experts": experts,
    "concentrated": concentrated,
    "block_attention": block_attention,
}

BEGUN_BY = {"experts": "ours"}  # half of the time is of this recipe, and its weights go on


def recipe(config, name: str, seed: int):
    """The config of a run. UserError for an unknown recipe."""
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} does not exist, expected one of {', '.join(RECIPES)}")
    c = config.copy_and_resolve_references()
    RECIPES[name](c)
    c.seed, c.name = seed, f"{c.name}-{name}"
    return c


def run(config, minutes: float, workdir, recipes=tuple(RECIPES), seeds: int = 3) -> list[dict]:
    """Runs what is missing and returns one row a run; see the docstring of this file."""
    workdir = pathlib.Path(workdir)
    for name in recipes:
        stages.check(recipe(config, name, 0))
    shared = workdir / "shared"
    stages.run(config, shared, until="token cache")
    seconds = paces(config, minutes, workdir, dict.fromkeys((*recipes, *_first(recipes))))
    rows = []
    for seed in range(seeds):  # every recipe once, before any a second time
        for name in recipes:
            folder, parts = workdir / f"{name}-{seed}", (*_first([name]), name)
            configs = [recipe(config, part, seed) for part in parts]
            steps = [max(1, round(60 * minutes / len(parts) / seconds[part])) for part in parts]
            for part, number in zip(parts, steps, strict=True):
                logbook.say(f"contest: {part}-{seed}, {number} steps of {seconds[part]:.3f} s")
            rows.append(one(configs, steps, folder, shared) | {"recipe": name, "seed": seed})
            files.write_json(workdir / "contest.json", {"minutes": minutes, "rows": rows})
            files.write_bytes(workdir / "table.md", table(rows).encode())
    return rows


def paces(config, minutes: float, workdir: pathlib.Path, recipes) -> dict[str, float]:
    """The seconds of a train step by recipe, from workdir/paces.json or measured now.

    UserError if the folder belongs to a contest of other minutes.
    """
    path = workdir / "paces.json"
    found = files.read_json(path) if path.exists() else {"minutes": minutes, "step_seconds": {}}
    if found["minutes"] != minutes:
        raise UserError(
            f"minutes = {minutes}, but {workdir} has a contest of {found['minutes']}: choose "
            "another --workdir"
        )
    for name in recipes:
        if name not in found["step_seconds"]:
            seconds = step_seconds(recipe(config, name, 0), workdir / "shared")
            found["step_seconds"][name] = seconds
            logbook.say(f"contest: {name}, {seconds:.3f} s a train step")
            files.write_json(path, found)
    return found["step_seconds"]


def _first(recipes) -> list[str]:
    """What the recipes begin with, where that is another one."""
    return [BEGUN_BY[name] for name in recipes if name in BEGUN_BY]


def one(configs, steps: list[int], folder: pathlib.Path, shared: pathlib.Path) -> dict:
    """The row of one run, which is trained and evaluated as far as that is missing.

    configs: of its parts, each of which goes on from the weights of the one before; steps: of each.
    """
    seconds = 0.0
    for number, config in enumerate(configs):
        last = number == len(configs) - 1
        here = folder if last else folder / f"part{number}"
        here.mkdir(parents=True, exist_ok=True)
        for name in shared_parts(config, shared):
            if not (here / name).exists():
                os.symlink((shared / name).absolute(), here / name)
        if number:
            config.init_from = str((folder / f"part{number - 1}").absolute())
        end = {} if last else {"until": "diffusion"}
        stages.run(for_steps(config, steps[number]), here, **end)
        seconds += files.read_json(here / "stages.json")["diffusion"]
    result = files.read_json(folder / "evaluation.json")
    if not result.get("world") and not any("samples: " in name for name in result["unmeasured"]):
        stages.evaluate_run(folder, "full")
        result = files.read_json(folder / "evaluation.json")
    return {"steps": sum(steps), "training_seconds": seconds, "values": values(result)}


def shared_parts(config, shared: pathlib.Path) -> list[str]:
    """What a run takes from the folder `shared`: the tokenizers, and the token cache.

    The cache only if the seed of the run cuts its pictures in the same way.
    """
    tokenizers = [name.partition("/")[0] for name in modalities.tokenizer_files(config)]
    made = stages.views(build.read_config(shared)).recorded
    return tokenizers + (["tokens"] if stages.views(config).recorded == made else [])


def for_steps(config, steps: int):
    """`config` with so many steps; what it begins with is a part of them: of warming up at most a
    tenth, of prefixes a third, as of the steps that `configs/t2i.py` has time for in ten minutes.
    """
    config.train.steps = steps
    config.train.warmup = min(config.train.warmup, steps // 10)
    config.train.prefix_steps = min(config.train.prefix_steps, steps // 3)
    return config


def step_seconds(config, shared) -> float:
    """The median seconds of a train step, on random tokens of the tokenizers in `shared`.

    Where steps leave modalities out, the mean over the parts of the mixture."""
    tokenizers = build.load_tokenizers(shared)
    layout = build.make_vocab(config, tokenizers)
    kernel = transition.make_kernel(layout, build.make_schedules(config, layout))
    p = sizes.Parts(config, layout, kernel, build.make_model(config, layout))
    terms = end_to_end.from_config(config, layout, tokenizers["image"])
    key, seconds, weights = jax.random.key(1), [], []
    for names, part in turns.parts(config, layout).items():
        step, state = training.make_step(p, terms, mixture=part, without=names)
        times = []
        for _ in range(WARM + TIMED):
            start = time.perf_counter()
            state, _ = step(state, p.batch, key)
            jax.block_until_ready(state)
            times.append(time.perf_counter() - start)
        seconds.append(np.median(times[WARM:]))
        weights.append(sum(part.values()))
    return float(np.average(seconds, weights=weights))


def values(result: dict) -> dict[str, list]:
    """{measure: [value, its standard error, the most that it can be]} of an evaluation.

    The error is 0 where none is; the most is None where there is no limit. The least is 0.
    """
    found = {}
    for row in result["headline"]:
        rate = row["better"] == "higher" and row["task"] != "tokenizer"  # that is shared
        if rate and row["value"] is not None:
            found[f"{row['task']}: {row['name']}"] = [row["value"], row["error"] or 0.0, 1.0]
    for task, bound in result["bounds"].items():
        if bound.get("value") is not None:
            found[f"{task}: bits a token"] = [bound["value"], bound["standard_error"], None]
    for part, rates in READ.items():
        for name, of in result.get("full", {}).get(part, {}).items():
            for rate in rates if isinstance(of, dict) else ():
                if rate in of:
                    found[f"{name}: {rate}"] = [of[rate]["value"], of[rate]["standard_error"], 1.0]
    speed = result["speed"]
    found["samples a second"] = [speed["samples_a_second"], 0.0, None]
    for task, calls in speed["calls_a_sample"].items():
        found[f"{task}: network calls"] = [calls, 0.0, None]
    found["memory, GiB"] = [speed["peak_memory_gib"], 0.0, None]
    return found


def table(rows: list[dict]) -> str:
    """One table, a row a recipe, a column a measure: mean [low, high] over the seeds."""
    recipes = list(dict.fromkeys(row["recipe"] for row in rows))
    measures = list(dict.fromkeys(name for row in rows for name in row["values"]))
    lines = ["| recipe | seeds | steps | " + " | ".join(measures) + " |"]
    lines.append("|" + "---|" * (3 + len(measures)))
    for name in recipes:
        mine = [row for row in rows if row["recipe"] == name]
        cells = [name, str(len(mine)), f"{np.mean([row['steps'] for row in mine]):.0f}"]
        for measure in measures:
            found = [row["values"][measure] for row in mine if measure in row["values"]]
            cells.append(cell(found))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(found: list[list]) -> str:
    """The mean of what `values` has of one measure, with its interval; "-" without any."""
    if not found:
        return "-"
    mean, count, most = float(np.mean([v for v, *_ in found])), len(found), found[0][2]
    most = math.inf if most is None else most
    if count > 1:
        error = float(np.std([v for v, *_ in found], ddof=1)) / count**0.5
        estimate = intervals.spread(mean, error, count - 1, count, "seeds", least=0, most=most)
        low, high = estimate.low, estimate.high
    else:
        low, high = (mean + side * 1.96 * found[0][1] for side in (-1, 1))
        low, high = max(low, 0.0), min(high, most)
    return f"{mean:.3g}" if low == high else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def main(arguments) -> int:
    names = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(
        "python -m benchmarks contest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/t2i.py")
    parser.add_argument("--minutes", type=float, required=True, help="of training, a run")
    parser.add_argument("--workdir", default="runs/contest")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipes", type=names, default=list(RECIPES), help=", ".join(RECIPES))
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of the config")
    options = parser.parse_args(arguments)
    if not options.minutes > 0 or options.seeds < 1:
        parser.error("--minutes and --seeds: expected more than 0")
    config = config_files.load(options.config)
    config.update_from_flattened_dict(named(options.set))
    try:
        rows = run(config, options.minutes, options.workdir, options.recipes, options.seeds)
    except UserError as error:
        parser.error(str(error))
    print(table(rows))
    return 0
