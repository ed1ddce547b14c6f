"""PyTorch's files without PyTorch: what is rebuilt, what is forgotten, what is refused."""

import enum
import os
import pathlib
import pickle
import re
import subprocess
import sys
import typing
import zipfile

import numpy as np
import pytest

from tests.helpers import quick, torch_writer
from udd_jax.convert import torch_files

HERE = pathlib.Path(__file__).parents[1] / "fixtures" / "torch"
LAYOUTS = ("zip", "legacy")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_of_a_training_checkpoint_equal_those_saved(layout):
    """Views, kinds of numbers and parameters, among callbacks, settings and optimisers."""
    found = torch_files.load(HERE / f"{layout}.ckpt")
    with np.load(HERE / "arrays.npz") as saved:
        assert list(found) == saved.files
        for name, array in saved.items():
            np.testing.assert_array_equal(np.asarray(found[name], array.dtype), array, name)
            assert found[name].shape == array.shape
            if name != "brain":  # NumPy has no bfloat16 of its own
                assert found[name].dtype == array.dtype


def test_a_file_that_is_one_tensor_has_it_under_no_name():
    (name, array), *_ = torch_files.load(HERE / "map.pt").items()
    assert name == "" and array.tolist() == [0, 1, 0, 2]


def test_tensors_of_torchscript_have_the_names_of_its_state_dict():
    """As OpenAI publishes CLIP: half precision, modules in modules, lists and numbers beside."""
    found = torch_files.load(HERE / "script.pt")
    with np.load(HERE / "script.npz") as saved:
        assert found.keys() == set(saved.files)
        for name, array in saved.items():
            np.testing.assert_array_equal(found[name], array, name, strict=True)
    assert "visual.conv1.weight" in found and found["visual.proj"].dtype == np.float16


def test_a_module_that_holds_itself_is_refused(tmp_path):
    # GLOBAL, (), NEWOBJ, memo 0, {"a": memo 0}, BUILD
    loop = b"\x80\x02c__torch__\nA\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", loop)
    with pytest.raises(ValueError, match=r"a\.pt is not a PyTorch checkpoint, or is damaged"):
        torch_files.load(tmp_path / "a.pt")


def test_nothing_of_a_checkpoint_is_imported():
    """In a process of its own: here, another test may have imported PyTorch."""
    code = """if True:
        import sys
        from udd_jax.convert import torch_files
        before = set(sys.modules)
        for path in sys.argv[1:]:
            assert torch_files.load(path)
        print(*sorted(set(sys.modules) - before))
    """
    paths = [str(HERE / f"{layout}.ckpt") for layout in LAYOUTS]
    command, env = [sys.executable, "-c", code, *paths], quick.environment()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [m for m in done.stdout.split() if m.startswith(("torch", "some_trainer"))]
    # The files do name a package that is not here: the objects of its classes were forgotten.
    assert b"some_trainer" in zipfile.ZipFile(HERE / "zip.ckpt").read("zip/data.pkl")


def test_the_files_that_tests_write_are_read_like_those_of_pytorch(tmp_path):
    state = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(2.5), "c": np.arange(3)}
    torch_writer.save(tmp_path / "a.ckpt", {"state_dict": state, "epoch": 3})
    found = torch_files.load(tmp_path / "a.ckpt")
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def legacy(content: bytes) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = [0x1950A86A20F9469CFC6C, 1001, system]
    return b"".join(pickle.dumps(part, 2) for part in head) + content + pickle.dumps([], 2)


