#include "report/report_page.h"

namespace quatrain {

const std::string_view kReportMarkup = R"html(
<header class="bar">
  <div class="brand"><span class="mark" aria-hidden="true"></span><h1 id="title"></h1>
    <span id="status" class="badge" role="status" hidden></span></div>
  <nav aria-label="Sections">
    <a href="#overview">Overview</a><a href="#warnings">Warnings</a><a href="#curves">Curves</a>
    <a href="#qat">Quantisation</a><a href="#time">Step time</a><a href="#accuracy">Accuracy</a>
    <a href="#rollouts">Rollouts</a><a href="#samples">Samples</a>
    <a href="#config">Configuration</a>
  </nav>
  <button id="theme" type="button">Dark</button>
</header>
<main>
  <noscript><p class="card">This page needs JavaScript, which is off.</p></noscript>
  <section id="overview"><h2>Overview</h2><div id="facts"></div></section>
  <section id="warnings"><h2>Warnings</h2><div id="warning-list"></div></section>
  <section id="curves">
    <div class="head"><h2>Curves</h2>
      <label>Smoothing <select id="smoothing">
        <option value="1">off</option><option value="5" selected>5 rollouts</option>
        <option value="10">10 rollouts</option><option value="25">25 rollouts</option>
      </select></label></div>
    <div class="grid" id="curve-grid"></div>
    <p class="muted" id="missing"></p>
    <article class="card wide">
      <div class="head"><h3>Any metric</h3><label>Metric <select id="metric"></select></label></div>
      <div class="plot">
        <canvas id="any-metric" role="img" aria-label="Chosen metric"></canvas>
      </div>
    </article>
  </section>
  <section id="qat">
    <h2>Quantisation</h2><div class="grid" id="qat-grid"></div>
    <p class="muted" id="qat-missing"></p>
  </section>
  <section id="time"><h2>Step time</h2><div class="grid" id="time-grid"></div></section>
  <section id="accuracy">
    <h2>Accuracy</h2><div class="card scroll" id="accuracy-table"></div>
  </section>
  <section id="rollouts">
    <div class="head"><h2>Rollouts</h2><div class="filters" id="rollout-filters"></div></div>
    <div class="card" id="rollout-table"></div>
  </section>
  <section id="samples">
    <div class="head"><h2>Samples</h2><div class="filters" id="sample-filters"></div></div>
    <p class="muted" id="color-note"></p>
    <div id="sample-list"></div>
    <div class="pager" id="sample-pager"></div>
  </section>
  <section id="config">
    <div class="head"><h2>Configuration</h2>
      <label>Find <input id="config-find" type="search" placeholder="name or value"></label></div>
    <div class="card scroll" id="config-table"></div>
  </section>
</main>
)html";

