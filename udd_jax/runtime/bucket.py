"""A work folder in a bucket: stages that need files on a disk work in a local copy.

Checkpoints, metrics and weights are read and written at `gs://bucket/path` directly
(checkpoints.py, logbook.py). The text tokenizer, the token cache, samples and the page need real
files:

    with bucket.near(workdir) as here, bucket.on_disk(workdir, here, "tokens"):
        ...                                 # here/tokens mirrors workdir/tokens and is sent back

If the work folder is on a disk, `here` is the folder itself, and nothing is copied. A process that
is killed loses what it has not sent back: such a stage then starts again from its beginning.
"""

import contextlib
import pathlib
import tempfile

from udd_jax.runtime import files, stopping

# Folders that stay in the bucket when a whole run is fetched.
STAYS = ("checkpoints", "cache", "tensorboard", "profile", "replay")


@contextlib.contextmanager
def near(workdir):
    """The folder (`files.folder`) itself if it is on a disk, else an empty temporary one."""
    if isinstance(workdir, pathlib.Path):
        yield workdir
        return
    with tempfile.TemporaryDirectory(prefix="udd_jax-") as here:
        stopping.remove_at_end(here)
        yield pathlib.Path(here)


@contextlib.contextmanager
def on_disk(workdir, here: pathlib.Path, *names: str, without=STAYS):
    """Fetches files and folders of the run into `here`; sends back what the block has changed.

    Without names it fetches the whole run except `without`. A name that does not exist is left out.
    A file that is already here is not fetched again, unless it is JSON, which other processes may
    have changed.
    """
    if workdir == here:
        yield
        return

    def all_of(root):
        return _files(root, names or _names(root, without))

    for name, path in all_of(workdir):
        if path.suffix == ".json" or not (here / name).exists():
            files.write_bytes(here / name, path.read_bytes())
    before = {name: _stamp(path) for name, path in all_of(here)}
    yield
    for name, path in all_of(here):
        if before.get(name) != _stamp(path) and path.suffix not in (".tmp", ".partial"):
            files.write_bytes(workdir / name, path.read_bytes())


@contextlib.contextmanager
def whole(workdir, without=STAYS):
    """A folder on a disk that holds the whole run; see `on_disk`."""
    workdir = files.folder(workdir)
    with near(workdir) as here, on_disk(workdir, here, without=without):
        yield here


def to_sample(workdir):
    """As `whole`, without what only an evaluation and a training read: the token cache."""
    return whole(workdir, (*STAYS, "tokens"))


def _files(root, names):
    """(name, path) of every file below root at these names."""
    for name in names:
        path = root / name
        if path.is_dir():
            inside = [f"{name}/{child.name}" for child in path.iterdir() if child.name not in STAYS]
            yield from _files(root, inside) if inside else ()
        elif path.exists():
            yield name, path


def _names(root, without) -> list[str]:
    return [p.name for p in root.iterdir() if p.name not in without] if root.exists() else []


def _stamp(path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size
