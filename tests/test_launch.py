"""Claims about the launch files: they pass their checkers, and 75 means again."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import quick

LAUNCH = pathlib.Path(__file__).parent.parent / "launch"
SCRIPTS = ("run.sh", "tpu_pod.sh", "slurm.sbatch")


@pytest.fixture
def tools(tmp_path):
    """A folder of commands that write down how they were called, and the environment to use it."""
    log = tmp_path / "log"
    log.touch()

    def make(name, body="exit 0", first=""):
        """body, first: what it does after it has written that down, and before."""
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\n{first}\necho "{name} $*" >> "{log}"\n{body}\n')
        path.chmod(0o755)

    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    return make, env, lambda: log.read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "files"), [("shellcheck", SCRIPTS), ("hadolint", ("Dockerfile",))]
)
def test_scripts_and_image_pass_their_checkers(name, files):
    beside = os.path.join(os.path.dirname(sys.executable), name)
    checker = shutil.which(beside) or shutil.which(name)
    if checker is None:
        pytest.skip(f"{name} is not installed")
    subprocess.run([checker, *(str(LAUNCH / file) for file in files)], check=True)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_have_one_entry_point_and_pass_their_arguments(name):
    text = (LAUNCH / name).read_text()
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    assert ("udd_jax.main" in text) != ("launch/run.sh $(" in text)
    assert '"$@"' in text


def test_exit_code_75_starts_again_and_others_end(tools, tmp_path):
    make, env, log = tools
    make("python", f'n=$(wc -l < "{tmp_path}/log"); [ "$n" -lt 3 ] && exit 75; exit 4')
    done = subprocess.run([LAUNCH / "run.sh", "--config=a b", "--seed=1"], env=env)
    assert done.returncode == 4
    assert log() == ["python -m udd_jax.main --config=a b --seed=1"] * 3


@pytest.mark.parametrize("code", [1, 130, 134, 137, 139])
def test_a_crash_or_an_error_is_not_started_again(tools, code):
    make, env, log = tools
    make("python", f"exit {code}")
    assert subprocess.run([LAUNCH / "run.sh"], env=env).returncode == code
    assert len(log()) == 1


def test_a_command_that_ends_before_the_script_waits_for_it_is_not_started_again(tools, tmp_path):
    make, env, log = tools
    make("python", "exit 4")
    script = (LAUNCH / "run.sh").read_text()
    assert "run=$!\n" in script
    (tmp_path / "late.sh").write_text(script.replace("run=$!\n", "run=$!\n    sleep 0.5\n"))
    assert subprocess.run(["bash", tmp_path / "late.sh"], env=env, timeout=60).returncode == 4
    assert len(log()) == 1


def test_a_command_that_is_not_there_is_not_started_again(tools):
    make, env, log = tools
    make("python", "exit 127")
    assert subprocess.run([LAUNCH / "run.sh"], env=env, timeout=60).returncode == 127
    assert len(log()) == 1


def test_stopping_the_script_stops_the_run_for_good(tools):
    make, env, log = tools
    make("python", "while true; do sleep 0.05; done", first="trap 'exit 75' TERM; sleep 0.3")
    process = subprocess.Popen([LAUNCH / "run.sh"], env=env, start_new_session=True)
    deadline = time.monotonic() + 60
    try:
        while not log() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 75
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(log()) == 1


@pytest.mark.parametrize("code, requeued", [(75, True), (1, False), (0, False)])
def test_slurm_requeues_on_75_only(tools, code, requeued):
    make, env, log = tools
    make("srun", f'echo "$UDD_DISTRIBUTED $JAX_LOCAL_DEVICE_IDS" >> "$LOG"; exit {code}')
    make("scontrol")
    env |= {"SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "32"}
    env |= {"LOG": str(pathlib.Path(env["PATH"].split(":")[0]).parent / "log")}
    done = subprocess.run(["bash", LAUNCH / "slurm.sbatch", "--workdir=w"], env=env)
    assert done.returncode == code
    assert log()[:2] == ["srun --cpus-per-task=32 python -m udd_jax.main --workdir=w", "1 0,1,2,3"]
    assert log()[2:] == (["scontrol requeue 17"] if requeued else [])


def test_arguments_survive_the_way_to_the_workers(tools):
    make, env, log = tools
    make(
        "gcloud", 'for a; do case "$a" in --command=*) echo "${a#--command=}" >> "$LOG"; esac; done'
    )
    env |= {"LOG": str(pathlib.Path(env["PATH"].split(":")[0]).parent / "log")}
    subprocess.run(
        [LAUNCH / "tpu_pod.sh", "pod", "zone", "--workdir=gs://b/a b", "--prompt=it's"],
        env=env,
        check=True,
    )
    assert log()[0].startswith("gcloud compute tpus tpu-vm ssh pod --zone=zone --worker=all")
    command, home = log()[1], pathlib.Path(env["LOG"]).parent / "home"
    (home / "udd_jax" / "launch").mkdir(parents=True)
    script = home / "udd_jax" / "launch" / "run.sh"
    said = 'echo "$UDD_DISTRIBUTED $PATH"; printf "%s\\n" "$@"'
    script.write_text(f"#!/bin/sh\n{said}; touch ../done; sleep 30\n")
    script.chmod(0o755)
    worker = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    started = time.monotonic()
    subprocess.run(["bash", "-c", command], cwd=home, env=worker, check=True, capture_output=True)
    assert time.monotonic() - started < 20  # the connection may end; the command runs on
    while not (home / "done").exists():
        time.sleep(0.05)
    said = (home / "udd_jax.log").read_text().splitlines()
    path = f"{home / 'udd_jax'}/venv/bin:/usr/bin:/bin"
    assert said == [f"1 {path}", "--workdir=gs://b/a b", "--prompt=it's"]


def known(required: str, optional: str = "", **parts) -> dict:
    """A JSON schema of an object with these fields and no others."""
    names = [*required.split(), *optional.split()]
    fields = dict.fromkeys(names, True) | parts
    need = [*required.split(), *parts]
    return {
        "type": "object", "properties": fields, "required": need, "additionalProperties": False
    }  # fmt: skip


def several(part: dict) -> dict:
    return {"type": "array", "items": part, "minItems": 1}


# The fields of the JobSet, Job and Pod interfaces that a manifest of ours may have.
CONTAINER = known("name image", "command args env ports resources volumeMounts workingDir")
POD = known("restartPolicy", "nodeSelector tolerations terminationGracePeriodSeconds volumes "
            "serviceAccountName hostNetwork dnsPolicy", containers=several(CONTAINER))  # fmt: skip
POD_RULE = known("action", "onExitCodes onPodConditions")
JOB = known(
    "parallelism completions backoffLimit",
    "completionMode activeDeadlineSeconds",
    template=known("", "metadata", spec=POD),
    podFailurePolicy=known("", rules=several(POD_RULE)),
)
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
REASONS = ["BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes",
           "MaxFailedIndexesExceeded", "PodFailurePolicy"]  # fmt: skip
RULE = known(
    "name",
    "targetReplicatedJobs",
    action={"enum": ACTIONS},
    onJobFailureReasons=several({"enum": REASONS}),
)
SLICE = known("name", "replicas", template=known("", "metadata", spec=JOB))
JOBSET = known(
    "",
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=known("name", "namespace labels annotations"),
    spec=known(
        "",
        "network successPolicy startupPolicy suspend ttlSecondsAfterFinished",
        failurePolicy=known("maxRestarts", "restartStrategy", rules=several(RULE)),
        replicatedJobs=several(SLICE),
    ),
)


def test_jobset_has_no_field_that_the_interface_does_not_know():
    jsonschema = pytest.importorskip("jsonschema")
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    jsonschema.validate(manifest, JOBSET)
    manifest["spec"]["failurePolicy"]["rules"][0]["action"] = "Restart"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, JOBSET)


def test_jobset_starts_again_after_75_and_stands_for_whole_slices():
    yaml = pytest.importorskip("yaml")
    spec = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())["spec"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    assert job["parallelism"] == job["completions"] and job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] * chips == int(rows) * int(columns)
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert pod["restartPolicy"] == "Never" and "command" not in container


def test_image_has_the_same_entry_point_and_what_it_copies_exists():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["python", "-m", "udd_jax.main"]' in lines
    for line in lines:
        if line.startswith("COPY"):
            for name in line.split()[1:-1]:
                assert (LAUNCH.parent / name).exists(), name


def cells():
    book = json.loads((LAUNCH / "colab.ipynb").read_text())
    return ["".join(c["source"]) for c in book["cells"] if c["cell_type"] == "code"]


def test_notebook_is_valid_clean_and_compiles():
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
    nbformat.validate(book)
    assert not any(cell.get("outputs") for cell in book.cells)
    for source in cells():
        compile(source, "cell", "exec")


SMALL = """
from tests.helpers import tiny


