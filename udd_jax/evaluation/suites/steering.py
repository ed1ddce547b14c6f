"""Steering, measured in an embedded world that knows what is right (`worlds.Steering`).

    edits        pictures of held-out scenes follow a caption with one attribute changed, and keep
                 the rest
    painted      objects land where their phrases were painted, by the weight
    scorers      images without a prompt show a word ("shows") and have the colours of a reference
                 picture ("palette"), by the scale; and both at once, with "colours"
    best_of      agreement of the first and of the best of some, by the bound and by the dual
                 encoder, with the seconds that each costs
    match        R-precision among 20, both ways, and how often the caption of another item matches
                 less

`python -m benchmarks steering` takes more items and other seeds. Each part returns a tree for the
report, and the rows of its sheet, {name: uint8[n, S, S, C]}.
"""

import functools
import time

import jax.numpy as jnp
import numpy as np

from udd_jax import values
from udd_jax.data.sources import worlds
from udd_jax.errors import UserError
from udd_jax.evaluation import retrieval, samples
from udd_jax.evaluation.metrics import agreement, intervals, likelihood
from udd_jax.steering import candidates

FILE = "steering.npz"  # in the folder of the samples
SHOWN = 8  # pictures in a row of a sheet
WEIGHTS = (0.0, 0.5, 1.0, 2.0)  # of painted words
SCALES = {"shows": (0.0, 3.0, 6.0), "palette": (0.0, 16.0, 64.0)}
TOGETHER = {"colours": 8.0, "shows": 6.0}  # the scales of both at once
OF_TEXT = ("match", "shows")  # scorers
REFERENCES = 4  # pictures
AMONG, BEST = 20, 8


def measure(pipe, items, folder, options) -> dict:
    """All parts; the sheets go to `folder`. options: `evaluate` of the config: seed, and steering,
    the samples of each part (32 in a run that does not say; 0 measures nothing)."""
    count, seed = options.get("steering", 32), options.seed
    steering = getattr(items.world, "steering", None)
    if not count or steering is None:
        why = "what is right is known in an embedded world only"
        return {"all": intervals.Unmeasured(why if count else "evaluate.steering = 0")}
    parts = {
        "edits": functools.partial(edits, pipe, items.world, count, seed),
        "painted": functools.partial(painted, pipe, items.world, count, seed),
        "scorers": functools.partial(scored, pipe, items.world, count, seed),
        "best of some": functools.partial(best_of, pipe, items, count, seed),
        "match": functools.partial(match, pipe, items),
    }
    found, shown = {}, {}
    for name, part in parts.items():
        try:
            found[name], shown[name] = part()
        except UserError as error:  # the run cannot do it
            found[name] = intervals.Unmeasured(str(error))
    sheets = {f"{part}/{row}": kept for part, rows in shown.items() for row, kept in rows.items()}
    samples.write(folder / FILE, sheets)
    return found


def edits(pipe, world, count: int, seed: int, items_seed: int = 0, **options):
    """Edits of fresh pictures of the split "test" with this seed of the data."""
    records, rng = (
        list(worlds.Source(world, "test", count, items_seed)),
        np.random.default_rng(seed),
    )
    cases = [world.steering.edit(r.extra["scene"], i, rng) for i, r in enumerate(records)]
    images = np.stack([record.image for record in records])
    captions = [case.caption for case in cases]
    made = pipe.edit(images, captions, seed=seed, **options).images
    read = world.read_images(made)
    follows = agreement.agreed(world, made, captions)
    keeps = np.array([s is not None and c.kept(s) for s, c in zip(read, cases, strict=True)])
    found = {"follows the caption": intervals.bootstrap(follows)}
    found["keeps the rest"] = intervals.bootstrap(keeps)
    return found, {"before": images[:SHOWN], "after": made[:SHOWN]}


