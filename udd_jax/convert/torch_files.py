"""PyTorch checkpoint files as NumPy arrays, without PyTorch and without running their code.

A checkpoint is a pickle: a small program that may name any function on the machine and call it.
Only tensors are rebuilt here. No name is looked up or imported:

- the few functions that make tensors and plain containers are known, and are functions here;
- any other class, and a path, pattern, type, enum or random state, becomes a placeholder that
  ignores its contents (callbacks, optimisers and settings are objects of packages that may not be
  installed);
- a name of the standard library that is not harmless, or a call of any other function, is the way
  in which a pickle runs a command. It would have no effect here, but such a file is refused.

Both layouts of `torch.save` are read: the zip archive (since 1.6) and the older sequence of
pickles. An archive of TorchScript, in which OpenAI publishes CLIP, is read, too. Its program is
ignored. The tensors of its modules get the names that a state_dict would give them. Arrays are
views of the mapped file, so unused tensors are never read from the disk.
"""

import collections
import io
import mmap
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

from udd_jax.errors import UserError, first_line

DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class Refused(ValueError):
    """The pickle tries to run code."""


@dataclass(eq=False)
class _Storage:
    """A sequence of numbers in the file, shared by the tensors that are views of it."""

    dtype: np.dtype | None
    size: int
    data: np.ndarray | None = None


