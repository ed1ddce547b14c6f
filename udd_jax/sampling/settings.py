"""The settings of sampling, their allowed values, and how they enter a jitted function.

`Settings` is a pytree, so a jitted function takes it as an argument: settings that differ only in
numbers share a compilation. Features that are off (`OFF`) are not compiled.
"""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from udd_jax.diffusion.transition import Kernel
from udd_jax.errors import UserError
from udd_jax.sampling.samplers import SAMPLERS

IN_ORDER = "autoregressive"  # one token after another, by the network of prefixes
CONFIDENCES = ("probability", "margin", "entropy")
GUIDANCE = ("constant", "linear", "interval")
OF_GUIDANCE = ("guidance", "guidance_schedule", "guidance_interval")
# The values at which numeric settings are off: their feature is then not compiled.
OFF = {"steps": 0, "guidance": 1, "temperature": 1, "top_r": 1, "top_k": 0, "correct": 0}
# Read by the samplers that name them in `Sampler.reads` alone; all samplers read the others.
OF_SAMPLERS = ("confidence", "noise", "purity", "group", "threshold", "bound", "eta", "correct")
NUMBERS = {*OFF, *OF_SAMPLERS} - {"confidence"}


class Unread(NamedTuple):
    """Why a setting changes nothing, and the setting with its value that lets it count."""

    why: str
    setting: str
    value: Any


# {type of a field: (what its value must be, in words)}
_KINDS = {int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a finite number")}


def names() -> tuple[str, ...]:
    """What `sampler` may be."""
    return *SAMPLERS, IN_ORDER


def readers(name: str) -> tuple[str, ...]:
    """The samplers that read the setting `name`."""
    if name not in OF_SAMPLERS:
        return names()
    return tuple(sampler for sampler, row in SAMPLERS.items() if name in row.reads)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Settings:
    """How to sample. ValueError, one line, for a value out of range.

    `sampler` is a key of `samplers.SAMPLERS`, or `IN_ORDER`. `steps` is the number of network calls
    for samplers of kind "time" and "count"; those of kind "order" run until no position is masked.
    For kind "count" another `steps` needs another compilation, since the table of counts has that
    length.
    """

    sampler: str = "ancestral"
    steps: int = 0  # 0 means T
    guidance: float = 1.0  # s = 1 + w
    guidance_schedule: str = "constant"  # "linear": w (1 - t/T); "interval": w inside, 0 outside
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # in t/T
    temperature: float = 1.0
    top_r: float = 1.0  # keep the most likely classes until their mass reaches it
    top_k: int = 0  # keep the k most likely classes; 0 keeps all
    confidence: str = "probability"  # maskgit and best_first; or "margin", "entropy"
    noise: float = 2.0  # maskgit: Gumbel temperature tau at the start; falls linearly to 0
    purity: float = 1.0  # purity: r in softmax((1 + r purity) log p)
    group: int = 1  # best_first and first_hitting: positions revealed in a call
    threshold: float = 0.9  # threshold: reveal positions with max p above it
    bound: float = 0.1  # entropy_bounded: in nats
    eta: float = 0.1  # remdm_cap and remdm_rescale: limits the probability of masking again
    correct: int = 0  # ancestral: tokens drawn again in each step and modality

    def __post_init__(self):
        def demand(holds, field, expected):
            if not holds:
                raise UserError(f"sample.{field} = {getattr(self, field)!r}, expected {expected}")

        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), _KINDS.get(field.type)
            if kind:
                number = isinstance(value, kind[0]) and not isinstance(value, bool)
                demand(number and math.isfinite(value), field.name, kind[1])
                if isinstance(value, np.generic):  # compared with those that are off
                    object.__setattr__(self, field.name, value.item())
        demand(self.sampler in names(), "sampler", f"one of {', '.join(names())}")
        demand(self.confidence in CONFIDENCES, "confidence", f"one of {', '.join(CONFIDENCES)}")
        demand(
            self.guidance_schedule in GUIDANCE, "guidance_schedule", f"one of {', '.join(GUIDANCE)}"
        )
        demand(self.steps >= 0, "steps", "a number of network calls, or 0 for all of T")
        demand(self.guidance >= 0, "guidance", "at least 0; 1 is off")
        try:
            low, high = self.guidance_interval
            within = 0 <= low <= high <= 1
        except (TypeError, ValueError):
            within = False
        demand(within, "guidance_interval", "(low, high) with 0 <= low <= high <= 1, shares of T")
        # A config from a file has a list, which cannot be hashed.
        object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        demand(self.temperature > 0, "temperature", "above 0; for the likeliest set top_k = 1")
        demand(0 < self.top_r <= 1, "top_r", "a mass in (0, 1]; 1 is off")
        demand(self.top_k >= 0, "top_k", "a number of classes, or 0 for all")
        demand(self.noise >= 0, "noise", "at least 0")
        demand(self.purity >= 0, "purity", "at least 0")
        demand(self.group >= 1, "group", "at least 1 position a call")
        demand(0 < self.threshold <= 1, "threshold", "a probability in (0, 1]")
        demand(self.bound >= 0, "bound", "at least 0 nats")
        demand(0 <= self.eta <= 1, "eta", "a probability in [0, 1]")
        demand(self.correct >= 0, "correct", "a number of tokens, or 0 for none")

    @property
    def kind(self) -> str:
        """ "time", "count" or "order": see `samplers`."""
        return "order" if self.sampler == IN_ORDER else SAMPLERS[self.sampler].kind

    def unread(self, name: str) -> "Unread | None":
        """Why the setting `name` changes nothing together with the others; None if it may."""
        if name == "steps" and self.kind == "order":
            why = f"sampler {self.sampler} runs until no position is masked"
            return Unread(why, "sampler", "maskgit")
        if self.sampler not in (able := readers(name)):
            why = f"sampler {self.sampler} does not read it, only {' and '.join(able)}"
            return Unread(why, "sampler", able[0])
        if name in ("guidance_schedule", "guidance_interval") and not self.on("guidance"):
            return Unread("guidance is off", "guidance", 2.0)
        if name == "guidance_interval" and self.guidance_schedule != "interval":
            why = f"guidance_schedule is {self.guidance_schedule}"
            return Unread(why, "guidance_schedule", "interval")
        return None

    def on(self, name: str) -> bool:
        """Whether a setting is on (not at its value in `OFF`). Works while tracing, too."""
        value = getattr(self, name)
        return not (isinstance(value, int | float) and value == OFF.get(name))

    def tree_flatten(self):
        """The numbers that are on are the leaves; all other fields are static."""
        leaves, rest = {}, []
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            counted = name == "steps" and self.kind == "count"
            if name in NUMBERS and self.on(name) and not counted:
                leaves[name] = value
            else:
                rest.append((name, value))
        return tuple(leaves.values()), (tuple(leaves), tuple(rest))

    @classmethod
    def tree_unflatten(cls, names, leaves):
        settings = object.__new__(cls)  # without __post_init__: traced numbers cannot be checked
        for name, value in (*zip(names[0], leaves, strict=True), *names[1]):
            object.__setattr__(settings, name, value)
        return settings

    def check(self, kernel: Kernel, guidable: bool = True, in_order: bool = True) -> None:
        """ValueError, one line, if these settings do not fit the run.

        `guidable`: the network was trained with absent conditions, as guidance needs. `in_order`:
        it was trained on prefixes, too, as `IN_ORDER` needs. Inside a jitted function `steps` is
        not checked, since its value is unknown.
        """
        known = isinstance(self.steps, int)
        if self.kind == "time" and known and self.steps > kernel.steps:
            raise UserError(
                f"sample.steps = {self.steps} is more than the T = {kernel.steps} of the run, "
                "expected at most T"
            )
        in_turn = self.sampler == IN_ORDER  # knows no noise
        if self.kind != "time" and not (in_turn or kernel.masks):
            raise UserError(
                f"sample.sampler = {self.sampler!r} fills masks, but this schedule hardly masks: "
                "expected 'ancestral'"
            )
        if not in_turn and SAMPLERS[self.sampler].remasks and kernel.replaces:
            raise UserError(
                f"sample.sampler = {self.sampler!r} masks tokens again, but this schedule replaces "
                "them too: expected 'ancestral', with correct > 0 for corrections"
            )
        correctable = self.sampler in readers("correct") and not any(kernel.masks_only)
        if self.on("correct") and not (correctable or in_turn):
            raise UserError(
                f"sample.correct = {self.correct} draws replaced tokens again, expected 0: it "
                "needs sampler 'ancestral' and a schedule that replaces tokens"
            )
        if in_turn and not in_order:
            raise UserError(
                f"sample.sampler = {IN_ORDER!r}, but train.prefix_share = 0: the network has not "
                "learned to its end to draw one token after another, expected another sampler"
            )
        if self.on("guidance") and not guidable:
            raise UserError(
                f"sample.guidance = {self.guidance}, but this run was trained without absent "
                "conditions: expected 1 (off)"
            )


