"""The parts of a self-contained HTML page: its style, images, tables and small plots.

Everything is text: images are `data:` addresses and plots are inline SVG. So a page needs no other
file, no network and no script. Colours are CSS variables, so that pages and plots follow the
reader's light or dark scheme. Text from outside must go through `escape`.
"""

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np

from udd_jax.data import pixels

_LARGEST = 64  # pixels of a side; larger images are reduced to twice that and stored as JPEG
_WIDTH, _HEIGHT = 330, 180  # of a plot, pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 18, 10, 34
BOARD = "background: repeating-conic-gradient(#fff 0 25%, #e0e0e0 0 50%) 0 / 16px 16px"  # CSS
_DASHED = ' stroke-dasharray="5 3"'  # the second round of colours

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #24272c; --soft: #6a6f77;
  --line: #e5e2da; --good: #22805a; --bad: #c0392f; --c0: #2c6cb0; --c1: #c67c1f; --c2: #22805a;
  --c3: #8a4fa3; --c4: #b0394f; --c5: #3c8c94; --c6: #7a7a2c; --c7: #555b66; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --card: #1d2024; --ink: #e4e2dc;
  --soft: #989ca3; --line: #30343a; --good: #5bc795; --bad: #f0796c; --c0: #74aee8; --c1: #e5a955;
  --c2: #5bc795; --c3: #c394da; --c4: #ec8296; --c5: #71c5cc; --c6: #c2c26a; --c7: #a6acb6; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.55 Charter,
  "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
main { max-width: 1080px; margin: 0 auto; padding: 56px 32px 96px; }
h1 { font-size: 38px; line-height: 1.15; font-weight: 600; margin: 0 0 18px; }
h2 { font-size: 25px; font-weight: 600; margin: 68px 0 10px; padding-top: 20px;
  border-top: 1px solid var(--line); }
h3 { font: 600 13px/1.4 system-ui, sans-serif; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft); margin: 30px 0 10px; }
p { max-width: 44em; margin: 0 0 14px; }
.lead { font-size: 20px; line-height: 1.5; }
.note, figcaption, table, summary, nav, .chip, svg text { font-family: system-ui, sans-serif; }
.note { color: var(--soft); font-size: 14px; }
nav { font-size: 14px; margin: 26px 0 8px; display: flex; flex-wrap: wrap; gap: 6px 18px; }
a { color: var(--c0); text-decoration: none; } a:hover { text-decoration: underline; }
table { border-collapse: collapse; font-size: 14.5px; margin: 8px 0 18px; }
th { text-align: left; font-weight: 500; color: var(--soft); border-bottom: 1px solid var(--line); }
th, td { padding: 6px 26px 6px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
.met { display: inline-block; width: 1.1em; text-align: right; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
.alarm { border-left: 4px solid var(--bad); padding: 10px 16px; background: var(--card); }
.row { display: flex; flex-wrap: wrap; gap: 20px 18px; margin: 14px 0 22px; }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 1fr)); gap: 0 40px; }
.halves .row { gap: 20px 16px; } .halves ul.plain { columns: 1; }
figure { margin: 0; width: 110px; }
figure.triple { width: 316px; } figure.double { width: 206px; }
figure .side { display: flex; gap: 6px; }
figcaption { font-size: 12.5px; line-height: 1.4; margin-top: 7px; overflow-wrap: anywhere; }
img { display: block; width: 100%; aspect-ratio: 1; border-radius: 3px; object-fit: contain;
  image-rendering: pixelated; outline: 1px solid var(--line); }
.right img.judged { outline: 3px solid var(--good); outline-offset: 1px; }
.wrong img.judged { outline: 3px solid var(--bad); outline-offset: 1px; }
audio { width: 100%; height: 34px; } .share { display: inline-block; padding: 2px 8px; }
mark { background: none; color: var(--c1); font-weight: 600; }
.frames { display: grid; grid-template-columns: repeat(8, minmax(84px, 1fr)); gap: 10px;
  margin: 14px 0 26px; padding: 2px; overflow-x: auto; }
.frames figure { width: auto; } .frames .hidden { color: var(--soft); opacity: .55; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)); gap: 18px;
  align-items: end; }
