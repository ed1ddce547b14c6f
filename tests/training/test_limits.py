"""Numbers out of their range are refused, and every config of the repository is in range."""

import re

import pytest
from flax import traverse_util

from configs import any as any_config
from configs import base, compose, i2t, pair, sound, t2i
from tests.helpers import tiny
from udd_jax import stages
from udd_jax.data import sources
from udd_jax.data.sources import worlds
from udd_jax.errors import UserError
from udd_jax.training import limits

BAD = {
    "seed": 2**32,
    "evaluate.seed": 2**32,
    "text.length": 1,
    "text.vocab_size": 319,
    "vq.learning_rate": -1.0,
    "vq.batch_size": 0,
    "vq.warmup": 41,
    "vq.plain_steps": 40,
    "vq.model.n_embed": 1,
    "train.steps": -1,
    "train.warmup": 31,
    "train.batch_size": 0,
    "train.ema": 1.0,
    "train.learning_rate": float("nan"),
    "model.layers": 0,
    "model.heads": 0,
    "skip_limit": 1.5,
    "data_options.test": -0.1,
    "data_options.size": 0,
    "evaluate.samples": 0,
    "image_size": 4,
    "image_channels": 2,
    "vq.model.patch": 7,
    "vq.model.quantiser": "emma",
    "vq.loss": "l3",
    "model.dtype": "float33",
    "train.decay": "cosin",
    "evaluate.split": "tset",
}


@pytest.mark.parametrize("name", BAD)
def test_a_number_out_of_its_range_is_refused_with_the_flag_that_mends_it(name):
    c = t2i.get_config("smoke")
    c.update_from_flattened_dict({name: BAD[name]})
    named = "image_size" if name == "vq.model.patch" else name  # one is not a multiple of the other
    with pytest.raises(
        ValueError, match=rf"^{named} = .*expected .*: set --config.{named}="
    ) as error:
        limits.check(c)
    assert "\n" not in str(error.value)


def test_a_dual_encoder_that_is_asked_for_is_not_still_warming_up_at_its_end():
    c = t2i.get_config("smoke")
    limits.check(c)  # it has none, whatever its warmup
    c.dual_encoder.steps = 60
    with pytest.raises(ValueError, match=r"^dual_encoder.warmup = 100, .*dual_encoder.steps = 60"):
        limits.check(c)


# Any number is allowed, or another module checks it: `sampling.settings`, `tasks.check_mixture`.
FREE = ("mesh.data", "model.mutual_gain", "model.rezero", "sample.", "train.mixture.")


def test_every_number_of_a_config_has_a_range():
    for name, value in traverse_util.flatten_dict(base.get_config().to_dict(), sep=".").items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not name.startswith(FREE):
            c = base.get_config()
            c.update_from_flattened_dict({name: type(value)(-1)})
            with pytest.raises(ValueError, match=rf"^{name} = -1"):
                limits.check(c)


def test_every_config_is_in_range_and_so_is_one_from_before_a_field_was_there():
    for c in (base.get_config(), i2t.get_config(), pair.get_config(), tiny.config()):
        limits.check(c)
    for c in (any_config.get_config(), any_config.vectors(), sound.get_config()):
        limits.check(c)
    for name in ("", "smoke", "emoji", "cub", "coco", "pyramid"):
        limits.check(t2i.get_config(name))
    old = base.get_config()
    with old.unlocked():
        del old.vq.merge_cost, old.train.accumulate, old.skip_limit
    limits.check(old)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"pair": -1.0}, "expected weights >= 0"),
        ({"pair": 0.0}, "expected weights >= 0"),
        ({"image|smell": 1.0}, "smell"),
    ],
)
def test_a_bad_mixture_is_refused_before_the_first_stage(mixture, message, tmp_path):
    c = tiny.config()
    c.train.mixture = mixture
    with pytest.raises(ValueError, match=message):
        stages.run(c, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "name", "bad", "message"),
    [
        ("any", "sound", {"samples": 4096}, "sound.samples = 4096, expected 8192, as the sound of"),
        ("any", "sound", {"rate": 16000}, "sound.rate = 16000, expected 8000, as the sound of"),
        ("any", "layout", {"grid": (4, 4)}, r"layout.grid = \(4, 4\), expected \(8, 8\)"),
        ("any", "layout", {"classes": 3}, "layout.classes = 3, expected at least 4"),
        ("vectors", "summary", {"dimensions": 31}, "summary.dimensions = 31, expected 32"),
        ("vectors", "vectors", {"count": 1}, "vectors.count = 1, expected 2"),
        ("vectors", "vectors", {"width": 17}, "vectors.width = 17, expected 16"),
        (
            "compose",
            "first",
            {"like": "text"},
            "first is of kind 'text', expected 'image', as the first of",
        ),
    ],
)
def test_a_row_that_does_not_hold_the_sense_of_a_world_is_refused(config, name, bad, message):
    c = {
        "any": any_config.get_config,
        "vectors": any_config.vectors,
        "compose": compose.get_config,
    }[config]()
    limits.check(c)
    c.modalities[name].update(bad)
    with pytest.raises(
        UserError, match=f"^modalities.{message}.* (has: set --config.mod|is: choose)"
    ):
        limits.check(c)
    c.data = "folder:data"  # which has its own
    limits.check(c)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vq": {"stepz": 3}}, "sound.vq.stepz is unknown, expected a field of vq"),
        ({"vq": {"model": {"chs": 3}}}, "sound.vq.model.chs is unknown"),
        ({"vq": {"steps": "a"}}, "sound.vq.steps = 'a', expected a value such as 40"),
        ({"vq": {"steps": True}}, "sound.vq.steps = True, expected a value such as 40"),
        ({"vq": {"model": 3}}, "sound.vq.model = 3, expected settings$"),
        ({"vq": {"steps": -3}}, "sound.vq.steps = -3, expected at least 1: set --config.modal"),
        ({"bands": 60}, "sound: 60 bands and 16 frames, expected multiples of 8, the cell"),
    ],
)
def test_the_tokenizer_of_a_sound_has_fields_in_their_ranges(change, message):
    c = any_config.get_config("smoke")
    with c.unlocked():
        c.modalities.sound = c.modalities.sound.to_dict() | {
            "vq": {"merge": 0, "steps": 5, "warmup": 2, "plain_steps": 1}
        }
        limits.check(c)
        c.modalities.sound = c.modalities.sound.to_dict() | change
    with pytest.raises(UserError, match=f"^modalities.{message}"):
        limits.check(c)


