"""The page's style sheet and its few lines of script."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root{color-scheme:light dark;--back:#fff;--card:#f7f7f8;--ink:#18181b;--faint:#52525b;
--rule:#e4e4e7;--best:#dbeafe;--c0:#1d5fd1;--c1:#c2410c;--c2:#15803d;--c3:#7e22ce;--c4:#6b7280;
--c5:#0f766e;--c6:#be185d;--c7:#a16207}
@media(prefers-color-scheme:dark){:root{--back:#111113;--card:#1b1b1f;--ink:#ececee;--faint:#a8a8b3;
--rule:#34343b;--best:#1e3a66;--c0:#6ea8fe;--c1:#fb923c;--c2:#4ade80;--c3:#c99bff;--c4:#9ca3af;
--c5:#2dd4bf;--c6:#f472b6;--c7:#facc15}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main,header{max-width:1320px;margin:0 auto;padding:0 20px}
h1{font-size:28px;line-height:1.2;margin:28px 0 4px}
h2{font-size:21px;margin:44px 0 4px;padding-top:14px;border-top:1px solid var(--rule)}
h3{font-size:17px;margin:22px 0 6px}
p{margin:6px 0;max-width:78ch}
.faint,.legend,small{color:var(--faint)}
nav{position:sticky;top:0;z-index:2;background:var(--back);border-bottom:1px solid var(--rule)}
nav div{max-width:1320px;margin:0 auto;padding:8px 20px;display:flex;gap:4px 16px;overflow-x:auto;
align-items:center;white-space:nowrap}
nav a{color:var(--c0);text-decoration:none}
section{scroll-margin-top:50px}
select,input,button{font:inherit;color:inherit;accent-color:var(--c0)}
select{background:var(--card);border:1px solid var(--rule);border-radius:6px;padding:4px 8px;
max-width:100%}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:8px 0}
th,td{text-align:left;padding:5px 14px 5px 8px;border-bottom:1px solid var(--rule);
vertical-align:top}
thead th{color:var(--faint);font-weight:600}
tbody th{font-weight:500}
.results th:first-child{position:sticky;left:0;background:var(--back)}
.results th,.results td{padding:5px 7px}
td small{display:block;white-space:nowrap;font-size:12px}
td.best{background:var(--best);font-weight:700}
td.best small{font-weight:400;color:var(--ink)}
code,pre{font:13px/1.5 ui-monospace,monospace;overflow-wrap:anywhere}
pre{background:var(--card);padding:12px;border-radius:8px;white-space:pre-wrap}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:18px}
figure{margin:12px 0;background:var(--card);border-radius:10px;padding:14px;min-width:0}
figcaption{font-weight:600;line-height:1.35;margin-bottom:8px}
.plot svg{display:block;width:100%}
.plot .scroll svg{max-width:640px}
.wide .scroll svg{max-width:none;min-width:680px}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:14px;margin:6px 0 0;max-width:none}
.legend svg{display:inline;width:16px;height:14px;vertical-align:-2px}
svg text{fill:var(--ink);font-family:system-ui,sans-serif}
svg .tick{font-size:12px;fill:var(--faint)}
svg .label{font-size:13px}
.axis,.rule,.upright,.line{fill:none}
.axis{stroke:var(--faint)}.rule{stroke:var(--rule)}
.upright{stroke:var(--c1);stroke-dasharray:4 3}
.line,.legend path{stroke-width:1.8}
.mark{stroke:var(--card);stroke-width:1;fill-opacity:.85}
caption{text-align:left;font-weight:600;padding:4px 8px}
.dash{stroke-dasharray:5 4}
.missing{color:var(--faint);border-left:3px solid var(--c1);padding-left:10px}
.strip{display:block;width:100%;height:auto;image-rendering:pixelated}
.strips{display:grid;grid-template-columns:minmax(90px,190px) minmax(0,768px);gap:6px 12px;
align-items:center}
.strips>div{overflow-wrap:anywhere}
.viewer{max-width:970px}
.controls{display:flex;flex-wrap:wrap;gap:8px 18px;align-items:center;margin:8px 0}
.controls input[type=range]{width:min(320px,70vw)}
.stack{position:relative;isolation:isolate}
.stack .over{position:absolute;inset:0}
.difference{filter:brightness(4)}
.difference .over{mix-blend-mode:difference}
.viewer{display:none}
.script .viewer{display:block}
.off{display:none}
footer{padding:30px 0 50px}
@media(max-width:600px){body{font-size:15px}
main,header,nav div{padding-left:12px;padding-right:12px}
h1{font-size:23px}.strips{grid-template-columns:1fr;gap:2px}.strips img{margin-bottom:8px}
svg .tick{font-size:14px}svg .label{font-size:15px}
figure{padding:10px}}
""" + "".join(
    f".f{i}{{fill:var(--c{i})}}.s{i}{{stroke:var(--c{i});fill:none}}"
    f".b{i}{{fill:var(--c{i});fill-opacity:.22}}.h{i}{{fill:none;stroke:var(--c{i});"
    "stroke-width:1.6}"
    for i in range(8)
)

# The pair shown, and the viewer of each pair: its pictures are those of the strips below it.
SCRIPT = """
document.documentElement.classList.add("script");
const pick=document.getElementById("pair");
function show(){for(const e of document.querySelectorAll("[data-pair]"))
e.classList.toggle("off",e.dataset.pair!==pick.value)}
if(pick){pick.addEventListener("change",show);show()}
for(const v of document.querySelectorAll(".viewer")){
const method=v.querySelector("select"),wipe=v.querySelector("input"),
strip=n=>document.getElementById(n),above=v.querySelectorAll(".over");
const draw=()=>{for(const e of above)e.src=strip(method.value).src;
const p=+v.dataset.period,w=p*wipe.value/100,s=above[0].style;
s.webkitMaskImage=s.maskImage="repeating-linear-gradient(90deg,transparent 0 "+w+"%,#000 "+w+"% "+
p+"%)"};
for(const e of v.querySelectorAll(".under"))e.src=strip(v.dataset.float).src;
method.addEventListener("change",draw);wipe.addEventListener("input",draw);draw()}
"""
