"""Files as `torch.save` writes them, made without PyTorch: pickle opcodes by hand.

    save(path, {"state_dict": {"w": array}})       the zip layout
    pickled(tree) + arrays                         what is in it

A `Raw` in the tree is put into the pickle as it stands: a way to write files that run commands.
"""

import dataclasses
import struct
import zipfile

import numpy as np

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte"}


@dataclasses.dataclass(frozen=True)
class Raw:
    opcodes: bytes


def call(name: str, argument: str) -> Raw:
    """Opcodes that call the function `name`, "module.function", with a string."""
    module, _, function = name.rpartition(".")
    return Raw(f"c{module}\n{function}\n(V{argument}\ntR".encode())


def instance(name: str) -> Raw:
    """Opcodes that make an object of the class `name` and give it a state."""
    module, _, kind = name.rpartition(".")
    return Raw(f"c{module}\n{kind}\n".encode() + b")\x81}X\x01\x00\x00\x00aK\x01sb")


def save(path, tree) -> None:
    """Writes the tree (dicts, strings, whole numbers, arrays, Raw) in the zip layout."""
    content, arrays = pickled(tree)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(arrays):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")


def pickled(tree) -> tuple[bytes, list[np.ndarray]]:
    """The pickle of a tree, and the arrays that it refers to by number."""
    arrays: list[np.ndarray] = []
    return b"\x80\x02" + _put(tree, arrays) + b".", arrays


def _put(value, arrays) -> bytes:
    if isinstance(value, Raw):
        return value.opcodes
    if isinstance(value, str):
        return b"X" + struct.pack("<i", len(value.encode())) + value.encode()
    if isinstance(value, int):
        return b"\x8a\x08" + struct.pack("<q", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(_put(v, arrays) for v in value) + b"t"
    if isinstance(value, dict):
        items = b"".join(_put(k, arrays) + _put(v, arrays) for k, v in value.items())
        return b"}(" + items + b"u"
    return _tensor(np.array(value, order="C"), arrays)


def _tensor(array, arrays) -> bytes:
    arrays.append(array)
    kind = Raw(f"ctorch\n{KINDS[array.dtype.str[1:]]}Storage\n".encode())
    storage = _put(("storage", kind, str(len(arrays) - 1), "cpu", array.size), arrays) + b"Q"
    strides = tuple(s // array.itemsize for s in array.strides)
    hooks = Raw(b"ccollections\nOrderedDict\n)R")
    parts = (Raw(storage), 0, tuple(array.shape), strides, Raw(b"\x89"), hooks)
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + _put(parts, arrays) + b"R"
