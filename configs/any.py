"""Any of image, text, sound and layout from any of the others, with one network.

    python -m udd_jax.main --config=configs/any.py            shapes
    python -m udd_jax.main --config=configs/any.py:smoke      all stages in a minute, no quality
    python -m udd_jax.main --config=configs/any.py:vectors    the kinds that are no pictures, below
    python -m udd_jax.main --mode=sample --workdir=runs/any --task="sound|text" \\
        --given text="a small red circle"

A scene of `shapes` is a picture, a caption, a sound of a second and a map of categories. A batch
mixes rules by chance (`any`), all four from nothing, and each one from all others. Of held-out
scenes each direction is right in at least .95, and all four from nothing in .93 (seed 1,
benchmarks/RESULTS.md); 59 minutes of two cores with nothing else to do.
"""

import itertools

from configs import base, t2i

NAMES = ("image", "layout", "sound", "text")
EACH_FROM_OTHERS = tuple(f"{a}|{','.join(b for b in NAMES if b != a)}" for a in NAMES)


def told() -> list[str]:
    """All rules that give the picture or the sound, which tell the scene."""
    found = []
    for sides in itertools.product(("free", "given", "absent"), repeat=len(NAMES)):
        side = lambda asked: [n for n, s in zip(NAMES, sides, strict=True) if s == asked]  # noqa: E731, B023
        if side("free") and {"image", "sound"} & set(side("given")):
            found.append(f"{','.join(side('free'))}|{','.join(side('given'))}")
    return found


def vectors():
    """Of a scene of `shapes`: an embedding, features, and how long its caption is.

    `summary` is a vector of all that the scene shows, as residual codes: `summary|text` is a prior
    of it, `image|summary` a decoder (DALL-E 2, arXiv 2204.06125, in the small). `vectors` are
    features, which are given only: captions from features (DDCap) and pictures from them. With
    the packaged tokenizers 15 minutes of one core; what to expect is in benchmarks/RESULTS.md.
    """
    c = t2i.get_config()
    with c.unlocked():
        c.modalities.summary = {
            "kind": "embedding",
            **{"dimensions": 32, "residuals": 4, "codes": 64, "vectors": 4096},
        }
        c.modalities.vectors = {"kind": "features", "count": 2, "width": 16, "dropped": 0.1}
        c.modalities.length = {"kind": "length"}
        c.train.mixture = {
            **dict.fromkeys(("summary|text", "image|summary", "image|summary,text"), 0.1),
            **dict.fromkeys(("image|vectors", "text|vectors", "image,text"), 0.1),
            **dict.fromkeys(("length|image", "summary", "image|text", "text|image"), 0.05),
            **dict.fromkeys(("text|image,length", "image,summary|text"), 0.1),
        }
    c.train.update({"steps": 6000, "prefix_steps": 0, "batch_size": 32})
    c.model.update({"attention": "self", "unroll": 1})
    c.begin_with = ()
    c.evaluate.update({"samples": 256, "aims": False, "steering": 0})
    c.evaluate.rules = (
        *("summary|text", "image|summary", "image|summary,text", "image,summary|text"),
        *("image|vectors", "text|vectors", "image|text", "text|image", "length,text|image"),
    )
    with c.unlocked():  # what is given tells the scene, so the rest is sampled sharply
        for rule in c.evaluate.rules:
            c.sample_rules[rule] = {"temperature": 1.0, "top_r": 0.5}
    c.name = "any-vectors"
    return c


def get_config(arg: str = ""):
    if arg == "vectors":
        return vectors()
    if arg not in ("", "smoke"):
        raise ValueError(f"config any.py:{arg} does not exist, expected nothing, smoke or vectors")
    c = base.get_config()
    with c.unlocked():
        c.modalities.sound = {
            "kind": "sound",
            **{"rate": 8000, "samples": 8192, "hop": 512, "window": 1024},
            # Even steps of pitch: the tones of shapes are 4 semitones apart.
            **{"bands": 64, "scale": "log", "low": 180.0, "high": 3800.0},
            # Joined codes lose what the reader needs: of 100 sounds 72 were read right, 99 without.
            "vq": {"pictures": 4096, "steps": 800, "merge": 0.0},
        }
        # 64 tokens, of which most say nothing: with equal weights they would be half of the loss.
        c.modalities.layout = {"kind": "layout", "grid": (8, 8), "classes": 4, "weight": 0.25}
        c.train.mixture = {
            "any": 0.5,
            ",".join(NAMES): 0.14,
            **dict.fromkeys(EACH_FROM_OTHERS, 0.05),
            **{"image|text": 0.08, "text|image": 0.08},
        }
    c.train.update({"steps": 12_500, "prefix_steps": 1500, "batch_size": 32})
    # Self-attention over all of them: with a mutual attention for each, a step takes twice as long.
    c.model.update({"attention": "self", "unroll": 1})
    # The picture is learned best, from any other and by any other: it comes first, and the rest by
    # way of it. What the picture or the sound tells is sampled sharply.
    c.begin_with = ("image",)
    with c.unlocked():
        c.sample_rules = {rule: {"temperature": 1.0, "top_r": 0.5} for rule in told()}
    c.evaluate.update({"samples": 128, "rules": ("every",)})
    if arg == "smoke":
        t2i.smoke(c)
        small = {"n_embed": 64, "ch": 32}
        c.modalities.sound.vq.update({"pictures": 256, "steps": 40, "plain_steps": 10})
        c.modalities.sound.vq.model = small
    c.name = f"any-{arg}" if arg else "any"
    return c
