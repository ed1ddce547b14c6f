"""Results as HTML: captions, the chain of the first sample, and the bits of each token.

A chain is a list of moments, of which one is seen; MOVE is the script that shows another one.
"""

import base64
import html

import numpy as np

from udd_jax import modalities
from udd_jax.data import pixels
from udd_jax.evaluation import samples
from udd_jax.evaluation.report import page, rule_sections

SIDE = 192  # pixels of a small picture on the page
# Runs once, with `element` the place of the chain: the slider shows a moment, the button plays all.
MOVE = """
const show = (k) => {
  element.querySelectorAll('.moment').forEach((m, i) => { m.hidden = i !== k; });
  const slider = element.querySelector('input');
  slider.value = k;
  slider.setAttribute('aria-valuetext', `moment ${k + 1} of ${Number(slider.max) + 1}`);
};
let timer = null;
const stop = () => { clearInterval(timer); timer = null; };
element.addEventListener('input', (e) => { stop(); show(Number(e.target.value)); });
element.addEventListener('click', (e) => {
  if (!e.target.closest('button')) return;
  if (timer) return stop();
  let k = 0;
  show(0);
  timer = setInterval(() => {
    const slider = element.querySelector('input');
    k += 1;
    if (!slider || k > Number(slider.max)) return stop();
    show(k);
  }, 350);
});
"""
CSS = f"""
.samples img, .samples .image-container {{ image-rendering: pixelated; }}
.samples img, .udd-chain img, .udd-paint img, .udd-map img {{ {page.BOARD}; }}
.dark {{ --color-accent: var(--primary-300); }}
.samples .grid-wrap {{ min-height: 0; }}
.samples .grid-container {{
  grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)) !important; }}
.samples:has(.preview) {{ min-height: 20em; }}
.udd-note {{ font-weight: 600; margin: .5em 0; }}
.udd-chain img, .udd-map img {{ width: {SIDE}px; max-width: 100%; image-rendering: pixelated;
  display: block; border-radius: 4px; }}
.udd-chain .pieces {{ min-height: 3.5em; margin: .5em 0; display: flex; flex-wrap: wrap;
  gap: .3em; align-content: start; }}
.udd-chain .pieces span, .udd-words li {{ padding: .1em .4em; }}
.udd-chain .pieces span {{ border: 1px solid var(--border-color-primary); border-radius: 4px; }}
.udd-chain .pieces .hidden {{ background: var(--body-text-color); color: transparent;
  user-select: none; }}
.udd-chain .controls {{ display: flex; gap: .8em; align-items: center; padding-top: .8em; }}
.udd-chain .controls input {{ flex: 1; min-width: 6em; }}
.udd-chain button {{ border: 1px solid var(--border-color-primary); border-radius: 4px;
  padding: .4em .9em; background: var(--button-secondary-background-fill); cursor: pointer;
  color: var(--button-secondary-text-color); }}
.udd-chain button:focus-visible, .udd-chain input:focus-visible {{
  outline: 3px solid var(--color-accent); outline-offset: 2px; }}
.udd-words {{ margin: 0; padding-left: 2em; list-style: decimal; line-height: 1.8; }}
.udd-others {{ margin: 0; padding-left: 2em; list-style: decimal; }}
.udd-others img {{ width: {SIDE // 2}px; image-rendering: pixelated; margin-bottom: .5em; }}
.udd-others audio {{ max-width: 100%; }}
.udd-bits {{ border-collapse: collapse; width: 100%; }}
.udd-bits th, .udd-bits td {{ text-align: left; font-weight: normal; padding: .15em .5em; }}
.udd-bits td.bar {{ width: 60%; }}
.udd-bits td.bar div {{ background: var(--color-accent); height: .8em; min-width: 1px; }}
.udd-map {{ position: relative; width: {SIDE}px; max-width: 100%; }}
.udd-map table {{ position: absolute; inset: 0; width: 100%; height: 100%;
  border-collapse: collapse; table-layout: fixed; }}
.udd-map td {{ padding: 0; text-align: center; font-size: .7em; color: #000; }}
"""


def note(text: str, alert: bool = False) -> str:
    """A line that a screen reader reads when it comes."""
    return f'<p role="{"alert" if alert else "status"}" class="udd-note">{html.escape(text)}</p>'


def captions(texts) -> str:
    """A numbered list of texts."""
    rows = "".join(f"<li>{html.escape(text) or '(no words)'}</li>" for text in texts)
    return f'<ol class="udd-words">{rows}</ol>'


