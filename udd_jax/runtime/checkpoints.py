"""Checkpoints of a training: whole, with checksums, written in the background.

A training state is an Orbax directory `<step>/`, written from all processes. When Orbax is done,
process 0 hashes every file into `<step>/manifest.json`: a directory without a manifest is
unfinished, one that disagrees with it is damaged, and the one before it is used.

Arrays are stored whole, whatever their sharding, under the names of their leaves (`trees`), and
are read back onto the shardings of the example given, on any mesh. This is the only file that knows
Orbax, which is imported when first needed. A directory may be `gs://bucket/path`.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import sys
import threading

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from udd_jax.errors import UserError, first_line
from udd_jax.runtime import files, trees

MANIFEST = "manifest.json"


class Checkpoints:
    """The checkpoints of one run in `directory`: the last `keep`, and the best if `best` names one.

    `best` is an entry of the metadata, such as the held-out bound, of which the lowest is kept too.
    `say` gets the one-line messages about damaged checkpoints. Opening a directory changes nothing.
    """

    def __init__(self, directory, keep: int = 3, best: str | None = None, say=print):
        if keep < 1:
            raise UserError(f"keep = {keep}, expected at least 1 checkpoint")
        local = "://" not in str(directory)
        self.directory = epath.Path(os.path.abspath(directory) if local else directory)
        self.keep, self.best, self.say = keep, best, say
        self._orbax = self._thread = self._failure = None

    # Reading

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, ascending; damaged ones are among them."""
        return [step for step in self._found() if (self._path(step) / MANIFEST).exists()]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The finished checkpoint with the lowest `best`, the earliest of equals."""
        scores = {step: self._manifest(step).get("metadata", {}) for step in self.steps()}
        scores = {step: m[self.best] for step, m in scores.items() if m.get(self.best) is not None}
        return min(scores, key=scores.get, default=None)

    def restore(self, example, step: int | None = None, partial: bool = False):
        """`(tree, metadata)` of the latest good checkpoint, or of `step`; None where there is none.

        `example` is a tree of arrays or ShapeDtypeStructs; leaves that have a sharding arrive on
        it, NumPy leaves as NumPy arrays. With `partial` the checkpoint may have more than that.
        ValueError: the checkpoint does not fit the example, all are damaged, or `step` is.
        """
        self.wait()
        step = self._choose(step)
        if step is None:
            return None
        import orbax.checkpoint as ocp

        path, manifest, wanted = self._path(step), self._manifest(step), trees.flatten(example)
        trees.require_fit(wanted, manifest["arrays"], f"checkpoint {path}", partial)
        abstract = {name: _abstract(leaf) for name, leaf in wanted.items()}
        args = ocp.args.PyTreeRestore(
            item=abstract,
            restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
            partial_restore=True,
        )
        with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
            leaves = checkpointer.restore(path, args=args)
        tree = jax.tree.unflatten(jax.tree.structure(example), [leaves[n] for n in wanted])
        return tree, manifest["metadata"]

    def damage(self, step: int) -> str | None:
        """What is wrong with a checkpoint, in a few words; None if it is good. Reads all of it."""
        path = self._path(step)
        if not (path / MANIFEST).exists():
            return f"it has no {MANIFEST}"
        manifest = self._manifest(step)
        if not manifest:
            return f"its {MANIFEST} is damaged"
        found = _hashes(path)
        for name, expected in manifest["files"].items():
            if name not in found:
                return f"{name} is missing"
            if found[name] != expected:
                return f"{name} has changed"
        return None

    # Writing

    def save(self, step: int, tree, metadata: dict | None = None, wait: bool = False):
        """Starts writing `tree`, which may be donated at once; `wait` returns when it is done.

        Waits for the save before it. OSError: this save or the one before it failed; the last good
        checkpoint is still there.
        """
        self.wait()
        leaves = trees.flatten(tree)
        manifest = {
            "step": int(step),
            "metadata": json.loads(json.dumps(metadata or {}, allow_nan=False)),
            "arrays": {n: [list(a.shape), str(np.dtype(a.dtype))] for n, a in leaves.items()},
        }
        import orbax.checkpoint as ocp

        _say_it_once()
        try:
            self._sweep(step)
            if jax.process_index() == 0:  # where Orbax would wait five minutes for a folder
                files.write_bytes(self.directory / "probe", b"writable?")
                (self.directory / "probe").unlink()
            if self._orbax is None:
                self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
            self._orbax.save(self._path(step), args=ocp.args.PyTreeSave(leaves), force=True)
        except Exception as error:
            self._fail(step, error)
        else:
            # Not a daemon: the interpreter waits for it at exit.
            self._thread = threading.Thread(target=self._complete, args=(step, manifest))
            self._thread.start()
        if wait or self._failure:
            self.wait()

    def check(self):
        """OSError if a save in the background has failed; does not wait for one that runs."""
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def wait(self):
        """Waits until the running save is done; OSError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self):
        """Waits like `wait` and ends the background machinery."""
        try:
            self.wait()
        finally:
            if self._orbax is not None:
                with contextlib.suppress(Exception):  # of a failed save, which `wait` has told
                    self._orbax.close()
                self._orbax = None

    def _complete(self, step, manifest):
        """In the background: Orbax's part, then process 0 makes the checkpoint count."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                path = self._path(step)
                manifest["files"] = _hashes(path)
                manifest["sha256"] = trees._digest(manifest, [])
                files.write_json(path / MANIFEST, manifest)
                self._prune()
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step, error):
        with contextlib.suppress(OSError):
            self._sweep()  # free the space of the unfinished checkpoint
        cause = first_line(error)
        code = re.search(r"os_error_code='(\d+)'", cause)  # TensorStore's way to tell the system's
        cause = os.strerror(int(code[1])) if code else cause[:300]
        last = self.latest_step()
        self._failure = OSError(
            f"the checkpoint of step {step} was not written to {self.directory}: {cause}; "
            + (f"that of step {last} is kept" if last is not None else "there is no earlier one")
            + "; make space or mend the permission and run again"
        )

    def _sweep(self, step=None):
        """Process 0 removes what killed or failed saves left behind.

        With `step`, the one about to be written, also what is not before it: a damaged checkpoint,
        or the future of a run that went on from an earlier one.
        """
        if jax.process_index() == 0 and self.directory.exists():
            stay = {self._path(s).name for s in self.steps() if step is None or s < step}
            for path in self.directory.iterdir():
                if path.name[:1].isdigit() and path.name not in stay:
                    _remove(path)

    def _prune(self):
        steps = self.steps()
        keep = {*steps[-self.keep :], self.best_step() if self.best else None}
        for step in steps:
            if step not in keep:
                _remove(self._path(step))

    # Finding

    def _path(self, step) -> epath.Path:
        return self.directory / f"{step:09d}"

    def _found(self) -> list[int]:
        if not self.directory.exists():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def _manifest(self, step) -> dict:
        """The manifest of a checkpoint, empty if it is missing or damaged."""
        try:
            manifest = files.read_json(self._path(step) / MANIFEST)
            return manifest if manifest.pop("sha256") == trees._digest(manifest, []) else {}
        except (OSError, *trees.BROKEN):
            return {}

    def _choose(self, step: int | None) -> int | None:
        """The step to restore, or None: decided by process 0 and told to the others."""
        chosen = -1
        if jax.process_index() == 0:
            chosen = self._latest_good() if step is None else step
            if step is not None and (reason := self.damage(step)):
                raise UserError(
                    f"checkpoint {self._path(step)}: {reason}; good ones: {self.steps()}"
                )
        if jax.process_count() > 1:
            chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
        return None if chosen < 0 else chosen

    def _latest_good(self) -> int:
        found = self._found()
        for step in reversed(found):
            if (reason := self.damage(step)) is None:
                return step
            self.say(f"checkpoint {self._path(step)}: {reason}; the one before it is used")
        if self.steps():
            raise UserError(
                f"every checkpoint in {self.directory} is damaged: remove the folder to start again"
            )
        return -1


@functools.cache
def _say_it_once():
    """Leaves a failed save to the one line of `Checkpoints`.

    Otherwise Orbax logs the traceback of each of its threads, and for each array that is still
    being written TensorStore's answer finds the loop of its thread closed.
    """

    def of_orbax(record):
        return record.levelno < logging.ERROR or "orbax" not in pathlib.Path(record.pathname).parts

    logging.getLogger("absl").addFilter(of_orbax)
    hook = sys.unraisablehook

    def told(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = told


def _abstract(leaf):
    if isinstance(leaf, np.ndarray | np.generic):
        return np.zeros(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _hashes(path) -> dict:
    """File name -> [bytes, sha256] of all files below `path` but the manifest, in four threads."""
    names = sorted(_walk(path))

    def entry(name):
        digest, size = hashlib.sha256(), 0
        with (path / name).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                size += len(block)
        return [size, digest.hexdigest()]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(entry, names), strict=True))


def _walk(path, prefix=""):
    for child in path.iterdir():
        if child.is_dir():
            yield from _walk(child, f"{prefix}{child.name}/")
        elif prefix or not child.name.startswith(MANIFEST):
            yield prefix + child.name


def _remove(path):
    """The manifest goes first, so that a half-removed checkpoint does not count."""
    (path / MANIFEST).unlink(missing_ok=True)
    path.rmtree(missing_ok=True)
