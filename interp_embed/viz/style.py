"""Style sheets for the output of `interp_embed.viz.html`; data only."""

from __future__ import annotations

__all__ = ["FRAGMENT_CSS", "PAGE_CSS"]

FRAGMENT_CSS = """
.ie{font-size:.95em;line-height:1.5;max-width:72em}
.ie h4{margin:.2em 0 .5em;font-weight:600;font-size:1.05em}
.ie dl{display:flex;flex-wrap:wrap;gap:.3em 2em;margin:.2em 0 .8em}
.ie dl>div{display:flex;flex-direction:column}
.ie dl>h4{flex-basis:100%;margin:0}
.ie dt{font-size:.8em;font-weight:400;opacity:.7;margin:0}
.ie dd{margin:0;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.ie .ie-text{margin:.2em 0 .8em;max-width:46em}
.ie .ie-scroll{overflow-x:auto}
.ie table{border-collapse:collapse;margin:0;font-size:.93em}
.ie th,.ie td{text-align:left;vertical-align:top;padding:.35em .9em .35em 0;
border:0;border-bottom:1px solid rgba(128,128,128,.28);max-width:34em;overflow-wrap:anywhere}
.ie thead th{font-weight:600;white-space:nowrap}
.ie tbody th{font-weight:400;opacity:.6;font-variant-numeric:tabular-nums}
"""
"""For fragments in a notebook, whose own fonts and colours they keep."""

PAGE_CSS = """
:root{color-scheme:light dark;--bg:#fcfcfa;--fg:#1c1e21;--soft:#5b6068;--rule:#e1e2de;
--a:#0b6e66;--b:#6b3fc0;--wash:#f2f2ee}
@media (prefers-color-scheme:dark){:root{--bg:#16181b;--fg:#e7e7e4;--soft:#a2a7ae;
--rule:#30343a;--a:#46c7b8;--b:#b39bf3;--wash:#1f2226}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--bg);color:var(--fg);
font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:66rem;margin:0 auto;padding:3.5rem 1.5rem 4rem}
h1{font-size:clamp(1.6rem,4vw,2.2rem);line-height:1.2;letter-spacing:-.015em;font-weight:650;
margin:0 0 .6rem;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;font-weight:650;margin:3rem 0 .6rem}
h3{font-size:1rem;line-height:1.4;font-weight:600;margin:0 0 .4rem}
.lede{font-size:1.06rem;color:var(--soft);max-width:44rem;margin:0}
.note{color:var(--soft);font-size:.9rem;max-width:48rem;margin:0 0 1rem}
section:last-child>.note{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--rule)}
.groups{display:flex;flex-wrap:wrap;gap:.3rem 2rem;margin:1.6rem 0 0;color:var(--soft)}
.groups b{color:var(--fg);font-weight:600;margin-right:.3em}
.dot{display:inline-block;width:.62em;height:.62em;border-radius:50%;margin-right:.5em}
.dot.a{background:var(--a)}.dot.b{background:var(--b)}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:.5rem 1.1rem .5rem 0;border-bottom:1px solid var(--rule);
vertical-align:middle}
thead th{font-size:.8rem;font-weight:500;color:var(--soft);vertical-align:bottom}
tbody th{font-weight:400;min-width:12rem}
tbody tr:hover{background:var(--wash)}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td.a,small.a{color:var(--a)}td.b,small.b{color:var(--b)}
td.d{font-weight:600}
td.d small{display:block;font-weight:400;font-size:.78rem;color:var(--soft)}
td.plot{width:1%}td:last-child,th:last-child{padding-right:0}
svg{display:block;overflow:visible}
.axis{stroke:var(--rule);stroke-width:1.5}.link{stroke:var(--soft);stroke-width:1.5;opacity:.6}
circle.a,rect.a{fill:var(--a)}circle.b,rect.b{fill:var(--b)}
rect{opacity:.5}.whisker{stroke:var(--fg);stroke-width:1.2;fill:none;opacity:.75}
.id{font-variant-numeric:tabular-nums;color:var(--soft);font-size:.86em;margin-right:.35em}
a.id{color:var(--fg);text-decoration-color:var(--soft);text-underline-offset:.2em}
a:focus-visible{outline:2px solid var(--a);outline-offset:3px;border-radius:2px}
code{font:.86em/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;background:var(--wash);
border-radius:.25em;padding:.1em .35em;white-space:pre-wrap}
tbody tr:hover code{background:var(--bg)}
article{padding:1.3rem 0 .6rem;border-top:1px solid var(--rule);scroll-margin-top:1rem}
.label i{color:var(--soft);font-style:normal}
article:target h3 .id{color:var(--a)}
h3 small{display:block;font-weight:400;font-size:.85rem}
ol{list-style:none;margin:.4rem 0 0;padding:0;max-width:48rem}
li{padding:.55rem 0}
li footer{font-size:.82rem;color:var(--soft);margin-top:.1rem}
@media (max-width:46rem){
main{padding:2rem 1.1rem 3rem}
thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table,tbody{display:block}
tbody tr{display:grid;grid-template-columns:1fr 1fr;gap:.25rem 1rem;padding:.8rem 0;
border-bottom:1px solid var(--rule)}
tbody th,tbody td{border:0;padding:0}
tbody th,td.d,td.plot{grid-column:1/-1;text-align:left}
td.plot{width:auto}td.n.a,td.n.b{text-align:left}
td.n.a::before,td.n.b::before{content:attr(data-name) " ";color:var(--soft)}
td.d small{display:inline;margin-left:.5em}}
@media print{main{max-width:none;padding:0}mark{print-color-adjust:exact}}
"""
"""For whole pages."""
