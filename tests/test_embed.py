"""Vectors of the dual encoder as data: `--mode=embed`, and `pipe.embed`."""

import contextlib
import functools
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import prior, t2i
from tests import test_docs
from tests.helpers import shell, tiny
from udd_jax import embed, modalities, pipeline, stages
from udd_jax.data import pixels, reading, sources, vectors
from udd_jax.data.sources import listing, shapes
from udd_jax.errors import UserError
from udd_jax.networks import dual_encoder, matching
from udd_jax.training import plan

E, SIZE = 6, 32


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """The folder of a run that was never trained, and a dual encoder that was not either."""
    folder = tmp_path_factory.mktemp("embed") / "run"
    shutil.copytree(tiny_run, folder)
    pipe = pipeline.Pipeline.load(folder)
    padding = pipe.tokenizers["text"].pad_id
    model = dual_encoder.DualEncoder(pipe.vocab, 6, padding, width=E, layers=1, heads=2)
    params = jax.jit(lambda key: dual_encoder.init(model, key))(jax.random.key(0))
    hashes = {name: tokenizer.hash for name, tokenizer in pipe.tokenizers.items()}
    matching.save(folder / matching.FILE, matching.Matcher(model, params, hashes))
    return folder


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    """A config of 5 scenes in each split, and what the command makes of it."""
    config, out = tiny.config(), tmp_path_factory.mktemp("embed") / "made"
    config.data_options.size = 5
    return config, out, embed.run(run, out, config)


def files_of(folder) -> dict:
    """{path: content} of what a source may read, and of the list of faults."""
    paths = (path for path in pathlib.Path(folder).rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: content for name, content in names.items() if name != "lock"}


