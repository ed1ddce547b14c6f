"""What is built from this checkout: metadata, and a wheel that works in an empty folder."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.helpers import quick

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the sdist, the wheel made from it), built from a copy of what git tracks."""
    pytest.importorskip("build", reason="build is not installed")
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        if name and not name.startswith("tests/fixtures/") and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "build", "-q", "--outdir", out, source], check=True)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


def test_a_package_has_the_assets_that_git_tracks_and_nothing_that_was_made_in_them(tmp_path):
    pytest.importorskip("setuptools")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split("\0") if (ROOT / name).is_file()]
    assets = {name for name in names if name.startswith("udd_jax/assets/")}
    for name in [*assets, "setup.py", "README.md", "LICENSE", "configs/t2i.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "udd_jax" / "__init__.py").touch()
    for made in ("generated/image-0000.png", "generated/samples.jsonl", "cache/program",
                 "samples/t2i.npz", "report.html", "lock"):  # fmt: skip
        path = tmp_path / "udd_jax" / "assets" / "shapes" / made
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    packed = {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out" / "udd_jax" / "assets").rglob("*")
        if path.is_file()
    }
    assert packed == assets and len(assets) > 8


@pytest.mark.slow
def test_the_metadata_is_as_an_index_wants_it(built):
    pytest.importorskip("twine", reason="twine is not installed")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *built], check=True)


@pytest.mark.slow
def test_both_have_all_files_of_the_package_and_the_licence(built):
    sdist, wheel = built
    packed = zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as file:
        sources = {name.partition("/")[2] for name in file.getnames()}
    listed = subprocess.run(
        ["git", "ls-files", "udd_jax"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.split():
        assert name in packed and name in sources, name
    assert "udd_jax/configs/t2i.py" in packed and "configs/t2i.py" in sources
    assert any(name.endswith("licenses/LICENSE") for name in packed) and "LICENSE" in sources
    assert not any("tests/" in name or "__pycache__" in name for name in packed)


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment_from_an_empty_folder(built, tmp_path, compiled):
    env = {k: v for k, v in quick.environment().items() if k != "PYTHONPATH"}
    env |= {"JAX_COMPILATION_CACHE_DIR": str(compiled), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin, here = tmp_path / "venv" / "bin", tmp_path / "here"
    here.mkdir()
    subprocess.run([bin / "pip", "install", "-q", built[1]], check=True)

    def run(*words):
        done = subprocess.run(
            [bin / "udd_jax", *words], cwd=here, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "udd_jax --mode=sample" in run()
    run("--mode=sample", "--prompt=a small red circle")
    assert (here / "generated" / "image-0000.png").exists()
    run("--config=configs/t2i.py:smoke", "--workdir=run")
    assert (here / "run" / "report.html").exists()
    run("--mode=export", "--workdir=run", "--out=small")
    for words, reason in (
        (
            ("--mode=convert", "--to=safetensors", "--workdir=run", "--out=published.safetensors"),
            "error: vq.model.patch = 8 has no published counterpart, only 1 has\n",
        ),
        (("--mode=demo",), "error: --mode=demo needs Gradio: pip install 'udd_jax[demo]'\n"),
    ):
        refused = subprocess.run(
            [bin / "udd_jax", *words], cwd=here, env=env, capture_output=True, text=True
        )
        assert refused.returncode == 1 and refused.stderr == reason
