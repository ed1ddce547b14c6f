"""The command line and the Python lines that make a result of the page again, bit for bit.

They read the pictures and other files that the page offers beside them.
"""

import json
import shlex

NAMES = {"t2i": "text_to_image", "i2t": "image_to_text", "pair": "pairs"}
NAMES |= {"image": "images", "text": "texts"}
NAMES |= {name: name for name in ("infill", "edit", "outpaint", "upscale")}


def command(
    task: str, workdir=None, *, text="", image=False, mask=False, given=None, blank_tokens=1,
    negative="", count=1, seed=0, settings: dict, steered=(),
) -> str:  # fmt: skip
    """The command.

    workdir: None for the run of the package. image, mask: it reads them as files, `image.png` and
    `mask.png`. given: {further modality: its value or file}. steered: of `steering.read`.
    """
    more = [word for way in steered for word in way.words]
    text = "" if any("prompts" in way.options for way in steered) else text
    words = ["udd_jax", "--mode=sample"]
    words += [f"--workdir={workdir}"] if workdir else []
    words += [f"--task={task}"] if task != "t2i" else []
    words += ["--image=image.png"] if image else []
    words += ["--mask=mask.png"] if mask else []
    words += [f"--prompt={text}"] if text else []
    words += [f"--given={name}={file}" for name, file in (given or {}).items()]
    words += more
    words += [f"--blank_tokens={blank_tokens}"] if blank_tokens != 1 else []
    words += [f"--negative_prompt={negative}"] if negative else []
    words += [f"--num={count}", f"--seed={seed}"]
    words += [f"--{name}={value}" for name, value in settings.items()]
    return " ".join(map(shlex.quote, words))


def python(
    task: str, workdir=None, *, text="", image=False, mask=False, given=None, blank_tokens=1,
    negative="", count=1, seed=0, settings: dict, steered=(),
) -> str:  # fmt: skip
    """The lines of Python; the arguments of `command`."""
    more = {name: source for way in steered for name, source in way.python.items()}
    have = {"images": '"image.png"'} if image else {}
    have |= {"image_mask": 'Image.open("mask.png")'} if mask else {}
    have |= {"captions": literal(text)} if text and "prompts" not in more else {}
    have |= {"blank_tokens": str(blank_tokens)} if blank_tokens != 1 else {}
    options = {"num": count, "negative": negative} if text or image or given else {}
    options = {name: value for name, value in options.items() if value} | {"seed": seed} | settings
    method = NAMES.get(task)
    if method is None:
        values = {"image": '"image.png"'} if image else {}
        values |= {"text": literal(text)} if text else {}
        values |= {name: literal(file) for name, file in (given or {}).items()}
        inside = ", ".join(f'"{name}": {value}' for name, value in values.items())
        first, method = [f'"{task}"', f"given={{{inside}}}" if values else str(count)], "generate"
    elif task in ("infill", "edit", "outpaint", "upscale"):
        first = [f"{name}={value}" for name, value in have.items()]
    else:
        first = list(have.values()) if task in ("t2i", "i2t") else [str(count)]
    named = more | {name: literal(value) for name, value in options.items()}
    words = ", ".join([*first, *(f"{name}={source}" for name, source in named.items())])
    opens = ["from PIL import Image", ""] if "Image.open(" in words else []
    return "\n".join([*opens, _load(workdir), f"result = pipe.{method}({words})"])


def likelihood(workdir, text, seed) -> str:
    """The lines of Python that measure a pair; it reads `image.png`."""
    words = f'"image.png", {literal(text)}, seed={seed}, each=True'
    return f"{_load(workdir)}\nbits = pipe.log_likelihood({words})"


def literal(value) -> str:
    """A value as it is written in Python."""
    if isinstance(value, tuple | list):
        inside = ", ".join(map(literal, value))
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _load(workdir) -> str:
    folder = literal(str(workdir)) if workdir else ""
    return f"import udd_jax\n\npipe = udd_jax.Pipeline.load({folder})"
