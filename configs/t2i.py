"""Text to image, and every other task, with one model.

    python -m udd_jax.main --config=configs/t2i.py            shapes, on two CPU cores
    python -m udd_jax.main --config=configs/t2i.py:smoke      all stages in a minute, no quality
    python -m udd_jax.main --config=configs/t2i.py:emoji --config.data=webdataset:/path/to/emoji
    python -m udd_jax.main --config=configs/t2i.py:emoji_fine ...         four times as many codes
    python -m udd_jax.main --config=configs/t2i.py:pyramid    64 x 64 pixels in two levels of codes
    python -m udd_jax.main --mode=plan --config=configs/t2i.py:coco     the cost of the paper's size

The README has the time and the results of the first command. `cub` and `coco` are the published
sizes of UniD3: 20 layers of width 1024, T = 500, 32 x 32 image codes out of 2887, and 128 text
tokens out of 8192.
"""

from configs import base


def get_config(arg: str = ""):
    variants = {"": shapes, "smoke": smoke, "emoji": emoji, "cub": cub, "coco": coco}
    variants |= {"pyramid": pyramid, "pyramid_flat": pyramid_flat, "pyramid_smoke": pyramid_smoke}
    variants |= {"emoji_fine": emoji_fine, "emoji_levels": emoji_levels}
    if arg not in variants:
        names = ", ".join(name for name in variants if name)
        raise ValueError(f"config t2i.py:{arg} does not exist, expected one of {names}")
    c = base.get_config()
    c.name = f"t2i-{arg}" if arg else "t2i"
    variants[arg](c)
    return c


def shapes(c):
    """The defaults, and a start that finds early which cell of a picture a word names."""
    c.train.prefix_steps = 1000
    sampling(c)


def sampling(c):
    """How a network of `shapes`, also of two levels, is sampled best (benchmarks/RESULTS.md)."""
    with c.unlocked():
        # From nothing, each word has many right values, and the rare ones would be cut off.
        c.sample_rules.text = {"top_r": 0.85}
        # What is missing is drawn first where the network is sure: fewer contradictions in a third
        # of the calls. With less mass than that, the rare words of a gap that is open are lost.
        order = {"sampler": "entropy_bounded", "bound": 0.1}
        c.sample_rules.infill = {**order, "temperature": 1.0, "top_r": 0.95}
    # A pair is its image first, then the text: they agree more than if both come up together.
    c.begin_with = ("image",)


def smoke(c):
    """Every stage, as small as possible, for tests. The quality is bad, so there are no aims."""
    c.data_options.size = 256
    c.vq.model.update({"n_embed": 64, "ch": 32})
    c.vq.update({"pictures": 256, "steps": 40, "plain_steps": 10, "above_flat": 0.0})
    c.model.update({"layers": 1, "width": 32, "heads": 2, "unroll": 1})
    c.diffusion.steps = 20
    c.train.update(
        {
            "steps": 30,
            "prefix_steps": 10,
            "batch_size": 16,
            "warmup": 5,
            "log_every": 5,
            "save_every": 10,
        }
    )
    c.sample.update({"sampler": "ancestral", "steps": 5, "temperature": 1.0, "top_r": 1.0})
    c.evaluate.update({"samples": 16, "batch_size": 16, "bound_samples": 16, "bound_times": 2})
    c.evaluate.update({"aims": False, "steering": 0})


def pyramid_flat(c):
    """`shapes` at 64 x 64 pixels with one level: the 8 x 8 codes of the fine level of `pyramid`.

    So many tokens as in the fine level, and as many steps. 80 tokens as in both levels together are
    no grid of a square picture. A step takes a seventh less time than one of `pyramid`.
    """
    _shapes64(c)
    c.vq.merge = 0.0  # joined codes are too few: half of the pictures could not be read any more


def _shapes64(c):
    """What one level and two of `shapes` at 64 x 64 pixels have in common."""
    c.data = "shapes64"
    c.image_size = 64
    c.vq.model.update({"n_embed": 256})
    c.vq.update({"batch_size": 32, "steps": 2500})
    # Self-attention over all, as for any list of modalities longer than two.
    c.model.update({"attention": "self", "unroll": 1})
    # 64 tokens of a picture, of which most are ground, and 13 of a caption.
    c.train.update({"steps": 8000, "prefix_steps": 1000, "batch_size": 32, "image_weight": 0.5})
    with c.unlocked():
        c.sample_rules["image|text"] = {"group": 2}  # 32 network calls
        c.sample_rules.text = {"top_r": 0.85}
    c.evaluate.update({"samples": 256, "steering": 0, "rules": ("image|text",)})


