"""Claims about the mesh and the table: everything has a place, and the numbers do not change."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from udd_jax.diffusion import vocab
from udd_jax.networks import transformer
from udd_jax.runtime import processes, sharding

FIVE = vocab.Vocab(
    (
        vocab.Modality("first", 6, 8, (2, 3), like="image"),
        vocab.Modality("image", 6, 8, (2, 3)),
        vocab.Modality("layout", 4, 3, (2, 2)),
        vocab.Modality("sound", 3, 5, (1, 3)),
        vocab.Modality("text", 4, 16),
    )
)


@pytest.fixture(scope="module", params=["image and text", "five modalities"])
def model(request):
    tokens, attention = FIVE, "self"
    if request.param == "image and text":
        tokens = vocab.image_text((2, 3), image_classes=8, text_classes=16, text_length=4)
        attention = "mutual"
    return transformer.Transformer(
        tokens, steps=7, layers=2, width=16, heads=4, given_vector=True, qk_norm=True,
        time="per_modality", rezero=1.0, attention=attention,
    )  # fmt: skip


def abstract_params(model):
    return jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(k, simple=True, separator="/"), x.shape) for k, x in leaves]


@pytest.mark.parametrize("time_table", ["untied", "tied", "sinusoidal"])
def test_every_parameter_moment_and_average_has_a_place(model, time_table):
    clone = model.clone(time_table=time_table)
    params = abstract_params(clone)
    state = {
        "params": params,
        "ema_params": params,
        "opt_state": jax.eval_shape(optax.adamw(1e-3).init, params),
        "step": jnp.int32(0),
    }
    for name, shape in names(state):
        spec = sharding.spec(name, shape)
        assert len(spec) == len(shape)
        if name.endswith(("kernel", "token", "table/embedding")):
            assert any(spec), name  # no large array is whole everywhere


def test_moments_lie_where_their_parameters_lie():
    for name in ("params/blocks/mlp/in/kernel", "opt_state/0/mu/blocks/mlp/in/kernel"):
        assert sharding.spec(name, (2, 16, 64)) == P(None, "data", "model")
    assert sharding.spec("ema_params/embedding/token", (25, 16)) == P("model", None)
    assert sharding.spec("params/text_head/kernel", (16, 16)) == P(None, "model")
    assert sharding.spec("blocks/text_from_image/out/kernel", (2, 16, 16)) == P(
        None, "model", "data"
    )


def test_unknown_parameter_is_an_error_naming_it():
    with pytest.raises(ValueError, match=r"matches 'params/blocks/gate/kernel' \(2, 4\)"):
        sharding.spec("params/blocks/gate/kernel", (2, 4))
    with pytest.raises(ValueError, match="'rezeros'"):
        sharding.spec("rezeros", ())
    with pytest.raises(ValueError, match="speaks of 2 dimensions"):
        sharding.spec("opt_state/v/text_head/kernel", (16,))


@pytest.mark.slow
def test_the_network_is_the_same_function_on_a_mesh_and_its_gradient_is_split(model):
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), abstract_params(model)
    )
    tokens = model.vocab
    batch = (
        rng.integers(0, tokens.size, (8, tokens.length)).astype(np.int32),
        rng.integers(0, 8, (8, len(tokens.modalities))).astype(np.int32),
        rng.integers(0, 2, (8, tokens.length)).astype(bool),
    )

    def loss(params, batch):
        logits = model.apply({"params": params}, *batch)
        return sum(jnp.square(jax.nn.log_softmax(y)).mean() for y in logits)

    expected, expected_grad = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = sharding.make_mesh(2, 4)
    with sharding.use(mesh):
        placed = sharding.shard_tree(mesh, params)
        value, grad = jax.jit(
            jax.value_and_grad(loss), out_shardings=(None, sharding.shardings(mesh, params))
        )(placed, sharding.shard_batch(mesh, batch))
    assert abs(value - expected) < 1e-5
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(expected_grad), strict=True):
        assert np.allclose(a, b, atol=1e-5)
    kernel = grad["blocks"]["mlp"]["in"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 16 // 2, 64 // 4)


def test_a_tree_is_made_in_place_with_the_same_numbers():
    def make():
        return {"query": {"kernel": jax.random.normal(jax.random.key(0), (8, 16))}}

    mesh = sharding.make_mesh(4, 2)
    made, expected = sharding.create(mesh, make), make()
    kernel = made["query"]["kernel"]
    assert kernel.sharding.spec == P("data", "model")
    assert kernel.addressable_shards[0].data.shape == (2, 8)
    assert np.array_equal(sharding.to_host(made)["query"]["kernel"], kernel)
    assert np.allclose(kernel, expected["query"]["kernel"], atol=1e-6)
    assert sharding.create(None, make)["query"]["kernel"].sharding.num_devices == 1


def test_without_a_mesh_nothing_happens():
    mesh = sharding.make_mesh(1, 1)
    assert mesh is None
    x = np.ones((3, 5))
    with sharding.use(mesh):
        assert sharding.constrain(x, "data", "model") is x
    assert sharding.shard_batch(mesh, {"x": x})["x"] is x
    assert sharding.shard_tree(mesh, {"unheard_of": x})["unheard_of"] is x
    assert sharding.process_share(mesh) == (0, 1)


def test_dimensions_that_do_not_divide_stay_whole():
    mesh = sharding.make_mesh(4, 2)
    with sharding.use(mesh):
        y = jax.jit(lambda x: sharding.constrain(x + 1, "data", "model"))(np.zeros((8, 3)))
        assert y.sharding.spec == P("data")
        with pytest.raises(ValueError, match=r"1 axes .* rank 2"):
            sharding.constrain(jnp.zeros((8, 3)), "data")
    placed = sharding.shard_tree(mesh, {"query": {"kernel": np.zeros((8, 3))}})
    assert placed["query"]["kernel"].sharding.spec == P("data", None)


def test_meshes_that_do_not_fit_are_refused():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(sharding.make_mesh(-1, 4).shape) == {"data": 2, "model": 4}
    assert dict(sharding.make_mesh(2, 2).shape) == {"data": 2, "model": 2}
    with pytest.raises(ValueError, match="is 16, but there are 8 devices"):
        sharding.make_mesh(8, 2)
    with pytest.raises(ValueError, match="expected at least 1"):
        sharding.make_mesh(0, 1)
    with pytest.raises(ValueError, match=r"batch size = 6 is not a multiple of mesh.data = 8"):
        sharding.shard_batch(sharding.make_mesh(), {"x": np.zeros((6, 2))})


@pytest.mark.parametrize("model", [1, 2, 4])
def test_each_host_of_a_pod_reads_one_slice_of_a_batch(monkeypatch, model):
    """4 x 4 chips in the order of their links, rows of the torus; a host has a square of four."""
    chips = [types.SimpleNamespace(process_index=i // 2 * 2 + j // 2) for i, j in np.ndindex(4, 4)]
    grid = np.array(chips).reshape(-1, model)
    monkeypatch.setattr(jax, "process_count", lambda: 4)

    def shares(grid):
        mesh = types.SimpleNamespace(devices=grid, shape={"data": len(grid), "model": model})
        for index in range(4):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            yield sharding.process_share(mesh)

    # A row of four chips has two hosts, and both read what it needs.
    wanted = [(0, 2), (0, 2), (1, 2), (1, 2)] if model == 4 else [(i, 4) for i in range(4)]
    assert list(shares(sharding.by_process(grid))) == wanted
    if model < 4:
        with pytest.raises(ValueError, match=r"mesh\.data = .* do not read equal slices"):
            list(shares(grid))


def test_processes_join_when_the_environment_says_so(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    processes.join({})
    processes.join({"UDD_DISTRIBUTED": "1"})
    names = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    processes.join(names)
    assert calls == [(), ("host:1", 4, 3)]
    with pytest.raises(ValueError, match="JAX_PROCESS_ID is not set"):
        processes.join({"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4"})
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES = 'four'"):
        processes.join(names | {"JAX_NUM_PROCESSES": "four"})
