"""A picture from two other pictures and a text that says what to take from each.

    python -m udd_jax.main --config=configs/compose.py          two references and a text
    python -m udd_jax.main --config=configs/compose.py:smoke    all stages in a minute, no quality
    python -m udd_jax.main --mode=sample --workdir=runs/compose --task="image|first,second,text" \\
        --given first=a.png --given second=b.png --weigh first=0.5 \\
        --given text="the colour of the first and the shape of the second"

The references are like the image: they share its tokenizer, its embeddings and its head. Each has
positions of its own, since the text tells them apart. The report has the share of pictures that the
law of the world allows (`udd_jax/data/sources/shapes/compose.py`), for pairs of references that no
training scene has: all of 512 were right (benchmarks/RESULTS.md). The main rule is learned, and
pictures from nothing are not, since only a twentieth of the batch is about them. Diffusion: 61
minutes beside a second training on two shared cores; the loss hardly fell after 2000 of 6000 steps.
"""

from configs import base, t2i

RULE = "image|first,second,text"


def get_config(arg: str = ""):
    if arg not in ("", "smoke"):
        raise ValueError(f"config compose.py:{arg} does not exist, expected nothing or smoke")
    c = base.get_config()
    c.data = "compose"
    c.data_options.captions_per_image = 1
    with c.unlocked():
        c.modalities.first = {"like": "image"}
        c.modalities.second = {"like": "image"}
        # Mostly the rule itself. The others leave a condition out, as guidance needs, or name it
        # from a picture.
        c.train.mixture = {
            RULE: 0.7,
            "text|first,image,second": 0.1,
            **dict.fromkeys(("image|first,text", "image|second,text", "image|first,second"), 0.05),
            "image": 0.05,
        }
    c.train.update({"steps": 6000, "batch_size": 64})
    # Self-attention over all of them: mutual attention has weights of its own for each modality.
    c.model.update({"attention": "self", "unroll": 1})
    c.evaluate.update({"rules": (RULE, "text|first,image,second"), "aims": False})
    if arg == "smoke":
        t2i.smoke(c)
        c.train.prefix_steps = 0
    c.name = f"compose-{arg}" if arg else "compose"
    return c