def pyramid(c):
    """Two levels: 4 x 4 coarse codes that tell what is where, then 8 x 8 fine ones.

    A picture from a text is coarse first, one position a call, then fine, eight positions a call:
    24 network calls. The rule `image|coarse` is upscaling: right if the picture reads back as the
    scene. Both were right for all of 256 held-out scenes (benchmarks/RESULTS.md). Compare with
    `pyramid_flat` (.879 from a text). A step takes 1.1 times as long as one of `shapes`.
    """
    _shapes64(c)
    sampling(c)
    with c.unlocked():
        c.modalities.coarse = {"kind": "coarse", "codes": 256, "factor": 2, "noise": 0.1}
        c.sample_rules.update(
            {rule: {"group": 8} for rule in ("image|coarse,text", "image|coarse")}
        )
        del c.sample_rules["image|text"]
        c.train.mixture = {
            **{"coarse|text": 0.22, "image|coarse,text": 0.12, "image|coarse": 0.08},
            **{"text|image": 0.28, "text|coarse": 0.06, "coarse,text": 0.1},
            **{"infill": 0.06, "coarse": 0.02, "text": 0.02, "image|text": 0.04},
        }
    c.evaluate.rules = ("image|text", "image|coarse", "image|coarse,text", "coarse|text")


def pyramid_smoke(c):
    """`pyramid` as small as possible, for tests."""
    pyramid(c)
    smoke(c)
    c.modalities.coarse.codes = 32


def emoji(c):
    """Real 64 x 64 drawings with names written by people: name to image and image to name.

    A drawing is 8 x 8 codes for cells of 8 x 8 pixels: read back from them it is recognised almost
    as often as the real one, and they are a quarter of those of `emoji_fine`. The encoder sees only
    the pixels of its cell, so equal patches have equal codes. The decoder sees the whole image.

    It took 96 minutes of one core; on two a step takes .36 s, which makes 45 minutes. Held out, 481
    drawings from their names: the right one among 20 names for .777 (real drawings .898, chance
    .05), and for .933 with twice the time, --config.train.steps=14000
    --config.train.prefix_steps=5600. benchmarks/RESULTS.md has the rest.
    """
    _drawings(c)
    c.text.vocab_size = 4096  # most words of the names are one piece
    c.vq.model.update({"n_embed": 512, "ch": 128, "patch": 8})
    c.vq.steps = 2500
    c.model.update({"layers": 3, "unroll": 3, "width": 192, "heads": 6, "absent": "left_out"})
    c.train.update({"steps": 7500, "prefix_steps": 3000, "batch_size": 32, "image_weight": 0.4})
    c.train.mixture = {"t2i": 0.55, "i2t": 0.25, "pair": 0.08, "infill": 0.03}
    c.train.mixture.update({"image": 0.05, "text": 0.04})
    c.sample.steps = 32
    with c.unlocked():
        c.sample_rules["image|text"] = {"guidance": 2.0}
        # A caption is drawn where it is sure first: words broken in the middle are rare then.
        c.sample_rules["text|image"] = {"sampler": "best_first"}
        # From nothing, one piece a call and the likely ones alone: so they make names more often.
        c.sample_rules.text = {"sampler": "first_hitting", "top_r": 0.5}
    # A pair is its text first: drawings fit names better than names drawings (RESULTS.md).
    c.begin_with = ("text",)
    c.dual_encoder.patch = 2


def emoji_fine(c):
    """The drawings of `emoji` in 16 x 16 codes: sharper, and learned far more slowly.

    An image is 16 x 16 codes for cells of 4 x 4 pixels. (With 8 x 8 cells of 8 x 8 pixels, even the
    best patches reach only 21 dB.)

    Image tokenizer: 13 minutes on one core, 26.5 dB on held-out images, over 99 % of the codes in
    use. Diffusion: 59 minutes on two cores, .39 s a step. benchmarks/RESULTS.md has the results,
    also with more steps.
    """
    _drawings(c)
    c.vq.model.update({"n_embed": 1024, "patch": 4})
    c.vq.steps = 5000
    c.model.update({"layers": 3, "unroll": 3})
    c.train.update({"steps": 9000, "batch_size": 16, "image_weight": 0.1})
    c.train.mixture = {"pair": 0.1, "t2i": 0.33, "i2t": 0.5, "infill": 0.03, "text": 0.04}


