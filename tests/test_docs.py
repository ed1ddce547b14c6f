"""The documents: all of their commands and code run, their links lead somewhere, the site builds.

What cannot run says so in the page, with the reason (tests/helpers/documented.py). A training is as
small as that of `tests/helpers/tiny.py`; files that a page only names are made here.
"""

import contextlib
import functools
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import udd_jax
from configs import t2i
from tests.helpers import documented, pictures, published_files, settings_page, shell, tiny
from udd_jax import pipeline
from udd_jax.data import pixels, sources
from udd_jax.data.sources import shapes
from udd_jax.diffusion import schedules
from udd_jax.sampling import samplers

ROOT = documented.ROOT
BLOCKS = {page: documented.blocks(page) for page in documented.PAGES}
COMMANDS = {
    f"{page.relative_to(ROOT)}:{block.line}+{i} {' '.join(words)[-60:]}": words
    for page, blocks in BLOCKS.items()
    for block in blocks
    if block.shell
    for i, words in enumerate(block.commands())
}
OURS = {}  # each once, although several pages may have it
for name, words in COMMANDS.items():
    if (flags := documented.arguments(words)) and flags not in OURS.values():
        OURS[name] = flags
PICTURES = {
    tuple(documented.arguments(commands[-1])): page.parent / block.picture
    for page, blocks in BLOCKS.items()
    for block in blocks
    if block.shell and block.picture and (commands := block.commands())
}
# {what a page says: what a test has in its place}
STANDS_FOR = {"folder:/path": "folder:drawings", "folder:/drawings": "folder:drawings"}
# What a small checkpoint needs in addition.
MORE = {"--from=unid3": ["--heads=2", "--codes=used.npy"]}
FEW = {
    "vq.steps": 6, "vq.plain_steps": 2, "vq.warmup": 1, "vq.pictures": 64, "vq.batch_size": 16,
    "train.steps": 4, "train.warmup": 1, "train.batch_size": 8, "data_options.size": 64,
    "evaluate.samples": 4, "evaluate.batch_size": 4, "evaluate.bound_samples": 4,
    "evaluate.retrieval": 4, "evaluate.among": 2, "evaluate.round_trips": 4, "evaluate.judged": 2,
}  # fmt: skip


def small(flags) -> list[str]:
    """The flags that make a command of the documents as small as a test; those typed stay."""
    more = [flag for word, flags_ in MORE.items() if word in flags for flag in flags_]
    modes = [flag for flag in flags if flag.startswith("--mode=")]
    if modes not in ([], ["--mode=train"]):
        return more
    usual, least = (
        traverse_util.flatten_dict(config.to_dict(), sep=".")
        for config in (t2i.get_config(), tiny.config())
    )
    changed = {name: least[name] for name in least if least[name] != usual[name]} | FEW
    typed = {flag.partition("=")[0] for flag in flags} | {"--config.name"}
    changed = {f"--config.{name}": value for name, value in changed.items()}
    return more + [f"{flag}={value}" for flag, value in changed.items() if flag not in typed]


def as_typed(flags) -> list[str]:
    """The flags with the stand-ins of a test."""
    return [functools.reduce(lambda w, o: w.replace(*o), STANDS_FOR.items(), w) for w in flags]


# ---- Commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", OURS.values(), ids=OURS)
def test_a_command_of_the_documents_is_a_command(flags):
    with shell.flags() as parse:
        rest = parse(*as_typed(flags))
    assert rest == (["runs/b"] if "--compare" in flags else [])


def test_what_the_documents_install_are_extras_of_the_package():
    extras = re.findall(r'^        "(\w+)":', (ROOT / "setup.py").read_text(), re.MULTILINE)
    installs = [words for words in COMMANDS.values() if words[0] == "pip"]
    for words in installs:
        what = words[-1]
        asked = re.fullmatch(r"(?:\.|udd_jax)(?:\[(.+)\])?", what)
        assert words[1] == "install" and asked, what
        assert set((asked[1] or "dev").split(",")) <= set(extras), what


