"""Claims about work folders in a bucket: most on one in memory, in place of etils' file system.

Checkpoints are written by a library in C++, which has its own way to Google's storage: what they
do is shown on a server that speaks the storage's protocol, with processes that are killed.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import fsspec.implementations.memory
import numpy as np
import pytest
from etils.epath import backend

from udd_jax import build, stages
from udd_jax.runtime import bucket, checkpoints, files, logbook, trees


class Fake(fsspec.implementations.memory.MemoryFileSystem):
    """gs:// in memory."""

    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def workdir(monkeypatch):
    Fake.store.clear()
    monkeypatch.setattr(type(backend.fsspec_backend), "_get_filesystem", lambda self, name: Fake())
    return files.folder("gs://bucket/run")


def contents():
    return {name.removeprefix("/bucket/run/"): f.getvalue() for name, f in Fake.store.items()}


def test_a_folder_on_a_disk_is_used_as_it_is(tmp_path):
    folder = files.folder(str(tmp_path))
    assert isinstance(folder, pathlib.Path)
    with bucket.near(folder) as here, bucket.on_disk(folder, here, "tokens"):
        assert here == tmp_path
    with bucket.whole(tmp_path) as here:
        assert here == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_a_block_makes_goes_to_the_bucket_and_nothing_else(workdir):
    files.write_bytes(workdir / "tokens/shard-0", b"zero")
    files.write_json(workdir / "tokens/manifest.json", {"complete": False})
    files.write_bytes(workdir / "checkpoints/1/data", b"large")
    before = contents()
    with bucket.near(workdir) as here:
        with bucket.on_disk(workdir, here, "tokens", "absent"):
            assert (here / "tokens/shard-0").read_bytes() == b"zero"
            assert not (here / "checkpoints").exists()
            (here / "tokens/shard-1").write_bytes(b"one")
            (here / "tokens/shard-2.partial").write_bytes(b"tw")
            (here / "elsewhere").write_bytes(b"")
        assert contents() == before | {"tokens/shard-1": b"one"}
        # Another process has finished the cache and written a shard meanwhile.
        files.write_json(workdir / "tokens/manifest.json", {"complete": True})
        files.write_bytes(workdir / "tokens/shard-2", b"two")
        with bucket.on_disk(workdir, here, "tokens"):
            assert files.read_json(here / "tokens/manifest.json") == {"complete": True}
            assert (here / "tokens/shard-2").read_bytes() == b"two"
    assert not here.exists()


def test_a_whole_run_is_fetched_without_its_checkpoints(workdir):
    files.write_bytes(workdir / "weights", b"w")
    files.write_bytes(workdir / "vq/tokenizer", b"t")
    files.write_bytes(workdir / "vq/checkpoints/1/data", b"large")
    files.write_bytes(workdir / "cache/program", b"large")
    files.write_bytes(workdir / "tokens/shard-00000.arrayrecord", b"large")
    with bucket.whole("gs://bucket/run") as here:  # for an evaluation
        found = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
    assert found == {"weights", "vq/tokenizer", "tokens/shard-00000.arrayrecord"}
    with bucket.to_sample("gs://bucket/run") as here:
        found = {str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()}
        (here / "evaluation.json").write_text("{}")
    assert found == {"weights", "vq/tokenizer"}
    assert contents()["evaluation.json"] == b"{}"


def test_an_error_in_the_block_sends_nothing(workdir):
    with pytest.raises(KeyError), bucket.whole("gs://bucket/run") as here:
        (here / "evaluation.json").write_text("{}")
        raise KeyError
    assert contents() == {}


def test_trees_metrics_and_configs_are_written_in_the_bucket_itself(workdir):
    tree = {"w": np.arange(3.0)}
    trees.save_tree(workdir / "weights", tree, {"step": 3})
    assert np.array_equal(trees.load_tree(workdir / "weights", tree)[0]["w"], tree["w"])
    book = logbook.Logbook(workdir)
    for step in (1, 2, 3):
        book.write(step, loss=step / 2)
    book.cut(2)
    book.write(3, loss=7)
    assert [line["loss"] for line in book.lines()] == [0.5, 1, 7]
    assert [json.loads(x)["step"] for x in contents()["metrics.jsonl"].splitlines()] == [1, 2, 3]
    assert checkpoints.Checkpoints(workdir / "checkpoints").latest_step() is None


