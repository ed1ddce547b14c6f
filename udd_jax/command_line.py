"""The flags of the command line: which modes take them, and what is printed about them.

To add a flag, add a call of `_flag` that names the modes in which it does something. In any other
mode it is refused (`check`). Each setting of the sampler (`sample` in `configs/base.py`) is a flag
of `--mode=sample`; SETTINGS has their descriptions. No JAX here, so that `--help` is fast.
"""

import functools
import os
import re
import shlex
import textwrap
import traceback

from absl import flags
from ml_collections import config_flags

from udd_jax.errors import UserError
from udd_jax.runtime import config_files

MODES = {
    "train": "run the main job: tokenizers, training, evaluation, report",
    "data": "read all of the data and say what is in it",
    "tokenize": "the main job up to the token cache",
    "sample": "generate images and captions with a finished run",
    "embed": "write pictures, captions and vectors of the dual encoder of a run, as data",
    "demo": "open a page in the browser, for a finished run",
    "evaluate": "measure a finished run and write its report, or compare two",
    "replay": "repeat the step at which a training failed",
    "plan": "print what a config costs",
    "convert": "turn a published checkpoint into a run, or a run into a checkpoint",
    "export": "copy only the files of a run that sampling needs",
}
OVERVIEW = """\
udd_jax generates images and captions together, and the missing parts of both.

  udd_jax --mode=sample --prompt="a small red circle above a large blue square"    at once
  udd_jax --config=configs/t2i.py                        train on an embedded world, 19 minutes
  udd_jax --mode=demo --workdir=runs/t2i       try that run in a browser, or the one of the package
  udd_jax --mode=data --config.data=folder:DIR                                  check your data
  udd_jax --config=configs/own.py --config.data=folder:DIR --workdir=runs/mine    train on them
  udd_jax --mode=evaluate --workdir=runs/mine                    measure a run, write its report

udd_jax --help lists all modes and flags; udd_jax --mode=sample --help those of one mode."""
# The settings of the sampler, each a flag of --mode=sample. Unless given, the run's config decides.
SETTINGS = {
    "sampler": "order of reveal",
    "steps": "network calls, 0 is T",
    "guidance": "scale, 1 is off",
    "guidance_schedule": "constant, linear or interval",
    "guidance_interval": "LOW,HIGH as shares of T, for the schedule interval",
    "temperature": "above 1 is more varied, below 1 is more likely",
    "top_r": "keep the likeliest classes up to this mass",
    "top_k": "keep so many classes, 0 is all",
    "confidence": "probability, margin or entropy; for maskgit and best_first",
    "noise": "temperature of the noise at the start; for maskgit",
    "purity": "weight of the purity; for purity",
    "group": "positions revealed in a call; for best_first and first_hitting",
    "threshold": "reveal positions with a probability above it; for threshold",
    "bound": "nats revealed in a call; for entropy_bounded",
    "eta": "largest probability of masking again; for remdm_cap and remdm_rescale",
    "correct": "tokens drawn again in each step; for ancestral",
}
# {mode: the fields of the config that it reads}; a name with a dot stands for all of its section.
# The other modes read a config as a whole.
FIELDS = {
    "sample": ("sample.",),
    "evaluate": (
        *("evaluate.", "sample.", "sample_rules.", "begin_with", "data", "data_options."),
    ),
    "embed": ("data", "data_options.", "incomplete", "skip_limit"),
    "demo": (),
    "replay": (),
    "export": (),
}
# {mode: the config whose fields are typed, where no --config= is}. The fields of BASE stand for
# those of the run: only what is typed counts.
BASE = "configs/base.py"
IMPLIED = {"data": "configs/own.py", **dict.fromkeys(FIELDS, BASE)}
_KINDS = {int: "integer", float: "float", str: "string", tuple: "list"}
# Flags and fields that are paths; a shell leaves the `~` of `--image=~/a.png` as it is.
PATHS = (
    *("workdir", "out", "image", "mask", "weights", "compare", "checkpoint", "vq_config"),
    *("text", "codes", "given", "dual_encoder", "paint", "scorer"),
)
PATH_FIELDS = (
    *("init_from", "text.file", "vq.file", "vq.weights", "evaluate.weights", "dual_encoder.file"),
    *("data_options.images", "data_options.data_dir"),
)
_NAME = re.compile(r"([^=]*=(?=~))?")  # that of --given NAME=VALUE, or --paint PHRASE=MASK
_HELP = {"-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull"}

FLAGS = flags.FLAGS
TAKES = {}  # {flag: the modes that take it}


