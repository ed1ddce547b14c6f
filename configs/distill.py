"""A student of a finished run, for samples in few network calls (udd_jax/training/distillation.py).

    python -m udd_jax.main --config=configs/distill.py --config.init_from=RUN --workdir=runs/student

Data, sizes, tokenizers and what pairs begin with are those of RUN. The student may be the teacher
of another student. With --config.train.teacher_guidance.image=2 it learns what the teacher draws
with that guidance.
benchmarks/RESULTS.md has quality against calls for teacher and student.
"""

from configs import base


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"config distill.py:{arg} does not exist, expected distill.py")
    c = base.get_config()
    c.name, c.data = "distill", ""  # the teacher's
    c.train.update({"loss": "distilled", "auxiliary": 0.0, "steps": 500, "save_every": 100})
    c.train.update({"learning_rate": 1e-3, "warmup": 20, "ema": 0.98})
    c.sample.update({"sampler": "maskgit", "steps": 4})
    c.evaluate.aims = False
    return c
