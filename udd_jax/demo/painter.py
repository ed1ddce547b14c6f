"""A picture, or an empty one, of which one paints cells, with a mouse, a finger or the keys.

A code is generated if its cell is painted, so cells are what one paints. The value of the component
is {"image": a PNG as a data address, "mask": a digit for each cell, "at": the cell of the keys}.
The browser keeps it, and the server checks it again (`read`).
"""

import base64

import numpy as np

from udd_jax.data import pixels
from udd_jax.demo import requests
from udd_jax.errors import UserError

START = "data:image/png;base64,"
REGIONS = ("none", "left", "right", "upper", "lower", "all")
CSS = """
.udd-paint { position: relative; width: 320px; max-width: 100%; touch-action: none; }
.udd-paint.empty { display: none; }
.udd-paint.blank { width: 160px; aspect-ratio: 1; background: #fff; margin-top: .3em; }
.udd-paint img { width: 100%; display: block; image-rendering: pixelated; user-select: none; }
.udd-paint .cells { position: absolute; inset: 0; display: grid; }
.udd-paint .cells button { border: 1px solid rgb(128 128 128 / .35); margin: 0; padding: 0;
  min-width: 0; background: none; border-radius: 0; cursor: crosshair; }
.udd-paint .cells button[aria-pressed=true] { background: repeating-linear-gradient(
  45deg, #b0008e 0 5px, #ffffff 5px 9px); opacity: .85; }
.udd-paint .cells button:focus-visible { outline: 3px solid #1d4ed8; outline-offset: -3px; }
.udd-regions { display: flex; flex-wrap: wrap; gap: .4em; margin-top: .5em; align-items: center; }
.udd-regions button { border: 1px solid var(--border-color-primary); border-radius: 4px;
  margin: 0; padding: .3em .8em; background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); cursor: pointer; }
.udd-regions.empty { display: none; }
"""
# `props.value = ...` draws the template again, so it is set at the end of a stroke only.
SCRIPT = """
const cells = () => [...element.querySelectorAll('.cells button')];
const [rows, columns] = [ROWS, COLUMNS];
const pressed = (cell) => cell.getAttribute('aria-pressed') === 'true';
const set = (cell, on) => cell.setAttribute('aria-pressed', String(on));
const keep = (at) => {
  const mask = cells().map((cell) => (pressed(cell) ? '1' : '0')).join('');
  props.value = { image: props.value.image, mask: mask, at: at };
};
const focus = (at) => requestAnimationFrame(() => {
  const cell = cells()[at];
  if (cell) cell.focus();
});
let on = null;
const under = (e) => {
  const found = document.elementFromPoint(e.clientX, e.clientY);
  return found && element.contains(found) ? found.closest('.cells button') : null;
};
element.addEventListener('pointerdown', (e) => {
  const cell = under(e);
  if (!cell) return;
  e.preventDefault();
  on = !pressed(cell);
  set(cell, on);
});
element.addEventListener('pointermove', (e) => {
  if (on === null) return;
  const cell = under(e);
  if (cell) set(cell, on);
});
window.addEventListener('pointerup', () => {
  if (on === null) return;
  on = null;
  keep(props.value.at || 0);
});
element.addEventListener('keydown', (e) => {
  const at = cells().indexOf(e.target);
  if (at < 0) return;
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (e.key in moves) {
    e.preventDefault();
    const next = at + moves[e.key];
    if (next < 0 || next >= rows * columns) return;
    cells().forEach((cell, i) => { cell.tabIndex = i === next ? 0 : -1; });
    cells()[next].focus();
  } else if (e.key === ' ' || e.key === 'Enter') {
    e.preventDefault();
    set(e.target, !pressed(e.target));
    keep(at);
    focus(at);
  }
});
element.addEventListener('click', (e) => {
  const region = e.target.dataset.region;
  if (!region) return;
  const inside = {
    none: () => false, all: () => true,
    left: (r, c) => c < columns / 2, right: (r, c) => c >= columns / 2,
    upper: (r) => r < rows / 2, lower: (r) => r >= rows / 2,
  }[region];
  cells().forEach((cell, i) => set(cell, inside(Math.floor(i / columns), i % columns)));
  keep(0);
});
"""


