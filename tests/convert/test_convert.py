"""Published checkpoints become runs, runs become published checkpoints, and bad files nothing.

The checkpoints are made here, at tiny sizes, with random numbers; that the names and layouts mean
what they say is the business of `test_published_network.py` and `test_published_vq.py`.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from configs import t2i
from tests.helpers import torch_writer
from tests.helpers.published_files import (
    FULL_TO_USED,
    PREFIX,
    SIZES,
    VOCAB,
    VQ,
    T,
    network,
    save,
    unid3_state,
    vq_state,
    write,
    yaml_of,
)
from udd_jax import build, command_line, generate, main, pipeline
from udd_jax.convert import command, names, taming, tensor_files, unid3
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.networks import transformer
from udd_jax.runtime import files, trees
from udd_jax.tokenizers import image_tokenizer, text_tokenizer, vqgan

HERE = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("published"))


def convert_unid3(folder, out, name="cub.ckpt", **options):
    options = {"heads": 2, "codes": str(folder / "used.npy"), **options}
    config = options.pop("config", None) or t2i.get_config("cub")
    command.from_unid3(folder / name, out, config, **options)
    return out


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    return convert_unid3(folder, tmp_path_factory.mktemp("runs") / "cub")


# UniD3


def test_a_unid3_checkpoint_becomes_a_run_with_its_weights(run):
    pipe = pipeline.Pipeline.load(run)
    for ours, theirs in zip(jax.tree.leaves(pipe.params), jax.tree.leaves(network()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name, array in names.write(pipe.tokenizers["image"].params, names.vq_name).items():
        np.testing.assert_array_equal(array, vq_state()[name])
    assert pipe.vocab == VOCAB and pipe.kernel.steps == T
    assert {k: getattr(pipe.model, k) for k in SIZES} == SIZES
    assert (pipe.model.time, pipe.model.time_table, pipe.model.network) == (
        "shared",
        "untied",
        "joint",
    )
    assert pipe.tokenizers["image"].codes == 7 and pipe.tokenizers[
        "image"
    ].used_to_full.tolist() == [0, 1, 3, 4, 5, 7, 8]
    assert pipe.tokenizers["text"].kind == "clip" and pipe.tokenizers["text"].vocab_size == 514
    assert pipe.config.name == "cub" and pipe.config.image_size == 8
    assert not pipe.guidable


def test_safetensors_of_the_same_names_become_the_same_run(folder, run, tmp_path):
    trees.save_tree(folder / "cub.safetensors", unid3_state())
    other = convert_unid3(folder, tmp_path / "cub", "cub.safetensors")
    for file in (build.WEIGHTS, build.IMAGE):
        both = [trees.flatten(trees.load_tree(where / file)[0]) for where in (run, other)]
        assert both[0].keys() == both[1].keys()
        for name, array in both[0].items():
            np.testing.assert_array_equal(array, both[1][name])


def test_a_round_trip_to_published_names_is_bit_exact(run, folder, tmp_path):
    command.to_safetensors(run, tmp_path / "cub.safetensors")
    state = tensor_files.read(tmp_path / "cub.safetensors")
    wanted = {
        name: array
        for name, array in unid3_state().items()
        if not names.NETWORK_DEAD.match(name.removeprefix(PREFIX))
        and not name.startswith(("model.log_", "model.Lt_"))
    }
    assert state.keys() == wanted.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, wanted[name], strict=True)
    (tmp_path / unid3.MERGES).write_bytes((folder / unid3.MERGES).read_bytes())
    command.from_unid3(
        tmp_path / "cub.safetensors",
        tmp_path / "again",
        t2i.get_config("cub"),
        heads=2,
        codes=str(tmp_path / "cub.safetensors.codes.npy"),
    )
    again = image_tokenizer.load(tmp_path / "again" / build.IMAGE)
    assert again.hash == image_tokenizer.load(run / build.IMAGE).hash
    command.to_safetensors(tmp_path / "again", tmp_path / "again.safetensors")
    first, second = (tmp_path / f"{n}.safetensors" for n in ("cub", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_the_safetensors_package_reads_what_is_written(run, tmp_path):
    package = pytest.importorskip("safetensors.numpy", reason="pip install safetensors")
    command.to_safetensors(run, tmp_path / "cub.safetensors")
    state = tensor_files.read(tmp_path / "cub.safetensors")
    theirs = package.load_file(tmp_path / "cub.safetensors")
    assert theirs.keys() == state.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(array, state[name], strict=True)
    package.save_file(theirs, tmp_path / "theirs.safetensors")
    assert tensor_files.read(tmp_path / "theirs.safetensors").keys() == state.keys()


def test_a_user_s_config_that_agrees_is_kept_where_the_weights_say_nothing(folder, tmp_path):
    config = t2i.get_config("cub")
    config.model.update(SIZES)
    config.update({"image_size": 8, "text": {"length": 5}, "diffusion": {"steps": T}})
    config.train.learning_rate = 0.125
    out = convert_unid3(folder, tmp_path / "cub", config=config, match=True, heads=None)
    stored = build.read_config(out)
    assert stored.train.learning_rate == 0.125 and stored.model.heads == 2


def test_a_conversion_settles_every_option_that_makes_the_network_another_function():
    options = {f.name: f.default for f in dataclasses.fields(transformer.Transformer)}
    from_weights = {"vocab", "steps", "layers", "width", "heads", "mlp_ratio", "rezero"}
    others = {"network", "dtype", "padding", "implementation", "unroll", "remat", "parent", "name"}
    assert set(unid3.PUBLISHED) - {"mask_padding"} == options.keys() - from_weights - others


@pytest.mark.parametrize("arg", ["cub", "coco"])
def test_the_published_sizes_are_the_published_network(arg):
    model = t2i.get_config(arg).model
    assert {name: model[name] for name in unid3.PUBLISHED} == unid3.PUBLISHED


@pytest.mark.parametrize("prefix", ["", "net.module."])
def test_names_may_stand_under_any_prefix(prefix):
    state = unid3_state()
    other = {prefix + name.removeprefix(unid3.PREFIX): array for name, array in state.items()}
    for ours, theirs in zip(*(unid3.split_state(s, "a") for s in (state, other)), strict=True):
        assert ours and ours.keys() == theirs.keys()


def test_half_precision_weights_are_read_as_float32(folder, tmp_path):
    state = {name: array.astype(np.float16) for name, array in unid3_state().items()}
    state = {n: a for n, a in state.items() if not n.startswith("model.log_")}
    save(folder / "half.ckpt", state)
    out = convert_unid3(folder, tmp_path / "half", "half.ckpt")
    for leaf in jax.tree.leaves(build.load_weights(out)):
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, leaf.astype(np.float16))


# What the run can do


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


def test_a_field_that_the_weights_decide_is_refused(folder, tmp_path):
    asked = {"train.steps": 7, "sample.guidance": 2.0}
    config = t2i.get_config("cub")
    convert = functools.partial(convert_unid3, folder, tmp_path / "run", config=config)
    config.update_from_flattened_dict(asked)
    with pytest.raises(ValueError, match=r"^--config.sample.guidance=2.0 does nothing, the run h"):
        convert(typed=asked)
    assert not (tmp_path / "run").exists()
    convert(typed={"train.steps": 7})
    assert build.read_config(tmp_path / "run").train.steps == 7


@pytest.mark.slow
def test_every_task_that_the_joint_weights_can_do(pipe):
    pytest.importorskip("ftfy", reason="CLIP's published cleaning needs ftfy")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    codes = pipe.tokenizers["image"].encode(pictures)
    ids = pipe.tokenizers["text"].encode(["ab", "c"], 5)
    options = {"steps": 2, "top_r": 0.9}

    def tokens(result):
        assert (result.tokens < VOCAB.mask_id).all()
        return {k: np.asarray(v) for k, v in VOCAB.split(result.tokens).items()}

    assert tokens(pipe.pairs(2, **options))["text"].shape == (2, 5)
    np.testing.assert_array_equal(tokens(pipe.text_to_image(["ab", "c"], **options))["text"], ids)
    np.testing.assert_array_equal(tokens(pipe.image_to_text(pictures, **options))["image"], codes)
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    filled = tokens(pipe.infill(pictures, mask, ["ab", "___c"], **options))
    kept = pipe.tokenizers["image"].encode(np.stack([pixels.hide(p, mask) for p in pictures]))
    np.testing.assert_array_equal(filled["image"][:, [1, 3]], kept[:, [1, 3]])
    # One alone is a pair of which the other is dropped: one time is fed, and it knows no absence.
    alone, pair = pipe.images(2, **options), pipe.pairs(2, **options)
    assert alone.captions is None and (alone.images == pair.images).all()
    assert pipe.texts(2, **options).images is None


def test_guidance_and_bounds_that_the_weights_do_not_know_are_refused(pipe):
    with pytest.raises(ValueError, match="trained without absent conditions"):
        pipe.pairs(2, guidance=2.0)
    with pytest.raises(ValueError, match="task 'image' has no bound"):
        pipe.score({"image": np.zeros((1, 4), int), "text": np.zeros((1, 5), int)}, task="image")


@pytest.mark.parametrize(
    ("network_name", "can", "rule"),
    [("image_from_text", "t2i", "image|text"), ("text_from_image", "i2t", "text|image")],
)
def test_a_conditional_network_does_its_own_task_only(folder, tmp_path, network_name, can, rule):
    out = convert_unid3(folder, tmp_path / "run", network=network_name)
    pipe = pipeline.Pipeline.load(out)
    assert pipe.model.network == network_name
    assert build.read_config(out).train.mixture.to_dict() == {can: 1.0}
    given = {"image": np.zeros((1, 4), int), "text": np.zeros((1, 5), int)}
    for task in {"pair", "image", "text", "t2i", "i2t", "infill"} - {can}:
        asked = {name: given[name] for name in tasks.parse(VOCAB, task).given}
        message = f"task '{task}' is not for .*{network_name}: expected '{re.escape(rule)}'"
        with pytest.raises(ValueError, match=message):
            pipe.generate(task, 1, given=asked)
    with pytest.raises(ValueError, match="is not for the network"):
        pipe.score(given, task="pair")


@pytest.mark.slow
def test_a_conditional_network_generates(folder, tmp_path):
    out = convert_unid3(folder, tmp_path / "run", network="image_from_text")
    pipe = pipeline.Pipeline.load(out)
    ids = np.arange(5)[None]
    made = pipe.generate("t2i", given={"text": ids}, steps=2)
    assert VOCAB.split(made.tokens)["text"].tolist() == ids.tolist()
    assert np.isfinite(pipe.score({"image": np.zeros((1, 4), int), "text": ids}, task="t2i")).all()


# taming


SHAPES = {
    4: {"ch_mult": (1, 2, 1), "resolution": 8, "embed_dim": 3},
    8: {"ch_mult": (1, 1, 2, 2), "resolution": 16, "num_res_blocks": 2},
    16: {"ch_mult": (1, 1, 2, 2, 1), "resolution": 32, "attn_resolutions": (2, 4)},
}


@pytest.mark.parametrize("quantiser", ["gumbel", "straight_through"])
@pytest.mark.parametrize("f", SHAPES)
def test_a_taming_checkpoint_becomes_an_image_tokenizer(tmp_path, f, quantiser):
    changes = {**SHAPES[f], "quantiser": quantiser}
    if quantiser == "gumbel":
        changes["embed_dim"] = VQ["z_channels"]
    state = vq_state(**changes)
    losses = {"loss.discriminator.main.0.weight": np.ones(3, np.float32)}
    save(tmp_path / "vqgan.ckpt", {**state, **losses})
    (tmp_path / "vqgan.yaml").write_text(yaml_of(**changes))
    command.from_taming(tmp_path / "vqgan.ckpt", tmp_path / "out", tmp_path / "vqgan.yaml")
    tokenizer = image_tokenizer.load(tmp_path / "out" / build.IMAGE)
    assert tokenizer.module == vqgan.VQGAN(**{**VQ, **changes}) and tokenizer.module.cell == f
    assert tokenizer.codes == 9 and tokenizer.grid == (2, 2)
    back = tmp_path / "back.safetensors"
    command.to_safetensors(tmp_path / "out", back)
    again = tensor_files.read(back)
    assert again.keys() == state.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name], strict=True)
    command.from_taming(back, tmp_path / "again", tmp_path / "vqgan.yaml")
    assert image_tokenizer.load(tmp_path / "again" / build.IMAGE).hash == tokenizer.hash


def test_a_map_of_codes_is_not_lost_on_the_way_back(tmp_path):
    state = vq_state()
    save(tmp_path / "vqgan.ckpt", state)
    (tmp_path / "vqgan.yaml").write_text(yaml_of())
    np.save(tmp_path / "used.npy", np.array([0, 1, 0, 2, 3, 4, 0, 5, 6]))
    codes, back = tmp_path / "used.npy", tmp_path / "back.safetensors"
    where = tmp_path / "vqgan.yaml"
    command.from_taming(tmp_path / "vqgan.ckpt", tmp_path / "out", where, codes=codes)
    command.to_safetensors(tmp_path / "out", back)
    command.from_taming(back, tmp_path / "again", where, codes=f"{back}.codes.npy")
    one, two = (image_tokenizer.load(tmp_path / n / build.IMAGE).hash for n in ("out", "again"))
    assert one == two
    other = tmp_path / "other.safetensors"
    pathlib.Path(f"{other}.codes.npy").touch()
    refuse("exists: choose another", tmp_path, command.to_safetensors, tmp_path / "out", other)


@pytest.mark.parametrize("quantiser", ["gumbel", "straight_through"])
def test_joined_codes_decode_as_before_on_the_way_back(tmp_path, quantiser):
    changes = {"quantiser": quantiser}
    if quantiser == "gumbel":
        changes["embed_dim"] = VQ["z_channels"]
    save(tmp_path / "vqgan.ckpt", vq_state(**changes))
    where = tmp_path / "vqgan.yaml"
    where.write_text(yaml_of(**changes))
    command.from_taming(tmp_path / "vqgan.ckpt", tmp_path / "out", where)
    joined = dataclasses.replace(
        image_tokenizer.load(tmp_path / "out" / build.IMAGE),
        full_to_used=np.array([0, 1, 0, 2, 1, 1, 0, 2, 3], np.int32),
        decoded_to=np.array([6, 4, 3, 8], np.int32),
    )
    image_tokenizer.save(tmp_path / "out" / build.IMAGE, joined, {})
    back = tmp_path / "back.safetensors"
    command.to_safetensors(tmp_path / "out", back)
    command.from_taming(back, tmp_path / "again", where, codes=f"{back}.codes.npy")
    again = image_tokenizer.load(tmp_path / "again" / build.IMAGE)
    codes = np.arange(4, dtype=np.int32).reshape(1, 4)
    np.testing.assert_array_equal(again.decode(codes), joined.decode(codes))
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(again.encode(images), joined.encode(images))


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vqvae.", "module.", "_orig_mod."])
def test_a_vqgan_is_found_under_a_prefix_and_its_averages_are_left_and_said(
    tmp_path, prefix, capsys
):
    state = vq_state()
    (tmp_path / "vqgan.yaml").write_text(yaml_of())
    whole = {prefix + name: array for name, array in state.items()}
    whole |= {"model.other.weight": np.ones(2, np.float32)}
    whole |= {"model_ema.encoderconv_inweight": np.ones(2, np.float32)}
    torch_writer.save(tmp_path / "a.ckpt", {"model": whole, "epoch": 3})
    save(tmp_path / "b.ckpt", state | {"model_ema.decay": np.ones(1, np.float32)})
    save(tmp_path / "c.ckpt", state)
    tokens = []
    for name in "abc":
        command.from_taming(tmp_path / f"{name}.ckpt", tmp_path / name, tmp_path / "vqgan.yaml")
        tokens.append(image_tokenizer.load(tmp_path / name / build.IMAGE).hash)
    assert len(set(tokens)) == 1
    said = capsys.readouterr().out
    assert f"the VQGAN is under {prefix!r}, {len(state)} of {len(whole)} tensors" in said
    assert said.count("1 tensors of averaged weights (model_ema) are not used") == 2
    save(tmp_path / "two.ckpt", whole | {f"b.{name}": array for name, array in state.items()})
    with pytest.raises(ValueError, match=r"has 2 VQGANs, under .* and 'b\.', expected one"):
        command.from_taming(tmp_path / "two.ckpt", tmp_path / "d", tmp_path / "vqgan.yaml")


def test_a_kept_subset_of_codes_is_a_map_over_them(tmp_path):
    save(tmp_path / "vqgan.ckpt", vq_state())
    (tmp_path / "vqgan.yaml").write_text(yaml_of())
    np.save(tmp_path / "used.npy", FULL_TO_USED)
    out = tmp_path / "out"
    codes = tmp_path / "used.npy"
    command.from_taming(tmp_path / "vqgan.ckpt", out, tmp_path / "vqgan.yaml", codes=codes)
    tokenizer = image_tokenizer.load(out / build.IMAGE)
    np.testing.assert_array_equal(tokenizer.full_to_used, FULL_TO_USED)
    assert tokenizer.codes == 7


@pytest.mark.parametrize(("full", "used"), [(8192, 2887), (16384, 974)])
def test_the_published_maps_of_used_codes_equal_the_stored_ones(full, used):
    stored = np.load(HERE / "fixtures" / "vq_used_codes" / f"full_to_used_{used}.npy")
    for index in (taming.used_codes(None, full, used), taming.used_codes(str(used), full)):
        assert index.dtype == np.int32
        np.testing.assert_array_equal(index, stored)
    tokenizer = image_tokenizer.ImageTokenizer(vqgan.VQGAN(n_embed=full), {}, index)
    assert tokenizer.codes == used and tokenizer.used_to_full[0] == 0


def test_all_codes_in_use_need_no_map():
    assert taming.used_codes(None, 8192, 8192) is None
    assert taming.used_codes(None, 16384) is None


# Bad input: one line, and nothing is written


def changed(state, **changes):
    """The state with tensors replaced, or removed where None."""
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


def key(name):
    return PREFIX + name


BAD_UNID3 = {
    "missing": (
        {key("transformer.blocks.1.ln2.weight"): None},
        r"has no 'transformer\.blocks\.1\.ln2\.weight' \(1 missing\)",
    ),
    "extra": (
        {key("transformer.blocks.0.ln9.weight"): np.ones(3, np.float32)},
        r"has 'transformer\.blocks\.0\.ln9\.weight' \(1 unexpected\)",
    ),
    "stranger": ({"model.ema.decay": np.ones(1, np.float32)}, r"has 'model\.ema\.decay', which no"),
    "outside": ({"decay": np.ones(1, np.float32)}, r"has 'decay', expected all names to start"),
    "shape": (
        {key("transformer.blocks.0.ln2.weight"): np.ones(17, np.float32)},
        r"'transformer\.blocks\.0\.ln2\.weight' is \[17\], expected \[16\]",
    ),
    "rank": (
        {key("transformer.to_logits_img.weight"): np.ones(17, np.float32)},
        r"'transformer\.to_logits_img\.weight' has shape \[17\]",
    ),
    "halves": (
        {"model.image_tokenizer.dec.quantize.embed.weight": np.ones((9, 4), np.float32)},
        r"'quantize\.embed\.weight' differs",
    ),
    "vq": (
        {"model.image_tokenizer.enc.quant_conv.bias": None},
        r"has no 'quant_conv\.bias'",
    ),
    "schedule": (
        {"model.log_cumprod_at": np.log(np.linspace(1, 0.1, T + 1)).astype(np.float32)},
        "not the published linear schedule of T = 6",
    ),
}


@pytest.mark.parametrize("case", BAD_UNID3)
def test_a_unid3_checkpoint_with_a_bad_tensor_is_one_line(folder, tmp_path, case):
    changes, message = BAD_UNID3[case]
    save(folder / "bad.ckpt", changed(unid3_state(), **changes))
    refuse(message, tmp_path, convert_unid3, folder, tmp_path / "out", "bad.ckpt")


def refuse(message, where, function, *args, **kwargs):
    before = sorted(where.rglob("*"))
    with pytest.raises(ValueError, match=message) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    assert sorted(where.rglob("*")) == before


def test_options_that_do_not_fit_a_unid3_checkpoint_are_one_line(folder, tmp_path):
    bad = functools.partial(refuse, where=tmp_path)
    out = tmp_path / "out"

    def convert_it(message, **options):
        bad(message, function=convert_unid3, folder=folder, out=out, **options)

    convert_it("width 16, no multiple of 64, .* give --heads", heads=None)
    convert_it("model.width = 16 is not a multiple of model.heads = 3", heads=3)
    for heads in (0, -2):
        convert_it(f"--heads={heads}, expected at least 1", heads=heads)
    convert_it("no map of 9 image codes onto 7 is known: .*--codes", codes=None)
    convert_it("onto 2887 is known", codes="2887")
    convert_it("network=both, expected one of joint", network="both")
    convert_it(r"absent\.txt", text_file=folder / "absent.txt")
    np.save(tmp_path / "few.npy", FULL_TO_USED.clip(0, 5))
    convert_it("expected 9 indices that take each value in 0..6", codes=str(tmp_path / "few.npy"))
    (tmp_path / "merges.txt").write_bytes(b"#version: 0.2\na b\n")
    text_tokenizer.load(tmp_path / "merges.txt")
    (tmp_path / "words.json").write_text('{"version": "1.0"}')
    convert_it("tokenizer.json", text_file=tmp_path / "words.json")
    config = t2i.get_config("cub")
    convert_it(r"config\.image_size = 256, but .*cub\.ckpt has 8", match=True, config=config)
    config.image_size, config.image_channels = 8, 4
    convert_it(r"config\.image_channels = 4, but .* has 3", match=True, config=config)
    config.image_channels = 3
    convert_it(r"config\.text\.length = 128, but .* has 5", match=True, config=config)
    config.text.length = 5
    convert_it(r"config\.diffusion\.steps = 500, but .* has 6", match=True, config=config)
    config.diffusion.steps, config.diffusion.schedule = T, "cosine"
    convert_it(r"config\.diffusion\.schedule = cosine, but .* linear", match=True, config=config)
    config.diffusion.schedule = "linear"
    config.model.update(SIZES | {"rotary": True})
    convert_it(r"config\.model\.rotary = True, but .* has False", match=True, config=config)


def test_a_folder_without_the_merges_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("UDD_CLIP_BPE", raising=False)
    save(tmp_path / "cub.ckpt", unid3_state())
    refuse(
        f"vocabulary is missing, expected {unid3.MERGES} beside the checkpoint, or --text",
        tmp_path,
        command.from_unid3,
        tmp_path / "cub.ckpt",
        tmp_path / "out",
        t2i.get_config("cub"),
        heads=2,
        codes=folder / "used.npy",
    )
    monkeypatch.setenv("UDD_CLIP_BPE", str(folder))
    assert unid3.find_text(tmp_path / "cub.ckpt", None, 514).vocab_size == 514


def test_checkpoints_of_the_wrong_kind_are_one_line(folder, tmp_path):
    yaml = tmp_path / "vqgan.yaml"
    yaml.write_text(yaml_of())
    save(folder / "vqgan.ckpt", vq_state())
    refuse("looks like a VQGAN", tmp_path, convert_unid3, folder, tmp_path / "o", "vqgan.ckpt")
    taming = functools.partial(command.from_taming, out=tmp_path / "o", vq_config=yaml)
    refuse(r"has no 'decoder", tmp_path, taming, folder / "cub.ckpt")
    for name, content in (
        ("words", b"a caption"),
        ("cut", (folder / "cub.ckpt").read_bytes()[:-9]),
    ):
        (folder / f"{name}.ckpt").write_bytes(content)
        refuse("cut short", tmp_path, convert_unid3, folder, tmp_path / "o", f"{name}.ckpt")
    trees.save_tree(folder / "a.safetensors", unid3_state())
    whole = (folder / "a.safetensors").read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        (folder / "cut.safetensors").write_bytes(whole[:size])
        refuse("cut short", tmp_path, convert_unid3, folder, tmp_path / "o", "cut.safetensors")
    huge = b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}}' % (9**50, 9**50 + 4)
    for header in (b"[" * 100_000, b"[]", b'{"a": 1}', huge):
        content = len(header).to_bytes(8, "little") + header
        (folder / "cut.safetensors").write_bytes(content)
        refuse("damaged", tmp_path, convert_unid3, folder, tmp_path / "o", "cut.safetensors")
    refuse("cannot be read", tmp_path, convert_unid3, folder, tmp_path / "o", "absent.ckpt")


def test_a_checkpoint_that_would_run_a_command_is_refused(folder, tmp_path):
    evil = torch_writer.call("os.system", f"touch {tmp_path}/trace")
    torch_writer.save(folder / "evil.ckpt", {"state_dict": unid3_state(), "callbacks": evil})
    message = r"evil\.ckpt is refused, it names os\.system"
    refuse(message, tmp_path, convert_unid3, folder, tmp_path / "out", "evil.ckpt")


BAD_YAML = {
    "levels": (yaml_of(ch_mult=(1, 2)), r"has .*unexpected"),
    "width": (yaml_of(ch=16), r"is \[.*\], expected \[.*\]: the settings do not match"),
    "codes": (yaml_of(n_embed=10), r"'quantize\.\w+\.\w+' is \[9.*\], expected \[10"),
    "kind": (yaml_of(quantiser="straight_through"), r"has no 'quantize\.embedding\.weight'"),
    "attention": (yaml_of(attn_resolutions=()), r"has 'decoder\.up\.2\.attn"),
    "no model": ("params: 3\n", "is not a configuration of a taming VQGAN"),
    "no yaml": ("model: [", "is not a configuration of a taming VQGAN"),
    "channels": (yaml_of().replace("in_channels: 3", "in_channels: 1"), "3 channels in and out"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_a_configuration_that_does_not_match_the_weights_is_one_line(tmp_path, case):
    content, message = BAD_YAML[case]
    save(tmp_path / "vqgan.ckpt", vq_state())
    (tmp_path / "vqgan.yaml").write_text(content)
    args = (tmp_path / "vqgan.ckpt", tmp_path / "out", tmp_path / "vqgan.yaml")
    refuse(message, tmp_path, command.from_taming, *args)


def test_names_that_are_taken_or_missing_are_one_line(folder, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    refuse("exists: choose another", tmp_path, convert_unid3, folder, tmp_path / "full")
    refuse("exists: choose another", tmp_path, command.to_safetensors, run, tmp_path / "full" / "a")
    refuse("--out is missing", tmp_path, convert_unid3, folder, None)
    (tmp_path / "empty").mkdir()
    with contextlib.chdir(tmp_path / "empty"):
        refuse("--out=. exists: choose", tmp_path, command.to_safetensors, run, ".")
    refuse("--workdir is missing", tmp_path, command.to_safetensors, None, tmp_path / "b")
    refuse("--vq_config is missing", tmp_path, command.from_taming, "a.ckpt", tmp_path / "b", None)
    absent = tmp_path / "absent.yaml"
    refuse(r"absent\.yaml", tmp_path, command.from_taming, "a.ckpt", tmp_path / "b", absent)


@pytest.mark.parametrize("option", [{"given_vector": True}, {"mutual_gain": 0.1}, {"rotary": True}])
def test_a_network_with_options_of_ours_has_no_published_names(run, tmp_path, option):
    shutil.copytree(run, tmp_path / "run")
    stored = files.read_json(run / build.CONFIG)
    stored["config"]["model"] |= option
    files.write_json(tmp_path / "run" / build.CONFIG, stored)
    message = f"model.{next(iter(option))} = .* has no published counterpart"
    refuse(message, tmp_path, command.to_safetensors, tmp_path / "run", tmp_path / "a")


WITH_A_LAYOUT = {
    "image": {"kind": "image"},
    "layout": {"kind": "layout", "grid": (2, 2), "classes": 4},
    "text": {"kind": "text"},
}


@pytest.mark.parametrize(
    "change, told",
    [
        ({"model": {"kind": "autoregressive"}}, "model.kind = 'autoregressive'"),
        ({"diffusion": {"schedule": "cosine"}}, "diffusion.schedule = 'cosine'"),
        ({"experts": [0.5]}, r"config.experts = \(0.5,\)"),
        ({"modalities": WITH_A_LAYOUT}, "config.modalities = 'image, layout, text'"),
    ],
)
def test_a_run_of_another_function_has_no_published_names(run, tmp_path, change, told):
    shutil.copytree(run, tmp_path / "run")
    stored = files.read_json(run / build.CONFIG)
    for name, value in change.items():
        old = stored["config"].get(name)
        stored["config"][name] = old | value if isinstance(old, dict) else value
    files.write_json(tmp_path / "run" / build.CONFIG, stored)
    message = f"{told} has no published counterpart"
    refuse(message, tmp_path, command.to_safetensors, tmp_path / "run", tmp_path / "a")


def test_a_tokenizer_of_other_channels_has_no_published_names(run, tmp_path):
    image = image_tokenizer.load(run / build.IMAGE)
    other = dataclasses.replace(image, module=image.module.clone(channels=4))
    image_tokenizer.save(tmp_path / "run" / build.IMAGE, other)
    message = "vq.model.channels = 4 has no published counterpart, only 3"
    refuse(message, tmp_path, command.to_safetensors, tmp_path / "run", tmp_path / "a")


def test_a_failure_while_writing_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(trees, "save_tree", full)
    with pytest.raises(OSError, match="no space"):
        convert_unid3(folder, tmp_path / "out")
    assert not list(tmp_path.iterdir())


# The command line


@pytest.fixture
def run_command(monkeypatch, capsys):
    """Runs `python -m udd_jax.main --mode=convert ...` in this process: exit code, last words."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["main", "--mode=convert", *map(str, flags)])
        with flagsaver.flagsaver(), pytest.raises(SystemExit) as end:
            main.run()
        return end.value.code or 0, capsys.readouterr().err

    return run


