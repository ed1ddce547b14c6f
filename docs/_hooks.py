"""Pages of the site that lie elsewhere in the repository, and links to them (mkdocs hooks)."""

import pathlib
import re

from mkdocs.structure import files

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "launch.md": "launch/README.md",
    "results.md": "benchmarks/RESULTS.md",
}


def on_files(found, config):
    for page, path in PAGES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        found.append(files.File.generated(config, page, content=text))
    for path in sorted((ROOT / "udd_jax" / "assets").rglob("*.png")):
        name = str(path.relative_to(ROOT / "udd_jax"))
        found.append(files.File.generated(config, name, abs_src_path=str(path)))
    return found


def on_page_markdown(markdown, page, config, files):
    """A link to a file of the repository becomes that page of the site, or plain text."""
    home = pathlib.PurePosixPath("docs")
    if page.file.src_uri in PAGES:
        home = pathlib.PurePosixPath(PAGES[page.file.src_uri]).parent
    known = {path: name for name, path in PAGES.items()}

    def link(found):
        words, target = found.groups()
        if "://" in target or target.startswith("#") or files.get_file_from_path(target):
            return found[0]
        path, _, anchor = target.partition("#")
        parts = []
        for part in (home / path).parts:
            parts.pop() if part == ".." else parts.append(part)
        path = "/".join(parts)
        name = known.get(path, path.removeprefix("docs/").removeprefix("udd_jax/"))
        if files.get_file_from_path(name) is None:
            return words
        return f"[{words}]({name}{'#' + anchor if anchor else ''})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", link, markdown)