def _flag(modes: str, kind: str, name: str, default, *more) -> None:
    """`absl`'s DEFINE_kind(name, default, *more), where the last of `more` is the description."""
    TAKES[name] = tuple(modes.split())
    getattr(flags, f"DEFINE_{kind}")(name, default, *more)


CONFIG = config_flags.DEFINE_config_file("config", None, "settings, such as configs/t2i.py:smoke")
TAKES["config"] = TAKES["mode"] = tuple(MODES)
flags.DEFINE_enum("mode", "train", tuple(MODES), "what to do")
_flag(
    "train tokenize sample embed demo evaluate replay convert export", "string", "workdir", None,
    "folder of the run, gs:// too; runs/NAME unless given",
)  # fmt: skip
_flag(
    "sample embed convert export", "string", "out", None,
    "folder or file for the results; for sample, WORKDIR/generated unless given",
)  # fmt: skip
_flag("train tokenize", "bool", "tensorboard", False, "write TensorBoard's event files as well")
_flag("train", "bool", "profile", False, "write a trace of a few steps to WORKDIR/profile")

_flag(
    "sample", "string", "task", "t2i",
    "t2i, i2t, pair, image, text, infill, edit, outpaint, upscale, or a rule such as image|text",
)  # fmt: skip
_flag("sample", "multi_string", "given", [], "NAME=VALUE, a text or a file; may be repeated")
_flag(
    "sample", "string", "begin_with", None,
    "modalities that are generated first, such as length; the rest is given them",
)  # fmt: skip
_flag("sample", "integer", "begin_steps", None, "network calls for what is generated first")
_flag(
    "sample", "multi_string", "weigh", [],
    "NAME=WEIGHT, attention to a given modality: 1 is off, 0 is none; may be repeated",
)  # fmt: skip
_flag("sample", "multi_string", "prompt", [], "--given text=; may be repeated")
_flag("sample", "multi_string", "image", [], "--given image=; may be repeated")
_flag("sample", "string", "mask", None, "a picture, white where the image is generated (infill)")
_flag("sample", "string", "negative_prompt", None, "a text that guidance leads away from")
_flag("sample", "integer", "blank_tokens", 1, "tokens that ___ in a prompt stands for (infill)")
_flag(
    "sample", "multi_string", "weight", [],
    "weight of each prompt, which are then one condition; .5:linear or .5:0.2,0.8 over time",
)  # fmt: skip
_flag("sample", "integer", "best_of", 1, "candidates of each sample, of which the best one is kept")
_flag("sample", "enum", "by", "bound", ("bound", "match"), "how --best_of ranks the candidates")
_flag(
    "sample", "multi_string", "paint", [],
    "PHRASE=MASK:WEIGHT, words of the prompt that belong where a picture is white; may be repeated",
)  # fmt: skip
_flag(
    "sample", "multi_string", "scorer", [],
    "shows, match or clip=TEXT:SCALE, palette, colours, like, content or style=PICTURE:SCALE: "
    "steer; may be repeated",
)  # fmt: skip
_flag(
    "sample embed", "string", "dual_encoder", None,
    "a run whose dual encoder is used: for match, or for the vectors",
)  # fmt: skip
_flag("sample", "float", "share", None, "codes masked in a round; for edit, .6")
_flag("sample", "integer", "rounds", None, "rounds of masking; for edit, 24")
_flag("sample", "integer", "factor", None, "2 or 4; for upscale, what fits the run unless given")
_flag("sample", "multi_string", "extend", [], "SIDE:PIXELS such as left:8; for outpaint")
_flag("sample", "string", "length", None, "tokens of a caption, or drawn by its head; for i2t")
_flag("sample", "integer", "num", None, "how many; of each prompt or image")
_flag("sample", "integer", "batch_size", 64, "how many at once")
_flag("sample", "integer", "seed", 0, "seed")
_defaults = config_files.load("configs/base.py").sample
for _name, _about in SETTINGS.items():
    _flag("sample", _KINDS[type(_defaults[_name])], _name, None, _about)

_flag("demo", "integer", "port", None, "port on 127.0.0.1; the first free one from 7860 on")
_flag("demo", "bool", "public", False, "a public address as well, through Gradio's servers")

_flag("evaluate", "multi_string", "compare", [], "two runs or results side by side: A B")
_flag("evaluate", "string", "suite", "main", "main, full, samplers, tuning or judges")
_flag("evaluate sample", "string", "weights", None, "folder with the weights of CLIP and others")