COMMANDS = [
    "os.system",
    "posix.system",
    "nt.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "builtins.getattr",
    "builtins.__import__",
    "__builtin__.eval",
    "importlib.import_module",
    "runpy.run_path",
    "ctypes.CDLL",
    "pickle.loads",
    "commands.getoutput",  # of Python 2
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "numpy.testing._private.utils.runstring",
    "some_package.anything",
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_would_run_a_command_is_refused(tmp_path, layout, name):
    trace, path = tmp_path / "trace", tmp_path / "evil.ckpt"
    evil = torch_writer.call(name, f"open({str(trace)!r}, 'w')")
    tree = {"state_dict": {}, "callbacks": evil}
    if layout == "zip":
        torch_writer.save(path, {**tree, "state_dict": {"a": np.zeros(2)}})
    else:
        path.write_bytes(legacy(torch_writer.pickled(tree)[0]))
    with pytest.raises(ValueError, match=f"is refused, it .*{name}") as error:
        torch_files.load(path)
    assert "\n" not in str(error.value) and not trace.exists()


def test_it_is_refused_when_it_comes_through_a_class_too(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    (tmp_path / "a.ckpt").write_bytes(legacy(pickle.dumps({"a": Evil()}, 2)))
    with pytest.raises(ValueError, match=r"it names \w+.system"):
        torch_files.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize("name", ["some_trainer.ModelCheckpoint", "__main__.Callback"])
def test_objects_of_unknown_classes_are_inert(tmp_path, name):
    tree = {"state_dict": {"a": np.ones(2)}, "callbacks": {"k": torch_writer.instance(name)}}
    torch_writer.save(tmp_path / "a.ckpt", tree)
    assert torch_files.load(tmp_path / "a.ckpt")["a"].tolist() == [1, 1]


class Colour(enum.Enum):
    RED = 1


SETTINGS = {
    "type": typing.Any,
    "path": pathlib.PurePosixPath("/data"),
    "pattern": re.compile("a+"),
    "enum": Colour.RED,
    "random": np.random.RandomState(3),
    "generator": np.random.default_rng(3),
    "bits": np.random.PCG64(3),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_hyper_parameters_hold_are_inert(tmp_path, name):
    path = tmp_path / "a.ckpt"
    inner = torch_writer.Raw(pickle.dumps(SETTINGS[name], 2)[2:-1])  # without head and stop
    torch_writer.save(path, {"state_dict": {"a": np.ones(2)}, "hyper_parameters": {"x": inner}})
    assert torch_files.load(path)["a"].tolist() == [1, 1]


def test_a_path_of_a_newer_python_is_inert(tmp_path):
    path = tmp_path / "a.ckpt"
    for name in ("pathlib._local.PosixPath", "typing.Optional"):
        tree = {"state_dict": {"a": np.ones(2)}, "x": torch_writer.call(name, "x")}
        torch_writer.save(path, tree)
        assert torch_files.load(path)["a"].tolist() == [1, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_short_anywhere_is_one_line(tmp_path, layout):
    whole, path = (HERE / f"{layout}.ckpt").read_bytes(), tmp_path / "cut.ckpt"
    for size in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.ckpt") as error:
            torch_files.load(path)
        assert "\n" not in str(error.value)


def test_a_tensor_that_reaches_beyond_its_numbers_is_one_line(tmp_path):
    path = tmp_path / "a.ckpt"
    for shape, stride in (((5,), 1), ((2,), 4), ((2,), -1), ((-2,), 1)):
        torch_writer.save(path, {"a": np.arange(4.0)})
        content, _ = torch_writer.pickled({"a": np.arange(4.0)})
        head = torch_writer._put(((4,), (1,)), [])[1:-1]
        assert content.count(head) == 1
        bent = content.replace(head, torch_writer._put((shape, (stride,)), [])[1:-1])
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", bent)
            archive.writestr("archive/data/0", np.arange(4.0).tobytes())
        with pytest.raises(ValueError, match="damaged or cut short"):
            torch_files.load(path)


def test_other_files_are_one_line(tmp_path):
    files = {
        "empty": b"",
        "text": b"a caption",
        "pickle": pickle.dumps({"a": 1}),
        "picture": b"\x89PNG\r\n\x1a\n",
        "zip": b"PK\x03\x04" + bytes(30),
        "words": legacy(pickle.dumps({"state_dict": {"a": "b"}}, 2)),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "absent", "."]:
        with pytest.raises(ValueError, match=r"cannot be read|not a PyTorch|no tensors") as error:
            torch_files.load(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