def value(image: np.ndarray | None = None) -> dict:
    """The value of the component for uint8[S, S, C], nothing painted."""
    return {"image": "" if image is None else pixels.data_uri(image), "mask": "", "at": 0}


def template(grid: tuple[int, int] | None, blank: str = "") -> str:
    """The HTML, filled in by the browser. grid: the cells; None if there is nothing to paint.

    blank: what is said of cells of an empty picture; "" for those of a picture that a person chose.
    """
    empty = "" if blank else "${value.image ? '' : 'empty'}"
    buttons, regions = "", ""
    if grid:
        rows, columns = grid
        buttons = "".join(
            f'<button type="button" aria-label="row {i // columns + 1}, column {i % columns + 1}" '
            f"aria-pressed=\"${{(value.mask || '')[{i}] === '1'}}\" "
            f'tabindex="${{(value.at || 0) === {i} ? 0 : -1}}"></button>'
            for i in range(rows * columns)
        )
        size = f"grid-template: repeat({rows}, 1fr) / repeat({columns}, 1fr)"
        label = f"{blank or 'cells that should be new'}: arrows move, space paints"
        buttons = f'<div class="cells" role="group" aria-label="{label}" style="{size}">{buttons}'
        buttons += "</div>"
        regions = "".join(
            f'<button type="button" data-region="{name}">{name}</button>' for name in REGIONS
        )
        said = "Where:" if blank else "New:"
        regions = f'<div class="udd-regions {empty}"><span>{said}</span>{regions}</div>'
    picture = '<img alt="the chosen picture" draggable="false" src="${value.image}">'
    style, picture = ("blank", "") if blank else (empty, picture)
    wide = blank and grid and rows != columns  # as the pictures are
    shape = f' style="aspect-ratio: {columns} / {rows}"' if wide else ""
    return f'<div class="udd-paint {style}"{shape}>{picture}{buttons}</div>{regions}'


def script(grid: tuple[int, int] | None) -> str:
    return SCRIPT.replace("ROWS, COLUMNS", ", ".join(map(str, grid or (0, 0))))


def read(sent, tokenizer):
    """(image uint8[S, S, C], mask bool[S, S]) of a value, or (None, None) without a picture.

    tokenizer: of images. ValueError, one line, for a value that no page of ours sends.
    """
    size, channels = tokenizer.image_size, tokenizer.shape[-1]
    mask = read_mask(sent, size, tokenizer.grid)
    if not sent or not sent.get("image"):
        return None, None
    kind, text = str(sent["image"])[: len(START)], str(sent["image"])[len(START) :]
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:  # characters that no such text has
        data = b""
    if kind != START or not data:
        raise UserError("the picture was not sent as a PNG: load the page again")
    return requests.read_picture(data, size, channels), mask


def read_mask(sent, size: int, grid: tuple[int, int]) -> np.ndarray:
    """The painted cells of a value, bool[S, S]; errors as in `read`."""
    if sent and not isinstance(sent, dict):
        raise UserError("the picture was not sent as one: load the page again")
    digits = str((sent or {}).get("mask") or "0" * grid[0] * grid[1])
    if len(digits) != grid[0] * grid[1] or set(digits) - {"0", "1"}:
        raise UserError("the mask does not fit the picture: load the page again")
    cells = np.array([digit == "1" for digit in digits]).reshape(grid)
    height, width = pixels.both(size)
    return cells.repeat(height // grid[0], axis=0).repeat(width // grid[1], axis=1)


def picture(mask: np.ndarray) -> np.ndarray:
    """bool[S, S] as a picture uint8[S, S, 3], white where it is True."""
    return np.repeat(mask[..., None] * np.uint8(255), 3, axis=2)
