"""The HTML document shared by all pages: self-contained, with one style for light and dark.

A Content-Security-Policy allows only inline styles and embedded pictures: no scripts and no requests, even if hostile
text were to slip through the escaping.
"""

from __future__ import annotations

from html import escape

POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)


def escaped(text: str) -> str:
    """Any text as HTML, in an element or a quoted attribute, without control characters."""
    return escape("".join(c if c.isprintable() else "�" for c in text), quote=True)


def safe(text: str, most: int = 500) -> str:
    """Untrusted text as HTML: `escaped`, and cut to at most `most` characters."""
    return escaped(text if len(text) <= most else text[: most - 1] + "…")


def document(title: str, body: str, style: str = "") -> str:
    """The whole page. `body` is HTML, `title` is text; `style` is CSS that is appended to the common style."""
    top, rest = _PAGE.replace("{policy}", POLICY).replace("{style}", style).split("{title}")
    middle, bottom = rest.split("{body}")
    return top + safe(title) + middle + body + bottom


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
{policy}
<title>{title}</title>
<style>
:root { color-scheme: light dark; --back: #fff; --ink: #1f2328; --soft: #59616b; --line: #e3e6ea; --well: #f3f5f7;
  --kept: #2a8a5b; --retryable: #d18b00; --final: #8a63b8; --content: #c8553d; --stage: #46709c; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --ink: #e4e7ea; --soft: #9aa4ae; --line: #2b3137;
  --well: #1d2226; --kept: #4cb782; --retryable: #e0a83a; --final: #b294dc; --content: #e57f68; --stage: #7ba6d3; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--back); }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 44px 0 8px; }
h2 { padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 4px; }
p { margin: 4px 0 10px; color: var(--soft); }
header p { margin: 2px 0; }
code { font: 13px/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-top: 22px; }
.tiles div { background: var(--well); border-radius: 10px; padding: 14px 16px; }
.tiles b { display: block; font-size: 26px; line-height: 1.2; letter-spacing: -.02em; }
.tiles b { font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 14px; }
table { border-collapse: collapse; font-size: 14px; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; color: var(--soft); white-space: nowrap; }
th.n, td.n { text-align: right; white-space: nowrap; }
th.n:last-child, td.n:last-child { padding-right: 0; }
.wide { overflow-x: auto; }
.funnel { width: 100%; margin-bottom: 10px; }
.funnel th { font-weight: 400; white-space: nowrap; width: 1%; }
.funnel th, .funnel td { border: 0; padding-top: 3px; padding-bottom: 3px; vertical-align: middle; }
.funnel td.n { width: 1%; }
.funnel .bar { padding-right: 18px; }
.funnel i { display: block; height: 14px; min-width: 1px; border-radius: 3px; background: var(--stage); }
.funnel .stage th { font-weight: 650; padding-top: 10px; }
.funnel .stage td { padding-top: 10px; font-weight: 650; }
.funnel .stage i { height: 18px; }
.funnel .fell th { padding-left: 16px; }
.funnel .why th { padding-left: 32px; color: var(--soft); }
.funnel .why td { color: var(--soft); }
.funnel .why i { height: 8px; opacity: .65; }
.funnel .fell i { background: var(--soft); }
.funnel .kept i { background: var(--kept); }
.funnel .retryable i { background: var(--retryable); }
.funnel .final i { background: var(--final); }
.funnel .content i { background: var(--content); }
.reasons details { border-bottom: 1px solid var(--line); }
.reasons summary { cursor: pointer; padding: 8px 0; display: grid; gap: 2px 10px; }
.reasons summary { grid-template-columns: 12px 190px 1fr auto; }
.reasons summary::before { content: "▸"; color: var(--soft); }
.reasons details[open] summary::before { content: "▾"; }
.reasons summary b { font-weight: 600; }
.reasons summary span { color: var(--soft); }
.reasons summary em { font-style: normal; font-variant-numeric: tabular-nums; }
.reasons ul { margin: 2px 0 14px; padding-left: 22px; list-style: none; }
.reasons li { margin: 6px 0; font-size: 14px; color: var(--soft); overflow-wrap: anywhere; }
.reasons code { color: var(--ink); }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 12px 36px; }
.grid table { width: 100%; font-size: 13px; }
.grid td, .grid th { padding-right: 10px; }
td.host { overflow-wrap: anywhere; min-width: 110px; }
.events td { overflow-wrap: anywhere; min-width: 150px; }
.events td:nth-child(-n+2) { white-space: nowrap; overflow-wrap: normal; min-width: 0; }
.facts th { font-weight: 400; color: var(--soft); white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
figure { margin: 10px 0 0; }
figcaption { font-size: 14px; color: var(--soft); }
svg { width: 100%; height: auto; display: block; font-family: inherit; }
svg rect { fill: var(--stage); }
svg path { stroke: var(--line); fill: none; }
svg text { font-size: 10.5px; fill: var(--soft); text-anchor: middle; }
.bars text { font-size: 12px; }
.bars .y, .bars .end { text-anchor: end; }
.bars .first { text-anchor: start; transform: translateX(-40px); }
.bars .shape { fill: var(--stage); stroke: none; }
.thumbs { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 12px; margin: 14px 0; }
.thumbs figure { margin: 0; min-width: 0; }
.thumbs.large { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); margin-top: 24px; }
.thumbs img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; display: block; }
.thumbs img { background: var(--well); border: 1px solid var(--line); }
.thumbs img.tiny { image-rendering: pixelated; border: 1px dashed var(--soft); border-radius: 0; padding: 12px; }
.thumbs a, .reasons a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: 2px; }
.thumbs a:focus-visible, .reasons a:focus-visible { outline: 2px solid var(--stage); outline-offset: 2px; }
.class h3 { display: flex; gap: 10px; margin: 0; }
.class h3 span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.class h3 em { font: inherit; font-weight: 400; color: var(--soft); margin-left: auto; white-space: nowrap; }
.class .thumbs { grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 6px; margin: 6px 0 10px; }
.class { margin-top: 10px; }
.command { display: block; background: var(--well); border-radius: 8px; padding: 10px 14px; color: var(--ink); }
.named th { max-width: 200px; overflow: hidden; text-overflow: ellipsis; }
.thumbs figcaption { font-size: 12px; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 24px 16px 56px; } h1 { font-size: 24px; } .tiles b { font-size: 21px; }
  .funnel th { white-space: normal; width: 40%; } .funnel .why th { padding-left: 24px; }
  th, td { padding-right: 10px; }
  .reasons summary { grid-template-columns: 12px 1fr auto; }
  .reasons summary span { grid-row: 2; grid-column: 2 / 4; }
  .thumbs { grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); } }
@media print { .wide { overflow: visible; } figure, tr { break-inside: avoid; } }
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
