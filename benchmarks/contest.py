"""The ways of the literature side by side, each trained for the same time.

    python -m benchmarks contest --config=configs/t2i.py --minutes=10 --workdir=runs/contest
                                 [--seeds=3] [--recipes=ours,autoregressive] [--set=FIELD=VALUE ...]

All runs share the tokenizers and the token cache of the first one. A recipe changes the config. The
seconds of every recipe's train step are measured first (paces.json), one recipe after the other
before any training, those of its first steps on prefixes apart. The number of its steps is what the
minutes allow: the learning rate needs to know it. So the machine should be quiet in the first
minutes; later it need not be. Every run is a run of the main job in a folder of its own. A finished
one is not repeated, a killed one goes on. After each, table.md and contest.json are written, with
the rows of earlier calls for the same folder, whatever their recipes and seeds were. Data that are
no embedded world are measured by retrieval and recognition (the suite "full"), where the network
can do all tasks, and by the rules of the config (`evaluate.rules`).

An interval of several seeds is Student's, at 95 %; that of one seed is over its items, and says
nothing of another training. What the recipes leave out of the papers is in their docstrings.
"""

import argparse
import os
import pathlib

from benchmarks import standings, training
from benchmarks.options import change
from udd_jax import build, modalities, stages
from udd_jax.errors import UserError
from udd_jax.runtime import config_files, files, logbook
from udd_jax.training import recipe as open_fields


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
    """Runs what is missing and returns one row a run, also of earlier calls; see the docstring of
    this file."""
    workdir = pathlib.Path(workdir)
    shared = workdir / "shared"
    for name in recipes:
        recipe(config, name, 0)
    config = open_fields.fill(config, shared)
    for name in recipes:
        stages.check(recipe(config, name, 0))
    stages.run(config, shared, until="token cache")
    seconds = paces(config, minutes, workdir, dict.fromkeys((*recipes, *_first(recipes))))
    path = workdir / "contest.json"
    rows = files.read_json(path)["rows"] if path.exists() else []
    rows = {(row["recipe"], row["seed"]): row for row in rows}
    for seed in range(seeds):  # every recipe once, before any a second time
        for name in recipes:
            folder, parts = workdir / f"{name}-{seed}", (*_first([name]), name)
            configs = [recipe(config, part, seed) for part in parts]
            time = 60 * minutes / len(parts)  # seconds of each
            steps = [
                number_of_steps(of, time, seconds[part])
                for of, part in zip(configs, parts, strict=True)
            ]
            for part, number in zip(parts, steps, strict=True):
                logbook.say(f"contest: {part}-{seed}, {number} steps in {time:.0f} s")
            row = one(configs, steps, folder, shared) | {"recipe": name, "seed": seed}
            rows[name, seed] = row
            found = list(rows.values())
            files.write_json(path, {"minutes": minutes, "rows": found})
            files.write_text(workdir / "table.md", standings.table(found))
    return list(rows.values())


def paces(config, minutes: float, workdir: pathlib.Path, recipes) -> dict[str, list[float]]:
    """The seconds of a train step by recipe (`training.step_seconds`), from workdir/paces.json or
    measured now. An old file has one number for all steps of a recipe.

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
            later, first = training.step_seconds(recipe(config, name, 0), workdir / "shared")
            found["step_seconds"][name] = [later, first]
            logbook.say(f"contest: {name}, {later:.3f} s a train step, {first:.3f} s on prefixes")
            files.write_json(path, found)
    return {n: s if isinstance(s, list) else [s, s] for n, s in found["step_seconds"].items()}


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
        link(config, shared, here)
        if number:
            config.init_from = str((folder / f"part{number - 1}").absolute())
        end = {} if last else {"until": "diffusion"}
        stages.run(for_steps(config, steps[number]), here, **end)
        seconds += files.read_json(here / "stages.json")["diffusion"]
    result = files.read_json(folder / "evaluation.json")
    able = result["scores"] and not any("samples: " in name for name in result["unmeasured"])
    if able and not result.get("world"):
        stages.evaluate_run(folder, "full")
        result = files.read_json(folder / "evaluation.json")
    return {"steps": sum(steps), "training_seconds": seconds, "values": standings.values(result)}


def link(config, shared: pathlib.Path, here: pathlib.Path) -> None:
    """Links what a run takes from `shared` into its folder, each file alone: the run writes beside
    it, such as its image decoder."""
    for name in shared_parts(config, shared):
        own = here / name
        if own.parent != here and own.parent.is_symlink():  # of an old contest
            own.parent.unlink()
        own.parent.mkdir(parents=True, exist_ok=True)
        if not own.exists():
            os.symlink((shared / name).absolute(), own)


def shared_parts(config, shared: pathlib.Path) -> list[str]:
    """What a run takes from the folder `shared`: the files of tokenizers, and the token cache.

    The cache only if the seed of the run cuts its pictures in the same way.
    """
    tokenizers = modalities.tokenizer_files(config)
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


def number_of_steps(config, time: float, pace: list[float]) -> int:
    """How many steps take so many seconds, as `for_steps` begins them. pace: of `paces`."""
    (later, first), prefixes = pace, config.train.prefix_steps
    steps = time / (later + (first - later) / 3)
    if steps > 3 * prefixes:
        steps = (time - prefixes * (first - later)) / later
    return max(1, round(steps))


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
    change(config, options.set)
    rows = run(config, options.minutes, options.workdir, options.recipes, options.seeds)
    print(standings.table(rows))
    return 0
