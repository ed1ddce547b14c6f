"""When each kind of word is learned: its held-out loss during training, over seeds.

    python -m udd_jax.main --mode=tokenize --config=configs/t2i.py --workdir=runs/words
    python -m benchmarks.words --run=runs/words --seeds=0,1 --steps=1500 --out=words.jsonl

The first command makes the tokenizers and the token cache, on which all seeds train. The second
trains each seed of the run's config for the first `--steps` of its steps, with no checkpoints, and
writes a line of JSON every `--every` steps: `evaluation/metrics/words.py` says what the losses are.
A relation that is not learned stays at .50 nats, the entropy of "first the upper or left one, four
times in five"; a learned one goes to 0. `--stop=.1` ends a seed when its relations are below that.
promise.md has what was found.
"""

import argparse
import functools
import json
import math
import pathlib
import sys
import time

import jax
import numpy as np

from benchmarks.options import in_one_line
from udd_jax import build
from udd_jax import main as command_line
from udd_jax.data import batches, token_cache
from udd_jax.data.sources import shapes
from udd_jax.diffusion import transition
from udd_jax.evaluation.metrics import words
from udd_jax.training import optimiser, train_diffusion


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m benchmarks.words",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", required=True, help="a folder with tokenizers and a token cache")
    parser.add_argument("--seeds", default="0", help="of initialisation, order, times and noise")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--items", type=int, default=192, help="held-out pairs")
    parser.add_argument("--stop", type=float, default=0.0, help="nats of a hidden relation")
    parser.add_argument("--out", default="words.jsonl")
    return parser.parse_args(arguments)


LARGEST = 64  # pairs that are measured at once


def held_out(config, text, image, vocab, count: int):
    """Held-out pairs as int32[n, L], and the kinds of their words, int32[n, M].

    `count` of the test split, all of which have two objects and so a relation, and those of as many
    of the validation split that have one, with its place.
    """
    images, captions, _ = shapes.arrays("test", count)
    others, of_others, _ = shapes.arrays("validation", count)
    meanings = [shapes.grammar.parse_caption(caption) for caption in of_others]
    alone = [i for i, meaning in enumerate(meanings) if not meaning.relation]
    images = np.concatenate([images, others[alone]])
    captions = [*captions, *(of_others[i] for i in alone)]
    codes = np.concatenate(
        [image.encode(part) for part in np.array_split(images, max(count // 64, 1))]
    )
    ids = text.encode(captions, config.text.length)
    x0 = np.asarray(vocab.fuse({"image": codes, "text": ids}))
    return x0, words.kinds(captions, text, config.text.length)


def curve(config, seed: int, steps: int, every: int, stop: float, text, vocab, cache, pairs):
    """Yields {"seed", "step", "loss", "seconds", and the losses by kind}."""
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    config = config.copy_and_resolve_references()
    config.seed = seed  # of the turns
    model, loss_at = train_diffusion.objectives(config, vocab, text.pad_id)
    tx, rate = optimiser.make_optimiser(config)
    key = jax.random.key(seed)
    c, key_start = config.train, jax.random.fold_in(key, 0)
    state = train_diffusion.create_state(model, tx, key_start, fan_in=c.fan_in)

    @functools.cache
    def compiled(loss_fn):
        step = train_diffusion.make_step(loss_fn, tx, rate, c.ema, vocab, c.accumulate)
        return jax.jit(step, donate_argnums=0)

    measure = words.make_measure(kernel, model, *pairs, batch_size=batch_size(len(pairs[0])))
    key, window, start = jax.random.fold_in(key, 1), [], time.perf_counter()
    for number in range(steps):
        batch = batches.make(cache, seed, number, c.batch_size)
        state, metrics = compiled(loss_at(number))(state, batch, key)
        window.append(float(metrics["loss"]))
        if (number + 1) % every and number + 1 < steps:
            continue
        row = {"seed": seed, "step": number + 1, "loss": float(np.mean(window))}
        found = {k: v for k, v in measure(state.ema_params).items() if np.isfinite(v)}
        yield row | {"seconds": time.perf_counter() - start} | found
        window = []
        if learned(found, stop):
            return


def learned(found: dict, stop: float) -> bool:
    """Whether the loss of hidden relations is below `stop`; not if it could not be measured."""
    return found.get("hidden:relation", math.inf) < stop


def batch_size(count: int) -> int:
    """Of `count` pairs, such that hardly any are left out after the last full batch."""
    return count // math.ceil(count / LARGEST)


def main(arguments=None) -> int:
    options = parse(arguments)
    run = pathlib.Path(options.run)
    config = build.read_config(run)
    tokenizers = build.load_tokenizers(run)
    text, image = tokenizers["text"], tokenizers["image"]
    vocab, cache = build.make_vocab(config, tokenizers), token_cache.TokenCache(run / "tokens")
    pairs = held_out(config, text, image, vocab, options.items)
    count = len(pairs[0])
    if left := count % batch_size(count):
        print(f"measured on {count - left} of {count} held-out pairs: the rest fill no batch")
    with open(options.out, "w", encoding="utf-8") as file:
        for seed in map(int, options.seeds.split(",")):
            for row in curve(
                config, seed, options.steps, options.every, options.stop, text, vocab, cache, pairs
            ):
                file.write(json.dumps(row) + "\n")
                file.flush()
                hidden = {k[7:]: round(v, 3) for k, v in row.items() if k.startswith("hidden:")}
                print(f"seed {seed}, step {row['step']}: {hidden}", flush=True)
    return 0


if __name__ == "__main__":
    command_line.keep_memory()
    sys.exit(in_one_line(main, None))