def others(pipe, found: dict) -> str:
    """{modality: values} of sounds, layouts and what else a run may have, a heading for each."""
    rows, parts = modalities.rows(pipe.config), []
    for name, made in found.items():
        shown = [rule_sections.SHOW[rows[name]["kind"]](value, rows[name]) for value in made]
        each = "".join(f"<li>{markup}</li>" for markup in shown)
        parts.append(f'<h3>{html.escape(name)}</h3><ol class="udd-others">{each}</ol>')
    return "".join(parts)


def files(named: dict[str, np.ndarray | bytes]) -> str:
    """Links that save files, {name: its bytes, or a picture uint8[H, W, C]}; the page has them, no
    server does."""
    links = []
    for name, content in named.items():
        if isinstance(content, bytes):
            address = "data:application/octet-stream;base64," + base64.b64encode(content).decode()
        else:
            address = pixels.data_uri(content)
        links.append(f'<a download="{name}" href="{address}">Save {name}</a>')
    return f"<p>They read these files: {', '.join(links)}.</p>" if links else ""


def chain(pipe, result) -> str:
    """The states of the first sample, from noise to the result, with a slider and a button."""
    first = samples.frames(pipe, result.states[:, :1], result.tokens[:1])
    moments, count = [], len(result.states)
    for k in range(count):
        shown = "" if k == count - 1 else " hidden"
        moments.append(f'<div class="moment"{shown}>{_moment(result, first, k)}</div>')
    return (
        f'<div class="udd-chain">{"".join(moments)}<div class="controls">'
        '<button type="button">Play</button>'
        f'<input type="range" min="0" max="{count - 1}" value="{count - 1}" '
        f'aria-label="moment of the chain" aria-valuetext="moment {count} of {count}">'
        "</div></div>"
    )


def _moment(result, first, k) -> str:
    parts, at = [], f"after {k + 1} of {len(result.states)} parts of the chain"
    if result.images is not None:
        parts.append(f'<img alt="the picture {at}" src="{pixels.data_uri(first["images"][k, 0])}">')
    if result.captions is not None:
        pieces = "".join(
            '<span class="hidden" title="not revealed yet">?</span>'
            if piece == "_"
            else f"<span>{html.escape(piece)}</span>"
            for piece in first["pieces"][k, 0].tolist()
            if piece
        )
        parts.append(f'<div class="pieces">{pieces}</div>')
    return "".join(parts)


def bits(pipe, image: np.ndarray, text: str, each: np.ndarray) -> str:
    """log2 p of each token, float64[L]: a map over the picture, and a bar for each word."""
    m_image, m_text = (pipe.vocab.index(name) for name in ("image", "text"))
    cost = np.maximum(0, -each)
    picture, words = cost[pipe.vocab.slices[m_image]], cost[pipe.vocab.slices[m_text]]
    ids = pipe.codecs["text"].encode([text], True)[0]
    text = pipe.tokenizers["text"]
    ended = ids == text.pad_id
    said = [
        "(end)" if end else text.piece(int(i)) or "▁" for i, end in zip(ids, ended, strict=True)
    ]
    last = min(len(said), int((~ended).sum()) + 1)
    rest = float(words[last:].sum())
    rows = [*zip(said[:last], words[:last].tolist(), strict=True)]
    rows += [("(padding)", rest)] if last < len(said) else []
    most = max(max(value for _, value in rows), 1e-9)
    bars = "".join(
        f'<tr><th scope="row">{html.escape(word)}</th><td>{value:.2f}</td>'
        f'<td class="bar"><div style="width:{100 * value / most:.1f}%"></div></td></tr>'
        for word, value in rows
    )
    total, of_text = cost.sum(), words.sum()  # the rest is the picture's, with its coarse level
    return (
        f"<p><strong>{total:.1f} bits</strong> for the pair at most: {total - of_text:.1f} for the "
        f"picture ({picture.mean():.2f} a code), {of_text:.1f} for the text. Fewer bits: more "
        "likely. An estimate; the seed decides its noise.</p>"
        f"{_map(pipe, image, picture)}"
        '<table class="udd-bits"><caption>Bits of each token of the text</caption>'
        '<thead><tr><th scope="col">token</th><th scope="col">bits</th>'
        f'<th scope="col">bar</th></tr></thead><tbody>{bars}</tbody></table>'
    )


def _map(pipe, image, cost) -> str:
    rows, columns = pipe.tokenizers["image"].grid
    most, written = max(cost.max(), 1e-9), rows <= 8
    cells = "".join(
        "<tr>"
        + "".join(
            f'<td style="background:rgba(255,235,205,{0.9 * value / most:.2f})">'
            f"{f'{value:.1f}' if written else ''}</td>"
            for value in row
        )
        + "</tr>"
        for row in cost.reshape(rows, columns).tolist()
    )
    return (
        f'<div class="udd-map"><img alt="the picture" src="{pixels.data_uri(image)}">'
        f'<table aria-label="bits of each code of the picture">{cells}</table></div>'
    )
