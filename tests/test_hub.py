"""A pipeline as a folder: every bit comes back, and a folder that could do harm is refused."""

import json
import os
import pickle
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

from udd_jax import build, hub, pipeline
from udd_jax.runtime import files, trees

SHAPES = pipeline.pathlib.Path(pipeline.__file__).parent / "assets" / "shapes"


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "model"
    pipe.save_pretrained(folder, license="apache-2.0")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def test_every_bit_comes_back(pipe, saved):
    again = pipeline.Pipeline.from_pretrained(saved)
    ours, theirs = trees.flatten(pipe.params), trees.flatten(again.params)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes()
    assert again.config.to_dict() == pipe.config.to_dict()
    for name, tokenizer in pipe.tokenizers.items():
        assert again.tokenizers[name].hash == tokenizer.hash
    assert (again.vocab, again.model) == (pipe.vocab, pipe.model)
    jax.tree.map(np.testing.assert_array_equal, again.kernel, pipe.kernel)
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
    np.testing.assert_array_equal(again.reconstruct(images), pipe.reconstruct(images))


def test_a_saved_folder_is_opened_like_one_of_a_run(pipe, saved):
    again = pipeline.Pipeline.load(saved)
    assert again.folder == saved
    for one, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(pipe.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_second_save_writes_the_same_bytes(saved, tmp_path):
    pipeline.Pipeline.from_pretrained(saved).save_pretrained(tmp_path / "b", license="apache-2.0")
    assert {p.name for p in saved.iterdir()} == {p.name for p in (tmp_path / "b").iterdir()}
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_other_programs_read_the_weights(pipe, saved):
    found = safetensors.numpy.load_file(saved / hub.WEIGHTS)
    ours = trees.flatten(pipe.params)
    assert found.keys() == ours.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, ours[name])


def test_the_folder_of_a_run_is_read_too(pipe, tiny_run):
    again = pipeline.Pipeline.from_pretrained(tiny_run)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(pipe.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_card_has_the_results_of_the_run(tmp_path):
    pipeline.Pipeline.load(SHAPES).save_pretrained(tmp_path / "model", license="apache-2.0")
    text = (tmp_path / "model" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "udd_jax",
        "license": "apache-2.0",
        "pipeline_tag": "text-to-image",
        "tags": ["jax", "discrete-diffusion", "text-to-image", "image-to-text"],
    }
    result = files.read_json(SHAPES / "evaluation.json")
    for row in result["headline"]:
        cells = f"| {row['task']} | {row['name']} | {row['value']:.3f} ± {row['error']:.3f} |"
        assert cells in body
    assert f"{result['manifest']['parameters']:,} parameters" in body
    assert "Data: shapes." in body and "Images are 32 x 32 pixels" in body
    assert files.read_json(tmp_path / "model" / "evaluation.json") == result


def test_a_card_of_data_that_no_program_reads_does_not_say_that_nothing_was_measured(pipe):
    protocol = {"split": "test", "item_count": 8, "suite": "main"}
    found = {"headline": [], "manifest": {"protocol": protocol}}
    text = hub.card(pipe.config, pipe.vocab, 5, found, "mit")
    assert "Split test, 8 items, suite main" in text and "is in `evaluation.json`" in text
    assert "has not been evaluated" not in text


def test_the_tags_of_a_card_are_what_the_network_was_trained_for(pipe):
    for mixture, tags in (
        ({"t2i": 0.9, "image": 0.1}, ["text-to-image"]),
        ({"text|image": 1.0}, ["image-to-text"]),
        ({"any": 1.0}, ["text-to-image", "image-to-text"]),
        ({"image": 1.0}, []),
    ):
        config = pipe.config.copy_and_resolve_references()
        with config.unlocked():
            config.train.mixture = mixture
        _, head, _ = hub.card(config, pipe.vocab, 5, None, "mit").split("---\n", 2)
        found = yaml.safe_load(head)
        assert found["tags"] == ["jax", "discrete-diffusion", *tags]
        assert found["pipeline_tag"] == (tags or ["unconditional-image-generation"])[0]


def test_a_card_without_results_says_so(saved):
    assert "This model has not been evaluated." in (saved / "README.md").read_text()
    assert not (saved / "evaluation.json").exists()


def test_a_folder_with_something_in_it_is_not_written_to(pipe, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not an empty folder: choose another"):
        pipe.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch harm",)


def link(folder):
    (folder.parent / "secret").write_text("secret")
    (folder / "notes.txt").symlink_to(folder.parent / "secret")


def folder_link(folder):
    (folder / "more").symlink_to(folder.parent)


def linked_weights(folder):
    shutil.move(folder / hub.WEIGHTS, folder.parent / "weights")
    (folder / hub.WEIGHTS).symlink_to(folder.parent / "weights")


def named_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def deep_pickle(folder):
    (folder / "more").mkdir()
    (folder / "more" / "a.PKL").write_bytes(b"")


def hidden_pickle(folder):
    (folder / "text.model").write_bytes(pickle.dumps(Evil()))


def pickled_weights(folder):
    (folder / hub.WEIGHTS).write_bytes(pickle.dumps(Evil()))


def program(folder):
    (folder / "modeling.py").write_text("raise SystemExit")


def config(field, value):
    def change(folder):
        record = files.read_json(folder / build.CONFIG)
        *parents, last = field.split(".")
        place = record["config"]
        for parent in parents:
            place = place[parent]
        place[last] = value
        (folder / build.CONFIG).write_text(json.dumps(record))

    return change


def pipe_file(folder):
    os.mkfifo(folder / "waits")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (link, "notes.txt is a link"),
        (folder_link, "more is a link"),
        (linked_weights, "model.safetensors is a link"),
        (named_pickle, "pytorch_model.bin may hold a program"),
        (deep_pickle, "a.PKL may hold a program"),
        (hidden_pickle, "text.model is a pickle or an archive"),
        (pickled_weights, "model.safetensors is damaged"),
        (program, "modeling.py may hold a program"),
        (pipe_file, "waits is not a regular file"),
        (config("data", "folder:/etc"), "config.data = 'folder:/etc' names a file outside of it"),
        (config("vq.file", "../../key"), "config.vq.file = '../../key' names a file outside"),
        (config("init_from", "~/run"), "config.init_from = '~/run' names a file outside"),
        (config("text.file", "C:\\\\key"), "names a file outside"),
    ],
)
def test_a_hostile_folder_is_refused_in_a_line(copy, monkeypatch, harm, message):
    monkeypatch.chdir(copy.parent)
    harm(copy)
    with pytest.raises(ValueError) as caught:
        pipeline.Pipeline.from_pretrained(copy)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (copy.parent / "harm").exists()