def test_the_main_job_works_in_a_bucket_up_to_the_token_cache(workdir, tiny_run):
    for name in (build.CONFIG, build.TEXT, build.IMAGE):
        files.write_bytes(workdir / name, (tiny_run / name).read_bytes())
    config = build.read_config(tiny_run)
    stages.run(config, "gs://bucket/run", until="token cache")
    first = contents()
    assert json.loads(first["tokens/manifest.json"])["items"] == config.data_options.size
    assert {"tokens/index.npy", "tokens/shard-00000.arrayrecord", "stages.json"} <= first.keys()
    stages.run(config, "gs://bucket/run", until="token cache")
    changed = {name for name, data in contents().items() if data != first.get(name)}
    assert changed <= {"stages.json", "config.json"}


# The emulator's downloads do not say which generation they are, and it ignores conditions on one,
# so that whoever reads a file and writes it again, as two writers of one checkpoint do, fails.
SERVER = """
import sys, time
from http import HTTPStatus
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

def generation(storage, bucket, name):
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except NotFound:
        return "0"

download, upload = objects.download, objects._media_upload

def download_with_generation(request, response, storage):
    download(request, response, storage)
    where = request.params["bucket_name"], request.params["object_id"]
    response["x-goog-generation"] = generation(storage, *where)

def upload_on_condition(request, response, storage):
    wanted = request.query.get("ifGenerationMatch")
    where = request.params["bucket_name"], request.query["name"][0]
    if wanted and wanted[0] != generation(storage, *where):
        response.status = HTTPStatus.PRECONDITION_FAILED
    else:
        upload(request, response, storage)

objects.download, objects._media_upload = download_with_generation, upload_on_condition
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
print("ready", flush=True)
time.sleep(10**6)
"""


@pytest.fixture
def server(tmp_path):
    """A process that serves an empty bucket, and the environment in which gs:// means that one."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    with (tmp_path / "server.txt").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout.readline() == "ready\n", (tmp_path / "server.txt").read_text()
        address = f"http://localhost:{port}"
        yield {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }
    finally:
        process.kill()
        process.communicate()


TWO_WRITERS = """
import tensorstore
for name in "ab":
    base = {"driver": "ocdbt", "base": "gs://bucket/two/"}
    tensorstore.KvStore.open(base, context=tensorstore.Context()).result()[name] = name.encode()
print(tensorstore.KvStore.open(base, context=tensorstore.Context()).result().list().result())
"""


@pytest.mark.slow
def test_a_second_writer_goes_on_with_the_files_of_the_first(server):
    command = [sys.executable, "-c", TWO_WRITERS]
    done = subprocess.run(command, env=os.environ | server, stdout=subprocess.PIPE, check=False)
    assert done.returncode == 0 and done.stdout == b"[b'a', b'b']\n"


TRAIN = """
import os, sys
from tests.training import test_loop
from udd_jax.runtime import checkpoints, files, logbook
folder = files.folder(sys.argv[1])
def batch_at(step):
    if step == int(sys.argv[2]):
        checkpoints.Checkpoints(folder / "checkpoints").latest_step() or os._exit(3)
        os.kill(os.getpid(), 9)
    return test_loop.batch_at(step)
state = test_loop.run(folder, batch_at=batch_at)
lines = [{k: v for k, v in line.items() if k not in logbook.TIMES}
         for line in logbook.Logbook(folder).lines()]
steps = checkpoints.Checkpoints(folder / "checkpoints").steps()
print([float(w) for w in state["w"]], lines, steps)
"""


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_from_its_checkpoints_in_the_bucket(server, tmp_path):
    def train(folder, die_at=-1):
        here = pathlib.Path(__file__).parents[2]
        env = os.environ | server | {"PYTHONPATH": str(here)}
        command = [sys.executable, "-c", TRAIN, str(folder), str(die_at)]
        return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)

    assert train("gs://bucket/run", die_at=16).returncode == -signal.SIGKILL
    done = train("gs://bucket/run")
    assert done.returncode == 0 and "toy: goes on after step" in done.stdout
    whole = train(tmp_path / "disk").stdout.splitlines()
    assert done.stdout.splitlines()[-1] == whole[-1] and "[12, 18, 20]" in whole[-1]
