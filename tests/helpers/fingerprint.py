"""The numbers that a refactoring must not change, bit for bit, on one machine.

    python -m tests.helpers.fingerprint before.json     at the commit before: writes the file
    python -m tests.helpers.fingerprint before.json     after: compares, exit code 1 if it differs

It holds the tokens of all six tasks with three samplers from the packaged run, with and without
guidance; 20 losses of a training on `shapes`; the bound of 32 items. Two processors may round
differently, so the file is made anew on each machine and is not kept in the repository.
"""

import hashlib
import json
import pathlib
import sys
import tempfile

import numpy as np

import udd_jax
from configs import t2i
from udd_jax import stages

RUN = pathlib.Path(udd_jax.__file__).parent / "assets" / "shapes"
SAMPLERS = {"ancestral": {"steps": 12}, "maskgit": {"steps": 12}, "first_hitting": {}}
COUNT = 4


def digest(array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def tokens(pipe) -> dict:
    """The tokens of every task, sampler and guidance, hashed."""
    images, captions = pipe.example(COUNT)
    mask = np.zeros(images.shape[1:3], bool)
    mask[:16] = True
    blanks = ["a ___ " + caption.split(" ", 2)[2] for caption in captions]

    def alone(task, options):
        """All settings, since guidance that has nothing to lead it is refused where it is typed."""
        changes = {name: value for name, value in options.items() if name != "seed"}
        return {"seed": options["seed"], **vars(pipe.settings(task, **changes))}

    found = {}
    for sampler, own in SAMPLERS.items():
        for guidance in (1.0, 2.0):
            options = {"sampler": sampler, "guidance": guidance, "seed": 3} | own
            results = {
                "t2i": pipe.text_to_image(captions, **options),
                "i2t": pipe.image_to_text(images, **options),
                "pair": pipe.pairs(COUNT, **options),
                "image": pipe.images(COUNT, **alone("image", options)),
                "text": pipe.texts(COUNT, **alone("text", options)),
                "infill": pipe.infill(images, mask, blanks, **options),
            }
            for task, result in results.items():
                found[f"{task} {sampler} guidance {guidance}"] = digest(result.tokens)
    return found


def losses() -> list[str]:
    """20 losses of the default network, tokenizers from the packaged run; then its weights."""
    c = t2i.get_config()
    c.data_options = {"size": 512}
    c.text.file, c.vq.file = str(RUN / "text.model"), str(RUN / "vq" / "tokenizer")
    c.train.update({"steps": 20, "warmup": 10, "log_every": 1})
    with tempfile.TemporaryDirectory() as folder:
        stages.run(c, folder, until="diffusion")
        lines = (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        weights = hashlib.sha256((pathlib.Path(folder) / "weights").read_bytes()).hexdigest()[:16]
    return [float(row["loss"]).hex() for row in rows if "loss" in row] + [weights]


def bound(pipe) -> dict:
    images, captions = pipe.example(32)
    options = {"times": 4, "seed": 5}
    return {
        task: digest(pipe.log_likelihood(images, captions, task=task, **options))
        for task in ("pair", "t2i", "i2t", "image", "text")
    }


def main(path):
    pipe = udd_jax.Pipeline.load(RUN)
    found = {"tokens": tokens(pipe), "bound": bound(pipe), "losses": losses()}
    path = pathlib.Path(path)
    if not path.exists():
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(f"{path} written: {len(found['tokens'])} sets of tokens")
        return 0
    before, differ = json.loads(path.read_text()), []
    for part, values in found.items():
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        differ += [f"{part} {name}" for name, value in pairs if before[part][name] != value]
    print("\n".join(f"differs: {name}" for name in differ) or "all the same, bit for bit")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
