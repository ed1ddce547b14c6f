"""The command line as a user meets it: exit codes and one line; and the smoke job, whole."""

import io
import json
import os
import subprocess
import sys

import jax
import pytest
from absl.testing import flagsaver

from tests.helpers import quick
from udd_jax import command_line, main


def run(*arguments, **environment):
    command = [sys.executable, "-m", "udd_jax.main", *arguments]
    env = quick.environment(**environment)
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode=train",), "--workdir or --config is missing"),
        (("--config=configs/t2i.py", "--prompt=a"), "--prompt does nothing in --mode=train"),
        (("--config=configs/none.py",), "configs/none.py"),
        (("--config=configs/t2i.py:mnist",), "expected one of smoke, emoji, cub, coco"),
        (("--config=configs/t2i.py", "--config.train.speed=3"), "speed"),
        (("--config=configs/t2i.py", "--config.train.steps=many"), "steps"),
        (("--mode=dance",), "dance"),
        (("--mode=sample", "--steps=many"), "steps"),
        (("--colour=red",), "colour"),
        (("word",), "'word' is not a flag"),
        (("--mode=evaluate", "--suite=everything", "--workdir=a"), "suite 'everything' does not"),
        (("--mode=evaluate", "--compare", "a"), "has 1 results, expected two: --compare A B"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(arguments, message):
    result = run(*arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""


def test_help_into_a_pipe_that_is_closed_early_is_no_error():
    code = "import sys; sys.argv = ['udd_jax', '--help']; from udd_jax import main; main.run()"
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], **output)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()


def test_sampling_from_a_folder_that_is_no_run_is_an_error(tmp_path):
    result = run("--mode=sample", f"--workdir={tmp_path}", "--task=pair")
    assert result.returncode == 1
    assert "is not the folder of a run" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    cache = {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
    return folder, run("--config=configs/t2i.py:smoke", f"--workdir={folder}", **cache)


def test_the_program_starts_again_once_to_keep_its_memory(monkeypatch):
    starts = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "udd_jax.main", "--mode=plan"])
    monkeypatch.setattr(os, "execv", lambda *call: starts.append(call))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for _ in range(2):
        main.keep_memory()
    assert starts == [(sys.executable, [sys.executable, "-m", "udd_jax.main", "--mode=plan"])]
    assert os.environ["GLIBC_TUNABLES"] == main.MEMORY
    monkeypatch.setattr(os, "environ", {"UDD_KEEP_MEMORY": "0"})
    main.keep_memory()
    assert len(starts) == 1


FAULTS = (KeyError("key"), AttributeError("name"), TypeError("type"), ValueError("value"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_program_is_a_traceback_and_never_a_line_about_the_config(
    monkeypatch, fault
):
    def broken(*arguments, **options):
        raise fault

    monkeypatch.setattr(main.app, "run", broken)
    monkeypatch.setattr(sys, "argv", ["udd_jax", "--config=configs/t2i.py"])
    with pytest.raises(type(fault)):
        main.run()


def test_a_terminal_in_ascii_gets_escapes_whatever_is_printed(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["udd_jax", "--help"])
    monkeypatch.setattr(command_line, "about", lambda words: "27 ± 1 dB")
    main.run()
    sys.stdout.flush()
    assert written.getvalue() == b"27 \\xb1 1 dB\n"


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_a_command_in_ascii_writes_and_escapes_other_letters(tmp_path, setting):
    out = tmp_path / "out"
    done = run("--mode=sample", "--prompt=a caf\xe9", f"--out={out}", **setting)
    assert done.returncode == 0, done.stderr
    (line,) = (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["caption"] == "a caf\xe9"
    if "PYTHONIOENCODING" in setting:  # LC_ALL=C is UTF-8 to Python (PEP 538)
        assert "a caf\\xe9" in done.stdout


@pytest.mark.parametrize("mode", ["train", "sample", "evaluate"])
def test_too_little_memory_is_a_line_that_names_what_to_lower(monkeypatch, capsys, mode):
    huge = 2**46 if mode != "evaluate" else None

    def greedy(*arguments, **options):
        if huge is None:
            raise MemoryError
        return jax.numpy.zeros(huge, jax.numpy.uint8).block_until_ready()

    monkeypatch.setattr(main.app, "run", greedy)
    monkeypatch.setattr(sys, "argv", ["udd_jax", "--config=configs/t2i.py"])
    command_line.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(mode=mode), pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith("error: out of memory: lower --")
    assert "batch_size" in said and len(said.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_memory_that_was_used_once_costs_no_page_faults():
    code = """if True:
        import resource
        import threading
        def use():
            bytearray(b"x") * (64 << 20)
        faults = []
        for _ in range(3):
            thread = threading.Thread(target=use)
            thread.start()
            thread.join()
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        print(faults[2] - faults[1])
    """

    def faults(**settings):
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | settings
        program = [sys.executable, "-c", code]
        return int(subprocess.run(program, env=environment, capture_output=True, check=True).stdout)

    assert faults(GLIBC_TUNABLES=main.MEMORY) < 16 < 1000 < faults()


@pytest.mark.slow
def test_the_smoke_job_runs_every_stage(smoke):
    folder, result = smoke
    assert result.returncode == 0, result.stderr
    for name in ("config.json", "text.model", "vq/tokenizer", "tokens/manifest.json", "weights"):
        assert (folder / name).exists(), name
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation
    assert "<html" in (folder / "report.html").read_text()
    stages = json.loads((folder / "stages.json").read_text())
    assert list(stages)[:5] == [
        "text tokenizer", "data", "image tokenizer", "token cache", "diffusion",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_job_trains_straight_from_pictures_that_other_processes_decode(tmp_path):
    few = ("--config.vq.warmup=2", "--config.vq.steps=10", "--config.vq.plain_steps=4")
    options = ("--config.cache=false", "--config.workers=1", "--config.train.steps=6")
    result = run("--config=configs/t2i.py:smoke", f"--workdir={tmp_path}", *few, *options)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "evaluation.json").exists() and not (tmp_path / "tokens").exists()


@pytest.mark.slow
def test_a_second_run_finds_everything_done(smoke):
    folder, first = smoke
    made = ("text.model", "data.json", "vq/tokenizer", "weights")
    made = [folder / name for name in made] + [*(folder / "tokens").iterdir()]
    made += folder.rglob("*.npz")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made}
    assert len(before) > 6
    result = run("--config=configs/t2i.py:smoke", f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    for bar in ("steps", "samples"):  # of the trainers, and of the evaluation
        assert bar in first.stderr and bar not in result.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in made} == before


@pytest.mark.slow
def test_a_folder_of_another_config_is_refused_by_field(smoke):
    folder, _ = smoke
    more = ("--config.model.width=64", "--config.data_options.size=100")
    result = run("--config=configs/t2i.py:smoke", f"--workdir={folder}", *more)
    assert result.returncode == 1
    assert "belongs to another config" in result.stderr
    assert "model.width: 32 there, 64 here" in result.stderr


@pytest.mark.slow
def test_the_finished_run_samples_from_the_command_line(smoke, tmp_path):
    folder, _ = smoke
    result = run(
        "--mode=sample", f"--workdir={folder}", "--prompt=a red circle", f"--out={tmp_path}"
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "image-0000.png").exists()
    assert json.loads((tmp_path / "samples.jsonl").read_text())["caption"] == "a red circle"
