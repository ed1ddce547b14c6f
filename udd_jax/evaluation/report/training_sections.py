"""The sections on the training of the run: image tokenizer, curves, times."""

import re

import numpy as np

from udd_jax.evaluation.report import page
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.runtime import files, logbook

PLOTS = (  # title, which columns of metrics.jsonl, whether the ordinate is logarithmic
    ("loss", r"loss", True),
    ("bound, nats a token", r"bound", False),
    ("-log p of masked tokens, nats", r"(\w+)_nll", False),
    ("accuracy at masked tokens", r"(\w+)_accuracy", False),
    ("norm of the gradient", r"gradient_norm", True),
    ("learning rate", r"learning_rate", False),
)
TOKENIZER_PLOTS = (
    ("reconstruction, PSNR in dB", r"(?:\w+_)?psnr", False),
    ("codes in use, perplexity", r"perplexity|used\w*|\w*usage", False),
    ("loss", r"loss", True),
)


def tokenizer(workdir, result: dict) -> str:
    """Held-out images and their reconstructions; nothing where no images were measured."""
    if "tokenizer" not in result:
        return ""
    found = result["tokenizer"]
    psnr = found["psnr"]
    told = (
        f"Held-out images through the tokenizer and back: {psnr['value']:.2f} ± "
        f"{psnr['standard_error']:.2f} dB PSNR. {found['codes_used']} of {found['codes']} codes "
        f"are in use, with a perplexity of {found['perplexity']:.1f}."
    )
    if "read_right" in found:
        read = found["read_right"]
        told += (
            f" {page.percent(read['rate'], read['error'])} of the reconstructions are read right"
        )
        told += ", which no image sample can be expected to exceed."
    content = page.tag("p", told)
    path = workdir / main_suite.FOLDER / "reconstructions.npz"
    if path.exists():
        with np.load(path) as file:
            before, after = file["images"][:8], file["decoded"][:8]
        pictures = [
            page.figure([page.picture(a), page.picture(b)], css="double")
            for a, b in zip(before, after, strict=True)
        ]
        content += page.tag("h3", "Images and, beside them, their reconstructions")
        content += page.tag("div", "".join(pictures), "row")
    plots = _plots(workdir / "vq", TOKENIZER_PLOTS)
    if plots:
        content += page.tag("h3", "Its training") + plots
    return page.section("tokenizer", "The image tokenizer", content)


def training(workdir) -> str:
    plots = _plots(workdir, PLOTS)
    return page.section("training", "Training of the diffusion", plots) if plots else ""


def _plots(folder, wanted) -> str:
    """A plot for each row of `wanted` that has a column in metrics.jsonl."""
    columns, drawn = logbook.Logbook(folder).columns(), []
    for title, pattern, log in wanted:
        found = {}
        for name in columns:
            match = re.fullmatch(pattern, name)
            if match:
                found[next(iter(match.groups()), None) or name] = columns[name]
        drawn.append(page.plot(title, found, "step", log_y=log))
    return page.tag("div", "".join(drawn), "plots") if any(drawn) else ""


def time(path, result: dict) -> str:
    """The seconds of the stages of the run and of the parts of the evaluation."""
    speed = result["speed"]
    content = ""
    if path.exists():
        content += page.tag("h3", "Stages of the run") + _seconds(files.read_json(path))
    content += page.tag("h3", "Parts of the evaluation") + _seconds(speed["seconds"])
    if "calls_a_sample" not in speed:
        return page.section("time", "Time", content)
    calls = ", ".join(f"{task} {value:.3g}" for task, value in speed["calls_a_sample"].items())
    hardware = result["manifest"]["hardware"]
    rate = speed.get("samples_a_second")  # none of a run with one task
    content += page.tag(
        "p",
        ("" if rate is None else f"{rate:g} samples a second; ")
        + f"network calls a sample: {calls}. "
        f"Samples of {speed['with_compilation']} came first: their time has the compilation in it. "
        f"Peak memory {speed['peak_memory_gib']:.2f} GiB, on {hardware['devices']} × "
        f"{page.escape(hardware['device'])} with {hardware['cores']} cores.",
        "note",
    )
    return page.section("time", "Time", content)


def _seconds(seconds: dict) -> str:
    longest = max([*seconds.values(), 1e-9])
    rows = [
        [
            page.escape(name.replace("_", " ")),
            f'<span class="bar" style="width:{220 * value / longest:.0f}px"></span>',
            f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min",
        ]
        for name, value in seconds.items()
    ]
    total = sum(seconds.values())
    rows.append(["together", "", f"{total:.1f} s" if total < 120 else f"{total / 60:.1f} min"])
    return page.table(["", "", "time"], rows, 2)
