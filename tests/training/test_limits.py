"""Numbers out of their range are refused, and every config of the repository is in range."""

import pytest
from flax import traverse_util

from configs import any as any_config
from configs import base, i2t, pair, t2i
from tests.helpers import tiny
from udd_jax import stages
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
    named = "image_size" if name == "vq.model.patch" else name  # one is no multiple of the other
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


def test_a_layout_needs_whole_pictures():
    c = any_config.get_config("smoke")
    limits.check(c)
    c.views = 4
    with pytest.raises(ValueError, match="views = 4, expected 1 with a layout"):
        limits.check(c)
