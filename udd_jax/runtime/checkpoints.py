"""Files that survive a killed process: atomic files, portable trees, checkpoints with checksums.

A reader finds the whole of a thing or nothing. This promise comes in three sizes:

- a file is written under a temporary name, flushed to the disk and renamed (`open_atomic`);
- a small final artefact, such as a tokenizer or exported weights, is one file in the safetensors
  layout (`save_tree`), readable from PyTorch as well, with a checksum of its contents;
- a training state is an Orbax directory `<step>/` (`Checkpoints`), written in the background from
  all processes. When Orbax is done, process 0 hashes every file into `<step>/manifest.json`. A
  directory without a manifest is unfinished. A directory that disagrees with its manifest is
  damaged, and the checkpoint before it is used.

A tree is stored flat, under the names of its leaves ("params/blocks/mlp/kernel"). So a state that
does not fit is refused by name, and a part of it can be read alone. Arrays are stored whole,
whatever their sharding, and are read back onto the shardings of a given example, on any mesh. A
typed PRNG key is not a leaf; store its seed.

This is the only file that knows Orbax, which is imported when first needed. A directory may be
`gs://bucket/path`, where a written object appears whole by itself.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import threading

import jax
import ml_dtypes
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

MANIFEST = "manifest.json"

# The names of the safetensors layout.
DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}


# Files


def folder(path):
    """A `pathlib.Path`; for `gs://bucket/path`, the path of etils, which acts like one."""
    return epath.Path(path) if "://" in str(path) else pathlib.Path(path)


@contextlib.contextmanager
def open_atomic(path):
    """A binary file to write to. It gets the name `path` when the block ends without an error.

    Makes missing parent folders. After an error nothing is left behind, and an older `path` stays.
    """
    path = epath.Path(path)
    if "://" in str(path):
        with path.open("wb") as file:
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_bytes(path, data: bytes):
    with open_atomic(path) as file:
        file.write(data)


def write_text(path, text: str):
    write_bytes(path, text.encode())


def write_json(path, value):
    """Writes `value` as indented JSON. ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path):
    """The value in a JSON file; FileNotFoundError or ValueError in one line."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, expected JSON ({error}): make it again") from None


# Trees


def flatten(tree) -> dict:
    """The leaves of a tree by name, "a/b/0" for `tree["a"].b[0]`; numbers become NumPy arrays."""
    leaves = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{name!r} is a typed PRNG key, expected an array: store its seed")
        if name in leaves:
            raise ValueError(f"two leaves are named {name!r}: rename one")
        leaves[name] = leaf
    return leaves


def require_fit(example: dict, stored: dict, where, partial: bool = False):
    """ValueError unless `stored` (name -> (shape, dtype)) has every leaf of `example`, by name."""
    missing = sorted(example.keys() - stored.keys())
    extra = sorted(stored.keys() - example.keys())
    if missing or (extra and not partial):
        which = [f"has no {missing[0]!r} ({len(missing)} missing)"] if missing else []
        which += [f"has {extra[0]!r} ({len(extra)} unexpected)"] if extra and not partial else []
        raise ValueError(f"{where} {' and '.join(which)}: was it written with another config?")
    for name, leaf in example.items():
        shape, dtype = stored[name]
        if (tuple(shape), np.dtype(dtype)) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
            raise ValueError(
                f"{where}: {name!r} is {np.dtype(dtype)}{list(shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}: was it written with another config?"
            )


def save_tree(path, tree, metadata: dict | None = None, half: bool = False):
    """Writes a tree of arrays and a dict of JSON values to one file in the safetensors layout.

    `half` stores float32 leaves as float16, and `load_tree` turns them back into float32.
    ValueError for a value that float16 cannot hold. Arrays must be readable from this process.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    halved = [n for n, a in arrays.items() if half and a.dtype == np.float32]
    for name in halved:
        with np.errstate(over="ignore"):
            small = arrays[name].astype(np.float16)
        if (np.isfinite(arrays[name]) & ~np.isfinite(small)).any():
            raise ValueError(f"{name!r} has values above 65504, too large for float16: half=False")
        arrays[name] = small
    header, data, start = {}, [], 0
    for name, array in arrays.items():
        if array.dtype not in CODES:
            raise ValueError(f"{name!r} has dtype {array.dtype}, expected one of {list(DTYPES)}")
        data.append(np.ascontiguousarray(array).tobytes())
        header[name] = {
            "dtype": CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + len(data[-1])],
        }
        start += len(data[-1])
    header["__metadata__"] = {
        "metadata": json.dumps(metadata or {}, allow_nan=False),
        "halved": json.dumps(halved),
    }
    header["__metadata__"]["sha256"] = _digest(header, data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in data:
            file.write(piece)


def load_tree(path, example=None):
    """`(tree, metadata)` of a file by `save_tree`; the leaves are NumPy arrays (read-only).

    With `example` (arrays or ShapeDtypeStructs) the tree has the structure of the example, and
    another name, shape or dtype is a ValueError. Without it the tree is nested dicts.
    FileNotFoundError if the file is missing, ValueError if it is damaged.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    content = path.read_bytes()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        own = header["__metadata__"]
        if own.pop("sha256") != _digest(header, [memoryview(content)[start:]]):
            raise ValueError("its checksum disagrees")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it or make it again") from None
    halved = set(json.loads(own["halved"]))
    leaves = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            piece = memoryview(content)[start + first : start + last]
            leaf = np.frombuffer(piece, DTYPES[entry["dtype"]]).reshape(entry["shape"])
            leaves[name] = leaf.astype(np.float32) if name in halved else leaf
    if example is None:
        tree = _nest(leaves)
    else:
        wanted = flatten(example)
        require_fit(wanted, {n: (a.shape, a.dtype) for n, a in leaves.items()}, path)
        tree = jax.tree.unflatten(jax.tree.structure(example), [leaves[n] for n in wanted])
    return tree, json.loads(own["metadata"])


def _digest(header: dict, data) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for piece in data:
        digest.update(piece)
    return digest.hexdigest()


def _nest(leaves: dict):
    tree = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


# Checkpoints


class Checkpoints:
    """The checkpoints of one run in `directory`: the last `keep`, and the best if `best` names one.

    `best` names an entry of the metadata, such as the held-out bound: the checkpoint with the
    lowest value of it is kept too. `say` gets one-line messages about damaged checkpoints. Opening
    a directory does not change it.
    """

    def __init__(self, directory, keep: int = 3, best: str | None = None, say=print):
        if keep < 1:
            raise ValueError(f"keep = {keep}, expected at least 1 checkpoint")
        local = "://" not in str(directory)
        self.directory = epath.Path(os.path.abspath(directory) if local else directory)
        self.keep, self.best, self.say = keep, best, say
        self._orbax = self._thread = self._failure = None

    # Reading

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, ascending, damaged ones included."""
        return [step for step in self._found() if (self._path(step) / MANIFEST).exists()]

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The finished checkpoint with the lowest `best`; the earliest one of equals."""
        scores = {step: self._manifest(step).get("metadata", {}) for step in self.steps()}
        scores = {step: m[self.best] for step, m in scores.items() if m.get(self.best) is not None}
        return min(scores, key=scores.get, default=None)

    def restore(self, example, step: int | None = None, partial: bool = False):
        """`(tree, metadata)` of the latest good checkpoint, or of `step`; None where there is none.

        `example` is a tree of arrays or ShapeDtypeStructs. Leaves with a sharding arrive on it;
        NumPy leaves arrive as NumPy arrays. With `partial` the checkpoint may have further leaves.
        ValueError: the checkpoint does not fit the example, or `step` or all are damaged.
        """
        self.wait()
        step = self._choose(step)
        if step is None:
            return None
        import orbax.checkpoint as ocp

        path, manifest, wanted = self._path(step), self._manifest(step), flatten(example)
        require_fit(wanted, manifest["arrays"], f"checkpoint {path}", partial)
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
        """The fault of a checkpoint in a few words; None if it is good. Reads all of it."""
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
        """Starts writing `tree`, which may be donated at once; with `wait` it waits until the end.

        Waits for the previous save first. OSError: this save or the previous one failed; the last
        good checkpoint is still there.
        """
        self.wait()
        leaves = flatten(tree)
        manifest = {
            "step": int(step),
            "metadata": json.loads(json.dumps(metadata or {}, allow_nan=False)),
            "arrays": {n: [list(a.shape), str(np.dtype(a.dtype))] for n, a in leaves.items()},
        }
        import orbax.checkpoint as ocp

        try:
            self._sweep(step)
            if jax.process_index() == 0:  # Orbax would wait five minutes for a folder
                write_bytes(self.directory / "probe", b"writable?")
                (self.directory / "probe").unlink()
            if self._orbax is None:
                self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
            self._orbax.save(self._path(step), args=ocp.args.PyTreeSave(leaves), force=True)
        except Exception as error:
            self._fail(step, error)
        else:
            # Not a daemon: the interpreter waits for this thread at exit.
            self._thread = threading.Thread(target=self._complete, args=(step, manifest))
            self._thread.start()
        if wait or self._failure:
            self.wait()

    def check(self):
        """OSError if a save in the background has failed; does not wait for a running one."""
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
                self._orbax.close()
                self._orbax = None

    def _complete(self, step, manifest):
        """In the background: Orbax finishes, then process 0 writes the manifest."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                path = self._path(step)
                manifest["files"] = _hashes(path)
                manifest["sha256"] = _digest(manifest, [])
                write_json(path / MANIFEST, manifest)
                self._prune()
        except Exception as error:
            self._fail(step, error)

    def _fail(self, step, error):
        with contextlib.suppress(OSError):
            self._sweep()  # give back the space of the half-written checkpoint
        cause = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        last = self.latest_step()
        self._failure = OSError(
            f"the checkpoint of step {step} was not written to {self.directory}: {cause}; "
            + (f"that of step {last} is kept" if last is not None else "there is no earlier one")
            + "; make space or mend the permission and run again"
        )

    def _sweep(self, step=None):
        """Process 0 removes the remains of killed or failed saves.

        With `step`, the one about to be written, it also removes everything that is not before this
        step: a damaged checkpoint, or the later steps of a run that went back to an earlier one.
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
            manifest = read_json(self._path(step) / MANIFEST)
            return manifest if manifest.pop("sha256") == _digest(manifest, []) else {}
        except (OSError, ValueError, KeyError, AttributeError):
            return {}

    def _choose(self, step: int | None) -> int | None:
        """The step to restore, or None. Process 0 decides and tells the others."""
        chosen = -1
        if jax.process_index() == 0:
            chosen = self._latest_good() if step is None else step
            if step is not None and (reason := self.damage(step)):
                raise ValueError(
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
            raise ValueError(
                f"every checkpoint in {self.directory} is damaged: remove the folder to start again"
            )
        return -1


def _abstract(leaf):
    if isinstance(leaf, np.ndarray | np.generic):
        return np.zeros(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _hashes(path) -> dict:
    """File name -> [bytes, sha256] of all files below `path` except the manifest; four threads."""
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
    """Removes the manifest first, so that a half-removed checkpoint does not count."""
    (path / MANIFEST).unlink(missing_ok=True)
    path.rmtree(missing_ok=True)