const std::string_view kReportStyle = R"css(
:root { --page: #f5f6f8; --card: #ffffff; --ink: #1b2130; --soft: #667085; --line: #e3e6ec;
  --accent: #3457d5; --good: #177245; --good-bg: #e3f4ea; --bad: #b42318; --bad-bg: #fdecea;
  --warn: #925f00; --warn-bg: #fdf3dc; --code: #f8f9fb; color-scheme: light; }
:root.dark { --page: #11141b; --card: #1a1f2a; --ink: #e7eaf0; --soft: #98a2b3; --line: #2b3240;
  --accent: #8aa4ff; --good: #6fd39c; --good-bg: #173226; --bad: #ff9b90; --bad-bg: #3a1d1b;
  --warn: #f2c46b; --warn-bg: #372b14; --code: #141923; color-scheme: dark; }
* { box-sizing: border-box; } [hidden] { display: none !important; }
html { scroll-behavior: smooth; scroll-padding-top: 4.5rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.bar { position: sticky; top: 0; z-index: 2; display: flex; gap: 1.5rem; align-items: center;
  flex-wrap: wrap; padding: .7rem 2rem; background: var(--card);
  border-bottom: 1px solid var(--line); }
.brand { display: flex; gap: .6rem; align-items: center; margin-right: auto; flex-wrap: wrap; }
.mark { width: 18px; height: 18px; border-radius: 4px; background:
  conic-gradient(#3457d5 25%, #12a594 0 50%, #e5a000 0 75%, #d6409f 0); }
h1 { font-size: 1.05rem; margin: 0; } h2 { font-size: 1.25rem; margin: 0; }
h3 { font-size: .95rem; margin: 0; }
nav { display: flex; gap: .3rem .9rem; flex-wrap: wrap; font-size: .93rem; }
nav a { color: var(--soft); text-decoration: none; } nav a:hover { color: var(--accent); }
button, select, input { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 7px; padding: .25rem .6rem; }
button { cursor: pointer; } button:disabled { opacity: .4; cursor: default; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
main { max-width: 1440px; margin: 0 auto; padding: 1.5rem 2rem 4rem; }
section { margin-bottom: 2.5rem; } section > h2 { margin-bottom: .8rem; }
.head { display: flex; justify-content: space-between; align-items: center; gap: 1rem;
  flex-wrap: wrap; margin-bottom: .8rem; }
.head label, .filters label { color: var(--soft); font-size: .87rem; }
.filters { display: flex; gap: .8rem; flex-wrap: wrap; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem 1.1rem; min-width: 0; }
.tiles { display: grid; gap: .9rem; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
.tile .label { color: var(--soft); font-size: .85rem; }
.tile .value { font-size: 1.75rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile .note, .muted, .sub { color: var(--soft); font-size: .85rem; }
.grid { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); }
@media (max-width: 560px) { .grid { grid-template-columns: 1fr; } main { padding: 1rem; } }
.wide { margin-top: 1rem; }
.plot { position: relative; height: 240px; } .sub { margin: .1rem 0 .6rem; min-height: 2.6em; }
.badge { display: inline-block; border-radius: 99px; padding: .05rem .6rem; font-size: .8rem;
  background: var(--page); white-space: nowrap; }
.badge.good { color: var(--good); background: var(--good-bg); }
.badge.bad { color: var(--bad); background: var(--bad-bg); }
.badge.warn { color: var(--warn); background: var(--warn-bg); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child td { border-bottom: 0; } th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.value { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .85rem;
  overflow-wrap: anywhere; }
tr.differs td { background: var(--warn-bg); }
.sample { margin-bottom: .9rem; } .sample .meta { display: flex; gap: .5rem; flex-wrap: wrap;
  align-items: center; margin-bottom: .6rem; font-size: .87rem; }
.texts { display: grid; gap: .8rem; grid-template-columns: minmax(220px, 1fr) 2fr; }
@media (max-width: 760px) { .texts { grid-template-columns: 1fr; } }
pre { margin: .2rem 0 0; padding: .7rem .8rem; background: var(--code); border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 26rem; overflow-y: auto;
  font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
.warning { margin-bottom: .6rem; border-left: 4px solid var(--warn); }
.warning.bad { border-left-color: var(--bad); } .warning p { margin: .2rem 0 0; }
section.quiet { margin-bottom: 1.5rem; } .filters { align-items: center; }
input.short { width: 6.5rem; } .tall { max-height: 30rem; overflow-y: auto; }
table.rollouts th { position: sticky; top: 0; background: var(--card); }
table.rollouts th, table.rollouts td { padding: .3rem .5rem; white-space: nowrap; }
.strip { display: flex; gap: 1px; min-width: 300px; } .strip span { flex: 1; min-height: 1.3rem;
  font-size: .75rem; text-align: center; border-radius: 2px; overflow: hidden; }
button.plain { border: 0; padding: 0; background: none; font-weight: 600; color: var(--soft); }
tr.link { cursor: pointer; } tr.link:hover td { background: var(--page); }
.token { border-radius: 3px; } .token:hover { outline: 1px solid var(--accent); }
.token.masked { opacity: .45; text-decoration: underline dotted; }
.pager { display: flex; gap: .8rem; align-items: center; justify-content: center; }
@media print { .bar { position: static; } button, select, input { display: none; } }
)css";

}  // namespace quatrain
