"""The scaling report's style, added to the common style."""

REPORT = """
body { overflow-wrap: break-word; }
a { color: inherit; }
p, ul, dl { max-width: 52em; }
ul { margin: 8px 0; padding-left: 1.1em; }
li { margin: 5px 0; }
.first { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 12px 44px; align-items: start; }
.first > div > p:first-child { font-size: 14px; }
.first h1 { margin: 6px 0 8px; font-size: 27px; }
.first .answer { color: var(--ink); font-size: 19px; line-height: 1.4; margin: 14px 0 10px; font-weight: 600; }
.first .note { color: var(--ink); }
.first ul { color: var(--soft); font-size: 15px; padding-left: 1.1em; }
.first figure { margin: 0; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 26px 0 0; font-size: 14px; }
nav a, summary { text-underline-offset: 3px; }
section { scroll-margin-top: 12px; }
.grid figure { margin: 0; min-width: 0; max-width: 520px; }
.grid { grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 18px 36px; }
.grid { margin: 12px 0 18px; }
.chart { overflow: visible; }
.wide { margin: 8px 0 14px; }
.wide:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--stage); outline-offset: 2px; }
.wide table { font-size: 13px; }
.wide td, .wide th { white-space: nowrap; }
.wide td:last-child { white-space: normal; min-width: 24em; }
.wide td.n:last-child, .dense td:last-child { white-space: nowrap; min-width: 0; }
.dense th, .dense td { font-size: 12px; padding-right: 9px; }
tr.ours { background: var(--well); }
details { border-bottom: 1px solid var(--line); padding: 7px 0; }
summary { cursor: pointer; }
summary span { color: var(--soft); }
pre { background: var(--well); border-radius: 8px; padding: 10px 14px; white-space: pre-wrap; margin: 6px 0 14px; }
dt { font-weight: 600; margin-top: 10px; }
dd { margin: 0; color: var(--soft); }
.pictures img { width: 96px; height: 96px; image-rendering: pixelated; border-radius: 4px; display: block; }
.pictures td { border: 0; padding: 3px 6px 3px 0; }
@media (max-width: 860px) { .first { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 600px) { .first h1 { font-size: 22px; } .first .answer { font-size: 17px; } }
"""
