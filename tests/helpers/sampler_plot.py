"""The plot of docs/method.md, section 11: how often three samplers make what exists.

    python -m tests.helpers.sampler_plot docs/samplers.svg

The world is that of `finite`: 24 items of 16 tokens, all equally likely, and p(x_0 | x_t) exact. So
the only errors are those of the samplers. The share of samples that are items is printed and drawn
over the number of network calls.
"""

import pathlib
import sys

import jax
import numpy as np

from tests.helpers import finite
from udd_jax.diffusion import schedules, transition
from udd_jax.evaluation.report import page
from udd_jax.runtime import files
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings

COUNT, STEPS = 1000, (2, 4, 8, 16, 32, 64, 100)
LINES = {  # name -> (schedule, sampler)
    "chain, mask only": ("absorbing", "ancestral"),
    "leaps, mask only": ("absorbing", "tau_leaping"),
    "chain, mask and replace": ("mask_and_replace", "ancestral"),
    "leaps, mask and replace": ("mask_and_replace", "tau_leaping"),
}
COLOURS = ("#1f6feb", "#d1242f", "#8250df", "#bc6c00", "#1a7f37")


def shares(schedule: str, sampler: str, asked: tuple[dict, ...]) -> list[tuple[float, float]]:
    """(network calls, share of samples that are items) for each of these settings."""
    kernel = transition.make_kernel(finite.LAYOUT, schedules.make(schedule, finite.STEPS))
    x = np.zeros((COUNT, finite.LAYOUT.length), np.int32)
    free, absent = np.ones(x.shape, bool), np.zeros((COUNT, 2), bool)

    @jax.jit
    def run(key, settings):
        return reverse.run(kernel, finite.oracle(kernel), key, x, free, absent, settings)

    found = []
    for numbers in asked:
        result = run(jax.random.key(0), Settings(sampler=sampler, **numbers))
        items = finite.which(np.asarray(result.tokens))
        found.append((float(np.mean(result.calls)), float((items >= 0).mean())))
    return found


def main(path: str) -> None:
    series = {}
    for name, (schedule, sampler) in LINES.items():
        points = shares(schedule, sampler, tuple({"steps": n} for n in STEPS))
        series[name] = tuple(zip(*points, strict=True))
        print(name, *(f"{calls:.0f}: {share:.3f}" for calls, share in points), flush=True)
    points = shares("absorbing", "first_hitting", ({"group": 4}, {"group": 2}, {"group": 1}))
    series["next jump, mask only"] = tuple(zip(*points, strict=True))
    print("next jump", *(f"{calls:.0f}: {share:.3f}" for calls, share in points), flush=True)

    size = (480, 240)
    drawn = page.plot("", series, "network calls", log_x=True, dots=True, size=size)
    drawn = drawn[drawn.index("<svg") : drawn.index("</svg>")]
    for i, colour in enumerate(COLOURS):
        drawn = drawn.replace(f"var(--c{i})", colour)
    style = "text{font:11px sans-serif;fill:#57606a}.grid{stroke:#d0d7de;fill:none}"
    names = []
    for i, name in enumerate(series):
        place = f'x="{size[0] + 4}" y="{60 + 18 * i}" style="fill:{COLOURS[i]}"'
        names.append(f"<text {place}>{page.escape(name)}</text>")
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    head, _, rest = drawn.partition(">")
    wide = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0] + 150} {size[1]}"'
    head = head.replace(f'<svg viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}"', wide)
    assert wide in head
    text = f"{head}><style>{style}</style>{white}{rest}{''.join(names)}</svg>\n"
    files.write_bytes(pathlib.Path(path), text.encode())


if __name__ == "__main__":
    main(sys.argv[1])
