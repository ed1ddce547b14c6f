"""A prior and a decoder in one network: first the vector of a picture, then the picture.

    python -m udd_jax.main --config=configs/t2i.py --config.dual_encoder.steps=2500
    python -m udd_jax.main --mode=embed --workdir=runs/t2i --out=data/vectors
    python -m udd_jax.main --config=configs/prior.py
    python -m udd_jax.main --mode=sample --workdir=runs/prior --task="image,summary|text" \\
        --given text="a small red circle" --begin_with=summary

The data are those of the second command: `shapes` as a folder, each picture with the vector of the
dual encoder of the first. Vectors of another encoder are files of the same names, `KEY.npy` beside
`KEY.png`; their size is `--config.modalities.summary.dimensions=`. The rule `summary|text` is the
prior, `image|summary` and `image|summary,text` are decoders (DALL-E 2, arXiv 2204.06125, in the
small). As stored data `shapes` has no reader of its pictures, so the report shows samples and says
of none whether it is right; benchmarks/RESULTS.md does, and has `any.py:vectors`, the same with a
vector of the scene itself.
"""

from configs import t2i

PRIOR, DECODERS = "summary|text", ("image|summary", "image|summary,text")


def get_config(arg: str = ""):
    if arg not in ("", "smoke"):
        raise ValueError(f"config prior.py:{arg} does not exist, expected nothing or smoke")
    c = t2i.get_config(arg)
    c.data = "folder:data/vectors"
    c.data_options.trust_splits = True  # the splits stay those of `shapes`
    c.begin_with = ()
    with c.unlocked():
        # With 8 codes the nearest test picture shows the same scene in 99.6 %, with 4 in 87 %.
        c.modalities.summary = {
            "kind": "embedding",
            **{"dimensions": 64, "residuals": 8, "codes": 256, "vectors": 4096},
        }
        c.train.mixture = {
            PRIOR: 0.25,
            **dict.fromkeys(DECODERS, 0.2),
            **dict.fromkeys(("text|image", "image|text"), 0.1),
            **dict.fromkeys(("summary", "image", "text"), 0.05),
        }
    # Self-attention over all of them, as for any list of modalities longer than two.
    c.model.update({"attention": "self", "unroll": 1})
    c.evaluate.update({"rules": (PRIOR, *DECODERS), "aims": False, "steering": 0})
    if arg == "smoke":
        c.modalities.summary.codes = 16
    c.name = f"prior-{arg}" if arg else "prior"
    return c
