"""Claims about files, portable trees and checkpoints: all of it, or the one before."""

import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from udd_jax.runtime import checkpoints, files, trees


def state(value: float):
    return {
        "params": {"kernel": jnp.full((8, 4), value), "bias": jnp.full(4, value, jnp.bfloat16)},
        "opt_state": ({"count": jnp.int32(value)}, (), [np.full(3, value)]),
        "step": int(value),
    }


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    keeper = checkpoints.Checkpoints(tmp_path / "checkpoints", keep=2, say=said.append)
    yield keeper
    keeper.close()


# Files


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(KeyboardInterrupt), files.open_atomic(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_bad_json_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        files.read_json(tmp_path / "a.json")
    files.write_text(tmp_path / "a.json", "{")
    with pytest.raises(ValueError, match="is damaged, expected JSON") as caught:
        files.read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})


# Trees


def test_tree_file_round_trips(tmp_path):
    path, tree = tmp_path / "a.safetensors", state(3)
    trees.save_tree(path, tree, {"codes": 7})
    loaded, metadata = trees.load_tree(path, example=tree)
    assert equal(tree, loaded) and metadata == {"codes": 7}
    assert loaded["params"]["bias"].dtype == ml_dtypes.bfloat16
    nested, _ = trees.load_tree(path)
    assert np.array_equal(nested["opt_state"]["0"]["count"], 3)


def test_tree_file_is_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    trees.save_tree(tmp_path / "a.safetensors", {"a": {"b": np.arange(6.0).reshape(2, 3)}})
    loaded = safetensors.load_file(tmp_path / "a.safetensors")
    assert list(loaded) == ["a/b"] and np.array_equal(loaded["a/b"], [[0, 1, 2], [3, 4, 5]])


def test_half_precision_halves_float32_only(tmp_path):
    tree = {"a": jnp.linspace(0, 1, 1000), "b": np.arange(5), "c": np.float16([1, 2])}
    trees.save_tree(tmp_path / "a", tree, half=True)
    loaded, _ = trees.load_tree(tmp_path / "a", example=tree)
    assert np.array_equal(loaded["a"], np.asarray(tree["a"]).astype(np.float16).astype(np.float32))
    assert loaded["a"].dtype == np.float32 and (tmp_path / "a").stat().st_size < 2700
    with pytest.raises(ValueError, match="'a' has values above 65504"):
        trees.save_tree(tmp_path / "b", {"a": jnp.float32([1e5])}, half=True)
    assert not (tmp_path / "b").exists()


