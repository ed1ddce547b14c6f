"""The place of each array on many devices: a mesh of two named axes and one table.

The mesh has the axes `data` and `model`. A batch is split over `data`. Weights are split over both:
over `model` for tensor parallelism (attention heads, hidden units, the vocabulary), and over `data`
to save memory. In the second case the compiler gathers them when they are used (fully sharded data
parallelism). The compiler inserts the communication. The result equals that of a single device up
to rounding.

`TABLE` maps the name of a parameter to its place. The names of optimiser moments and averaged
weights end in the name of their parameter ("opt_state/0/mu/blocks/mlp/in/kernel"), so the same rows
cover them. A name that no row matches is an error. A dimension that the devices do not divide stays
whole.

A mesh is optional: on one device `make_mesh` returns None, and everything here does nothing.
"""

import contextlib
import re

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from udd_jax.errors import UserError

DATA, MODEL = "data", "model"

# Parameter name (a regular expression that must match up to its end) -> axes of the last
# dimensions. The leading axis of the stacked blocks, and any axis before it, stays whole.
TABLE = (
    (r"terms/.+", P()),  # what loss terms learn
    # The vocabulary is split over one axis only. Over two, XLA rematerialises the whole table.
    ("embedding/token", P(MODEL, None)),
    (r"embedding/\w+_(row|column|position)", P(None, None)),
    (r"embedding/\w+_in/kernel", P(None, None)),  # of features
    # If split over `data` too, the gradient would gather all logits of the batch on every device.
    (r"\w+_head/kernel", P(None, MODEL)),
    (r"\w+_head/bias", P(MODEL)),
    # Heads and hidden units over `model`: the outputs of the first product, the inputs of the last.
    ("(query|key|value|mlp/in)/kernel", P(DATA, MODEL)),
    ("(query|key|value|mlp/in)/bias", P(MODEL)),
    (r"(self_attention|\w+_from_\w+|mlp)/out/kernel", P(MODEL, DATA)),
    (r"(self_attention|\w+_from_\w+|mlp)/out/bias", P(None)),
    # The projections of long skips.
    ("skip/kernel", P(DATA, MODEL)),
    ("skip/bias", P(MODEL)),
    # Time: activations are [B, D], small enough to be summed over `model`.
    ("time/table/embedding", P(None, MODEL)),
    ("time/in/kernel", P(DATA, MODEL)),
    ("time/out/kernel", P(MODEL, DATA)),
    ("time/(in|out)/bias", P(None)),
    ("modulation/kernel", P(MODEL, DATA)),
    ("modulation/bias", P(None)),
    ("kernel/(down|up)", P(None, None)),  # low-rank adapters
    # Vectors and scalars.
    (r"(query_norm|key_norm|mlp_norm|norm|\w+_result)/(scale|bias)", P(None)),
    ("given", P(None)),
    ("rezero", P()),
    (r"times/\w+", P()),
    ("count|step|ns_coeffs", P()),
)

# For small networks: the batch is split, the weights are not.
REPLICATED = ((".*", P()),)


