"""Spoken words: a sound from its word, and the word from a sound. No pictures.

    python -m benchmarks speech --out=data/speech             the recordings, made by espeak-ng
    python -m udd_jax.main --config=configs/speech.py
    python -m udd_jax.main --config=configs/speech.py:smoke   all stages in a minute, no quality
    python -m udd_jax.main --mode=sample --workdir=runs/speech --task="sound|text" \\
        --given text=seven

A sound of a second is 64 codes. The records have no pictures, so the image of the run is one code,
which is always absent. The evaluation trains a listener on the recordings of the training, and says
how many of the sounds of voices that it never heard, real and generated ones, it hears right.

About 26 minutes on one core of an AMD EPYC. The listener hears .955 of the real ones right, and .95
of the generated ones (benchmarks/RESULTS.md).
"""

from configs import base, t2i

BOTH = ("sound|text", "text|sound")


def get_config(arg: str = ""):
    if arg not in ("", "smoke"):
        raise ValueError(f"config speech.py:{arg} does not exist, expected nothing or smoke")
    c = base.get_config()
    c.task = "sound,text"
    c.data, c.incomplete = "folder:data/speech", True
    c.image_size = 8  # one code
    c.text.update({"vocab_size": 320, "length": 4})
    with c.unlocked():
        c.modalities.sound = {
            "kind": "sound",
            **{"rate": 8000, "samples": 8192, "hop": 256, "window": 512},
            **{"bands": 32, "low": 60.0},
            "vq": {
                **{"pictures": 6000, "steps": 1000, "merge": 0.0},
                "model": {"n_embed": 128, "ch": 32, "patch": 4, "local_decoder": False},
            },
        }
        c.train.mixture = {"sound|text": 0.7, "text|sound": 0.2, "sound,text": 0.1}
    c.train.update({"steps": 4500, "batch_size": 32})
    c.model.update({"attention": "self", "unroll": 1})
    c.evaluate.update({"samples": 200, "rules": BOTH, "listener": 400})
    if arg == "smoke":
        t2i.smoke(c)
        small = {"n_embed": 64, "ch": 32}
        c.modalities.sound.vq.update({"pictures": 256, "steps": 40, "plain_steps": 10})
        c.modalities.sound.vq.model.update(small)
        c.train.prefix_steps = 0
        c.evaluate.listener = 20
    c.name = f"speech-{arg}" if arg else "speech"
    return c