def test_every_command_is_ours_or_installs_or_says_why_it_is_not_run():
    others = [words for words in COMMANDS.values() if documented.arguments(words) is None]
    assert {words[0] for words in others} == {"pip"}
    assert len(OURS) > 35


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder of a reader: pictures of his own, a checkpoint, the run of the first command."""
    folder = published_files.write(tmp_path_factory.mktemp("reader"))
    published_files.save(folder / "vqgan.ckpt", published_files.vq_state())
    (folder / "vqgan.yaml").write_text(published_files.yaml_of())
    (folder / "drawings").mkdir()
    for i, record in enumerate(shapes.source("train", 24)):
        Image.fromarray(record.image).save(folder / "drawings" / f"{i}.png")
        (folder / "drawings" / f"{i}.txt").write_text(record.captions[0])
    pictures.files(folder)
    Image.fromarray(record.image).save(folder / "a.png")
    with contextlib.chdir(folder):
        first = next(flags for flags in OURS.values() if "--config=configs/t2i.py" in flags)
        shell.run(*first, *small(first))
    for name in ("emoji", "a", "b"):
        (folder / "runs" / name).symlink_to("t2i")
    return folder


def marked():
    """The commands: of those that train with one config, all but the first are `long`."""
    configs = set()
    for name, flags in OURS.items():
        config = next((flag for flag in flags if flag.startswith("--config=")), None)
        trains = config and not any(flag.startswith("--mode=") for flag in flags)
        again = trains and config in configs
        configs |= {config} if trains else set()
        yield pytest.param(flags, id=name, marks=pytest.mark.long if again else ())


@pytest.mark.slow
@pytest.mark.parametrize("flags", [*marked()])
def test_a_command_of_the_documents_runs(flags, place, capsys):
    with contextlib.chdir(place):
        shell.run(*as_typed(flags), *small(flags))
    if shown := PICTURES.get(tuple(flags)):
        made, kept = (pixels.read(p) for p in (place / pictures.out(flags) / "sheet.png", shown))
        assert made.shape == kept.shape
        # Another processor may draw another token, and then another object.
        assert np.abs(np.int16(made) - kept).mean() < 16
    quiet = ("--compare", "--mode=data", "--mode=plan", "--mode=convert")
    if not set(quiet) & set(flags):
        # What was made, where, and three things to try: all but the report are commands too.
        made, _, tries = capsys.readouterr().out.partition("\nnext:\n")
        assert ": " in made.splitlines()[-1] and len(tries.splitlines()) == 3
        for line in tries.splitlines():
            assert line.startswith(("  open ", "  udd_jax --"))
            if "udd_jax" in line.split()[0]:
                with shell.flags() as parse:
                    assert parse(*shlex.split(line)[1:]) == []


@pytest.mark.slow
def test_the_run_has_the_files_that_the_page_of_training_names(place):
    table = (ROOT / "docs" / "training.md").read_text().partition("leaves in")[2].partition("\n\n")
    files = re.findall(r"`([^`]+)`", table[0])
    assert len(files) > 8 and all((place / "runs" / "t2i" / name).exists() for name in files)


# ---- Python -------------------------------------------------------------------------------------


@pytest.fixture
def tables():
    """The tables that the examples add to; they are put back."""
    every = (samplers.SAMPLERS, schedules.MAKERS, sources.WORLDS)
    before = [dict(table) for table in every]
    yield
    for table, entries in zip(every, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(scope="module")
def names(tiny_run):
    """What the lines of a page may take for known."""
    pipe, records = pipeline.Pipeline.load(tiny_run), shapes.source("train", 8)
    images = np.stack([record.image for record in records])
    mask = np.zeros((32, 32), bool)
    mask[:, 16:] = True
    known = {"udd_jax": udd_jax, "pipe": pipe, "images": images, "image": images[0], "mask": mask}
    known |= {"captions": [record.captions[0] for record in records]}
    known |= {"F": lambda tokens, xt, t: tokens[0][..., 0].sum(-1)}
    known |= {"G": lambda shown: shown.mean((1, 2, 3))}
    return known | {"jax": jax, "jnp": jnp, "np": np, "functools": functools}


WITH_PYTHON = [page for page, blocks in BLOCKS.items() if any(not b.shell for b in blocks)]
FAST = ("extending.md", "method.md")  # the others compile many tasks


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=() if page.name in FAST else pytest.mark.slow)
        for page in WITH_PYTHON
    ],
)
def test_the_python_of_a_page_runs(page, names, tables, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "t2i").symlink_to(tiny_run)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda *folder: names["pipe"])  # compiled once
    known = dict(names)
    for block in BLOCKS[page]:
        if not block.shell and block.runs():
            exec(compile("\n" * (block.line - 1) + block.text, page.name, "exec"), known)


# ---- Pages --------------------------------------------------------------------------------------


def test_the_page_of_training_has_every_setting_with_its_default_and_what_it_does():
    assert settings_page.comments().keys() == settings_page.fields().keys()
    assert all(settings_page.comments().values())
    written = settings_page.PAGE.read_text(encoding="utf-8").partition(settings_page.MARK)[2]
    assert written == settings_page.tables(), "run: python -m tests.helpers.settings_page"


def test_links_between_the_pages_lead_to_files():
    for page in [*documented.PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "site" / "api" / "index.html").read_text()
    assert "text_to_image" in text and "from_pretrained" in text
    for path in (tmp_path / "site").rglob("index.html"):
        page = path.read_text()
        assert 'src="http' not in page and 'rel="stylesheet" href="http' not in page, path
