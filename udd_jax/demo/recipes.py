"""The command line and the Python lines that make a result of the page again, bit for bit."""

import json
import shlex

NAMES = {"t2i": "text_to_image", "i2t": "image_to_text", "pair": "pairs"}
NAMES |= {"image": "images", "text": "texts", "infill": "infill"}


def command(
    task: str, workdir=None, *, text="", image=False, mask=False, blank_tokens=1, negative="",
    count=1, seed=0, settings: dict,
) -> str:  # fmt: skip
    """The command. workdir: None for the run of the package. image, mask: it reads them as files,
    `image.png` and `mask.png`."""
    words = ["udd_jax", "--mode=sample"]
    words += [f"--workdir={workdir}"] if workdir else []
    words += [f"--task={task}"] if task != "t2i" else []
    words += ["--image=image.png"] if image else []
    words += ["--mask=mask.png"] if mask else []
    words += [f"--prompt={text}"] if text else []
    words += [f"--blank_tokens={blank_tokens}"] if blank_tokens != 1 else []
    words += [f"--negative_prompt={negative}"] if negative else []
    words += [f"--num={count}", f"--seed={seed}"]
    words += [f"--{name}={value}" for name, value in settings.items()]
    return " ".join(map(shlex.quote, words))


def python(
    task: str, workdir=None, *, text="", image=False, mask=False, blank_tokens=1, negative="",
    count=1, seed=0, settings: dict,
) -> str:  # fmt: skip
    """The lines of Python; the arguments of `command`."""
    options = {"num": count, "negative": negative} if text or image else {}
    options = {name: value for name, value in options.items() if value} | {"seed": seed} | settings
    if task == "infill":
        given = ['images="image.png"'] if image else []
        given += ['image_mask=Image.open("mask.png")'] if mask else []
        given += [f"captions={_literal(text)}"] if text else []
        given += [f"blank_tokens={blank_tokens}"] if blank_tokens != 1 else []
    elif task in ("t2i", "i2t"):
        given = [_literal(text) if task == "t2i" else '"image.png"']
    else:
        given = [str(count)]
    words = ", ".join([*given, *(f"{name}={_literal(value)}" for name, value in options.items())])
    mask_reader = ["from PIL import Image", ""] if mask else []
    return "\n".join([*mask_reader, _load(workdir), f"result = pipe.{NAMES[task]}({words})"])


def likelihood(workdir, text, seed) -> str:
    """The lines of Python that measure a pair; it reads `image.png`."""
    words = f'"image.png", {_literal(text)}, seed={seed}, each=True'
    return f"{_load(workdir)}\nbits = pipe.log_likelihood({words})"


def _load(workdir) -> str:
    folder = _literal(str(workdir)) if workdir else ""
    return f"import udd_jax\n\npipe = udd_jax.Pipeline.load({folder})"


def _literal(value) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