def painted(pipe, world, count: int, seed: int, weights=WEIGHTS, **options):
    """The share of images whose objects are all where they were painted, and that agree."""
    found, shown = {}, {}
    for phrases in (1, 2):
        rng = np.random.default_rng(seed)
        cases = [world.steering.paint(phrases, rng) for _ in range(count)]
        captions, name = [case.caption for case in cases], f"{phrases} painted"
        by_phrase = [list(zip(*(c.painted[i] for c in cases), strict=True)) for i in range(phrases)]
        for weight in weights:
            paint = [(words, np.stack(masks), weight) for words, masks in by_phrase]
            made = pipe.text_to_image(captions, paint=paint, seed=seed, **options).images
            read = world.read_images(made)
            right = [s is not None and c.placed(s) for s, c in zip(read, cases, strict=True)]
            agrees = agreement.agreed(world, made, captions)
            found[f"{name}, weight {weight:g}"] = {
                "placed as painted": intervals.bootstrap(np.array(right)),
                "agrees with the caption": intervals.bootstrap(agrees),
            }
            shown[f"{name}, weight {weight:g}"] = made[:SHOWN]
        masks = sum((i + 1) * np.stack(masks[:SHOWN]) for i, (_, masks) in enumerate(by_phrase))
        shades = (masks * (255 // phrases)).astype(np.uint8)
        shown[f"{name}: masks"] = np.repeat(shades[..., None], 3, axis=3)
    return found, shown


def scored(pipe, world, count: int, seed: int, scales=None, together=TOGETHER, **options):
    """Images without a prompt, steered by a word, by pictures (REFERENCES of them), and by both.

    scales: {a scorer of a text or of a picture: its scales}; together: {scorer: its scale}.
    """
    scales, steering, found, shown = scales or SCALES, world.steering, {}, {}
    rng = np.random.default_rng(seed)
    references = [steering.reference(rng) for _ in range(min(REFERENCES, count))]
    counts = [len(part) for part in np.array_split(np.arange(count), len(references))]

    of_word = functools.cache(lambda kind: pipe.scorer(kind, steering.word))

    def scorer(kind, reference):
        return of_word(kind) if kind in OF_TEXT else pipe.scorer(kind, reference.picture)

    def draw(name, asked, right):
        made, good = [], []
        for i, (reference, number) in enumerate(zip(references, counts, strict=True)):
            scorers = [(scorer(kind, reference), scale) for kind, scale in asked.items()]
            own = values.later_seed(seed, i)
            result = pipe.images(number, seed=own, scorers=scorers, **options)
            made.append(result.images)
            good += [s and right(reference, s) for s in world.read_images(result.images)]
        found[name] = {
            "right": intervals.bootstrap(np.array([bool(each) for each in good])),
            "readable": intervals.bootstrap(np.array([each is not None for each in good])),
        }
        shown[name] = np.concatenate([images[: SHOWN // REFERENCES] for images in made])

    def right(kind, reference, scene):
        return steering.has_word(scene) if kind in OF_TEXT else reference.all(scene)

    def where_possible(kinds, name, draw):
        try:
            for kind in set(kinds) & set(OF_TEXT):
                of_word(kind)
        except UserError as error:
            found[name] = intervals.Unmeasured(str(error))
        else:
            draw()

    def by_scale(kind):
        for scale in scales[kind]:
            draw(f"{kind}, scale {scale:g}", {kind: scale}, functools.partial(right, kind))

    for kind in scales:
        where_possible([kind], kind, functools.partial(by_scale, kind))
    name = f"both, scales {' and '.join(f'{scale:g}' for scale in together.values())}"
    either = lambda r, scene: r.some(scene) and steering.has_word(scene)  # noqa: E731
    where_possible(together, name, functools.partial(draw, name, together, either))
    shown["references"] = np.stack(
        [r.picture for r in references for _ in range(SHOWN // REFERENCES)]
    )
    return found, shown


def best_of(pipe, items, count: int, seed: int, num: int = BEST, tasks=("pair", "i2t"), **options):
    """Agreement of the first of `num` candidates and of the best of them, by each way to rank."""
    found = {}
    for task in tasks:
        rows = np.arange(min(count, len(items)))
        given = {"image": items.codes[rows]} if task == "i2t" else {}
        asked = {"given": given, "num": num, "seed": seed, **options}
        start = time.perf_counter()
        made = pipe.generate(task, None if given else len(rows), **asked)
        drawn = time.perf_counter() - start
        ids = {k: np.asarray(v) for k, v in pipe.vocab.split(jnp.asarray(made.tokens)).items()}
        images = np.repeat(items.images[rows], num, axis=0) if given else made.images
        right = agreement.agreed(items.world, images, made.captions).reshape(-1, num)
        found[f"{task}, the first"] = {
            "agrees": intervals.bootstrap(right[:, 0]),
            "seconds": drawn / num,
        }
        ways = candidates.directions(pipe, task)
        for by in ("bound", "match"):
            start = time.perf_counter()
            try:
                order = candidates.rank(pipe, ids, num, ways, by).order[:, 0]
            except UserError as error:
                found[f"{task}, the best by {by}"] = intervals.Unmeasured(str(error))
                continue
            best = right[np.arange(len(right)), order]
            found[f"{task}, the best by {by}"] = {
                "agrees": intervals.bootstrap(best),
                "seconds": drawn + time.perf_counter() - start,
            }
    return found | {"candidates": num}, {}


def match(pipe, items, among: int = AMONG, seed: int = 0):
    """R-precision of the dual encoder on clean tokens, and the caption of another item.

    Captions that are not wrong for any image, such as those that are cut, are left out.
    """
    equal = retrieval.equal_captions(items)
    telling = np.flatnonzero(~equal.all(axis=0))
    part = np.ix_(telling, telling)
    table, equal = pipe.dual_encoder.table(items.codes, items.ids)[part], equal[part]
    if len(table) < 2:
        raise UserError(f"match: {len(table)} of {len(items)} captions tell their images apart")
    found = {}
    for way, scores, same in (
        ("caption of an image", table, equal),
        ("image of a caption", table.T, equal.T),
    ):
        hits = likelihood.recall_among(scores, among, same)
        found[f"{way}, among {among}"] = intervals.bootstrap(hits)
    own, others = np.diag(table), np.random.default_rng(seed).permutation(len(table))
    others = others[(np.argsort(others) + 1) % len(others)]  # a cycle: nobody has their own
    lower = [table[i, j] < own[i] for i, j in enumerate(others) if not equal[i, j]]
    found["another caption matches less"] = intervals.bootstrap(np.array(lower))
    found["match"] = intervals.bootstrap(own)
    made = pipe.dual_encoder.vlms(items.codes, items.codes, items.ids)
    found["VLMS (ours) of the true images"] = intervals.bootstrap(made)
    return found, {}