svg { display: block; max-width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11px; }
.plot { font: 12px/1.6 system-ui, sans-serif; } .plot b { font-size: 13.5px; }
.plot b, .plot span { margin-right: 12px; white-space: nowrap; }
svg .grid { stroke: var(--line); }
.bar { display: inline-block; height: 9px; border-radius: 2px; background: var(--c0); }
details { margin: 12px 0; } summary { cursor: pointer; font-size: 15px; }
ul { padding-left: 20px; } li { margin: 2px 0; }
ul.reasons li { margin: 0 0 10px; max-width: 48em; } ul.reasons b { font-weight: 600; }
ul.plain { list-style: none; padding: 0; columns: 2; column-gap: 40px; font-size: 15px; }
li .bad { display: inline; margin-left: 6px; font-size: 14px; }
@media (max-width: 640px) { main { padding: 32px 18px 64px; } ul.plain { columns: 1; }
  .halves { grid-template-columns: 1fr; } th, td { padding-right: 14px; } }
@media print { body { background: #fff; } figure { break-inside: avoid; } }
"""


def escape(text) -> str:
    return html.escape(str(text))


def document(title: str, body: Sequence[str]) -> str:
    """A whole page; `body` is a list of markup."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def tag(name: str, content: str, css: str = "") -> str:
    """<name class=css>content</name>; the content is markup."""
    return f'<{name} class="{css}">{content}</{name}>' if css else f"<{name}>{content}</{name}>"


def section(name: str, heading: str, content: str) -> str:
    """A section with the anchor `name`; its content is markup."""
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>'


# ---- Pictures -----------------------------------------------------------------------------------


def picture(image: np.ndarray, css: str = "") -> str:
    """uint8[H, W, C] as an <img>; a small image keeps its exact pixels.

    What is clear shows a board of white and grey squares.
    """
    opacity, large = image.shape[2] == 4, max(image.shape[:2]) > _LARGEST
    if large:
        share = 2 * _LARGEST / max(image.shape[:2])
        image = pixels.fit(image, tuple(max(1, round(share * side)) for side in image.shape[:2]))
    if large and not opacity:
        file = io.BytesIO()
        pixels.to_pillow(image).save(file, "JPEG", quality=82)
        uri = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    else:
        uri = pixels.data_uri(image)
    board = f' style="{BOARD}"' if opacity else ""
    return f'<img class="{css}" alt="" src="{uri}"{board}>'


def audio(uri: str) -> str:
    """A player for a sound, a `data:` address."""
    return f'<audio controls preload="none" src="{uri}"></audio>'


def figure(pictures: Sequence[str], caption: str = "", css: str = "") -> str:
    """One or several images side by side, with a caption below; both are markup."""
    shown = pictures[0] if len(pictures) == 1 else tag("div", "".join(pictures), "side")
    return tag("figure", shown + (tag("figcaption", caption) if caption else ""), css)


# ---- Numbers ------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """A table; cells are markup. All but the first `text` columns are numbers, aligned right."""

    def line(cells, name):
        css = ["" if i < text else "number" for i in range(len(cells))]
        return tag("tr", "".join(tag(name, c, k) for c, k in zip(cells, css, strict=True)))

    inner = line(header, "th") + "".join(line(row, "td") for row in rows)
    return tag("div", tag("table", inner), "wide")


def percent(value: float, error: float | None = None) -> str:
    """A share in 0..1 as percent, with its error if given: "95.3 ± 0.9 %"."""
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "") + " %"


def meter(value: float, error: float, aim: float | None) -> str:
    """A share in 0..1 as a bar with its error, and a tick at the aim."""
    width, height = 150, 16

    def x(share):
        return round(min(max(share, 0), 1) * width, 1)

    tick = ""
    if aim is not None:
        tick = f'<path d="M{x(aim)} 1V15" stroke="var(--ink)" stroke-width="1.5"/>'
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{percent(value)}"><rect y="5" width="{width}" height="6" rx="2" '
        f'fill="var(--line)"/><rect y="5" width="{x(value)}" height="6" rx="2" fill="var(--c0)"/>'
        f'<path d="M{x(value - error)} 8H{x(value + error)}" stroke="var(--ink)"/>{tick}</svg>'
    )


# ---- Plots --------------------------------------------------------------------------------------

FIXED = (
    "#1f6feb",
    "#d1242f",
    "#8250df",
    "#bc6c00",
    "#1a7f37",
    "#0a7ea4",
    "#7a7a2c",
    "#57606a",
)  # the colours of lines in a file