def test_damaged_tree_file_is_refused(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        trees.load_tree(path)
    trees.save_tree(path, state(3), {"note": "abc"})
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 1
    renamed = content.replace(b"abc", b"abd")
    for damaged in (content[:-1], content[:40], b"", bytes(flipped), renamed):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged") as caught:
            trees.load_tree(path)
        assert "\n" not in str(caught.value)


def test_misfit_is_named(tmp_path):
    trees.save_tree(tmp_path / "a", {"x": np.zeros(3), "y": np.zeros(2)})
    with pytest.raises(ValueError, match=r"has no 'z' \(1 missing\) and has 'y' \(1 unexpected\)"):
        trees.load_tree(tmp_path / "a", {"x": np.zeros(3), "z": np.zeros(1)})
    with pytest.raises(ValueError, match=r"'x' is float64\[3\], expected float32\[3\]"):
        trees.load_tree(tmp_path / "a", {"x": np.zeros(3, np.float32), "y": np.zeros(2)})


def test_typed_keys_are_refused():
    with pytest.raises(ValueError, match="'key' is a typed PRNG key"):
        trees.flatten({"key": jax.random.key(0)})


# Checkpoints


def test_restore_gives_back_the_latest(store):
    assert store.restore(state(0)) is None
    store.save(10, state(10), {"bound": 0.1})
    store.save(20, state(20), {"window": [0.1, 1 / 3]}, wait=True)
    tree, metadata = store.restore(state(0))
    assert equal(tree, state(20)) and metadata == {"window": [0.1, 1 / 3]}
    tree, metadata = store.restore(state(0), step=10)
    assert equal(tree, state(10)) and metadata == {"bound": 0.1}


def test_donating_right_after_a_save_does_not_change_it(store):
    tree = {"a": jnp.arange(1 << 18, dtype=jnp.float32)}
    expected = np.array(tree["a"])
    spoil = jax.jit(lambda t: {"a": t["a"] * 0 - 1}, donate_argnums=0)
    spoil({"a": jnp.zeros(1 << 18)})
    store.save(1, tree)
    tree = spoil(tree)
    for _ in range(10):
        tree = spoil(tree)
    restored, _ = store.restore({"a": expected})
    assert np.array_equal(restored["a"], expected)


def test_part_of_a_checkpoint_is_read_alone(store):
    store.save(1, state(5), wait=True)
    part = {"params": state(0)["params"]}
    tree, _ = store.restore(part, partial=True)
    assert equal(tree, {"params": state(5)["params"]})
    with pytest.raises(ValueError, match=r"has 'opt_state/0/count' \(3 unexpected\)"):
        store.restore(part)


def test_the_last_and_the_best_are_kept(tmp_path):
    keeper = checkpoints.Checkpoints(tmp_path, keep=2, best="bound")
    for step, bound in enumerate([3.0, 1.0, 2.0, None, 2.5]):
        keeper.save(step, {"a": jnp.float32(step)}, {"bound": bound})
    keeper.close()
    assert keeper.steps() == [1, 3, 4] and keeper.best_step() == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000001", "000000003", "000000004"]


def data_file(path):
    return max(path.rglob("d/*"), key=lambda file: file.stat().st_size)


def truncate(path):
    file = data_file(path)
    file.write_bytes(file.read_bytes()[:-1])


def flip(path):
    file = data_file(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def lose_file(path):
    data_file(path).unlink()


def lose_manifest(path):
    (path / checkpoints.MANIFEST).unlink()


def edit_manifest(path):
    text = (path / checkpoints.MANIFEST).read_text()
    (path / checkpoints.MANIFEST).write_text(text.replace('"n": 2', '"n": 3'))


@pytest.mark.parametrize("damage", [truncate, flip, lose_file, lose_manifest, edit_manifest])
def test_damaged_latest_falls_back_and_says_so(store, said, tmp_path, damage):
    store.save(1, state(1), {"n": 1})
    store.save(2, state(2), {"n": 2}, wait=True)
    damage(tmp_path / "checkpoints" / "000000002")
    tree, metadata = store.restore(state(0))
    assert equal(tree, state(1)) and metadata == {"n": 1}
    assert len(said) == 1 and "000000002" in said[0] and "the one before it is used" in said[0]
    store.save(2, state(3), wait=True)  # takes the place of the damaged one
    assert equal(store.restore(state(0))[0], state(3))


def test_all_damaged_is_an_error_and_no_silent_restart(store, tmp_path):
    store.save(1, state(1), wait=True)
    flip(tmp_path / "checkpoints" / "000000001")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged"):
        store.restore(state(0))
    with pytest.raises(ValueError, match=r"000000001: .* has changed; good ones"):
        store.restore(state(0), step=1)


def test_leftovers_of_a_killed_save_are_ignored_then_removed(store, tmp_path):
    store.save(1, state(1), wait=True)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "000000001", folder / "000000002.orbax-checkpoint-tmp")
    assert equal(store.restore(state(0))[0], state(1))
    assert (folder / "000000002.orbax-checkpoint-tmp").exists()
    store.save(2, state(2), wait=True)
    assert sorted(p.name for p in folder.iterdir()) == ["000000001", "000000002"]


def test_a_run_that_goes_on_from_an_earlier_step_replaces_the_later_ones(store):
    for step in (1, 2, 3):
        store.save(step, state(step), wait=True)
    tree, _ = store.restore(state(0), step=2)
    store.save(3, tree, wait=True)
    assert store.steps() == [2, 3]
    store.save(2, state(9), wait=True)
    assert store.steps() == [2] and equal(store.restore(state(0))[0], state(9))


def test_failed_save_is_one_line_and_keeps_the_last_good_one(store, tmp_path):
    store.save(1, state(1), wait=True)
    big = {str(i): np.random.default_rng(i).random(1 << 15) for i in range(8)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (20, 1 << 16):  # bytes of a file, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(
                OSError, match=r"step 2 was .* File too large; .* is kept"
            ) as caught:
                store.save(2, big, wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "\n" not in str(caught.value)
        assert store.steps() == [1]  # a thread that still writes may leave a part of step 2
        assert equal(store.restore(state(0))[0], state(1))
    store.save(2, big, wait=True)
    left = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert left == ["000000001", "000000002"] and store.latest_step() == 2


FULL_DISK = """
import resource, sys
import numpy as np
from udd_jax.runtime import checkpoints
store = checkpoints.Checkpoints(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    store.save(1, {str(i): np.random.default_rng(i).random(1 << 15) for i in range(8)}, wait=True)
except OSError as error:
    print(error)
store.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("most", [20, 1 << 16])
def test_nothing_else_is_said_of_a_failed_save(most, tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "checkpoints"), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout and done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    keeper = checkpoints.Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(OSError, match="there is no earlier one") as caught:
        keeper.save(1, state(1), wait=True)
    assert "\n" not in str(caught.value)
    keeper.close()


def test_restores_on_another_number_of_devices(store):
    def on(devices, *axes):
        mesh = jax.make_mesh(
            devices,
            ("data", "model"),
            axis_types=(AxisType.Auto,) * 2,
            devices=jax.devices()[: devices[0] * devices[1]],
        )
        return NamedSharding(mesh, PartitionSpec(*axes))

    value = jnp.arange(64.0).reshape(8, 8)
    tree = {"a": jax.device_put(value, on((4, 2), "data", "model")), "b": jnp.float32(7)}
    for step, sharding in enumerate([on((1, 1)), on((2, 2), "model", "data"), on((8, 1), "data")]):
        store.save(step, tree, wait=True)
        whole = NamedSharding(sharding.mesh, PartitionSpec())
        example = {
            "a": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding),
            "b": jax.ShapeDtypeStruct((), jnp.float32, sharding=whole),
        }
        tree, _ = store.restore(example)
        assert tree["a"].sharding == sharding and np.array_equal(tree["a"], value)
        assert tree["b"] == 7


def test_metadata_must_be_json(store):
    with pytest.raises(ValueError, match="JSON"):
        store.save(1, state(1), {"loss": float("nan")})
    with pytest.raises(ValueError, match="keep = 0"):
        checkpoints.Checkpoints("x", keep=0)
    assert store.steps() == []