def get_config():
    c = tiny.config()
    c.data_options.size = 64
    c.vq.update({"steps": 6, "plain_steps": 2, "warmup": 1, "pictures": 64, "batch_size": 16})
    c.train.update({"steps": 4, "warmup": 1, "batch_size": 8})
    c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4})
    return c
"""
ASK = """
import urllib.request
with urllib.request.urlopen(address) as answer:
    assert answer.status == 200 and b"gradio" in answer.read()
page.close()
"""


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_in_a_fresh_folder_and_ends_with_the_page(
    tmp_path, compiled
):
    nbformat = pytest.importorskip("nbformat")
    for name in ("nbclient", "ipykernel", "gradio"):
        pytest.importorskip(name)
    book = nbformat.read(LAUNCH / "colab.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(ASK))
    nbformat.write(book, tmp_path / "colab.ipynb")
    (tmp_path / "small.py").write_text(SMALL)
    env = {
        **quick.environment(),
        "UDD_CONFIG": "small.py",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "PYTHONPATH": str(LAUNCH.parent),
    }
    run = "from nbclient import cli; cli.main()"
    options = ["--timeout=600", "--output={notebook_name}-done", "colab.ipynb"]
    command = [sys.executable, "-W", "ignore", "-c", run, *options]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    book = nbformat.read(tmp_path / "colab-done.ipynb", as_version=4)
    pictures = [cell for cell in book.cells if "image/png" in str(cell.get("outputs"))]
    assert len(pictures) == 5 and "http://127.0.0.1" in str(book.cells[-2].outputs)
    assert (tmp_path / "runs" / "colab" / "report.html").exists()


@pytest.mark.long
def test_the_notebook_installs_the_folder_that_it_lies_in(tmp_path):
    shutil.copytree(
        LAUNCH.parent, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "tests", "runs")
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [python, "-c", cells()[0]], cwd=tmp_path / "copy" / "launch", env=env, check=True
    )
    code = "import gradio, udd_jax; print(udd_jax.__file__)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=env, capture_output=True)
    assert str(tmp_path / "venv") in done.stdout.decode()