def plot(
    title: str,
    series: dict[str, tuple[Sequence[float], Sequence[float]]],
    x_label: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    dots: bool = False,
    size: tuple[int, int] = (_WIDTH, _HEIGHT),
) -> str:
    """A line plot as SVG with a title and a legend; "" if there is nothing to draw.

    series: {name: (xs, ys)}; long series are averaged to fewer points.
    """
    (width, height), number = size, {name: i for i, name in enumerate(series)}
    series = {name: _thin(*points) for name, points in series.items() if len(points[0])}
    if not series:
        return ""
    xs = np.concatenate([x for x, _ in series.values()])
    ys = np.concatenate([y for _, y in series.values()])
    across = _Axis(xs.min(), xs.max(), log_x, _LEFT, width - _RIGHT)
    up = _Axis(ys.min(), ys.max(), log_y, height - _BOTTOM, _TOP)
    parts, legend = [], [tag("b", escape(title))]
    for value in up.ticks():
        y = up.place(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{_short(value)}</text>')
    for value in across.ticks():
        x, y = across.place(value), height - _BOTTOM + 16
        parts.append(f'<text x="{x}" y="{y}" text-anchor="middle">{_short(value)}</text>')
    parts.append(
        f'<text x="{width - _RIGHT}" y="{height - 4}" text-anchor="end">{escape(x_label)}</text>'
    )
    for name, (x, y) in series.items():
        i = number[name]  # also where an earlier one is empty
        colour = f"var(--c{i % 8})"
        points = [(across.place(a), up.place(b)) for a, b in zip(x, y, strict=True)]
        line = " ".join(f"{a},{b}" for a, b in points)
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6" '
            f'stroke-linejoin="round"{"" if i < 8 else _DASHED}/>'
        )
        if dots or len(points) == 1:
            parts += [f'<circle cx="{a}" cy="{b}" r="3" fill="{colour}"/>' for a, b in points]
        if len(series) > 1:
            legend.append(f'<span style="color:{colour}">{escape(name)}</span>')
    drawn = f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(parts)}</svg>'
    return tag("div", tag("div", " ".join(legend)) + drawn, "plot")  # a blank: it may wrap


def panels(series: dict[str, dict], size: tuple[int, int] = (300, 200), **options) -> str:
    """A file of SVG: a plot for each {label of x: series of `plot`}, side by side. The names of the
    lines stand below; a line has the same colour in all. options: of `plot`."""
    parts, names = [], list(dict.fromkeys(name for lines in series.values() for name in lines))
    for number, (label, lines) in enumerate(series.items()):
        lines = {name: lines.get(name, ([], [])) for name in names}
        drawn = plot("", lines, label, dots=True, size=size, **options)
        drawn = drawn[drawn.index("<svg") : drawn.index("</svg>")].partition(">")[2]
        parts.append(f'<g transform="translate({number * size[0]} 0)">{drawn}</g>')
    for i, name in enumerate(names):
        place = f'x="40" y="{size[1] + 14 * (i + 1)}" style="fill:{FIXED[i % len(FIXED)]}"'
        dashes = "" if i < len(FIXED) else "- - "
        parts.append(f"<text {place}>{dashes}{escape(name)}</text>")
    body = "".join(parts)
    for i, colour in enumerate(FIXED):
        body = body.replace(f"var(--c{i})", colour)
    style = "text{font:11px sans-serif;fill:#57606a}.grid{stroke:#d0d7de;fill:none}"
    box = f"0 0 {len(series) * size[0]} {size[1] + 14 * len(names) + 10}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><style>{style}</style>'
    return f'{head}<rect width="100%" height="100%" fill="#fff"/>{body}</svg>\n'


def _thin(xs, ys, most: int = 200):
    """At most `most` points, each the mean of a group of neighbours."""
    xs, ys = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    if len(xs) <= most:
        return xs, ys
    parts = np.array_split(np.arange(len(xs)), most)
    return np.array([xs[p].mean() for p in parts]), np.array([ys[p].mean() for p in parts])


class _Axis:
    """Maps values to pixels from `start` to `end`, and places the ticks."""

    def __init__(self, low, high, log, start, end):
        self.log = log and low > 0
        self.low, self.high = self._scaled(low), self._scaled(high)
        if self.high - self.low < 1e-9 * max(1, abs(self.high)):
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.start, self.end = start, end

    def _scaled(self, value):
        return math.log10(value) if self.log else float(value)

    def place(self, value) -> float:
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        if self.log:
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            found = [m * 10.0**d for d in decades for m in (1, 2, 5)]
            found = [v for v in found if self.low - 1e-9 <= math.log10(v) <= self.high + 1e-9]
            if len(found) > 6:
                return [v for v in found if f"{v:e}"[0] == "1"]
            if len(found) > 2:
                return found
        low, high = (10**v if self.log else v for v in (self.low, self.high))
        rough = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def _short(value: float) -> str:
    """A short number for an axis, such as 20k, 0.05, 3."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
