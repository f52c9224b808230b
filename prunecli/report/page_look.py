"""How pages look, and the script that makes their tables sort. Both are part of each page."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ground:#fcfcfb;--panel:#f3f2ee;--ink:#0b0b0b;--soft:#52514e;--line:#e6e5df;
--edge:#a8a69d;--accent:#2a78d6;--best:#dcebfb;--good:#1b7340;--bad:#b3261e;--care:#8a5a00}
@media screen and (prefers-color-scheme:dark){:root{--ground:#1a1a19;--panel:#262624;--ink:#fff;
--soft:#c3c2b7;--line:#333330;--edge:#77756d;--accent:#5b9bea;--best:#17406f;--good:#7fd1a0;--bad:#f2938c;--care:#e0b45c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:72rem;padding:2rem 1.25rem 4rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Helvetica,Arial,sans-serif;-webkit-text-size-adjust:100%}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .5rem;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.15rem;margin:3rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:.95rem;margin:1.75rem 0 .5rem}
p,li,dd,dt{color:var(--soft);overflow-wrap:anywhere;max-width:46rem}p{margin:.5rem 0}
ul{padding-left:1.2rem;margin:.5rem 0}li{margin:.2rem 0}
.eyebrow{font-size:.8rem;margin:0 0 .25rem}
.lead{font-size:1.2rem;line-height:1.4;color:var(--ink);margin:0 0 2rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(10.5rem,1fr));gap:1.5rem;
margin:0 0 1.5rem;padding:0}
.cards>div{border-top:2px solid var(--ink);padding-top:.5rem;display:flex;flex-direction:column}
.cards dt,.cards .was{font-size:.85rem}.cards dd{margin:0}
.cards .now{font-size:1.75rem;line-height:1.25;color:var(--ink);font-variant-numeric:tabular-nums}
.cards svg{display:block;width:100%;height:6px;margin-top:.5rem}
.track{fill:var(--line)}.fill,.kept{fill:var(--accent)}.tick{fill:var(--ink)}
.checks,.warnings{list-style:none;padding:0}.checks li,.warnings li{
padding-left:.75rem;border-left:3px solid var(--care)}
.checks .good{border-color:var(--good)}.checks .bad{border-color:var(--bad)}
.checks .good b{color:var(--good)}.checks .bad b{color:var(--bad)}
figure{margin:1rem 0;overflow-x:auto}figcaption{font-size:.85rem;color:var(--soft);margin-bottom:.5rem}
figure svg{display:block}figure svg[width="760"]{max-width:100%;height:auto;min-width:36rem}
figure .fluid{display:block;width:100%;min-width:0;font-size:12px}
.fluid text{fill:var(--soft)}.fluid .tight{display:none;font-size:11px}
.fluid .head{fill:var(--ink);font-weight:600}
.dense{fill:none;stroke:var(--edge)}.stem{stroke:var(--edge)}.stem.of-kept{stroke:var(--accent)}
.middle{stroke:var(--ink);stroke-width:2}.rule{stroke:var(--line)}.hit{fill:transparent}
g:hover>.hit{fill:var(--panel)}
.wide{overflow-x:auto}.wide:focus-visible,button:focus-visible,summary:focus-visible{
outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;min-width:min(100%,24rem)}
th,td{padding:.35rem .65rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line);
font-weight:400}
thead th{font-weight:600;vertical-align:bottom}th:first-child,td:first-child,.left{text-align:left}
th:first-child{padding-left:0;position:sticky;left:0;background:var(--ground);min-width:11rem;max-width:24rem;
white-space:normal;overflow-wrap:anywhere}
tbody tr:hover>*{background:var(--panel)}
th button{all:unset;cursor:pointer;font-weight:600}th button::after{content:"\\2195";color:var(--edge);
padding-left:.3em}[aria-sort=ascending] button::after{content:"\\2191";color:var(--ink)}
[aria-sort=descending] button::after{content:"\\2193";color:var(--ink)}
td.best{background:var(--best)}summary{cursor:pointer;margin:1rem 0 .5rem}
.facts{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.25rem;font-size:.9rem;margin:0}
.facts dd{margin:0;color:var(--ink)}code{font-size:.9em}
@media (max-width:48rem){body{padding:1.25rem 1rem 3rem}h1{font-size:1.4rem}.lead{font-size:1.05rem}
.cards{grid-template-columns:1fr 1fr;gap:1.25rem}.cards .now{font-size:1.4rem}.fluid .roomy{display:none}
.fluid .tight{display:inline}
th:first-child{min-width:7rem;max-width:9rem}th,td{padding:.35rem .5rem}.facts{grid-template-columns:1fr}
.facts dd{margin-bottom:.4rem}}
@media print{@page{margin:14mm}:root{color-scheme:light}body{max-width:none;padding:0;font-size:10pt}
figure,.wide{overflow:visible}figure svg[viewBox]{min-width:0;max-width:100%;height:auto}
table{font-size:7pt;width:100%}
thead th{white-space:normal}th,td{padding:.2rem .3rem}th:first-child{min-width:0}h2+p{break-after:avoid}
svg .pc-ground{fill:none}tr,.cards>div,figure .fluid g{break-inside:avoid}
h2,h3,figcaption{break-after:avoid}th button::after{content:none}th:first-child{position:static}
.fill,.kept,.track,.best,svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}
details::details-content{content-visibility:visible;block-size:auto}}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    return dataset.v === undefined ? textContent : Number(dataset.v);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const filled = [...body.rows].filter((row) => row.cells[column].textContent !== "");
      const empty = [...body.rows].filter((row) => row.cells[column].textContent === "");
      const isNumber = filled.every((row) => typeof key(row, column) === "number");
      const before = head.getAttribute("aria-sort");
      const isUp = before ? before === "descending" : !isNumber;
      const sign = isUp ? 1 : -1;
      filled.sort((one, other) => {
        const [a, b] = [key(one, column), key(other, column)];
        return sign * (isNumber ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
      });
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      body.append(...filled, ...empty);
    });
  });
}
"""
"""Makes headings buttons that sort, largest numbers first; what is empty comes last."""
