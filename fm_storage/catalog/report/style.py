"""The style sheet of the report: colours, columns, print.

It loads nothing, and its hash stands in the page's policy. Text colours keep a
contrast of 4.5 to 1 on every background they meet, in light and in dark (a test
computes it).
"""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--bg:#f7f7f5;--card:#ffffff;--ink:#1d1f23;--dim:#5b616a;
--line:#dfe1e5;--accent:#3457d5;--critical:#8e1652;--error:#d03b2f;--warning:#d98e04;
--info:#4d8fcf;--debug:#9aa3ad;--critical-ink:#8e1652;--error-ink:#b32d22;
--warning-ink:#8a5600;--info-ink:#1f64a8;--debug-ink:#5b616a;--done-ink:#1f6b3a;--mark:#eef1fb;--field:#8a9099}
@media(prefers-color-scheme:dark){:root{--bg:#131518;--card:#1c1f24;--ink:#e8eaed;
--dim:#a2a9b3;--line:#31363d;--accent:#8aa4ff;--critical:#e0559c;--error:#f0685c;
--warning:#f0b23c;--info:#6fb0ee;--debug:#77808a;--critical-ink:#f07ab5;
--error-ink:#f5857b;--warning-ink:#f0b23c;--info-ink:#7fbaf2;--debug-ink:#a2a9b3;--done-ink:#6fcf97;--mark:#232a3d;--field:#6b737d}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 48px;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:0 0 4px}
p{margin:0 0 8px}.body p{margin-top:10px}.body p:first-child{margin-top:0}
.dim{color:var(--dim)}.note{color:var(--dim);font-size:.9rem}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin-top:12px}
nav a{text-decoration:none;padding:2px 0}nav a:hover{text-decoration:underline}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:16px;margin-top:16px;min-width:0;scroll-margin-top:8px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(104px,1fr));gap:12px;
margin:16px 0 0;padding:0;list-style:none}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px 12px}
.card a{color:inherit;text-decoration:none;display:block}
.card.CRITICAL b{color:var(--critical-ink)}.card.ERROR b{color:var(--error-ink)}
.card.WARNING b{color:var(--warning-ink)}
.card b{display:block;font-size:1.4rem;line-height:1.25;white-space:nowrap;
font-variant-numeric:tabular-nums}@media(max-width:480px){.card b{font-size:1.15rem}}
.two{display:grid;grid-template-columns:1fr 1fr;gap:0 16px;align-items:start}
@media(max-width:760px){.two{grid-template-columns:1fr}}
figure{margin:8px 0 0}
.timeline{display:block;width:100%;height:160px;border-bottom:1px solid var(--line)}
.axis{display:flex;justify-content:space-between;gap:12px;color:var(--dim);
font-size:.8rem;font-variant-numeric:tabular-nums;white-space:nowrap}
@media(max-width:480px){.axis .mid{display:none}}
.CRITICAL{fill:var(--critical)}.ERROR{fill:var(--error)}.WARNING{fill:var(--warning)}
.INFO{fill:var(--info)}.DEBUG{fill:var(--debug)}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:8px 0 0;color:var(--dim)}
.legend svg{width:10px;height:10px;margin-right:6px}
.tag{display:inline-block;border-radius:4px;padding:0 6px;font-size:.75rem;
line-height:1.5;font-weight:600;border:1px solid currentColor;white-space:nowrap}
.tag.CRITICAL{color:var(--critical-ink)}.tag.ERROR{color:var(--error-ink)}
.tag.WARNING{color:var(--warning-ink)}.tag.INFO{color:var(--info-ink)}
.tag.DEBUG{color:var(--debug-ink)}
details{border-top:1px solid var(--line)}
h2+details,.note+details{border-top:0}
details .body{padding:0 0 14px 22px;min-width:0}
summary{cursor:pointer;list-style:none;padding:6px 0}
summary::-webkit-details-marker{display:none}
summary::before{content:"\\25b8";color:var(--dim);display:inline-block;width:22px}
details[open]>summary::before{content:"\\25be"}
.group,.list li{position:relative;padding-left:12px;border-top:1px solid var(--line)}
.group::before,.list li::before{content:"";position:absolute;left:0;top:9px;bottom:9px;
width:4px;border-radius:2px;background:var(--debug)}
.group.CRITICAL::before,.list .CRITICAL::before{background:var(--critical)}
.group.ERROR::before,.list .ERROR::before{background:var(--error)}
.group.WARNING::before,.list .WARNING::before{background:var(--warning)}
.group.INFO::before,.list .INFO::before{background:var(--info)}
.group>summary{display:grid;grid-template-columns:22px minmax(0,1fr) 120px 6.5em;
gap:3px 12px;padding:10px 0;align-items:center}
.group>summary::before{grid-row:1;align-self:start;margin-top:1px}
.group>summary:hover .what,.list a:hover{text-decoration:underline}
.group .what{grid-column:2;grid-row:1}.group .meta{grid-column:2/-1;grid-row:2}
.group .spark{grid-column:3;grid-row:1}
.group .count{grid-column:4;grid-row:1;text-align:right}
.group:target,.list li:target{background:var(--mark);border-radius:6px}
.spark{display:block;width:100%;height:24px;border-bottom:1px solid var(--line)}
.meta{display:flex;flex-wrap:wrap;gap:3px 12px;align-items:baseline;color:var(--dim);
font-size:.87rem;min-width:0;font-variant-numeric:tabular-nums}
.meta span{min-width:0;overflow-wrap:anywhere}
.kind{font-weight:650;margin-right:4px}
.culprit{color:var(--ink);font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,
monospace;font-size:.93em}
.list{list-style:none;margin:8px 0 0;padding:0}
.list li{display:grid;grid-template-columns:5em minmax(0,1fr) 120px;gap:2px 12px;
padding:7px 0 7px 12px;align-items:center;scroll-margin-top:8px}
.list .what{font-size:.95rem}.list a{color:inherit;text-decoration:none}
.list .spark{grid-column:3;grid-row:1}
.list .meta{grid-column:2/-1;font-size:.8rem}
.count{font-weight:700;font-variant-numeric:tabular-nums}
.what{overflow-wrap:anywhere;min-width:0}
.tag.state{text-transform:none}.tag.regressed{color:var(--critical-ink)}
.tag.resolved{color:var(--done-ink)}.tag.muted{color:var(--dim)}
.burst{border-top:1px solid var(--line);padding:10px 0 4px}
.note+.burst{border-top:0}.burst p{margin:0}.burst a{color:inherit}
details.trace{border-top:0;margin-top:4px}
dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:2px 14px;
margin:10px 0 0;font-size:.87rem}
dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
@media(max-width:560px){.group>summary{grid-template-columns:22px minmax(0,1fr) auto}
.group .spark{grid-column:2/-1;grid-row:2}.group .count{grid-column:3}
.group .meta{grid-row:3}.list li{grid-template-columns:4.2em minmax(0,1fr)}
.list .spark{grid-column:2;grid-row:2}dl{grid-template-columns:1fr}
details .body{padding-left:0}}
.skip{position:absolute;left:8px;top:-60px;background:var(--card);padding:8px 14px;
border-radius:8px;z-index:2}.skip:focus{top:8px}
main:focus{outline:0}
.bar{display:flex;flex-wrap:wrap;gap:8px 20px;align-items:center;background:var(--card);
border-bottom:1px solid var(--line);padding:10px max(16px,calc((100% - 1048px)/2))}
.bar>a{font-weight:700;text-decoration:none;color:var(--ink)}
form{display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center;flex:1;min-width:0}
form label{color:var(--dim);font-size:.9rem}
input,select,button{font:inherit;color:inherit;background:var(--bg);min-width:0;
border:1px solid var(--field);border-radius:8px;padding:5px 10px}
input[type=search]{flex:1;min-width:min(220px,100%)}
button{cursor:pointer;background:var(--accent);border-color:var(--accent);
color:var(--card);font-weight:600}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{font-size:.87em;overflow-wrap:anywhere}
code i{font-style:normal;color:var(--dim)}
pre .library{color:var(--dim)}pre .own{font-weight:600}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--bg);
border:1px solid var(--line);border-radius:6px;padding:10px;margin:8px 0 0;
font-size:.82rem;line-height:1.45;max-height:26em;overflow:auto}
ul{margin:4px 0 0;padding-left:18px}
.rank{margin-top:10px;display:grid;grid-template-columns:1fr max-content;gap:0 12px}
.rank span{min-width:0;overflow-wrap:anywhere}
.rank b{font-variant-numeric:tabular-nums}
.rank svg{grid-column:1/-1;width:100%;height:8px;fill:var(--accent)}
.hours{display:grid;grid-template-columns:repeat(24,minmax(0,1fr));gap:2px;
margin-top:2px}
.hours span{height:16px;border-radius:2px;background:var(--accent)}
.hours .h0{background:var(--line);opacity:.5}
.hours .h1{opacity:.2}.hours .h2{opacity:.3}.hours .h3{opacity:.4}.hours .h4{opacity:.5}
.hours .h5{opacity:.62}.hours .h6{opacity:.74}.hours .h7{opacity:.87}
.heat p{margin:10px 0 0;overflow-wrap:anywhere}
.scale{display:flex;gap:4px 8px;align-items:center;flex-wrap:wrap;margin-top:12px}
.scale .hours{width:120px;grid-template-columns:repeat(9,1fr);margin:0}
.scroll{overflow-x:auto;max-height:24em}
table{border-collapse:collapse;width:100%;font-size:.87rem}
th{text-align:left;font-weight:600;color:var(--dim)}
th,td{padding:3px 12px 3px 0;border-bottom:1px solid var(--line);white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
footer{margin-top:24px;font-size:.85rem;color:var(--dim)}
@media print{:root{--bg:#ffffff;--card:#ffffff;--ink:#000000;--dim:#444444}
body{font-size:11px}main{max-width:none;padding:0}nav,.bar,.skip{display:none}
section,.card{border-color:#bbbbbb}summary,.rank,.heat p{break-inside:avoid}
details::details-content{content-visibility:visible;height:auto}
details.numbers{display:none}pre,.scroll{max-height:none;overflow:visible}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@media(prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""
