"""The code of the documents: its blocks, their commands, and what is not run and why.

A block is indented by four spaces, or fenced as ```python. A table has code too: a span that
begins with `--task=` is a command of `--mode=sample`, and one that begins with `pipe.` is a line of
Python, unless it has `...` in it. A comment before a block says why no test can run it:

    <!-- not run: REASON -->              the whole block
    <!-- not run, WORDS: REASON -->       its commands that begin with WORDS
"""

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "launch" / "README.md",
)
PROGRAMS = {"pip", "udd_jax", "python", "pytest", "git", "launch/run.sh"}
OURS = (["udd_jax"], ["python", "-m", "udd_jax.main"])  # how our command begins
NOT_RUN = re.compile(r"<!-- not run(?:, (.+?))?: (.+?) -->")
SPAN = re.compile(r"`([^`]+)`")


@dataclasses.dataclass(frozen=True)
class Block:
    """Code of a page: commands of a shell, or lines of Python.

    page: its file name; line: of its first line, from 1; text: without indentation; skipped:
    {how a command begins, "" for all of them: why it is not run}; picture: the file that an image
    right after the block shows, or "".
    """

    page: str
    line: int
    text: str
    shell: bool
    skipped: dict
    picture: str = ""

    def commands(self) -> list[list[str]]:
        """The words of each command that can be run; a line `a && b` has two commands."""
        lines = re.sub(r"\\\n\s*", "", self.text).splitlines()
        parts = [part for line in lines for part in line.split(" && ")]
        found = [shlex.split(re.sub(r"\s# .*", "", part)) for part in parts if self.runs(part)]
        return [words for words in found if words]

    def runs(self, text: str = "") -> bool:
        return not any(text.startswith(words) for words in self.skipped)


def blocks(path) -> list[Block]:
    """All code of a page, from top to bottom."""
    lines, found, i = path.read_text(encoding="utf-8").splitlines(), [], 0
    skipped = {}
    while i < len(lines):
        line, start = lines[i], i
        if marker := NOT_RUN.search(line):
            skipped[marker[1] or ""] = marker[2]
        elif line.startswith("```") or (line.startswith("    ") and not _within(lines, i)):
            fenced = line.startswith("```")
            i += fenced
            while i < len(lines) and _inside(lines, i, fenced):
                i += 1
            text = "\n".join(
                row if fenced else row[4:] for row in lines[start + fenced : i]
            ).rstrip()
            shell = not fenced and text.split()[0] in PROGRAMS
            if not fenced or line == "```python":
                after = next(filter(None, lines[i + fenced :]), "")
                shown = re.match(r"!\[.*\]\((.+)\)", after)
                found.append(
                    Block(path.name, start + 1, text, shell, skipped, shown[1] if shown else "")
                )
            skipped = {}
            i -= not fenced
        elif line.startswith("|"):
            for text in SPAN.findall(line.replace("\\|", "|")):
                if text.startswith(("--task=", "pipe.")) and "..." not in text:
                    shell = text.startswith("--")
                    text = f"udd_jax --mode=sample --workdir=runs/t2i {text}" if shell else text
                    found.append(Block(path.name, start + 1, text, shell, {}))
        elif line.strip():
            skipped = {}
        i += 1
    return found


def _inside(lines, i, fenced) -> bool:
    if fenced:
        return not lines[i].startswith("```")
    return lines[i].startswith("    ") or (not lines[i] and _next(lines, i).startswith("    "))


def _next(lines, i) -> str:
    return next(filter(None, lines[i:]), "")


def _within(lines, i) -> bool:
    """Whether an indented line goes on with the line before it, as in a list."""
    return i > 0 and bool(lines[i - 1].strip()) and not lines[i - 1].startswith(("    ", "<!--"))


def arguments(words: list[str]) -> list[str] | None:
    """The flags of a command of ours; None for another program."""
    for start in OURS:
        if words[: len(start)] == start:
            return words[len(start) :]
    return None