def test_the_command_line_converts_unid3_and_back(folder, run, tmp_path, run_command):
    flags = ("--from=unid3", "--heads=2", f"--codes={folder}/used.npy", f"--text={folder}")
    for network_name in ("joint", "text_from_image"):
        out, network_flag = tmp_path / network_name, f"--network={network_name}"
        code, error = run_command(
            *flags, f"--checkpoint={folder}/cub.ckpt", f"--out={out}", network_flag
        )
        assert code == 0, error
        stored = files.read_json(out / build.CONFIG)
        assert (
            stored["made_with"]["network"] == stored["config"]["model"]["network"] == network_name
        )
        back = tmp_path / f"{network_name}.safetensors"
        assert run_command("--to=safetensors", f"--workdir={out}", f"--out={back}")[0] == 0
    command.to_safetensors(run, tmp_path / "ours.safetensors")
    whole = [path.read_bytes() for path in sorted(tmp_path.glob("*.safetensors"))]
    assert len(whole) == 3 and whole[0] == whole[1] == whole[2]


def test_the_command_line_converts_taming_and_back(tmp_path, run_command):
    save(tmp_path / "vqgan.ckpt", vq_state())
    (tmp_path / "vqgan.yaml").write_text(yaml_of())
    source = f"--checkpoint={tmp_path}/vqgan.ckpt", f"--vq_config={tmp_path}/vqgan.yaml"
    assert run_command("--from=taming", *source, f"--out={tmp_path}/out")[0] == 0
    back = tmp_path / "back.safetensors"
    assert run_command("--to=safetensors", f"--workdir={tmp_path}/out", f"--out={back}")[0] == 0
    state = tensor_files.read(back)
    assert state.keys() == vq_state().keys()
    for name, array in state.items():
        np.testing.assert_array_equal(array, vq_state()[name], strict=True)


