"""The command line: flags, platform, dispatch.

    python -m udd_jax.main --config=configs/t2i.py                    the main job, all stages
    python -m udd_jax.main --mode=sample --workdir=DIR --task=t2i --prompt="a small red circle"
    python -m udd_jax.main --mode=evaluate --workdir=DIR
    python -m udd_jax.main --mode=data --config=configs/t2i.py --config.data=folder:DIR
    python -m udd_jax.main --mode=plan --config=configs/t2i.py:coco
    python -m udd_jax.main --mode=replay --workdir=DIR                repeat the step that failed
    python -m udd_jax.main --mode=export --workdir=DIR --out=OTHER    only the files for sampling
    python -m udd_jax.main --mode=convert --from=unid3 --checkpoint=cub.ckpt --out=runs/cub

On Linux the program restarts itself in the same process, so that its memory is in huge pages (a
training step is a fifth faster). UDD_KEEP_MEMORY=0 turns this off.

Exit codes: 0; 1 after one line that says what is wrong and what to do; 75 if a training was stopped
and the same command continues it (runtime/stopping.py).
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from udd_jax.errors import UserError
from udd_jax.runtime import config_files, stopping

MODES = ("train", "data", "tokenize", "sample", "evaluate", "replay", "plan", "convert", "export")
MEMORY = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "arena_max=1", "mmap_max=0", f"trim_threshold={4 << 30}")
)

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file("config", None, "settings, such as configs/t2i.py:smoke")
flags.DEFINE_string("workdir", None, "folder of the run, gs:// too; runs/NAME unless given")
flags.DEFINE_enum("mode", "train", MODES, "what to do")
flags.DEFINE_string(
    "task", "t2i", "sample: t2i, i2t, pair, image, text, infill, or a rule such as image|text"
)
flags.DEFINE_multi_string("given", [], "sample: NAME=VALUE, a text or a file; may be repeated")
flags.DEFINE_multi_string("prompt", [], "sample: --given text=; may be repeated")
flags.DEFINE_multi_string("image", [], "sample: --given image=; may be repeated")
flags.DEFINE_string("mask", None, "sample: a picture, white where the image is generated (infill)")
flags.DEFINE_string("negative_prompt", None, "sample: a text that guidance leads away from")
flags.DEFINE_integer("blank_tokens", 1, "sample: tokens that ___ in a prompt stands for")
flags.DEFINE_integer("num", None, "sample: how many; of each prompt or image")
flags.DEFINE_integer("batch_size", 64, "sample: how many at once")
flags.DEFINE_string("out", None, "folder for the results; WORKDIR/generated unless given")
flags.DEFINE_integer("seed", 0, "sample: seed")
flags.DEFINE_string("sampler", None, "sample: order of reveal; the config's unless given")
flags.DEFINE_integer("steps", None, "sample: network calls; the config's unless given")
flags.DEFINE_float("guidance", None, "sample: scale, 1 is off")
flags.DEFINE_float("temperature", None, "sample: temperature")
flags.DEFINE_float("top_r", None, "sample: keep the likeliest classes up to this mass")
flags.DEFINE_integer("top_k", None, "sample: keep so many classes, 0 is all")
flags.DEFINE_bool("profile", False, "train: write a trace of a few steps to WORKDIR/profile")
flags.DEFINE_bool("tensorboard", False, "train: write TensorBoard's event files as well")
flags.DEFINE_multi_string("compare", [], "evaluate: two runs or results side by side: A B")
flags.DEFINE_string("suite", "main", "evaluate: main, full, samplers, tuning or judges")
flags.DEFINE_string("weights", None, "evaluate: folder with the weights of feature networks")
flags.DEFINE_enum("from", None, ("unid3", "taming"), "convert: what the checkpoint is")
flags.DEFINE_enum("to", None, ("safetensors",), "convert: a run back to published names")
flags.DEFINE_string("checkpoint", None, "convert: a PyTorch file, or .safetensors")
flags.DEFINE_string("vq_config", None, "convert: the YAML file of a taming VQGAN")
flags.DEFINE_string("network", "joint", "convert: joint, image_from_text or text_from_image")
flags.DEFINE_string(
    "text", None, "convert: the text vocabulary, if it is not beside the checkpoint"
)
flags.DEFINE_string("codes", None, "convert: which image codes are used, .npy or .pt; or 2887, 974")
flags.DEFINE_integer("heads", None, "convert: attention heads; a 64th of the width unless given")


def _set_up_platform(workdir: str) -> None:
    """Keeps compiled programs in the folder of the run, so that a second start is fast."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{workdir}/cache")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _workdir() -> str:
    if FLAGS.workdir:
        return os.path.expanduser(FLAGS.workdir.rstrip("/"))
    if _CONFIG.value is None:
        raise UserError("--workdir or --config is missing, expected one of them")
    return f"runs/{_CONFIG.value.name}"