@dataclass(eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The view, with its bounds checked. ValueError for an unknown dtype or bad bounds."""
        storage, dtype = self.storage, self.storage.dtype
        if dtype is None:
            raise UserError("a tensor has a type of number that is not known")
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        inside = self.offset >= 0 and last < storage.size and min((0, *self.strides)) >= 0
        if 0 in self.shape:
            return np.zeros(self.shape, dtype)
        if storage.data is None or not inside:
            raise UserError("a tensor reaches beyond its storage")
        strides = [s * dtype.itemsize for s in self.strides]
        view = np.lib.stride_tricks.as_strided(
            storage.data[self.offset :], self.shape, strides, writeable=False
        )
        return view


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise UserError("a tensor has no storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(data, *_):
    return data


def _rebuild_from_type(rebuild, _, args, *__):
    return rebuild(*args)


def _nothing(*_, **__):
    return None


def _first(value, *_):
    return value


def _member(kind, *_):
    """`getattr`, by which some Pythons store a member of an enum: an inert object of its class."""
    if not isinstance(kind, _Called):
        raise Refused("it wants to call builtins.getattr")
    return kind.__new__(kind)


_KNOWN: dict[str, Callable] = {
    "builtins.getattr": _member,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    # TorchScript's lists of one type, and values with a type tag.
    "torch.jit._pickle.build_boollist": _first,
    "torch.jit._pickle.build_doublelist": _first,
    "torch.jit._pickle.build_intlist": _first,
    "torch.jit._pickle.build_tensorlist": _first,
    "torch.jit._pickle.restore_type_tag": _first,
    "torch.Size": tuple,
    "torch.device": _nothing,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": lambda *_: {},
    "copyreg._reconstructor": lambda kind, *_: kind.__new__(kind),
}
# The harmless functions that NumPy uses to store arrays and scalars.
_NUMPY = (
    *("numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.dtype", "numpy.ndarray"),
    # States of its random numbers.
    *("numpy.random._pickle.", "numpy.random.mtrand.", "numpy.random.bit_generator."),
)
# Constructors of the standard library and the builtins that only hold a value.
_HARMLESS = {
    "__builtin__": "bool bytearray complex dict float frozenset int list object range set slice "
    "str tuple unicode long xrange",
    "_codecs": "encode",
    "argparse": "Namespace",
    "collections": "Counter OrderedDict defaultdict deque",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "enum": "EnumMeta",
    "fractions": "Fraction",
    "functools": "partial",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "re": "_compile",  # here an object that compiles nothing
    "types": "SimpleNamespace",
    "typing": "Any Callable Dict List Literal Optional Sequence Set Tuple Type Union",
    "uuid": "UUID",
}
_HARMLESS = {module: names.split() for module, names in _HARMLESS.items()}
_HARMLESS["pathlib._local"] = _HARMLESS["pathlib"]
_HARMLESS["builtins"] = _HARMLESS["__builtin__"]


class _Called(type):
    """The metaclass of placeholders; it sees every call of one, and refuses function calls."""

    def __call__(cls, *args, **kwargs):
        name = cls.path.rpartition(".")[2].lstrip("_")
        if not (cls.harmless or name[:1].isupper()):
            raise Refused(f"it wants to call {cls.path}")
        return cls.__new__(cls)


class _Placeholder(metaclass=_Called):
    """An object of an unknown class: accepts a state and items, and ignores them."""

    path, harmless = "", False

    def __new__(cls, *_, **__):
        return object.__new__(cls)

    def _forget(self, *_, **__):
        pass

    __setstate__ = __setitem__ = append = extend = add = _forget


class _Module(_Placeholder):
    """A module of TorchScript: keeps its attributes, such as tensors and other modules."""

    attributes = None

    def __setstate__(self, state):
        self.attributes = state


def _find(module: str, name: str):
    """The replacement for a global of the pickle; never the global itself."""
    path = f"{module}.{name}"
    if path in _KNOWN:
        return _KNOWN[path]
    if module in ("torch", "torch.storage") and name.endswith("Storage"):
        kind = DTYPES.get(name.removesuffix("Storage"))
        return _Storage(None if kind is None else np.dtype(kind), 0)
    harmless = name in _HARMLESS.get(module, ()) or path.startswith(_NUMPY)
    top = module.partition(".")[0]
    if not harmless and (top in sys.stdlib_module_names or top == "__builtin__"):
        raise Refused(f"it names {path}")
    body = {"path": path, "harmless": harmless}
    kind = _Module if top == "__torch__" else _Placeholder
    return _Called(name.rpartition(".")[2] or "placeholder", (kind,), body)


@dataclass(eq=False)
class _File:
    """The storages that the pickle of one file refers to."""

    storages: dict[str, _Storage] = field(default_factory=dict)

    def load(self, stream):
        """Runs one pickle of the stream."""
        unpickler = _Unpickler(stream, encoding="latin1")
        unpickler.file = self
        return unpickler.load()

    def storage(self, reference) -> _Storage:
        kind, dtype, key, _, size, *view = reference
        if kind != "storage" or not isinstance(dtype, _Storage) or (view and view[0] is not None):
            raise UserError("a reference is not to a storage")
        return self.storages.setdefault(str(key), _Storage(dtype.dtype, int(size)))


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        return _find(module, name)

    def persistent_load(self, reference):
        return self.file.storage(reference)


def load(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """{name: tensor} of a file; the arrays are read-only views of it.

    The tensors are those of the entry "state_dict" or "model" if it exists, or else of the dict in
    the file. A file with a single tensor has it under "". A file of TorchScript has those of its
    modules.

    Raises:
        ValueError: one line; the file does not exist, is not a PyTorch file, is damaged or cut
            short, has no tensors, or tries to run code.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        top = _zip(path, content) if content[:4] == b"PK\x03\x04" else _legacy(content)
        found = {name: tensor.array() for name, tensor in _tensors(top).items()}
    except Refused as refusal:
        raise UserError(
            f"{path} is refused, {refusal}: weights have no need to, so do not trust this file"
        ) from None
    except Exception as error:  # a damaged pickle can raise any exception
        reason = first_line(error)
        raise UserError(
            f"{path} is not a PyTorch checkpoint, or is damaged or cut short ({reason})"
        ) from None
    if not found:
        raise UserError(f"{path} has no tensors under names, expected a checkpoint of weights")
    return found


def _tensors(top) -> dict[str, _Tensor]:
    if isinstance(top, _Tensor):
        return {"": top}
    if isinstance(top, _Module):
        return dict(_walk(top, ""))
    if isinstance(top, dict):
        inner = (top.get(name) for name in ("state_dict", "model"))
        top = next((value for value in inner if isinstance(value, dict)), top)
    items = top.items() if isinstance(top, dict) else ()
    return {str(name): value for name, value in items if isinstance(value, _Tensor)}


def _walk(module: _Module, prefix: str):
    """Yields (name, tensor) of a module and its submodules; nothing if its state is not a dict."""
    attributes = module.attributes if isinstance(module.attributes, dict) else {}
    for name, value in attributes.items():
        if isinstance(value, _Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _walk(value, f"{prefix}{name}.")


def _zip(path, content):
    """Reads archive/data.pkl, and archive/data/KEY, the uncompressed storages."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((n.removesuffix("data.pkl") for n in entries if n.endswith("/data.pkl")), None)
        if root is None:
            raise UserError("a zip file without a plain data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise UserError("its numbers are big-endian")
        file = _File()
        top = file.load(io.BytesIO(archive.read(f"{root}data.pkl")))
    for key, storage in file.storages.items():
        entry = entries[f"{root}data/{key}"]
        if storage.dtype is None:
            continue
        if (storage.size * storage.dtype.itemsize, 0) != (entry.file_size, entry.compress_type):
            raise UserError(f"storage {key} is not what its tensor says")
        # The local header repeats the name; its extra field may differ from the directory's.
        name, extra = struct.unpack_from("<HH", content, entry.header_offset + 26)
        start = entry.header_offset + 30 + name + extra
        storage.data = np.frombuffer(content, storage.dtype, storage.size, start)
    return top


def _legacy(content):
    """Reads a sequence of pickles: magic, protocol, system, the object, the keys of its storages.

    Then comes each storage: its length as an int64, and its numbers.
    """
    file = _File()
    if content[:1] != b"\x80" or file.load(content) != _MAGIC or file.load(content) != _PROTOCOL:
        raise UserError("it does not begin as one")
    if file.load(content).get("little_endian") is not True:
        raise UserError("its numbers are big-endian")
    top, keys = file.load(content), file.load(content)
    for key in keys:
        storage = file.storages[str(key)]
        (size,) = struct.unpack("<q", content.read(8))
        if storage.dtype is None or size != storage.size:
            raise UserError(f"storage {key} is not what its tensor says")
        storage.data = np.frombuffer(content, storage.dtype, size, content.tell())
        content.seek(size * storage.dtype.itemsize, os.SEEK_CUR)
    return top