_flag("convert", "enum", "from", None, ("unid3", "taming"), "what the checkpoint is")
_flag("convert", "enum", "to", None, ("safetensors",), "a run back to published names")
_flag("convert", "string", "checkpoint", None, "a PyTorch file, or .safetensors")
_flag("convert", "string", "vq_config", None, "the YAML file of a taming VQGAN")
_flag("convert", "string", "network", "joint", "joint, image_from_text or text_from_image")
_flag("convert", "string", "text", None, "the text vocabulary, if it is not beside the checkpoint")
_flag("convert", "string", "codes", None, "which image codes are used, .npy or .pt; or 2887, 974")
_flag("convert", "integer", "heads", None, "attention heads; a 64th of the width unless given")


def parse(argv: list[str]) -> list[str]:
    """Parses flags and config; returns the words that are not flags, after the name of the program.

    `flags.Error` for a mistake in these, and for nothing else.
    """
    try:
        words = FLAGS(config_files.in_arguments(_with_config(argv)))
        _expand()
        return words
    except flags.IllegalFlagValueError as error:
        last = str(error).strip().splitlines()[-1]  # after a traceback, if `get_config` raised it
        raise flags.Error(last.removeprefix("ValueError: ")) from error
    except SyntaxError as error:
        raise flags.Error(f"--config= names no Python file: {error}") from error
    except (KeyError, AttributeError) as error:
        if getattr(error, "name", None) == "get_config":
            raise flags.Error("--config= names a file without get_config, as t2i.py has") from error
        if any(f.name == "get_config" for f in traceback.extract_tb(error.__traceback__)):
            raise  # a fault of the config file itself
        name = " ".join(str(error.args[0]).split())  # a KeyError shows its text in quotes
        what = f"{name} is not a field of the config: configs/base.py has the list"
        raise flags.Error(what) from error
    except (TypeError, ValueError) as error:
        raise flags.Error(str(error)) from error


def _with_config(argv: list[str]) -> list[str]:
    """The command line with a `--config=` of IMPLIED if it has fields of a config and no config.

    `flags.Error` if its mode implies none.
    """
    names = [word.partition("=")[0].replace("--", "-", 1) for word in argv[1:]]
    fields = [name for name in names if name.startswith("-config.")]
    if not fields or "-config" in names:
        return argv
    modes = [
        word if equals else following
        for name, (_, equals, word), following in zip(
            names, (word.partition("=") for word in argv[1:]), [*argv[2:], ""], strict=True
        )
        if name == "-mode"
    ]
    mode = modes[-1] if modes else FLAGS["mode"].default
    if mode in MODES and mode not in IMPLIED:
        base = "configs/t2i.py:cub" if mode == "convert" else "configs/own.py"
        raise flags.Error(
            f"-{fields[0]} is a field of a config, and --config= is missing: type for example "
            f"udd_jax --config={base} {shlex.join(argv[1:])}"
        )
    return [argv[0], f"--config={IMPLIED[mode]}", *argv[1:]] if mode in IMPLIED else argv


def config():
    """The config that was typed, or that the mode implies as a whole; None without one."""
    if CONFIG.value is None:
        return None
    implied = config_flags.get_config_filename(FLAGS["config"]) == config_files.find(BASE)
    return None if implied else CONFIG.value


def _expand() -> None:
    """Puts the home folder for `~` in all paths, of flags and of the config."""

    def expand(path):
        start = len(_NAME.match(path)[0])
        return path[:start] + os.path.expanduser(path[start:])

    for name in PATHS:
        found = FLAGS[name].value
        if found:
            FLAGS[name].value = (
                expand(found) if isinstance(found, str) else list(map(expand, found))
            )
    for name in PATH_FIELDS if CONFIG.value is not None else ():
        *parts, last = name.split(".")
        section = functools.reduce(lambda part, name: part.get(name, {}), parts, CONFIG.value)
        if section.get(last):
            section[last] = expand(section[last])


def check(mode: str) -> None:
    """UserError, one line, if a flag was typed that does nothing in this mode."""
    for name, modes in TAKES.items():
        if FLAGS[name].present and mode not in modes:
            here = f"--mode={mode}" + ("" if FLAGS["mode"].present else " (the default)")
            others = " or ".join(f"--mode={other}" for other in modes)
            raise UserError(f"--{name} does nothing in {here}: leave it out, or add {others}")
    for name in typed_fields() if mode in FIELDS else ():
        if name == "name" and config() is not None and not FLAGS["workdir"].present:
            continue  # the folder of the run is called so
        if not any(name.startswith(f) if f.endswith(".") else name == f for f in FIELDS[mode]):
            read = [f"--config.{f}{'*' if f.endswith('.') else '='}" for f in FIELDS[mode]]
            only = f"; only {', '.join(read)} count" if read else ""
            raise UserError(
                f"--config.{name} does nothing in --mode={mode}, where the run has its config: "
                f"leave it out{only}"
            )
    named = ["config"] if config() is not None else [f"config.{name}" for name in typed_fields()]
    typed = named + [name for name in ("weights", "suite", "workdir") if FLAGS[name].present]
    for where, unused in (
        ("with --compare", typed if mode == "evaluate" and FLAGS.compare else ()),
        ("with --suite=judges", set(typed) - {"suite", "workdir"} if _judges(mode) else ()),
        ("without --suite=full", {"weights"} & set(typed) if _no_features(mode) else ()),
        ("without --from=unid3", named if mode == "convert" and not _from_unid3() else ()),
    ):
        for name in unused:
            raise UserError(f"--{name} does nothing {where}: leave it out")


