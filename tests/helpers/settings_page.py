"""The settings of `configs/base.py` as tables of docs/training.md: names, defaults, comments.

    python -m tests.helpers.settings_page          writes them into the page

A field's comment is behind it, or in the lines above it.
"""

import ast
import pathlib
import re

from flax import traverse_util

from configs import base

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "training.md"
MARK = "<!-- From here on: python -m tests.helpers.settings_page -->\n"
HEADINGS = {
    "": "The run",
    "data_options": "The data",
    "modalities": "The modalities",
    "text": "The text tokenizer",
    "vq": "The image tokenizer",
    "diffusion": "The noise",
    "model": "The network",
    "train": "The training",
    "dual_encoder": "The dual encoder",
    "sample": "Sampling",
    "evaluate": "The evaluation",
    "mesh": "Devices",
}


def comments() -> dict[str, str]:
    """{field: its comment} of all fields of `configs/base.py`, such as "vq.model.patch"."""
    text = pathlib.Path(base.__file__).read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}

    def add(name, key, value):
        if _is_table(value):
            for k, v in zip(value.keys, value.values, strict=True):
                add(f"{name}.{k.value}", k, v)
        else:
            found[name] = _behind(lines[value.end_lineno - 1]) or _above(lines, key.lineno - 1)

    body = next(node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)).body
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            value = node.value
            if isinstance(value, ast.Call) and value.args and _is_table(value.args[0]):
                value = value.args[0]
            add(node.targets[0].attr, node, value)
    return found


def _is_table(value) -> bool:
    return isinstance(value, ast.Dict) and bool(value.keys)


def _behind(line: str) -> str:
    return line.partition("  # ")[2].strip()


def _above(lines, index) -> str:
    found = []
    while lines[index - 1].strip().startswith("# "):
        index -= 1
        found.insert(0, lines[index].strip()[2:])
    return " ".join(found)


def tables() -> str:
    """The part of the page below MARK."""
    defaults, parts = fields(), {head: [] for head in HEADINGS}
    for name, text in comments().items():
        head, value = name.partition(".")[0], defaults[name]
        shown = "" if value is None else f"`{value!r}`"
        text = text.rstrip(".").replace("|", "\\|")
        if re.match(r"(?!True|False)[A-Z][a-z ]", text):
            text = text[0].lower() + text[1:]
        parts[head if head in parts else ""].append(f"| `{name}` | {shown} | {text} |")
    page = []
    for head, rows in parts.items():
        page += [f"\n## {HEADINGS[head]}\n", "| `--config.` | default | |", "|---|---|---|", *rows]
    return "\n".join(page) + "\n"


def fields() -> dict:
    """{field: default} of all fields of `configs/base.py`."""
    flat = traverse_util.flatten_dict(base.get_config().to_dict(), keep_empty_nodes=True, sep=".")
    return {
        name: {} if value is traverse_util.empty_node else value for name, value in flat.items()
    }


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(text.partition(MARK)[0] + MARK + tables(), encoding="utf-8")