def with_vectors(config, out) -> dict:
    """{split: source} of the folder, with its vectors as an embedding."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.modalities.summary = {
            "kind": "embedding", "dimensions": E, "residuals": 1, "codes": 2,
        }  # fmt: skip
    options = modalities.source_options(config) | {"size": None}
    spec = f"folder:{out}"
    return {split: sources.open_source(spec, split, **options) for split in listing.SPLITS}


def test_a_vector_is_that_of_the_tower_for_the_codes_of_the_plain_picture(pipe, written):
    """One picture at a time, step by step."""
    _, out, _ = written
    tower = functools.partial(pipe.dual_encoder.model.apply, method="encode")
    slow = jax.jit(lambda params, codes, t: tower({"params": params}, "image", codes, t).whole)
    paths = sorted((out / "test").glob("*.npy"))[3:]
    for path in paths:
        image = pixels.read(path.with_suffix(".png"))
        codes, found = pipe.tokenizers["image"].encode(image[None]), np.load(path)
        expected = slow(pipe.dual_encoder.params, codes, np.zeros(1, int))
        assert found.dtype == np.float32 and found.shape == (E,)
        np.testing.assert_allclose(found, expected[0], atol=1e-5)
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_what_is_written_is_read_as_data_with_the_same_splits_and_a_vector_each(pipe, written):
    config, out, counts = written
    for split, source in with_vectors(config, out).items():
        before = sources.open_source(config.data, split, **config.data_options.to_dict())
        assert len(source) == len(before) == counts[split]["vectors"] == 5
        assert counts[split]["captions"] == sum(len(record.captions) for record in before)
        examples = reading.examples(source, 0, 5, reading.Views(SIZE))
        for i, (record, example) in enumerate(zip(before, examples, strict=True)):
            assert example.key == f"{split}/{i}-{split}-0-{i}.png" and not example.faults
            assert example.captions == record.captions
            np.testing.assert_array_equal(example.pixels[0], record.image)
            vector = pipe.embed(record.image)[0]
            np.testing.assert_allclose(example.extra["summary"], vector, atol=1e-6)


def test_vectors_of_pictures_and_texts_have_length_1_and_a_run_takes_them_as_given(pipe):
    images, captions = shapes.arrays("test", 3)[0], ["a red circle", "a blue square"]
    a, b = pipe.embed(images), pipe.embed(captions, "text")
    assert a.shape == (3, E) and b.shape == (2, E) and a.dtype == np.float32
    np.testing.assert_allclose([*np.linalg.norm(a, axis=1), *np.linalg.norm(b, axis=1)], 1, 1e-5)
    np.testing.assert_array_equal(pipe.embed(pipe.tokenizers["image"].encode(images)), a)
    with pytest.raises(UserError, match="'length' has no tower, expected one of image, text"):
        pipe.dual_encoder.encode("length", np.zeros((1, 1), int))


# ---- What is lost, and what is not ---------------------------------------------------------------


def colours(images) -> np.ndarray:
    """A small encoder: the mean colour, float32[n, 3]."""
    return images.mean(axis=(1, 2)).astype(np.float32)


def mean_of(image) -> np.ndarray:
    return colours(pixels.fit(image, SIZE)[None])[0]


def folder_of(root, names="abcde") -> pathlib.Path:
    """Pictures of 40 x 24 pixels with captions, all of them in the split train."""
    rng = np.random.default_rng(0)
    for name in names:
        image = rng.integers(0, 256, (24, 40, 3), np.uint8)
        (root / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels.write_png(root / "train" / f"{name}.png", image)
        (root / "train" / f"{name}.txt").write_text(f"the picture {name}\nanother line\n")
    return root


def write(root, out, encode=colours, views=None, encoder="colours", **options):
    views = views or reading.Views(SIZE)
    opened = {"validation": 0, "test": 0, "incomplete": views.incomplete}
    data = {"train": sources.open_source(f"folder:{root}", "train", **opened)}
    return vectors.write(data, encode, out, settings={"encoder": encoder}, views=views, **options)


def test_a_picture_of_another_size_is_fitted_for_its_vector_and_kept_as_it_is(tmp_path):
    root = folder_of(tmp_path / "in", ["a b.summary", "ä", "sub/__MACOSX"])
    image = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
    Image.fromarray(image).save(root / "train" / "zz.png", "JPEG")
    (root / "train" / "zz.txt").write_text("a photograph")
    assert write(root, tmp_path / "out")["train"] == {"vectors": 4, "captions": 7, "causes": {}}
    names = ["0-train_a_b_summary", "1-train_sub___MACOSX", "2-train_zz", "3-train_"]
    assert sorted(p.stem for p in (tmp_path / "out/train").glob("*.npy")) == names
    origin = ["a b.summary.png", "sub/__MACOSX.png", "zz.png", "ä.png"]
    for name, before in zip(names, origin, strict=True):
        (copy,) = (p for p in (tmp_path / "out/train").glob(f"{name}.*g"))
        assert copy.suffix == (".jpeg" if before == "zz.png" else ".png")
        assert copy.read_bytes() == (root / "train" / before).read_bytes()
        np.testing.assert_array_equal(np.load(copy.with_suffix(".npy")), mean_of(pixels.read(copy)))
    again = sources.open_source(f"folder:{tmp_path / 'out'}", "train", validation=0, test=0)
    assert [record.captions[0] for record in again] == [
        "the picture a b.summary", "the picture sub/__MACOSX", "a photograph", "the picture ä",
    ]  # fmt: skip


def test_what_is_unusable_is_counted_and_listed_and_too_much_of_it_is_one_line(tmp_path):
    root, out = folder_of(tmp_path / "in"), tmp_path / "out"
    (root / "train" / "b.txt").unlink()
    (root / "train" / "d.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^2 of 5 records are unusable \(broken image 1, no cap"):
        write(root, out)
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [(line["key"], line["cause"]) for line in listed] == [
        ("train/b.png", "no caption"), ("train/d.png", "broken image"),
    ]  # fmt: skip
    found = write(root, out, skip_limit=0.5)
    causes = {"no caption": 1, "broken image": 1}
    assert found == {"train": {"vectors": 3, "captions": 6, "causes": causes}}
    assert [p.stem[0] for p in sorted((out / "train").glob("*.npy"))] == ["0", "2", "4"]
    assert embed.describe(found, ["sound"]) == [
        "  train: 3 vectors, 6 captions",
        "    no caption: 1",
        "    broken image: 1",
        "  not copied: sound; put their files beside the pictures",
    ]
    assert embed.describe({"test": {"vectors": 0, "captions": 0, "causes": {}}})[1:] == [
        "    read it with --config.data_options.test=0, so that it stays empty"
    ]


def test_a_mended_picture_is_read_by_the_next_call(tmp_path):
    root, out = folder_of(tmp_path / "in"), tmp_path / "out"
    whole = (root / "train" / "d.png").read_bytes()
    (root / "train" / "d.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="1 of 5 records are unusable"):
        write(root, out)
    (root / "train" / "d.png").write_bytes(whole)
    assert write(root, out)["train"]["vectors"] == 5
    assert (out / "skipped.jsonl").read_text() == ""


def test_an_incomplete_record_is_written_as_far_as_it_goes(tmp_path):
    """A picture without a caption has a vector, a caption without a picture has none."""
    root, out = folder_of(tmp_path / "in", "abc"), tmp_path / "out"
    (root / "train" / "a.txt").unlink()
    (root / "train" / "b.png").unlink()
    found = write(root, out, views=reading.Views(SIZE, incomplete=True))["train"]
    causes = {"without caption": 1, "without picture": 1}
    assert found == {"vectors": 2, "captions": 4, "causes": causes}
    ends = {p.name.split("-")[0] + p.suffix for p in (out / "train").iterdir()}
    assert ends == {"0.png", "0.npy", "1.png", "1.txt", "1.npy", "2.txt"}
    options = {"validation": 0, "test": 0, "incomplete": True}
    again = sources.open_source(f"folder:{out}", "train", **options)
    assert [len(record.captions) for record in again] == [0, 2, 2]
    assert [record.image is None for record in again] == [False, False, True]


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK", 2)
    root, whole, out = folder_of(tmp_path / "in"), tmp_path / "whole", tmp_path / "out"
    write(root, whole)
    calls = []

    def stopped(images):
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return colours(images)

    with pytest.raises(KeyboardInterrupt):
        write(root, out, stopped)
    begun = out / "train" / "2-train_c.png"  # what is left where the system stops in a write
    begun.write_bytes(b"half")
    (out / "train" / "2-train_c.npy.tmp").write_bytes(b"half")
    assert write(root, out, stopped)["train"]["vectors"] == 5
    assert calls == [2, 2, 2, 1]  # the first block is not encoded again
    assert files_of(out) == files_of(whole)
    before = {path: path.stat().st_mtime_ns for path in (out / "train").iterdir()}
    write(root, out, stopped)
    assert len(calls) == 4
    assert {path: path.stat().st_mtime_ns for path in (out / "train").iterdir()} == before


# ---- Errors --------------------------------------------------------------------------------------


def test_the_command_says_what_it_wrote_and_refuses_in_one_line(run, tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--mode=embed", "--config=configs/t2i.py:smoke", "--config.data_options.size=3")
    shell.run(*words, f"--workdir={tiny_run}", f"--dual_encoder={run}", f"--out={out}")
    said = capsys.readouterr().out.splitlines()
    assert (
        "  validation: 3 vectors, 3 captions" in said and f"9 vectors of 6 numbers: {out}" in said
    )
    assert not (tiny_run / matching.FILE).exists()
    for flags, message in (
        ((f"--workdir={run}",), "--out is missing, expected a folder"),
        ((f"--workdir={tiny_run}", f"--out={out}"), "this run has no dual encoder: train one"),
        ((f"--workdir={run}", f"--out={run}"), "has other files: name an empty folder or a new"),
        ((f"--workdir={run}", "--out=gs://a/b"), "--out=gs://a/b is not a folder of a disk"),
        ((f"--workdir={run}", f"--out={run}/weights"), "weights is a file, expected a folder"),
        (
            (f"--workdir={run}", f"--out={out}", "--config.data_options.seed=1"),
            r"has vectors of something else \(data is .*'shapes/test'.* there and .*seed 1",
        ),
    ):
        with pytest.raises(UserError, match=message) as error:
            shell.run(*words, *flags)
        assert "\n" not in str(error.value)


def test_vectors_of_two_encoders_never_meet_in_a_folder(pipe, written, tmp_path):
    _, out, _ = written
    other = jax.tree.map(lambda p: p + 1, pipe.dual_encoder.params)
    other = matching.Matcher(pipe.dual_encoder.model, other, {})
    assert other.hash != pipe.dual_encoder.hash
    settings = json.loads((out / ".vectors/settings.json").read_text())
    assert settings["dual encoder"] == pipe.dual_encoder.hash
    assert settings["image tokenizer"] == pipe.tokenizers["image"].hash
    root = folder_of(tmp_path / "in", "ab")
    write(root, tmp_path / "out", encoder="one")
    before = files_of(tmp_path / "out")
    with pytest.raises(UserError, match=r"something else \(encoder is one there and two now\)"):
        write(root, tmp_path / "out", encoder="two")
    assert files_of(tmp_path / "out") == before


# ---- To the end ----------------------------------------------------------------------------------


def test_the_config_has_a_prior_and_decoders_of_vectors_that_a_dual_encoder_makes():
    config, usual = prior.get_config(), t2i.get_config()
    (summary,) = (m for m in plan.vocab_of(config).modalities if m.name == "summary")
    assert (summary.length, summary.classes) == (8, 256)
    assert config.modalities.summary.dimensions == usual.dual_encoder.width
    expected = (config.modalities.summary.dimensions, config.image_size, config.text.length)
    assert tuple(embed.PRIOR.values()) == expected
    for small in (config, prior.get_config("smoke")):
        stages.check(small)
        assert sum(small.train.mixture.values()) == pytest.approx(1)


@pytest.mark.slow
def test_three_commands_encode_train_and_draw_the_vector_before_the_picture(run, tmp_path):
    train = ["--config=configs/prior.py:smoke", f"--config.modalities.summary.dimensions={E}"]
    sample = ("--mode=sample", "--workdir=runs/prior", "--num=2")
    with contextlib.chdir(tmp_path):
        data = ("--config=configs/t2i.py", "--config.data_options.size=64", "--out=data/vectors")
        shell.run("--mode=embed", f"--workdir={run}", *data)
        shell.run(*train, *test_docs.small(train), "--workdir=runs/prior")
        given = ("--given=text=a small red circle", "--begin_with=summary", "--out=made")
        shell.run(*sample, "--task=image,summary|text", *given)
        assert np.load("made/summary-0001.npy").shape == (E,)
        assert pixels.read("made/image-0001.png").shape == (SIZE, SIZE, 3)
        near = sorted(pathlib.Path("data/vectors/test").glob("*.npy"))[0]
        shell.run(*sample, "--task=image|summary", f"--given=summary={near}", "--out=like")
        encoder, pipe = map(pipeline.Pipeline.load, (run, "runs/prior"))
        vector = encoder.embed(near.with_suffix(".png"))
        made = pipe.generate("image|summary", given={"summary": vector}, num=2)
        for number, image in enumerate(made.images):
            np.testing.assert_array_equal(pixels.read(f"like/image-000{number}.png"), image)