def emoji_levels(c):
    """`emoji_fine` in two levels: 8 x 8 coarse codes for cells of 8 x 8 pixels, 16 x 16 fine ones.

    Read back from the coarse codes alone, a drawing is recognised almost as often as the real one.
    Most steps compute nothing else, because the fine ones are left out. After the same 25 minutes
    of one core the coarse pictures were recognised more often than those of `emoji_fine`. But after
    an hour fine pictures and captions are bad (benchmarks/RESULTS.md).
    """
    emoji_fine(c)
    c.vq.steps = 2500
    c.model.update({"layers": 4, "unroll": 4, "attention": "self", "absent": "left_out"})
    c.train.update({"steps": 7000, "prefix_steps": 4200, "batch_size": 32})
    with c.unlocked():
        c.modalities.coarse = {"kind": "coarse", "codes": 256, "factor": 2, "noise": 0.1}
        c.modalities.coarse.weight = 0.4
        c.train.mixture = {
            **{"coarse|text": 0.5, "text|coarse": 0.25, "coarse,text": 0.05},
            **{"coarse": 0.05, "text": 0.05, "infill": 0.01},
            **{"text|image": 0.05, "image|coarse,text": 0.04},
        }
        c.sample_rules["coarse|text"] = {"steps": 32, "guidance": 3.0}
        c.sample_rules["image|coarse,text"] = {"steps": 16}
    c.evaluate.update({"steering": 0, "rules": ("coarse|text",)})


def _drawings(c):
    """What the configs of drawings share: the data, how they are evaluated, rates."""
    c.data = "webdataset:data/emoji"
    c.data_options.validation = 0.02
    c.image_size = 64
    c.text.update({"vocab_size": 2048, "length": 16})
    c.vq.model.update({"embed_dim": 32, "z_channels": 32, "ch": 64})
    c.vq.model.update({"ch_mult": (1,), "num_res_blocks": 0, "local_decoder": False})
    c.vq.update({"pictures": 0, "batch_size": 8, "learning_rate": 3e-3})
    c.vq.update({"warmup": 50, "plain_steps": 300, "merge": 0.0})
    # An image has 64 or 256 tokens, and a name four or five. With equal weights almost all of the
    # gradient would come from images: `image_weight`.
    c.train.update({"learning_rate": 3e-3, "warmup": 100, "ema": 0.998, "save_every": 250})
    # One code at a time would be 64 or 256 network calls.
    c.sample.update({"sampler": "ancestral", "steps": 100, "temperature": 1.0, "top_r": 0.8})
    # Held-out drawings; training has the same emoji in another style.
    c.evaluate.update({"only": "split_kind=pair", "category": "style"})
    c.evaluate.update({"samples": 64, "batch_size": 32, "bound_samples": 200, "bound_times": 8})
    c.evaluate.update({"retrieval": 200, "round_trips": 32})
    # With --config.dual_encoder.steps=1500. Captions of other drawings are wrong enough for it.
    c.dual_encoder.update({"patch": 4, "width": 128, "heads": 4, "group": 1})


def _published(c):
    c.image_size = 256
    c.views, c.flip = 2, True
    c.text.update({"vocab_size": 8192, "length": 128})
    c.vq.model.update({"n_embed": 2887, "embed_dim": 256, "z_channels": 256, "ch": 128})
    c.vq.model.update({"ch_mult": (1, 1, 2, 4), "num_res_blocks": 2, "attn_resolutions": (32,)})
    c.vq.model.update({"quantiser": "gumbel", "patch": 1})
    c.vq.model.update({"local_encoder": False, "local_decoder": False})
    c.vq.update({"pictures": 0, "steps": 200_000, "batch_size": 16, "learning_rate": 1e-4})
    c.vq.update({"loss": "l1", "merge": 0.0, "plain_steps": 0, "commitment": 5e-4})
    c.vq.above_flat = 0.0  # it is trained for looks, not for PSNR
    c.diffusion.steps = 500
    c.model.update(
        {
            "layers": 20,
            "width": 1024,
            "heads": 16,
            "time": "shared",
            "time_table": "untied",
            "given_vector": False,
            "mutual_gain": 0.0,
            "rotary": False,
            "qk_norm": False,
            "activation": "gelu",
            "mlp_ratio": 4,
            "rezero": 0.0,
            "unroll": 1,
            "implementation": "xla",
            "remat": "dots",
            "dtype": "bfloat16",
        }
    )
    c.train.update(
        {
            "batch_size": 64,
            "optimiser": "adamw",
            "learning_rate": 2e-4,
            "warmup": 1000,
            "beta2": 0.96,
            "weight_decay": 4.5e-2,
            "clip": 0.5,
            "ema": 0.999,
            "auxiliary": 0.01,
            "fan_in": False,
            "mixture": {"pair": 1.0},
            "save_every": 2000,
            "log_every": 100,
        }
    )
    c.sample.update({"sampler": "ancestral", "steps": 100, "temperature": 1.0, "top_r": 0.88})


def cub(c):
    """CUB-200-2011 at the published size."""
    _published(c)
    c.data = "cub:data/CUB_200_2011"
    c.train.steps = 55_500


def coco(c):
    """COCO captions at the published size."""
    _published(c)
    c.data = "coco:data/coco"
    c.train.steps = 840_000
    c.evaluate.pictures = 30_000  # the usual number for Frechet distances on COCO