def test_what_the_command_line_cannot_do_is_one_line_and_exit_code_1(folder, tmp_path, run_command):
    evil = torch_writer.call("os.system", f"touch {tmp_path}/trace")
    bad = changed(unid3_state(), **BAD_UNID3["shape"][0])
    lacking = changed(unid3_state(), **BAD_UNID3["missing"][0])
    torch_writer.save(folder / "evil.ckpt", {"state_dict": unid3_state(), "callbacks": evil})
    save(folder / "shape.ckpt", bad)
    save(folder / "missing.ckpt", lacking)
    save(folder / "kind.ckpt", vq_state())
    (folder / "half.ckpt").write_bytes((folder / "cub.ckpt").read_bytes()[:5000])
    unid3, out = (
        ("--from=unid3", "--heads=2", f"--codes={folder}/used.npy"),
        f"--out={tmp_path}/out",
    )
    cases = [
        ((out,), "--from=unid3"),
        (("--from=unid3", "--to=safetensors", out), "either"),
        (("--from=other", out), "from"),
        (("--from=unid3", out), "--checkpoint is missing"),
        (("--from=taming", f"--checkpoint={folder}/kind.ckpt", out), "--vq_config is missing"),
        (("--to=safetensors", out), "--workdir is missing"),
        (("--to=safetensors", f"--workdir={tmp_path}", out), "vq/tokenizer"),
        ((*unid3, f"--checkpoint={folder}/absent.ckpt", out), "absent.ckpt: cannot be read"),
        ((*unid3, f"--checkpoint={folder}/half.ckpt", out), "cut short"),
        ((*unid3, f"--checkpoint={folder}/kind.ckpt", out), "looks like a VQGAN, --from=taming"),
        ((*unid3, f"--checkpoint={folder}/evil.ckpt", out), "is refused, it names os.system"),
        ((*unid3, f"--checkpoint={folder}/shape.ckpt", out), "is [17], expected [16]"),
        ((*unid3, f"--checkpoint={folder}/missing.ckpt", out), "blocks.1.ln2.weight' (1 missing)"),
        ((*unid3, f"--checkpoint={folder}/cub.ckpt", out, "--network=both"), "--network=both"),
        ((*unid3, f"--checkpoint={folder}/cub.ckpt"), "--out is missing"),
    ]
    for flags, message in cases:
        code, error = run_command(*flags)
        assert code == 1 and message in error, (flags, error)
        assert error.startswith("error: ") and len(error.strip().splitlines()) == 1
        assert not list(tmp_path.iterdir())


