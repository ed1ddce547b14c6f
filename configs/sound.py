"""Sounds of ten seconds from captions, at the size of Diffsound (Yang et al., 2207.09983).

    python -m udd_jax.main --mode=plan --config=configs/sound.py
    python launch/compile_ahead.py --config=configs/sound.py --topology=v5e:8x8
    python -m udd_jax.main --config=configs/sound.py --config.data=folder:/path/to/sounds

The data are files of one stem, `a.wav` and `a.txt`; pictures are not needed. A sound at 22,050 Hz
is a spectrogram of 80 bands and 848 frames, and then 5 x 53 codes out of 256. The network has
Diffsound's 19 layers of width 1024, and T = 100. All else is ours. Nobody has trained it yet: the
first two commands say what it would cost.
"""

from configs import base


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"config sound.py:{arg} does not exist, expected sound.py")
    c = base.get_config()
    c.name = "sound"
    c.data, c.incomplete = "folder:data/sounds", True
    c.image_size = 8  # one code, which is always absent
    c.text.update({"vocab_size": 8192, "length": 77})
    tokenizer = {
        **{"n_embed": 256, "embed_dim": 256, "z_channels": 256, "ch": 128, "patch": 1},
        **{"ch_mult": (1, 1, 2, 2, 4), "num_res_blocks": 2},  # four halvings: 16 x 16 to a code
        **{"local_encoder": False, "local_decoder": False},
    }
    with c.unlocked():
        c.modalities.sound = {
            "kind": "sound",
            **{"rate": 22_050, "samples": 848 * 256, "hop": 256, "window": 1024},
            **{"bands": 80, "low": 125.0, "high": 7600.0, "floor": -80.0},
            "vq": {
                **{"pictures": 0, "steps": 200_000, "batch_size": 16, "learning_rate": 1e-4},
                **{"loss": "l1", "merge": 0.0, "plain_steps": 1000, "warmup": 1000},
                **{"above_flat": 0.0, "save_every": 2000},
                "model": tokenizer,
            },
        }
        c.train.mixture = {"sound|text": 0.8, "sound": 0.1, "text|sound": 0.1}
    c.model.update({"layers": 19, "width": 1024, "heads": 16, "mlp_ratio": 4, "attention": "self"})
    c.model.update({"activation": "gelu", "unroll": 1, "implementation": "xla"})
    c.model.update({"remat": "dots", "dtype": "bfloat16"})
    c.train.update({"steps": 400_000, "batch_size": 64, "optimiser": "adamw"})
    c.train.update({"learning_rate": 2e-4, "warmup": 1000, "beta2": 0.96, "ema": 0.999})
    c.train.update({"weight_decay": 4.5e-2, "clip": 0.5, "save_every": 2000, "log_every": 100})
    c.sample.update({"sampler": "ancestral", "steps": 100, "temperature": 1.0, "top_r": 0.85})
    c.evaluate.update({"rules": ("sound|text",)})
    return c
