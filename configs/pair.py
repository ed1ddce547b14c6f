"""Pairs from nothing: the run of `t2i.py`, but the evaluation and the report show pairs first.

python -m udd_jax.main --config=configs/pair.py
"""

from configs import t2i


def get_config(arg: str = ""):
    c = t2i.get_config(arg)
    c.task = "pair"
    return c
