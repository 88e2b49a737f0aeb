"""The frame of a report: one HTML file that needs nothing else, opens from disk, and prints.

No request leaves the page: its policy allows ``data:`` pictures, and only the style and script written here, by hash.
Text from users goes through :func:`.charts.text_of`; markup is built nowhere else than in ``explain/``.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .charts import text_of

STYLE = """
:root{color-scheme:light;--ink:#1b1f24;--muted:#5b6470;--line:#e3e6ea;--soft:#f6f7f9;--blue:#0072b2}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,
'Helvetica Neue','DejaVu Sans',Arial,sans-serif}
main{max-width:1020px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:44px 0 10px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:22px 0 6px}
p{margin:6px 0 12px;max-width:72ch}
.muted,figcaption,.note{color:var(--muted);font-size:.9rem}
nav{font-size:.9rem;margin:14px 0 0}nav a{margin-right:14px;white-space:nowrap}
a{color:var(--blue)}
.facts{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0 8px;padding:0;list-style:none}
.facts li{flex:1 1 130px;background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:12px 14px}
.facts b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.facts span{color:var(--muted);font-size:.85rem}
.row{display:flex;flex-wrap:wrap;gap:16px}
.row figure{flex:1 1 300px;min-width:0}
.row.wide figure{flex:1 1 440px}
.beside{display:flex;flex-wrap:wrap;gap:8px 48px;align-items:flex-start}
figure{margin:8px 0}
figure svg,figure img{max-width:100%;height:auto;display:block}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}
th button{all:unset;cursor:pointer;font-weight:600}
th button:hover,th button:focus-visible{text-decoration:underline}
th button::after{content:' \\2195';color:var(--muted);font-weight:400}
th[aria-sort=ascending] button::after{content:' \\2191'}
th[aria-sort=descending] button::after{content:' \\2193'}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(128px,1fr));gap:14px}
.cards figure{margin:0;break-inside:avoid}
.cards img{width:100%;height:128px;object-fit:contain;background:var(--soft);border-radius:6px;image-rendering:auto}
img.small{image-rendering:pixelated}
.cards figcaption{line-height:1.35;margin-top:4px;overflow-wrap:anywhere}
.cards b,.triple b{color:var(--ink)}
.triples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:20px 28px}
.triple{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:8px;break-inside:avoid}
.triple figure{margin:0}.triple img{width:100%;border-radius:6px}
.triple figcaption{line-height:1.35;margin-top:4px;overflow-wrap:anywhere}
pre{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:12px 14px;overflow-x:auto;
font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',Consolas,monospace}
details summary{cursor:pointer;color:var(--blue)}
footer{margin-top:48px;padding-top:12px;border-top:1px solid var(--line)}
@media (max-width:560px){main{padding:20px 14px 48px}h1{font-size:1.4rem}.facts b{font-size:1.2rem}}
@media print{body{font-size:10pt}.triples{grid-template-columns:1fr 1fr}
main{max-width:none;padding:0}nav,th button::after{display:none}
figure,tr,.facts li{break-inside:avoid}h2,h3{break-after:avoid}details>*{display:block}a{color:inherit}}
"""

SCRIPT = """
for(const table of document.querySelectorAll('table.sortable')){
const heads=[...table.tHead.rows[0].cells];
heads.forEach((head,column)=>{
const button=document.createElement('button');
button.textContent=head.textContent;head.textContent='';head.append(button);
button.addEventListener('click',()=>{
const up=head.getAttribute('aria-sort')!=='ascending';
const value=row=>{const c=row.cells[column];return c.dataset.v===undefined?c.textContent:Number(c.dataset.v)};
const rows=[...table.tBodies[0].rows].sort((a,b)=>{const x=value(a),y=value(b);
const order=typeof x==='number'?x-y:x.localeCompare(y,undefined,{numeric:true});return up?order:-order});
heads.forEach(h=>h.removeAttribute('aria-sort'));
head.setAttribute('aria-sort',up?'ascending':'descending');
table.tBodies[0].append(...rows);
});});}
"""


@dataclass(frozen=True)
class Section:
    """One part of a page: its anchor, its heading and its markup; an empty body leaves the section out."""

    anchor: str
    title: str
    body: str


@dataclass(frozen=True)
class Cell:
    """A table cell: the text shown, and the number to sort by, which also sets it right-aligned."""

    text: str
    value: float | None = None


def page(title: str, header: str, sections: Sequence[Section], footer: str) -> str:
    """Return the whole document. ``header`` and ``footer`` are markup; ``title`` is text."""
    shown = [s for s in sections if s.body]
    links = " ".join(f'<a href="#{s.anchor}">{text_of(s.title)}</a>' for s in shown)
    body = "".join(f'<section id="{s.anchor}"><h2>{text_of(s.title)}</h2>{s.body}</section>' for s in shown)
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_hash(STYLE)}'; script-src 'sha256-{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><meta name="generator" content="Vitrail">'
        f'<link rel="icon" href="data:,"><title>{text_of(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main><header>{header}<nav>{links}</nav></header>\n{body}\n<footer>{footer}</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, sortable: bool = False) -> str:
    """Return a table of escaped text; a column is set right where its cells carry numbers."""
    body, right = [], set()
    for row in rows:
        cells = [c if isinstance(c, Cell) else Cell(c) for c in row]
        right |= {i for i, c in enumerate(cells) if c.value is not None}
        body.append("<tr>" + "".join(_cell(c) for c in cells) + "</tr>")
    head = "".join(f"<th{' class=n' if i in right else ''}>{text_of(h)}</th>" for i, h in enumerate(heads))
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _cell(cell: Cell) -> str:
    sort = "" if cell.value is None else f' class="n" data-v="{cell.value:.9g}"'
    return f"<td{sort}>{text_of(cell.text)}</td>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return large values, each with what it is below: pairs (value, label)."""
    items = "".join(f"<li><b>{text_of(value)}</b><span>{text_of(label)}</span></li>" for value, label in pairs)
    return f'<ul class="facts">{items}</ul>'


def figure(picture: str, caption: str = "", *, alt: str = "") -> str:
    """Return a figure of inline SVG markup, or of an image given as a ``data:`` address."""
    inner = picture if picture.startswith("<svg") else f'<img src="{picture}" alt="{text_of(alt or caption)}">'
    text = f"<figcaption>{text_of(caption)}</figcaption>" if caption else ""
    return f"<figure>{inner}{text}</figure>"


def commands(lines: Sequence[tuple[str, str]]) -> str:
    """Return commands to type, each with a remark: pairs (command, remark)."""
    wide = max(len(command) for command, _ in lines)
    return "<pre>" + "\n".join(text_of(f"{c.ljust(wide)}   # {remark}") for c, remark in lines) + "</pre>"
