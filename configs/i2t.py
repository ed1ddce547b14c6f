"""Image to text: the run of `t2i.py`, but the evaluation and the report show captions first.

python -m udd_jax.main --config=configs/i2t.py
"""

from configs import t2i


def get_config(arg: str = ""):
    c = t2i.get_config(arg)
    c.task = "i2t"
    return c
