"""A task is a mask, written as a rule `free|given`.

`free: bool[B, L]` says which positions are generated. A position that is not free is *given* (it
holds a token, has time 0, and stays) or *absent* (its whole modality is drawn from the prior and
has time T). Neither carries loss.

A rule names modalities, with commas between them: `image|text` generates an image given a text,
`image,text` generates both, `image` an image alone. What a rule does not name is absent; but a rule
that names a picture means both of its levels, if it has two and the rule does not name the coarse
one. The names in `ALIASES` are rules as well. In training, `any` draws a rule for each row. All
tasks share every line of code and mix in one batch.

Each modality has one time, `t: int32[B, M]`: 0 if it is given, T if it is absent, and the time of
the diffusion if any of its positions is free (the view of UniDiffuser, arXiv 2303.06555, on
discrete tokens).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion.vocab import Vocab
from udd_jax.errors import UserError

EVERY = "*"  # all modalities of the vocabulary
ALIASES = {
    "pair": "image,text",
    "t2i": "image|text",
    "i2t": "text|image",
    "image": "image",
    "text": "text",
    "independent": EVERY,  # training only: each modality its own time
    "infill": EVERY,  # random parts of all
    "any": EVERY,  # training only: each modality is free, given or absent by chance
}


class Rule(NamedTuple):
    """Names of modalities; those in neither are absent."""

    free: tuple[str, ...]
    given: tuple[str, ...]

    def sets(self) -> tuple[frozenset, frozenset]:
        """The names of both sides without their order."""
        return frozenset(self.free), frozenset(self.given)


def parse(vocab: Vocab, task: str) -> Rule:
    """A rule or one of ALIASES, read for this vocabulary; ValueError, one line, where it is bad.

    The coarse level of a picture stands where its fine one does, unless the rule names it.
    """
    rule, coarse = typed(vocab, task), vocab.coarse
    if coarse is None or coarse.name in rule.free + rule.given:
        return rule
    return Rule(*((coarse.name, *side) if coarse.level_of in side else side for side in rule))


def typed(vocab: Vocab, task: str) -> Rule:
    """`parse`, with the names that the rule has and no others."""
    names = [m.name for m in vocab.modalities]
    given_only = [m.name for m in vocab.modalities if m.inputs]
    if not isinstance(task, str):
        raise UserError(f"task = {task!r}, expected a string, a rule such as 'image|text'")
    text = ALIASES.get(task, task)
    if text == EVERY:
        return Rule(tuple(name for name in names if name not in given_only), ())
    free, bar, given = text.partition("|")
    rule = Rule(*(tuple(n.strip() for n in side.split(",") if n.strip()) for side in (free, given)))
    expected = f"expected FREE or FREE|GIVEN of {', '.join(names)}, or one of {', '.join(ALIASES)}"
    unknown = [name for name in (*rule.free, *rule.given) if name not in names]
    if unknown:
        raise UserError(f"task {task!r} names {unknown[0]!r}: {expected}")
    if not rule.free or (bar and not rule.given):
        side = "given" if rule.free else "generated"
        raise UserError(f"task {task!r}: nothing is {side}, {expected}")
    for name in rule.free:
        if name in given_only:
            raise UserError(
                f"task {task!r} generates {name!r}, which are features: put them behind the bar"
            )
    twice = [name for name in names if (rule.free + rule.given).count(name) > 1]
    if twice:
        raise UserError(f"task {task!r} names {twice[0]!r} twice: {expected}")
    return rule


class Masks(NamedTuple):
    """The task of each row of a batch: free bool[B, L], absent bool[B, M]."""

    free: jax.Array
    absent: jax.Array


def masks(vocab: Vocab, task: str, batch: int) -> Masks:
    """The masks of a rule; "infill" frees all, and the caller cuts it. ValueError as of `parse`."""
    rule = parse(vocab, task)
    names = [m.name for m in vocab.modalities]
    is_free = np.array([name in rule.free for name in names])[vocab.modality_of]
    is_absent = np.array([name not in rule.free + rule.given for name in names])
    return Masks(
        jnp.broadcast_to(jnp.asarray(is_free), (batch, vocab.length)),
        jnp.broadcast_to(jnp.asarray(is_absent), (batch, len(names))),
    )


def coarse_first(vocab: Vocab, task: str) -> list[str]:
    """What a rule that generates both levels of a picture generates first: all but the fine one.

    [] for other rules.
    """
    rule, coarse = parse(vocab, task), vocab.coarse
    if (
        ALIASES.get(task) == EVERY
        or coarse is None
        or not {coarse.name, coarse.level_of} <= set(rule.free)
    ):
        return []
    return [name for name in rule.free if name != coarse.level_of]


def same(vocab: Vocab, task: str, other: str) -> bool:
    """Whether two rules, or aliases of rules, free and give the same modalities.

    "infill", "independent" and "any" are each the same as themselves only.
    """
    if EVERY in (ALIASES.get(task, task), ALIASES.get(other, other)):
        return task == other
    return parse(vocab, task).sets() == parse(vocab, other).sets()


def times(vocab: Vocab, masks: Masks, t: jax.Array, steps: int) -> jax.Array:
    """The times that the network gets, int32[B, M]; t: those drawn, int32[B] or [B, M]."""
    t = jnp.broadcast_to(t.reshape(t.shape[0], -1), masks.absent.shape)
    has_free = vocab.any_of(masks.free)
    return jnp.where(masks.absent, steps, jnp.where(has_free, t, 0)).astype(jnp.int32)


def random_blocks(key: jax.Array, vocab: Vocab, batch: int) -> jax.Array:
    """Free positions for infilling, bool[B, L], at least one in every row.

    A picture has a free rectangle, or is free except for a rectangle (halves are frequent). In a
    text, each place is free with a chance that its row draws. Half of the rows free parts of all
    modalities, the others of one alone.
    """
    diffused = [m for m in vocab.modalities if not m.inputs]
    key_which, *keys = jax.random.split(key, 1 + len(diffused))
    parts = []
    for modality, k in zip(diffused, keys, strict=True):
        if modality.grid is None:
            parts.append(_random_places(k, batch, modality.length))
        else:
            parts.append(_random_rectangle(k, batch, modality.grid))
    if vocab.coarse is not None:  # a coarse cell is free where one of its fine cells is
        at = {m.name: i for i, m in enumerate(diffused)}
        fine = at[vocab.coarse.level_of]
        cells = _coarse_cells(parts[fine], diffused[fine].grid, vocab.coarse.grid)
        parts[at[vocab.coarse.name]] = cells
    which = jax.random.randint(key_which, (batch,), 0, 2 * len(parts))  # the upper half: all
    parts = [part & ((which == m) | (which >= len(parts)))[:, None] for m, part in enumerate(parts)]
    drawn = dict(zip((m.name for m in diffused), parts, strict=True))
    never = [jnp.zeros((batch, m.length), bool) for m in vocab.modalities if m.inputs]
    parts = [never.pop(0) if m.inputs else drawn[m.name] for m in vocab.modalities]
    return jnp.concatenate(parts, axis=1)


def random_rules(key: jax.Array, vocab: Vocab, batch: int) -> Masks:
    """A random rule for each row, as masks.

    One modality, drawn evenly, is free; each other one is free, given or absent, evenly. So no row
    has all of them given, or all absent. Features are given or absent, and given twice as often.
    """
    count = len(vocab.modalities)
    key_free, key_state = jax.random.split(key)
    diffused = np.array([m for m in range(count) if not vocab.modalities[m].inputs])
    first = jax.random.randint(key_free, (batch, 1), 0, len(diffused))
    first = jnp.asarray(diffused)[first] == jnp.arange(count)[None]
    state = jnp.where(first, 0, jax.random.randint(key_state, (batch, count), 0, 3))
    state = jnp.maximum(state, np.array([[int(m.inputs > 0) for m in vocab.modalities]]))
    return Masks((state == 0)[:, vocab.modality_of], state == 2)


def _coarse_cells(free, fine: tuple[int, int], coarse: tuple[int, int]):
    """Free cells of a fine grid, bool[B, N2] -> coarse cells with a free one in them."""
    (rows, columns), (h, w) = coarse, fine
    cells = free.reshape(-1, rows, h // rows, columns, w // columns)
    return cells.any(axis=(2, 4)).reshape(len(free), -1)


def _random_places(key, batch, length):
    key_chance, key_place = jax.random.split(key)
    chance = jax.random.uniform(key_chance, (batch, 1))
    score = jax.random.uniform(key_place, (batch, length))
    return (score < chance) | (score == score.min(axis=1, keepdims=True))


def _random_rectangle(key, batch, grid):
    key_outside, *keys = jax.random.split(key, 3)

    def interval(k, size):  # bool[B, size]: an interval, not empty; half of the time all
        key_ends, key_all = jax.random.split(k)
        ends = jax.random.randint(key_ends, (batch, 2), 0, size)
        place = jnp.arange(size)[None]
        inside = (place >= ends.min(1, keepdims=True)) & (place <= ends.max(1, keepdims=True))
        return inside | jax.random.bernoulli(key_all, 0.5, (batch, 1))

    rows, columns = (interval(k, n) for k, n in zip(keys, grid, strict=True))
    inside = (rows[:, :, None] & columns[:, None, :]).reshape(batch, -1)
    outside = jax.random.bernoulli(key_outside, 0.5, (batch, 1)) & ~inside.all(1, keepdims=True)
    return inside ^ outside


class Draw(NamedTuple):
    """A random task for each row: its masks, and whether each modality has its own time."""

    masks: Masks
    independent: jax.Array  # bool[B]


def check_mixture(vocab: Vocab, mixture: dict[str, float]) -> None:
    """ValueError for a mixture without a task, with a negative weight, or with an unknown rule."""
    weights = list(mixture.values())
    if not weights or not min(weights) >= 0 or not sum(weights) > 0:
        raise UserError(
            f"task mixture {dict(mixture)}: expected weights >= 0, one above 0, of rules such as "
            f"'image|text' or of {', '.join(ALIASES)}"
        )
    for name in mixture:
        parse(vocab, name)


def left_out(vocab: Vocab, masks: Masks) -> tuple[str, ...]:
    """The names of the modalities that are absent in all rows."""
    absent = np.asarray(masks.absent).all(axis=0)
    return tuple(m.name for m, out in zip(vocab.modalities, absent, strict=True) if out)


def by_absent(vocab: Vocab, mixture: dict[str, float]) -> dict[tuple[str, ...], dict[str, float]]:
    """The mixture in parts whose rules leave out the same: {names of what is absent: a mixture}."""
    found = {}
    for task, weight in mixture.items():
        names = () if task == "any" else left_out(vocab, masks(vocab, task, 1))
        if weight > 0:
            found.setdefault(names, {})[task] = weight
    return found


def of_present(vocab: Vocab, masks: Masks, present: jax.Array) -> Masks:
    """The masks for rows that lack a modality: it is absent, whatever the task.

    A row of which nothing is left to generate generates all that it has. present: bool[B, M].
    """
    tokens = np.array([not m.inputs for m in vocab.modalities])
    here = (present & tokens[None])[:, vocab.modality_of]
    free = masks.free & here
    nothing = ~free.any(axis=1, keepdims=True)
    return Masks(jnp.where(nothing, here, free), (masks.absent & ~nothing) | ~present)


def draw(key: jax.Array, vocab: Vocab, mixture: dict[str, float], batch: int, present=None) -> Draw:
    """Tasks with the probabilities of `mixture` (name -> weight). ValueError for a bad mixture.

    present: bool[B, M], which modalities each row has (`of_present`); None: all of them.
    """
    check_mixture(vocab, mixture)
    key_task, key_blocks = jax.random.split(key)
    weights = jnp.asarray(list(mixture.values()), jnp.float32)
    task = jax.random.categorical(key_task, jnp.log(weights), shape=(batch,))
    rows = [masks(vocab, name, 1) for name in mixture]
    free = jnp.concatenate([row.free for row in rows])[task]
    absent = jnp.concatenate([row.absent for row in rows])[task]
    names = np.array(list(mixture))
    infill = jnp.asarray(names == "infill")[task]
    free = jnp.where(infill[:, None], random_blocks(key_blocks, vocab, batch), free)
    if "any" in mixture:
        here = jnp.asarray(names == "any")[task][:, None]
        drawn = random_rules(jax.random.fold_in(key_blocks, 1), vocab, batch)
        free, absent = (jnp.where(here, d, m) for d, m in zip(drawn, (free, absent), strict=True))
    dropped = np.array([[m.dropped for m in vocab.modalities]], np.float32)
    if dropped.any():
        left_out = jax.random.uniform(jax.random.fold_in(key_blocks, 2), absent.shape) < dropped
        absent = absent | left_out
    found = Masks(free, absent)
    if present is not None:
        found = of_present(vocab, found, present)
    return Draw(found, jnp.asarray(names == "independent")[task])
