"""Noise schedules: how much of a token is kept, masked and replaced by time t.

A schedule is three float64 tables over t = 0..T with `alpha_bar + gamma_bar + uniform_bar = 1`:

    alpha_bar[t]     the token is untouched so far
    gamma_bar[t]     the token is masked
    uniform_bar[t]   the token was replaced by a uniform draw from its own modality (K beta_bar)

Time 0 is clean: alpha_bar[0] = 1. `uniform_bar` is a table and not a difference: with the published
constants it is 1e-6, and a difference of float32 numbers would lose it. Tables are made here in
float64 NumPy; `transition.make_kernel` casts them.

Published (VQ-Diffusion, UniD3): `linear`. VQ-Diffusion's paper: `mask_and_replace`. D3PM, MaskGIT,
MDLM: `absorbing`. Multinomial diffusion: `uniform`. Muse: `cosine`. GIDD (arXiv 2503.04482):
`hybrid`.
"""

from dataclasses import dataclass

import numpy as np

from udd_jax.errors import UserError

TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Schedule:
    """Cumulative tables, float64[T+1] each. ValueError if they are not a valid forward process."""

    alpha_bar: np.ndarray
    gamma_bar: np.ndarray
    uniform_bar: np.ndarray

    def __post_init__(self):
        alpha, gamma, uniform = self.alpha_bar, self.gamma_bar, self.uniform_bar
        if not (alpha.shape == gamma.shape == uniform.shape) or alpha.ndim != 1:
            raise UserError(
                f"schedule: tables of shapes {alpha.shape}, {gamma.shape}, {uniform.shape}, "
                "expected three of [T+1]"
            )
        if self.steps < 2:
            raise UserError(f"schedule: T = {self.steps}, expected at least 2 steps")
        for name, table in (("alpha_bar", alpha), ("gamma_bar", gamma), ("uniform_bar", uniform)):
            if not np.isfinite(table).all() or table.min() < 0 or table.max() > 1 + TOLERANCE:
                raise UserError(f"schedule: {name} leaves [0, 1]")
        if abs(alpha[0] - 1) > TOLERANCE or gamma[0] > TOLERANCE:
            raise UserError(
                f"schedule: time 0 must be clean, alpha_bar[0] = {alpha[0]}, "
                f"gamma_bar[0] = {gamma[0]}"
            )
        if np.abs(alpha + gamma + uniform - 1).max() > TOLERANCE:
            raise UserError("schedule: alpha_bar + gamma_bar + uniform_bar must be 1")
        if np.diff(alpha).max() > TOLERANCE:
            raise UserError(f"schedule: alpha_bar rises at t = {np.diff(alpha).argmax() + 1}")
        if np.diff(gamma).min() < -TOLERANCE:
            raise UserError(f"schedule: gamma_bar falls at t = {np.diff(gamma).argmin() + 1}")
        if alpha[:-1].min() <= 0 or (alpha + uniform)[:-1].min() <= 0:
            raise UserError("schedule: alpha_bar > 0 and gamma_bar < 1 must hold before t = T")
        replaces = uniform[1:-1] > 0
        if replaces.any() and not replaces.all():
            raise UserError("schedule: uniform_bar must be positive at all 0 < t < T or at none")
        beta = uniform[1:] - alpha[1:] / alpha[:-1] * uniform[:-1]
        if beta.min() < -TOLERANCE:
            raise UserError(
                f"schedule: the replacement mass of step t = {beta.argmin() + 1} is negative"
            )

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    @property
    def unmasked(self) -> np.ndarray:
        """1 - gamma_bar, without cancellation."""
        return self.alpha_bar + self.uniform_bar

    @property
    def masks_only(self) -> bool:
        """No token is ever replaced."""
        return bool((self.uniform_bar == 0).all())

    @property
    def masks(self) -> bool:
        """Most of the noise at t = T is the mask. Samplers by order need this."""
        return bool(self.gamma_bar[-1] > 0.5)


def linear(steps: int) -> Schedule:
    """The published schedule: alpha_bar .99999 to .000009, the rest masked except for 1e-6."""
    alpha = np.concatenate([[1.0], np.linspace(0.99999, 0.000009, steps)])
    gamma = np.concatenate([[0.0], np.linspace(0.000009, 0.99999, steps)])
    return Schedule(alpha, gamma, np.concatenate([[0.0], np.full(steps, 1e-6)]))


def mask_and_replace(steps: int, replace: float = 0.1) -> Schedule:
    """alpha_bar = 1 - t/T; the share `replace` of the noise is uniform, the rest is the mask."""
    if not 0 <= replace <= 1:
        raise UserError(f"schedule: replace = {replace}, expected a share in [0, 1]")
    t = np.arange(steps + 1) / steps
    return Schedule(1 - t, (1 - replace) * t, replace * t)


def absorbing(steps: int) -> Schedule:
    """Only masks, linearly in t."""
    return mask_and_replace(steps, 0.0)


def uniform(steps: int) -> Schedule:
    """Only replacements: multinomial diffusion. It never shows a mask."""
    return mask_and_replace(steps, 1.0)


def cosine(steps: int) -> Schedule:
    """Muse's mask rate, sin(pi t / 2T): its mean is 2/pi."""
    gamma = np.sin(np.pi / 2 * np.arange(steps + 1) / steps)
    return Schedule(1 - gamma, gamma, np.zeros(steps + 1))


def hybrid(steps: int, uniform_share: float = 0.1, power: float = 1.0) -> Schedule:
    """GIDD's marginals (arXiv 2503.04482): the uniform share is `uniform_share` at t = T/2."""
    if not 0 < uniform_share < 1:
        raise UserError(f"schedule: uniform_share = {uniform_share}, expected inside (0, 1)")
    if not 0 < power <= 2:
        raise UserError(f"schedule: power = {power}, expected in (0, 2]")
    t = np.arange(steps + 1) / steps
    scale = 2.0**power * uniform_share / (1 - uniform_share)
    c = scale * t ** (power / 2) * (1 - t) ** (power / 2)
    return Schedule((1 - t) / (1 + c), t / (1 + c), c / (1 + c))


MAKERS = {
    "linear": linear,
    "mask_and_replace": mask_and_replace,
    "absorbing": absorbing,
    "uniform": uniform,
    "cosine": cosine,
    "hybrid": hybrid,
}


def make(name: str, steps: int, **options) -> Schedule:
    """The schedule called `name` (a key of MAKERS) with T = `steps`."""
    if name not in MAKERS:
        raise UserError(f"schedule {name!r} is not one of {', '.join(MAKERS)}")
    return MAKERS[name](steps, **options)


# ---- The times of a chain -----------------------------------------------------------------------


def chain_times(steps: int, calls: int) -> np.ndarray:
    """The times T > ... > 0 of a chain of `calls` steps, spaced as evenly as whole numbers allow.

    steps is T. Returns int[calls + 1].
    """
    return chain_time(steps, calls, np.arange(calls + 1))


def chain_time(steps: int, calls, number):
    """The time before call `number` (from 0) of such a chain; whole numbers or int arrays."""
    return steps - number * steps // calls