def make_mesh(data: int = -1, model: int = 1) -> Mesh | None:
    """A mesh of `data` x `model` devices, or None for one device; -1 means all that there are.

    A single process may use fewer devices than it has. ValueError if there are too few.
    """
    count = jax.device_count()
    if model < 1 or (data < 1 and data != -1):
        raise UserError(f"mesh.data = {data}, mesh.model = {model}, expected at least 1 (data: -1)")
    if data == -1:
        data = max(1, count // model)
    wanted = data * model
    if wanted > count or (wanted != count and jax.process_count() > 1):
        raise UserError(
            f"mesh.data = {data} times mesh.model = {model} is {wanted}, "
            f"but there are {count} devices: choose a product that fits, or mesh.data = -1"
        )
    if count == 1 or wanted == 1:
        return None
    return arranged(jax.devices()[:wanted], data, model)


def local_mesh() -> Mesh | None:
    """A mesh of the devices of this process, for work that is divided among processes."""
    devices = jax.local_devices()
    return None if len(devices) == 1 else arranged(devices, len(devices), 1)


def arranged(devices, data: int, model: int) -> Mesh:
    """A mesh whose rows follow the links of the hardware, in the order `by_process`.

    Several TPU slices share the axis `data`; ValueError if they do not divide it.
    """
    slices = {}
    for device in devices:
        number = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        slices.setdefault(number, []).append(device)
    if data % len(slices):
        raise UserError(f"mesh.data = {data} is not a multiple of the {len(slices)} slices")
    shape = data // len(slices), model
    grids = [
        mesh_utils.create_device_mesh(shape, chips, allow_split_physical_axes=True)
        for chips in slices.values()
    ]
    grid = by_process(np.concatenate(grids))
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def by_process(grid: np.ndarray) -> np.ndarray:
    """The rows of a grid of devices such that those of a process lie next to each other.

    Each process then reads one slice of a batch (`process_share`). Along the links they do not: a
    TPU host has a square of chips.
    """
    return np.array(sorted(grid, key=lambda row: sorted({one.process_index for one in row})))


def use(mesh):
    """A context in which `constrain` refers to `mesh`; an empty context for None."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Places the dimensions of x on these mesh axes, inside a jitted function.

    Without a mesh it returns x unchanged. An axis that does not divide its dimension is left out.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if len(axes) != x.ndim:
        raise UserError(f"{len(axes)} axes {axes} for an array of rank {x.ndim}")
    return jax.lax.with_sharding_constraint(x, fit(P(*axes), x.shape, mesh))


def spec(name: str, shape: tuple[int, ...], table=TABLE) -> P:
    """The PartitionSpec of the array called `name`; ValueError if no row of the table matches."""
    for pattern, axes in table:
        if re.search(f"(^|/)({pattern})$", name):
            if len(axes) > len(shape):
                raise UserError(
                    f"{name!r} has shape {shape}, but the row {pattern!r} of the sharding table "
                    f"speaks of {len(axes)} dimensions"
                )
            return P(*(None,) * (len(shape) - len(axes)), *axes)
    raise UserError(f"no row of the sharding table matches {name!r} {shape}: add one")


def shardings(mesh, tree, table=TABLE):
    """The NamedShardings for a tree of arrays or ShapeDtypeStructs; None without a mesh."""
    if mesh is None:
        return None

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, fit(spec(name, leaf.shape, table), leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(one, tree)


def place(tree, places):
    """ShapeDtypeStructs with the shapes of a tree and these shardings (None: without)."""
    struct = lambda x, at=None: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)  # noqa: E731
    return jax.tree.map(struct, tree, *([] if places is None else [places]))


def create(mesh, make, table=TABLE):
    """The tree that `make()` computes; each part is made on its own devices only."""
    if mesh is None:
        return make()
    return jax.jit(make, out_shardings=shardings(mesh, jax.eval_shape(make), table))()


def shard_tree(mesh, tree, table=TABLE):
    """Places a tree that every process holds in full; unchanged without a mesh."""
    if mesh is None:
        return tree

    def place(leaf, sharding):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree, shardings(mesh, tree, table))


def process_share(mesh) -> tuple[int, int]:
    """(index, count): this process reads slice `index` of `count` equal slices of a global batch.

    Processes that share a row of the mesh, because `model` spans them, read the same slice.
    """
    if mesh is None or jax.process_count() == 1:
        return 0, 1
    rows = [{d.process_index for d in row} for row in mesh.devices]
    mine = [i for i, row in enumerate(rows) if jax.process_index() in row]
    if len(rows) % len(mine) or mine[0] % len(mine) or mine[-1] - mine[0] != len(mine) - 1:
        raise UserError(
            f"mesh.data = {len(rows)}, mesh.model = {mesh.shape[MODEL]}: the processes do not read "
            f"equal slices of a batch: {rows}"
        )
    return mine[0] // len(mine), len(rows) // len(mine)


def shard_batch(mesh, batch):
    """Global arrays, first axis over `data`, from each process's slice; unchanged without a mesh.

    Leaves: [B / count, ...] with `count` from `process_share`. ValueError as of `check_batch`.
    """
    if mesh is None:
        return batch
    sharding, (_, count) = NamedSharding(mesh, P(DATA)), process_share(mesh)

    def place(leaf):
        shape = (leaf.shape[0] * count, *leaf.shape[1:])
        check_batch(mesh, shape[0])
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

    return jax.tree.map(place, batch)


def check_batch(mesh, size: int, name: str = "batch size") -> None:
    """ValueError, one line, if a global batch is not a multiple of the data axis of the mesh."""
    if size % mesh.shape[DATA]:
        raise UserError(f"{name} = {size} is not a multiple of mesh.data = {mesh.shape[DATA]}")


def to_host(tree):
    """The tree as NumPy arrays, in full in every process; all processes call it together."""

    def one(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def fit(axes: P, shape, mesh) -> P:
    """Leaves out the axes that do not divide their dimension."""
    return P(
        *(a if a and n % mesh.shape[a] == 0 else None for a, n in zip(axes, shape, strict=True))
    )
