"""A folder of pictures, texts, sounds and layouts, some lacking some: from the files to samples."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.helpers import shell
from tests.test_modalities import config
from udd_jax import pipeline, stages
from udd_jax.data import sounds, token_cache
from udd_jax.data.sources import shapes
from udd_jax.evaluation import held_out, rules
from udd_jax.runtime import files

COUNT = 40
PARTS = ("image", "text", "sound", "layout")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Record n of `shapes` as files, without part n % 5; part 4 is none, so that one is whole."""
    path = tmp_path_factory.mktemp("stored")
    for n, record in enumerate(shapes.source("train", COUNT, senses=("sound", "layout"))):
        layout = Image.fromarray(record.extra["layout"].astype(np.uint8))
        write = {
            "image": lambda to, r=record: Image.fromarray(r.image).save(f"{to}.png"),
            "text": lambda to, r=record: to.with_suffix(".txt").write_text(r.captions[0]),
            "sound": lambda to, r=record: sounds.write_wav(f"{to}.wav", r.extra["sound"], 8000),
            "layout": lambda to, i=layout: i.resize((32, 32), 0).save(f"{to}.seg.png"),
        }
        for part in PARTS:
            if PARTS[n % 5 : n % 5 + 1] != (part,):
                write[part](path / f"{n:02}")
    return path


def test_the_first_command_counts_what_the_records_have(folder, capsys):
    options = ("--config.incomplete=True", "--config.data_options.validation=0")
    options += ("--config.data_options.test=0", f"--config.data=folder:{folder}")
    shell.run("--mode=data", "--config=configs/any.py:smoke", *options)
    told = "".join(capsys.readouterr())
    assert "train: 40 records, 32 captions" in told
    assert "of those that can be used: 32 image, 32 text, 32 layout, 32 sound" in told
    for what, first in (("picture", "00"), ("caption", "01.png"), ("sound", "02.png")):
        assert f"used as they are: no {what}, 8 (the first: {first})" in told


@pytest.mark.slow
def test_a_run_of_wide_pictures_learns_from_records_that_lack_some_modalities(folder, tmp_path):
    c = config()
    shutil.copytree(folder, tmp_path / "data")
    for n in range(0, COUNT, 2):  # half of the records have a second text
        (tmp_path / "data" / f"{n:02}.second.txt").write_text("a further word")
    with c.unlocked():
        c.modalities.second = {"like": "text"}
    c.data, c.incomplete, c.image_size = f"folder:{tmp_path / 'data'}", True, (16, 32)
    c.data_options.update({"validation": 0.1, "test": 0.1})
    small = {"steps": 2, "plain_steps": 1, "warmup": 1, "pictures": 16}
    c.vq.update(small | {"batch_size": 4, "above_flat": 0.0})
    c.modalities.sound.vq.update({"steps": 2, "plain_steps": 1, "pictures": 16})
    c.train.update({"steps": 3, "warmup": 1, "batch_size": 8, "held_out": 2})
    c.train.mixture = {"sound|text": 1.0, "any": 1.0}
    run = tmp_path / "run"
    stages.run(c, run, until="diffusion")
    cache = token_cache.TokenCache(run / "tokens")
    having = files.read_json(run / "data.json")["splits"]["train"]["having"]
    for name in (*PARTS, "second"):
        assert (~cache.lacking[name]).sum() == having[name] < len(cache)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert losses and np.isfinite(losses).all()
    pipe = pipeline.Pipeline.load(run)
    assert "further" in pipe.tokenizers["text"].decode(pipe.codecs["second"].encode(["further"]))[0]
    made = pipe.generate("image|second", given={"second": "a further word"})
    assert made.images.shape == (1, 16, 32, 3)
    made = pipe.generate("sound|text", given={"text": ["a red circle"]}).values["sound"]
    assert made.shape == (1, 8192) and np.isfinite(made).all()
    options = {"rules": ("text|image",), "split": "train", "samples": COUNT, "batch_size": COUNT}
    measured = pipe.with_config(evaluate=options)
    whole = held_out.read(measured, COUNT)
    both = held_out.read(measured, COUNT, names=("image", "text"))
    found = rules.measure(measured, whole, tmp_path, {})["text|image"]
    assert found["count"] == len(both) > len(whole)  # also records without a sound or a layout
    with pytest.raises(ValueError, match="pictures are training pictures, too"):
        rules.measure(measured, whole, tmp_path, {}, training=cache)
    heard = pipe.with_config(evaluate=options | {"rules": ("sound|text",)})
    assert rules.measure(heard, whole, tmp_path, {}, training=cache)["sound|text"]["count"]