def read(chains: Sequence[Settings], changes: dict) -> dict:
    """Those of the changed settings that at least one of some chains reads."""
    return {n: v for n, v in changes.items() if not all(chain.unread(n) for chain in chains)}


def whole(changes: dict) -> bool:
    """Whether these are all settings, such as those of a line of `samples.jsonl`."""
    return changes.keys() >= {field.name for field in dataclasses.fields(Settings)}


def unguided(changes: dict) -> dict:
    """The changed settings without those of guidance, for a chain that nothing could lead."""
    return {name: value for name, value in changes.items() if name not in OF_GUIDANCE}


def require_read(chains: Sequence[Settings], changes: dict, flag: str = "") -> None:
    """UserError, one line, for a changed setting that none of the chains of a call reads.

    chains: their settings with the changes. flag: what stands before the name of a setting, "--" on
    the command line. A dict of all settings, such as that of a line of `samples.jsonl`, is not
    checked: some of them are always unread.
    """
    if whole(changes):
        return
    reads = read(chains, changes)
    for name in (name for name in changes if name not in reads):
        why, setting, value = chains[-1].unread(name)
        shown, mend = (changes[name], value) if flag else (repr(changes[name]), repr(value))
        raise UserError(
            f"{flag}{name} = {shown} changes nothing, {why}: leave it out, or set "
            f"{flag}{setting}={mend}"
        )