def _config():
    if _CONFIG.value is None:
        raise UserError("--config is missing, expected a file such as configs/t2i.py")
    return _CONFIG.value


def main(argv) -> None:
    mode, comparing = FLAGS.mode, FLAGS.mode == "evaluate" and FLAGS.compare
    if len(argv) > 1 and not comparing:
        raise UserError(f"{argv[1]!r} is no flag, expected --NAME=VALUE")
    logging.set_verbosity(logging.WARNING)  # of the libraries; ours speak by themselves
    if mode == "plan":
        from udd_jax.training import plan, recipe

        print(plan.describe(recipe.fill(_config())))
        return
    if mode == "data":
        from udd_jax import stages

        stages.describe_data(_config())
        return
    if comparing:
        from udd_jax.evaluation import compare

        results = [*FLAGS.compare, *argv[1:]]
        if len(results) != 2:
            raise UserError(f"--compare has {len(results)} results, expected two: --compare A B")
        print(compare.show(*results))
        return
    if mode == "convert":
        from udd_jax.convert import command

        command.run(FLAGS, _CONFIG.value, config_files.load("configs/t2i.py:cub"))
        return
    workdir = _workdir()
    if mode in ("train", "tokenize"):
        stopping.end_at_once()
    _set_up_platform(workdir)
    if mode in ("train", "tokenize", "evaluate", "replay"):
        from udd_jax.runtime import processes

        processes.join()
    if mode in ("train", "tokenize"):
        from udd_jax import stages

        stages.run(
            _config(),
            workdir,
            until="token cache" if mode == "tokenize" else None,
            profile=f"{workdir}/profile" if FLAGS.profile else None,
            tensorboard=FLAGS.tensorboard,
        )
    elif mode == "sample":
        from udd_jax import generate
        from udd_jax.runtime import bucket

        with bucket.whole(workdir) as here:
            generate.sample(here, FLAGS)
    elif mode == "replay":
        from udd_jax.runtime import logbook
        from udd_jax.training import replay

        logbook.say(replay.describe(replay.run(workdir)))
    elif mode == "export":
        from udd_jax import stages

        if not FLAGS.out:
            raise UserError("--out is missing, expected a folder")
        stages.export(workdir, FLAGS.out)
    elif mode == "evaluate":
        from udd_jax import stages

        stages.evaluate_run(workdir, FLAGS.suite, _CONFIG.value, FLAGS.weights)


def run() -> None:
    """The entry point: like `app.run`, but an error that the user can fix is one line.

    That is a UserError, a bad flag, or an answer of the system, such as a full disk (OSError). All
    else is a fault of the program and shows its traceback.
    """
    try:
        app.run(main, flags_parser=_parse)
    except (UserError, OSError, flags.Error) as error:
        if os.environ.get("UDD_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)


def _parse(argv):
    """Parses flags and config. Only a mistake in these becomes a `flags.Error`."""
    try:
        return FLAGS(config_files.in_arguments(argv))
    except (KeyError, AttributeError) as error:
        what = f"{error} is no field of the config: configs/base.py has the list"
        raise flags.Error(what) from error
    except (TypeError, ValueError) as error:
        raise flags.Error(str(error)) from error


def keep_memory() -> None:
    """Restarts this program in the same process, with settings that keep its memory in huge pages.

    On a CPU each step allocates its working memory again. In a step of configs/t2i.py, faults of
    4 KiB pages took a fifth of the time. With these settings glibc allocates huge pages, in one
    heap for all threads, and returns memory to the system only when more than 4 GiB are free at the
    end of the heap. Then a step has no page faults. glibc reads the settings only at its start.
    UDD_KEEP_MEMORY=0 turns the restart off.
    """
    wanted = os.environ.get("UDD_KEEP_MEMORY") != "0"
    if wanted and sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MEMORY
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def command() -> None:
    """The command `udd_jax`, and `python -m udd_jax.main`."""
    keep_memory()
    run()


if __name__ == "__main__":
    command()
