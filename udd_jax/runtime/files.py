"""Atomic writes: a file is written under another name, flushed to the disk, then renamed.

So a file is complete or does not exist. A path may be `gs://bucket/path`, where every write is
atomic. No JAX here.
"""

import contextlib
import itertools
import json
import os
import pathlib
import shutil

from etils import epath

from udd_jax.errors import NotFound, UserError


def folder(path):
    """A `pathlib.Path`, or for `gs://bucket/path` the path of etils that acts like one."""
    return epath.Path(path) if in_bucket(path) else pathlib.Path(path).expanduser()


def in_bucket(path) -> bool:
    """Whether a path is a `gs://bucket/path` or of another store, and not on a disk."""
    return "://" in str(path)


def require_disk(out) -> None:
    """UserError, one line, if `--out` names a bucket."""
    if in_bucket(out):
        raise UserError(f"--out={out} is not a folder of a disk: name one")


@contextlib.contextmanager
def whole(path, several: bool = False):
    """A temporary path next to `path`; it is renamed to `path` if the block ends without an error.

    For writers that open files themselves, and for folders; an empty folder `path` is replaced. On
    an error no file is left, and an older `path` stays. Missing parent folders are made. several:
    more than one process may write `path` at once, so each has its own temporary path.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{f'.{os.getpid()}' if several else ''}.tmp")
    _remove(temporary)  # what a killed process left
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def aside(path) -> pathlib.Path:
    """Renames a file or folder of the disk to the first of `NAME-1`, `NAME-2`, ... that is free,
    and returns that."""
    path = pathlib.Path(path)
    names = (path.with_name(f"{path.name}-{i}") for i in itertools.count(1))
    free = next(name for name in names if not name.exists())
    path.rename(free)
    return free


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()


@contextlib.contextmanager
def open_atomic(path):
    """A binary file to write to. It gets the name `path` when the block ends without an error.

    Missing parent folders are made. On an error no file is left, and an older `path` stays.
    """
    path = epath.Path(path)
    if in_bucket(path):
        with path.open("wb") as file:
            yield file
        return
    with whole(path) as temporary, open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path, data: bytes):
    with open_atomic(path) as file:
        file.write(data)


def write_text(path, text: str):
    write_bytes(path, text.encode())


def write_json(path, value):
    """Writes `value` as indented JSON, which has no NaN or infinity: ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path):
    """The value in a JSON file; FileNotFoundError or ValueError in one line."""
    path = epath.Path(path)
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, expected JSON ({error}): make it again") from None