def sample_flags(*flags):
    """The flags of `--mode=sample`, as main parses them."""
    main.FLAGS(["main", "--mode=sample", "--steps=2", "--top_r=0.9", "--num=2", *map(str, flags)])
    return main.FLAGS


@pytest.mark.slow
def test_the_command_line_samples_every_task_that_the_weights_can_do(pipe, tmp_path, monkeypatch):
    pytest.importorskip("ftfy", reason="CLIP's published cleaning needs ftfy")
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    pixels.write_png(tmp_path / "a.png", picture)
    picture[:] = 0
    picture[:, 4:] = 255
    pixels.write_png(tmp_path / "m.png", picture)
    picture = f"--image={tmp_path}/a.png"
    taken = {
        "pair": (),
        "t2i": ("--prompt=ab",),
        "i2t": (picture,),
        "image": (),
        "text": (),
        "infill": (picture, f"--mask={tmp_path}/m.png", "--prompt=a ___"),
    }
    for task, flags in taken.items():
        with flagsaver.flagsaver():
            flags = sample_flags(*flags, f"--task={task}", f"--out={tmp_path}/{task}")
            out = generate.sample("run", flags, command_line.typed_settings())
        lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
        assert len(lines) == 2 and all(line["task"] == task for line in lines)
        assert all(
            ("image" in line, "caption" in line) == (task != "text", task != "image")
            for line in lines
        )
    for flag, message in (("--guidance=2", "trained without absent"), ("--steps=7", "T = 6")):
        with flagsaver.flagsaver(), pytest.raises(ValueError, match=message):
            flags = sample_flags("--task=pair", f"--out={tmp_path}/no", flag)
            generate.sample("run", flags, command_line.typed_settings())
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_converting_and_sampling_by_the_two_commands_of_the_readme(folder, tmp_path):
    def run(*flags):
        command = [sys.executable, "-m", "udd_jax.main", *flags]
        return subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)

    flags = ("--from=unid3", "--heads=2", f"--codes={folder}/used.npy", "--network=image_from_text")
    source, out = f"--checkpoint={folder}/cub.ckpt", tmp_path / "run"
    failed = run("--mode=convert", *flags, source, f"--out={out}", "--config=configs/t2i.py:cub")
    assert failed.returncode == 1 and "config.image_size = 256, but" in failed.stderr
    assert not out.exists()
    done = run("--mode=convert", *flags, source, f"--out={out}")
    assert done.returncode == 0, done.stderr
    sample = ("--mode=sample", f"--workdir={out}", "--prompt=ab", "--steps=2")
    done = run(*sample, "--task=t2i")
    assert done.returncode == 0, done.stderr
    assert (out / "generated" / "image-0000.png").exists()
    failed = run(*sample[:2], "--task=pair", f"--out={tmp_path}/no")
    assert failed.returncode == 1 and len(failed.stderr.strip().splitlines()) == 1
    assert "task 'pair' is not for the network of this run, image_from_text" in failed.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_a_pytorch_build_s_own_file_becomes_the_same_tokenizer(tmp_path):
    torch = pytest.importorskip("torch", reason="the twin needs PyTorch: pip install torch")
    from tests.helpers import torch_twin

    size = {"ch": 32, "ch_mult": (1, 2, 1), "num_res_blocks": 1, "attn_resolutions": (2,)}
    shape = {"resolution": 8, "z_channels": 4}
    torch.manual_seed(0)
    twin = torch_twin.VQ("nearest", 9, 3, size | shape).eval()
    torch.save({"state_dict": twin.state_dict(), "epoch": 1}, tmp_path / "vqgan.ckpt")
    fields = {**size, **shape, "embed_dim": 3, "quantiser": "straight_through"}
    (tmp_path / "vqgan.yaml").write_text(yaml_of(**fields))
    command.from_taming(tmp_path / "vqgan.ckpt", tmp_path / "out", tmp_path / "vqgan.yaml")
    tokenizer = image_tokenizer.load(tmp_path / "out" / build.IMAGE)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    with torch.no_grad():
        scaled = torch.from_numpy(np.moveaxis(images, -1, 1).copy()).float() / 127.5 - 1
        z = twin.encode(scaled).permute(0, 2, 3, 1).reshape(2, -1, 1, 3)
        codes = ((z - twin.quantize.embedding.weight) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(tokenizer.encode(images), codes.numpy())
