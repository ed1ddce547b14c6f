"""The command line: flags, platform, dispatch.

    python -m udd_jax.main --config=configs/t2i.py                    the main job, all stages
    python -m udd_jax.main --mode=sample --workdir=DIR --task=t2i --prompt="a small red circle"
    python -m udd_jax.main --mode=evaluate --workdir=DIR
    python -m udd_jax.main --mode=embed --workdir=DIR --out=DATA      its data with vectors
    python -m udd_jax.main --mode=demo                                a page in the browser
    python -m udd_jax.main --mode=data --config.data=folder:DIR       with configs/own.py
    python -m udd_jax.main --mode=plan --config=configs/t2i.py:coco
    python -m udd_jax.main --mode=replay --workdir=DIR                repeat the step that failed
    python -m udd_jax.main --mode=export --workdir=DIR --out=OTHER    only the files for sampling
    python -m udd_jax.main --mode=convert --from=unid3 --checkpoint=cub.ckpt --out=runs/cub

On Linux the program restarts itself in the same process, so that its memory is in huge pages (a
training step is a fifth faster). UDD_KEEP_MEMORY=0 turns this off.

Exit codes: 0; 1 after one line that says what is wrong and what to do; 75 after a SIGTERM, in every
mode, and after Ctrl-C in a training: the same command goes on; 130 after Ctrl-C elsewhere
(runtime/stopping.py). The page of --mode=demo ends with 0 after both.
"""

import contextlib
import os
import pathlib
import shlex
import sys

from absl import app, flags, logging

from udd_jax import command_line
from udd_jax.errors import UserError
from udd_jax.runtime import config_files, files, stopping

MEMORY = ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "arena_max=1", "mmap_max=0", f"trim_threshold={4 << 30}")
)

# {mode: what to lower if the memory is too little}
SMALLER = {
    "train": "--config.train.batch_size, or raise --config.train.accumulate; in the stage of the "
    "image tokenizer lower --config.vq.batch_size",
    "tokenize": "--config.vq.batch_size",
    "sample": "--batch_size",
    "demo": "the number of samples, or show a smaller run",
    "evaluate": "--config.evaluate.batch_size",
}
FLAGS = flags.FLAGS
SHAPES = pathlib.Path(__file__).parent / "assets" / "shapes"  # the run of the package


def _workdir() -> str:
    if FLAGS.workdir:
        return os.path.expanduser(FLAGS.workdir.rstrip("/"))
    config = command_line.config()
    if config is None and FLAGS.mode in ("sample", "demo"):
        return str(SHAPES)
    if config is None:
        raise UserError("--workdir or --config is missing, expected one of them")
    return f"runs/{config.name}"


def _config():
    config = command_line.config()
    if config is None and FLAGS.mode == "data":
        raise UserError("--config.data= is missing, expected folder:DIR or another source")
    if config is None:
        raise UserError("--config is missing, expected a file such as configs/t2i.py")
    fields = command_line.typed_fields()
    for line in command_line.prefer_typed(config, fields):
        print(line, flush=True)
    if sampling := command_line.of_section(fields, "sample"):
        from udd_jax.training import limits

        limits.require_read(config, sampling)
    return config


def main(argv) -> None:
    mode, comparing = FLAGS.mode, FLAGS.mode == "evaluate" and FLAGS.compare
    if len(argv) > 1 and not comparing:
        raise UserError(f"{argv[1]!r} is not a flag, expected --NAME=VALUE")
    command_line.check(mode)
    stopping.end_at_once()
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

        usual = config_files.load("configs/t2i.py:cub")
        command.run(FLAGS, command_line.config(), usual, command_line.typed_fields())
        return
    workdir = _workdir()
    from udd_jax.runtime import compiled

    # The run of a sample may be a folder that should not change, such as the packaged one.
    compiled.keep(None if mode in ("sample", "embed", "demo") else f"{workdir}/cache")
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
        if mode == "train":
            _finish(files.folder(workdir), "report", "pairs", "full")
    elif mode == "sample":
        from udd_jax import generate
        from udd_jax.runtime import bucket

        with bucket.to_sample(workdir) as here:
            generate.sample(here, FLAGS, command_line.typed_settings())
    elif mode == "embed":
        from udd_jax import embed
        from udd_jax.runtime import bucket

        with bucket.to_sample(workdir) as here:
            config, fields = command_line.config(), command_line.typed_fields()
            embed.run(here, FLAGS.out, config, FLAGS.dual_encoder, fields)
    elif mode == "demo":
        from udd_jax.demo import server
        from udd_jax.runtime import bucket

        with bucket.to_sample(workdir) as here:
            server.run(None if workdir == str(SHAPES) else here, FLAGS.port, FLAGS.public)
    elif mode == "replay":
        from udd_jax.runtime import logbook
        from udd_jax.training import replay

        logbook.say(replay.describe(replay.run(workdir)))
    elif mode == "export":
        from udd_jax import stages
        from udd_jax.runtime import bucket

        if not FLAGS.out:
            raise UserError("--out is missing, expected a folder")
        with bucket.to_sample(workdir) as here:
            stages.export(here, FLAGS.out)
        _finish(files.folder(FLAGS.out), "pairs", "demo", "full")
    elif mode == "evaluate":
        from udd_jax import stages

        config, fields = command_line.config(), command_line.typed_fields()
        stages.evaluate_run(workdir, FLAGS.suite, config, FLAGS.weights, fields)
        more = "pairs" if FLAGS.suite == "full" else "full"
        _finish(files.folder(workdir), "report", "demo", more)


def _finish(workdir, *following: str) -> None:
    """Prints what is in the folder of a run, and what to try next: words of `tries`."""
    from udd_jax.runtime import logbook

    names = ("weights", "text.model", "vq/tokenizer", "evaluation.json", "report.html")
    made = [name for name in names if (workdir / name).exists()]
    again = f"--workdir={shlex.quote(str(workdir))}"
    task = files.read_json(workdir / "config.json")["config"].get("task", "pair")
    task = task if "," in task else "pair"  # a rule of the run's own
    tries = {
        "report": f"open {workdir / 'report.html'} in a browser",
        "pairs": f"udd_jax --mode=sample {again} --task={task} --num=16",
        "demo": f"udd_jax --mode=demo {again}",
        "full": f"udd_jax --mode=evaluate {again} --suite=full",
    }
    shown = [word for word in following if word != "report" or "report.html" in made]
    logbook.finish(", ".join(made), workdir, *(tries[word] for word in shown))


def run() -> None:
    """The entry point: like `app.run`, but an error that the user can fix is one line.

    That is a UserError, a bad flag, an answer of the system, such as a full disk (OSError), or too
    little memory. All else is a fault of the program and shows its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal in ASCII gets escapes
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    about = command_line.about(sys.argv[1:])
    if about is not None:
        try:
            print(about, flush=True)
        except BrokenPipeError:  # as of `udd_jax --help | head`; Python would say it at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    try:
        app.run(main, flags_parser=command_line.parse)
    except (UserError, OSError, flags.Error) as error:
        if os.environ.get("UDD_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # JAX has its own types, and several
        if not _out_of_memory(error) or os.environ.get("UDD_TRACEBACK"):
            raise
        lower = SMALLER.get(FLAGS.mode, "the size of what you ask for")
        print(f"error: out of memory: lower {lower}", file=sys.stderr)
        sys.exit(1)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


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
    stopping.end_on_interrupt()
    with contextlib.suppress(UserError):  # a bad UDD_EXIT_CODE: `main` says so
        stopping.end_at_once()
    run()


if __name__ == "__main__":
    command()