def _judges(mode: str) -> bool:
    return mode == "evaluate" and FLAGS.suite == "judges"


def _no_features(mode: str) -> bool:
    return mode == "evaluate" and FLAGS.suite != "full"


def _from_unid3() -> bool:
    return getattr(FLAGS, "from") == "unid3"


def typed_fields() -> dict:
    """{field: value} of the fields of the config that were typed, such as "sample.steps"."""
    return {} if CONFIG.value is None else dict(config_flags.get_override_values(FLAGS["config"]))


def of_section(fields: dict, section: str) -> dict:
    """{"steps": value} of {"sample.steps": value}: the fields of one section of a config."""
    prefix = f"{section}."
    return {n.removeprefix(prefix): v for n, v in fields.items() if n.startswith(prefix)}


def prefer_typed(config, fields: dict) -> list[str]:
    """Takes what was typed for `sample` out of the rules of `config`, in place; a line for each.

    A typed `--config.sample.guidance=3` means every rule, also one with a guidance of its own in
    `sample_rules`, unless that was typed as well. fields: of `typed_fields`.
    """
    lines, rules = [], config.get("sample_rules", {})
    for setting, value in of_section(fields, "sample").items():
        for rule in rules:
            field = f"sample_rules.{rule}.{setting}"
            if setting in rules[rule] and field not in fields:
                lines.append(
                    f"sample.{setting} = {value} replaces {field} = {rules[rule][setting]}"
                )
                with config.unlocked():
                    del rules[rule][setting]
    return lines


def typed_settings() -> dict:
    """{setting: value} of the settings of the sampler that were typed, in either way."""
    fields = of_section(typed_fields(), "sample")
    given = {name: getattr(FLAGS, name) for name in SETTINGS if getattr(FLAGS, name) is not None}
    if "guidance_interval" in given:
        given["guidance_interval"] = _interval(given["guidance_interval"])
    return fields | given


def _interval(words: list[str]) -> tuple[float, ...]:
    try:
        low, high = map(float, words)
    except ValueError:
        raise UserError(
            f"--guidance_interval={','.join(words)}, expected LOW,HIGH such as 0.1,0.8"
        ) from None
    return low, high


def about(words: list[str]) -> str | None:
    """What to print if the command line only asks what can be done; None if it asks for more."""
    if not words:
        return OVERVIEW
    if not _HELP & set(words):
        return None
    asked = [mode for mode in MODES if {f"--mode={mode}", f"-mode={mode}"} & set(words)]
    return describe(*asked)


def describe(*modes: str) -> str:
    """The flags, grouped by mode; only those of `modes` if any are given."""
    several = [name for name, takes in TAKES.items() if len(takes) > 1 and name != "mode"]
    if modes:
        several = [name for name in several if set(modes) & set(TAKES[name])]
    lines = ["udd_jax --mode=MODE [--NAME=VALUE ...]; without --mode it is train", ""]
    lines += [_line(name, _modes(name)) for name in several]
    for mode in modes or MODES:
        lines += ["", f"--mode={mode}: {MODES[mode]}"]
        lines += [_line(name) for name, takes in TAKES.items() if takes == (mode,)]
    return "\n".join([*lines, "", "configs/base.py has the fields that --config.NAME=VALUE sets."])


def _modes(name: str) -> str:
    without = [mode for mode in MODES if mode not in TAKES[name]]
    if len(without) < 3:
        return f" (not {', '.join(without)})" if without else ""
    return f" ({', '.join(TAKES[name])})"


def _line(name: str, suffix: str = "") -> str:
    flag = FLAGS[name]
    off = flag.default is None or flag.default is False or flag.default == []
    default = "" if off else f"; {flag.default}"
    about = flag.help.splitlines()[0].rstrip(";")  # absl adds a line to some
    line = f"  {f'--{name}':20} {about}{default}{suffix}"
    return textwrap.fill(line, 100, subsequent_indent=23 * " ", break_on_hyphens=False)