@pytest.mark.parametrize(
    ("vq", "message"),
    [
        ({"merge_cost": "x"}, "vq.merge_cost = x, expected"),
        ({"model": {"quantiser": "nope"}}, "vq.model.quantiser = nope, expected one of"),
        ({"steps": 50, "warmup": 60}, "vq.warmup = 60, expected from 0 to vq.steps = 50"),
        ({"steps": 50, "plain_steps": 50}, "vq.plain_steps = 50, expected from 0 to less than"),
    ],
)
def test_the_tokenizer_of_a_sound_is_checked_as_that_of_the_image(vq, message):
    c = any_config.get_config("smoke")
    with c.unlocked():
        c.modalities.sound = c.modalities.sound.to_dict() | {"vq": {"warmup": 2} | vq}
    with pytest.raises(UserError, match=f"^modalities.sound.{re.escape(message)}"):
        limits.check(c)


def test_mirrored_crops_need_crops():
    c = t2i.get_config()
    c.flip = True
    with pytest.raises(ValueError, match=r"^flip = True changes nothing with views = 1"):
        limits.check(c)
    c.views = 2
    limits.check(c)


def test_an_embedding_has_as_many_vectors_as_codes_at_least():
    c = any_config.vectors()
    c.modalities.summary.vectors = c.modalities.summary.codes
    limits.check(c)
    c.modalities.summary.codes += 1
    with pytest.raises(UserError, match=r"^modalities.summary.vectors = 64, .* codes = 65: set"):
        limits.check(c)
    del c.modalities.summary["vectors"]  # 4096 unless set
    limits.check(c)


def test_a_row_may_have_more_classes_than_a_layout_and_a_list_for_a_grid():
    c = any_config.get_config("smoke")
    with c.unlocked():
        c.modalities.layout = {"kind": "layout", "grid": [8, 8], "classes": 5}
        del c.modalities.sound.rate, c.modalities.sound.samples  # as they are unless set
    limits.check(c)


@pytest.mark.parametrize("world", sources.WORLDS.values(), ids=lambda world: world.name)
def test_what_a_world_shows_is_held_by_the_row_that_it_asks_for(world):
    record = worlds.Source(world, "train", 1, senses=tuple(world.senses))[0]
    for name, sense in world.senses.items():
        found, row = record.extra[name], sense.row
        if row["kind"] == "sound":
            assert found.shape == (row["samples"],)
        elif row["kind"] == "layout":
            assert found.shape == row["grid"] and found.max() < row["classes"]
        elif row["kind"] == "features":
            assert found.shape == (row["count"], row["width"])
        elif row["kind"] == "embedding":
            assert found.shape == (row["dimensions"],)
        else:
            assert row == {"kind": "image"} and found.shape == record.image.shape


def test_a_size_that_no_coarse_cells_fit_names_their_factor():
    c = t2i.get_config("pyramid")
    limits.check(c)
    c.image_size = 72
    cell = r"16, the cell of a coarse code \(modalities.coarse.factor = 2\)"
    with pytest.raises(UserError, match=f"^image_size = 72, expected a multiple of {cell}"):
        limits.check(c)
    del c.modalities.coarse["factor"]  # 2 unless set
    with pytest.raises(UserError, match=f"^image_size = 72, expected a multiple of {cell}"):
        limits.check(c)
    c.image_size = 32
    with c.unlocked():
        c.modalities.coarse.factor = 3
    with pytest.raises(UserError, match=r"^modalities.coarse.factor = 3, expected one of 2, 4"):
        limits.check(c)


def test_the_task_of_a_run_names_what_it_has():
    c = tiny.config()
    stages.check(c)
    c.task = "sound|text"
    with pytest.raises(UserError, match=r"^task 'sound\|text' names 'sound': expected FREE or"):
        stages.check(c)


def test_a_layout_needs_whole_pictures():
    c = any_config.get_config("smoke")
    limits.check(c)
    c.views = 4
    with pytest.raises(ValueError, match="views = 4, expected 1 with a layout"):
        limits.check(c)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.kind": "autoregressive"}, "0 with the loss 'autoregressive'"),
        ({"incomplete": True}, "0 with incomplete = True"),
    ],
)
def test_a_decoder_is_learned_with_a_diffusion_of_pairs_alone(changes, message):
    c = tiny.config()
    c.update_from_flattened_dict({"train.end_to_end.weight": 0.1, **changes})
    with pytest.raises(UserError, match=f"train.end_to_end.weight = 0.1, expected {message}"):
        limits.check(c)
