"""Steering as it is typed on the command line: NAME=VALUE:NUMBER."""

from udd_jax.data import pixels
from udd_jax.errors import UserError


def scaled(flag: str, typed: str, form: str) -> tuple[str, str, float]:
    """NAME=VALUE or NAME=VALUE:NUMBER -> (name, value, number), 1 where there is none."""
    name, equals, value = typed.partition("=")
    value, _, number = value.rpartition(":") if ":" in value else (value, "", "1")
    try:
        scale = float(number)
    except ValueError:
        scale = None
    if not (name.strip() and equals and value) or scale is None:
        raise UserError(f"--{flag}={typed}, expected {form}")
    return name.strip(), value, scale


def prompts(texts, weights) -> list[tuple]:
    """`--prompt`s and `--weight`s -> [(text, weight, schedule)] (`sampling.prompts`)."""
    if len(texts) != len(weights):
        raise UserError(f"{len(texts)} of --prompt, {len(weights)} of --weight: expected as many")
    found = []
    for text, typed in zip(texts, weights, strict=True):
        weight, _, schedule = typed.partition(":")
        try:
            number = float(weight)
        except ValueError:
            raise UserError(f"--weight={typed}, expected a number such as .5") from None
        if "," in schedule:
            schedule = tuple(schedule.split(","))
        found.append((text, number, schedule or "constant"))
    return found


def painted(words: list[str], size: int) -> list[tuple]:
    """`--paint`s -> [(phrase, mask, weight)] (`sampling.painting`)."""
    form = "PHRASE=MASK or PHRASE=MASK:WEIGHT such as 'red circle=mask.png:1'"
    found = [scaled("paint", text, form) for text in words]
    return [(phrase, pixels.read_mask(path, size), weight) for phrase, path, weight in found]


def extended(extend: list[str]) -> dict[str, int]:
    """--extend=SIDE:PIXELS -> `extend` of `Pipeline.outpaint`."""
    found = {}
    for typed in extend:
        side, _, number = typed.partition(":")
        if not number.isdecimal():
            raise UserError(f"--extend={typed}, expected SIDE:PIXELS such as left:8")
        if side in found:
            raise UserError(f"--extend={typed}: {side} is there already, expected one of each")
        found[side] = int(number)
    return found


def weights(words: list[str]) -> dict[str, float]:
    """`--weigh`s -> {modality: weight} (`sampling.weights`)."""
    found = {}
    for typed in words:
        name, _, number = typed.partition("=")
        name, form = name.strip(), "NAME=WEIGHT such as text=0.5"
        if not name:
            raise UserError(f"--weigh={typed}, expected {form}")
        if name in found:
            raise UserError(f"--weigh={typed}: {name} has a weight already, expected one of each")
        try:
            found[name] = float(number)
        except ValueError:
            raise UserError(f"--weigh={typed}, expected {form}") from None
    return found


def scorers(pipe, words: list[str], weights) -> list[tuple]:
    """`--scorer`s -> [(F, scale)] (`steering.scoring`)."""
    form = "NAME=VALUE or NAME=VALUE:SCALE such as shows=blue:6 or palette=a.png:64"
    found = [scaled("scorer", text, form) for text in words]
    if weights and not any(name == "clip" for name, *_ in found):
        raise UserError("--weights means nothing without --scorer=clip=: leave it out")
    more = lambda name: {"weights": weights} if name == "clip" else {}  # noqa: E731
    return [(pipe.scorer(name, value, **more(name)), scale) for name, value, scale in found]
