"""Your own pictures, with settings chosen from the data and from the minutes that you give.

    python -m udd_jax.main --config=configs/own.py --config.data=folder:/path --config.minutes=60
    python -m udd_jax.main --mode=data --config=configs/own.py --config.data=folder:/path

This is `t2i.py:emoji` with open fields, which are None: `udd_jax/training/recipe.py` chooses them
when the data have been looked at, prints them, and the run keeps them. A field that you type stays
as typed, and enters the other choices: with --config.vq.model.patch=4 a picture of 64 x 64 pixels
has 16 x 16 codes instead of 8 x 8. It is sharper then, and learned far more slowly.

The minutes are those of two CPU cores, by the measured speed of `emoji`.
"""

from ml_collections.config_dict import placeholder

from configs import base, t2i

MIXTURE = ("pair", "t2i", "i2t", "infill", "image", "text")


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"config own.py:{arg} does not exist, expected own.py")
    c = base.get_config()
    usual = c.evaluate.copy_and_resolve_references()
    t2i.emoji(c)
    c.name = "own"
    c.minutes = 60.0
    c.data = ""  # must be given
    c.data_options.validation = placeholder(float)
    c.evaluate.update({"only": usual.only, "category": usual.category})
    c.image_size = placeholder(object)  # one object each: a shared one would be one field
    c.text.update({"vocab_size": placeholder(int), "length": placeholder(int)})
    c.vq.model.update({"n_embed": placeholder(int), "patch": placeholder(int)})
    c.vq.update({"steps": placeholder(int), "batch_size": placeholder(int)})
    c.vq.update({"warmup": placeholder(int), "plain_steps": placeholder(int)})
    c.train.update({"steps": placeholder(int), "prefix_steps": placeholder(int)})
    c.train.update({"batch_size": placeholder(int), "warmup": placeholder(int)})
    c.train.image_weight = placeholder(float)
    c.train.mixture = {task: placeholder(float) for task in MIXTURE}
    c.sample.steps = placeholder(int)
    c.dual_encoder.patch = placeholder(int)
    return c
