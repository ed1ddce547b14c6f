"""Trees of arrays under the names of their leaves, and one file for each tree.

A small final artefact, such as a tokenizer or exported weights, is one file in the safetensors
layout, with a checksum of its contents. PyTorch can read it, too. A tree is stored flat, under
names such as "params/blocks/mlp/kernel". So an error can name the leaf that does not fit, and a
part of a tree can be read alone. A typed PRNG key is not a leaf; store its seed.
"""

import hashlib
import json

import jax
import ml_dtypes
import numpy as np
from etils import epath

from udd_jax.errors import NotFound, UserError
from udd_jax.runtime import files

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
# What Python raises where JSON that somebody else wrote has another form than ours.
BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def flatten(tree) -> dict:
    """The leaves of a tree by name, "a/b/0" for `tree["a"].b[0]`; numbers become NumPy arrays."""
    leaves = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not hasattr(leaf, "dtype"):
            leaf = np.asarray(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise UserError(f"{name!r} is a typed PRNG key, expected an array: store its seed")
        if name in leaves:
            raise UserError(f"two leaves are named {name!r}: rename one")
        leaves[name] = leaf
    return leaves


def require_fit(example: dict, stored: dict, where, partial: bool = False):
    """ValueError, with the name, unless `stored` {name: (shape, dtype)} fits `example`."""
    missing = sorted(example.keys() - stored.keys())
    extra = sorted(stored.keys() - example.keys())
    if missing or (extra and not partial):
        which = [f"has no {missing[0]!r} ({len(missing)} missing)"] if missing else []
        which += [f"has {extra[0]!r} ({len(extra)} unexpected)"] if extra and not partial else []
        raise UserError(f"{where} {' and '.join(which)}: was it written with another config?")
    for name, leaf in example.items():
        shape, dtype = stored[name]
        if (tuple(shape), np.dtype(dtype)) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
            raise UserError(
                f"{where}: {name!r} is {np.dtype(dtype)}{list(shape)}, "
                f"expected {leaf.dtype}{list(leaf.shape)}: was it written with another config?"
            )


def save_tree(path, tree, metadata: dict | None = None, half: bool = False):
    """Writes a tree of arrays and a dict of JSON values to one file in the safetensors layout.

    `half` stores float32 leaves as float16, which `load_tree` turns back into float32; a value that
    float16 cannot hold is a ValueError. Arrays must be readable from this process.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in flatten(tree).items()}
    halved = [n for n, a in arrays.items() if half and a.dtype == np.float32]
    for name in halved:
        with np.errstate(over="ignore"):
            small = arrays[name].astype(np.float16)
        if (np.isfinite(arrays[name]) & ~np.isfinite(small)).any():
            raise UserError(f"{name!r} has values above 65504, too large for float16: half=False")
        arrays[name] = small
    header, data, start = {}, [], 0
    for name, array in arrays.items():
        if array.dtype not in CODES:
            raise UserError(f"{name!r} has dtype {array.dtype}, expected one of {list(DTYPES)}")
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
    with files.open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in data:
            file.write(piece)


def load_tree(path, example=None):
    """`(tree, metadata)` of a file by `save_tree`, the leaves NumPy arrays (read-only).

    With `example` (arrays or ShapeDtypeStructs) the tree has its structure, and another name, shape
    or dtype is a ValueError; without it the tree is nested dicts. FileNotFoundError, ValueError.
    """
    path = epath.Path(path)
    if not path.exists():
        raise NotFound(f"{path} does not exist")
    try:
        leaves, metadata = _parse(path.read_bytes())
        tree = nest(leaves) if example is None else None
    except BROKEN as error:
        raise UserError(f"{path} is damaged ({error}): restore it or make it again") from None
    if example is not None:
        wanted = flatten(example)
        require_fit(wanted, {n: (a.shape, a.dtype) for n, a in leaves.items()}, path)
        tree = jax.tree.unflatten(jax.tree.structure(example), [leaves[n] for n in wanted])
    return tree, metadata


def _parse(content: bytes) -> tuple[dict, dict]:
    """The leaves by name and the metadata of a file's content; one of BROKEN if it is damaged."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    own = header["__metadata__"]
    if own.pop("sha256") != _digest(header, [memoryview(content)[start:]]):
        raise UserError("its checksum disagrees")
    halved = set(json.loads(own["halved"]))
    leaves = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            piece = memoryview(content)[start + first : start + last]
            leaf = np.frombuffer(piece, DTYPES[entry["dtype"]]).reshape(entry["shape"])
            leaves[name] = leaf.astype(np.float32) if name in halved else leaf
    return leaves, json.loads(own["metadata"])


def _digest(header: dict, data) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for piece in data:
        digest.update(piece)
    return digest.hexdigest()


def nest(leaves: dict) -> dict:
    """The inverse of `flatten` for nested dicts."""
    tree = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
