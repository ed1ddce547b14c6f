"""Your own pictures, with settings chosen from the data and from the minutes that you give.

    python -m udd_jax.main --config=configs/own.py --config.data=folder:/path --config.minutes=60
    python -m udd_jax.main --mode=data --config=configs/own.py --config.data=folder:/path

The fields that are None here are open: `udd_jax/training/recipe.py` chooses them when the data have
been looked at, prints them, and the run keeps them. A field that you type stays as typed. The
minutes are those of two CPU cores, by the measured speed of `t2i.py:emoji_fine`, whose recipe this
is.
"""

from ml_collections.config_dict import placeholder

from configs import base

MIXTURE = ("pair", "t2i", "i2t", "infill", "image", "text")


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"config own.py:{arg} does not exist, expected own.py")
    c = base.get_config()
    c.name = "own"
    c.data = ""  # must be given
    c.minutes = 60.0
    c.image_size = placeholder(object)  # one object each: a shared one would be one field
    c.text.update({"vocab_size": placeholder(int), "length": placeholder(int)})
    c.vq.model.update({"embed_dim": 32, "z_channels": 32, "ch": 64, "local_decoder": False})
    c.vq.model.update({"n_embed": placeholder(int), "patch": placeholder(int)})
    c.vq.update({"pictures": 0, "learning_rate": 3e-3, "merge": 0.0})
    c.vq.update(
        {
            "steps": placeholder(int),
            "batch_size": placeholder(int),
            "warmup": placeholder(int),
            "plain_steps": placeholder(int),
        }
    )
    c.model.update({"layers": 3, "unroll": 3})
    c.train.update({"learning_rate": 3e-3, "ema": 0.998, "save_every": 250})
    c.train.update(
        {
            "steps": placeholder(int),
            "batch_size": placeholder(int),
            "warmup": placeholder(int),
            "image_weight": placeholder(float),
        }
    )
    c.train.mixture = {task: placeholder(float) for task in MIXTURE}
    c.sample.update({"sampler": "ancestral", "steps": 100, "temperature": 1.0, "top_r": 0.8})
    c.evaluate.update({"samples": 64, "batch_size": 32, "bound_samples": 200, "bound_times": 8})
    c.evaluate.update({"retrieval": 200, "round_trips": 32})
    c.dual_encoder.update({"patch": 4, "width": 128, "heads": 4, "group": 1})
    return c
