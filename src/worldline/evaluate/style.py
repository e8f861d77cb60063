"""The look of the report: one style sheet, light and dark, no outside font or script."""

CSS = """\
:root {
  --ground: #f6f5f2; --panel: #ffffff; --line: #dedbd3; --ink: #22242a; --soft: #6d7078;
  --s1: #3560e0; --s2: #b4590f; --s3: #2b7a4b; --s4: #8a4fb5; --s5: #a8324a;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14161a; --panel: #1c1f25; --line: #2e323a; --ink: #e7e8ea; --soft: #9a9ea8;
    --s1: #86a5ff; --s2: #e5a15c; --s3: #7bd19d; --s4: #c99cf0; --s5: #ff8a9c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font-variant-numeric: tabular-nums; }
main { width: min(100% - 2rem, 74rem); margin: 0 auto; padding: 2.2rem 0 4rem; }
h1 { font-size: 1.7rem; font-weight: 680; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.15rem; font-weight: 650; letter-spacing: -.01em; margin: 2.6rem 0 .8rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 0; }
h4 { font-size: .85rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; }
p { margin: .3rem 0; max-width: 52rem; }
.soft, small { color: var(--soft); }
small { font-size: .8rem; font-weight: 400; }

.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); margin: 1.5rem 0 0;
  border: 1px solid var(--line); border-radius: 10px; background: var(--panel); overflow: hidden; }
.tiles div { padding: .8rem 1rem; box-shadow: -1px 0 var(--line), 0 -1px var(--line); }
.tiles b { display: block; font-size: 1.55rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.25; }

dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem;
  margin: 1.3rem 0 0; font-size: .88rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }

.table { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--panel); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .5rem .8rem; text-align: right; white-space: nowrap;
  border-top: 1px solid var(--line); vertical-align: baseline; }
th:first-child, td:first-child { text-align: left; }
thead th { border-top: 0; font-weight: 500; color: var(--soft); font-size: .8rem; vertical-align: bottom; }
tbody th { font-weight: 600; }
tfoot td { color: var(--soft); }
td small, thead th small { display: block; line-height: 1.2; }
tr.last > * { background: color-mix(in srgb, var(--s1) 8%, transparent); }

section.stage { border: 1px solid var(--line); border-radius: 10px; background: var(--panel);
  padding: 1rem 1.1rem 1.1rem; margin: 1.2rem 0 0; }
section.stage header { display: flex; gap: .2rem .8rem; align-items: baseline; flex-wrap: wrap; margin-bottom: .7rem; }
ul.health { list-style: none; margin: 0 0 1rem; padding: .1rem .9rem; border-left: 3px solid var(--s2); font-size: .88rem; }
ul.health li { margin: .5rem 0; }
.film { display: block; width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem; margin-top: 1.1rem; }
.plots > div { min-width: 0; }

svg.plot { display: block; width: 100%; height: auto; }
svg.plot text { fill: var(--soft); font-size: 11px; }
svg.plot .grid { stroke: var(--line); stroke-width: 1; }
svg.plot polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke: var(--s1); }
svg.plot polyline.s2 { stroke: var(--s2); } svg.plot polyline.s3 { stroke: var(--s3); }
svg.plot polyline.s4 { stroke: var(--s4); } svg.plot polyline.s5 { stroke: var(--s5); }
svg.plot polyline.thin { stroke: var(--soft); stroke-width: 1.2; }
svg.plot polygon { stroke: none; opacity: .16; fill: var(--s1); }
svg.plot polygon.s2 { fill: var(--s2); } svg.plot polygon.s3 { fill: var(--s3); }
svg.plot polygon.s4 { fill: var(--s4); } svg.plot polygon.s5 { fill: var(--s5); } svg.plot polygon.thin { fill: var(--soft); }
svg.plot .wall { stroke: var(--soft); stroke-width: 1.4; } svg.plot .start { fill: var(--ink); }
th.sorts { cursor: pointer; user-select: none; } th.sorts:hover { color: var(--ink); }
th.sorts[data-down]::after { content: " \\2193"; } th.sorts[data-up]::after { content: " \\2191"; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); }
figure { margin: 1.1rem 0 0; } figcaption { font-size: .85rem; color: var(--soft); margin-bottom: .3rem; }
td.about { white-space: normal; text-align: left; min-width: 22rem; color: var(--soft); font-size: .82rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .8rem; color: var(--soft); padding-left: .3rem; }
.legend i { display: inline-block; width: .9rem; height: 3px; border-radius: 2px; vertical-align: middle; margin-right: .35rem; }
i.s1 { background: var(--s1); } i.s2 { background: var(--s2); } i.s3 { background: var(--s3); }
i.s4 { background: var(--s4); } i.s5 { background: var(--s5); } i.thin { background: var(--soft); }

.bars { display: grid; gap: .45rem; margin: 1rem 0; }
.bar { display: grid; grid-template-columns: 15rem 1fr 7rem; gap: .8rem; align-items: center; font-size: .88rem; }
.bar i { height: .8rem; border-radius: 3px; }
.bar b { font-weight: 600; text-align: right; }
@media (max-width: 45rem) { .bar { grid-template-columns: 1fr auto; } .bar i { grid-column: 1 / -1; grid-row: 2; } }
dl.terms { font-size: .88rem; margin: 0; max-width: 60rem; }
dl.terms dt { font-weight: 600; margin-top: .6rem; } dl.terms dd { margin: 0; color: var(--soft); }
@media print { body { background: #fff; } section.stage, .table { break-inside: avoid; } }
"""