@pytest.mark.parametrize("name", ["config.json", "text.model", "image_tokenizer.safetensors"])
def test_a_folder_that_lacks_a_file_is_not_complete(copy, name):
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        pipeline.Pipeline.from_pretrained(copy)


def test_a_saved_config_names_no_folder_of_this_machine(pipe, tmp_path):
    mine = pipe.config.copy_and_resolve_references()
    with mine.unlocked():
        mine.data = "folder:/home/me/birds"
        mine.init_from, mine.vq.file = "../other run", "C:\\me\\vq"
        mine.data_options = {"images": "~/pictures", "caption_field": "text"}
    other = pipeline.dataclasses.replace(pipe, config=mine)
    other.save_pretrained(tmp_path / "model")
    found = pipeline.Pipeline.from_pretrained(tmp_path / "model").config
    assert (found.data, found.init_from, found.vq.file) == ("folder:birds", "other run", "vq")
    assert found.data_options.to_dict() == {"images": "pictures", "caption_field": "text"}
    assert all(b"home" not in path.read_bytes() for path in (tmp_path / "model").iterdir())


# ---- Shards and dtypes ---------------------------------------------------------------------------


def test_weights_above_the_limit_are_several_files(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model", shard=20_000)
    shards = sorted(path.name for path in (tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert not (tmp_path / "model" / hub.WEIGHTS).exists()
    index = files.read_json(tmp_path / "model" / hub.INDEX)
    ours = trees.flatten(pipe.params)
    assert index["weight_map"].keys() == ours.keys()
    assert index["metadata"]["total_size"] == sum(np.asarray(a).nbytes for a in ours.values())
    for file in shards:
        found = safetensors.numpy.load_file(tmp_path / "model" / file)
        assert found.keys() == {
            name for name, where in index["weight_map"].items() if where == file
        }
        assert len(found) == 1 or sum(a.nbytes for a in found.values()) <= 20_000
    again = trees.flatten(pipeline.Pipeline.from_pretrained(tmp_path / "model").params)
    assert again.keys() == ours.keys()
    for name, array in again.items():
        assert np.asarray(array).tobytes() == np.asarray(ours[name]).tobytes()


@pytest.mark.parametrize("where", ["../weights.safetensors", "more/a.safetensors", 3])
def test_an_index_that_leads_outside_is_refused(pipe, tmp_path, where):
    pipe.save_pretrained(tmp_path / "model", shard=20_000)
    path = tmp_path / "model" / hub.INDEX
    index = files.read_json(path)
    index["weight_map"][next(iter(index["weight_map"]))] = where
    files.write_json(path, index)
    with pytest.raises(
        ValueError, match=r"outside of the folder|is damaged, expected a weight_map"
    ):
        pipeline.Pipeline.from_pretrained(tmp_path / "model")


def test_bfloat16_is_half_of_the_bytes_and_reads_as_float32(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "whole")
    pipe.save_pretrained(tmp_path / "half", dtype="bfloat16")
    sizes = [(tmp_path / name / hub.WEIGHTS).stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.62 * sizes[1]
    again = trees.flatten(pipeline.Pipeline.from_pretrained(tmp_path / "half").params)
    for name, array in trees.flatten(pipe.params).items():
        assert again[name].dtype == array.dtype
        np.testing.assert_allclose(again[name], array, rtol=2**-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype = 'int8', expected float32 or bfloat16"),
        ({"shard": 0}, "shard = 0"),
    ],
)
def test_a_bad_option_of_saving_is_named(pipe, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.save_pretrained(tmp_path / "model", **options)
    assert list(tmp_path.iterdir()) == []
