#include "report/conversion_page.h"

#include "report/report_page.h"

namespace quatrain {
namespace {

constexpr std::string_view kMarkup = R"html(
<header class="bar">
  <div class="brand"><span class="mark" aria-hidden="true"></span><h1 id="title"></h1></div>
  <nav aria-label="Sections">
    <a href="#overview">Overview</a><a href="#errors">Errors</a><a href="#codes">Codes</a>
    <a href="#experts">Experts</a><a href="#serving">Serving</a><a href="#modules">Weights</a>
  </nav>
</header>
<main>
  <noscript><p class="card">This page needs JavaScript, which is off.</p></noscript>
  <section id="overview"><h2>Overview</h2><div class="card scroll" id="facts"></div></section>
  <section id="warnings"><h2>To look at</h2><div class="card scroll" id="warning-table"></div></section>
  <section id="errors"><h2>Output error of each weight</h2><article class="card wide">
    <p class="muted">||X (W - W')|| / ||X W|| on the calibration text, beside round-to-nearest.</p>
    <div class="plot"><canvas id="error-chart" role="img" aria-label="Errors"></canvas></div>
  </article></section>
  <section id="codes"><h2>Codes</h2><article class="card wide">
    <div class="plot"><canvas id="code-chart" role="img" aria-label="Codes"></canvas></div>
  </article></section>
  <section id="experts"><h2>Calibration tokens of each expert</h2>
    <div class="card scroll" id="expert-table"></div>
    <p class="muted">Darker: more tokens, of the layer's busiest expert. Red: none.</p></section>
  <section id="serving"><h2>Tensor parallelism</h2>
    <div class="card scroll" id="parallel-table"></div></section>
  <section id="modules"><div class="head"><h2>Weights, the largest error first</h2>
    <label>Find <input id="module-find" type="search" placeholder="name"></label></div>
    <div class="card scroll tall" id="module-table"></div>
    <p class="muted" id="module-note"></p></section>
</main>
)html";

// Every text of the report reaches the page through textContent.
constexpr std::string_view kScript = R"js("use strict";
(() => {
const report = JSON.parse(document.getElementById("report-data").textContent);
const byId = (id) => document.getElementById(id);
const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.classList.toggle("dark", dark);
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function number(value, digits = 4) {
  if (value === null || value === undefined) return "";
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(digits)));
}
const megabytes = (bytes) => number(bytes / 1e6) + " MB";

// Without rows its section goes.
function table(id, head, rows) {
  if (!rows.length) { byId(id).closest("section").remove(); return; }
  byId(id).replaceChildren();
  const node = document.createElement("table");
  const add = (parent, cells, tag) => {
    const row = parent.insertRow();
    for (const cell of cells) {
      const td = document.createElement(tag);
      td.textContent = cell;
      row.appendChild(td);
    }
  };
  if (head) add(node.createTHead(), head, "th");
  const body = node.createTBody();
  for (const row of rows) add(body, row, "td");
  byId(id).appendChild(node);
}

function chart(id, type, labels, datasets, yTitle, xTitle) {
  Chart.defaults.color = color("--soft");
  new Chart(byId(id), {type, data: {labels, datasets}, options: {
    animation: false, responsive: true, maintainAspectRatio: false,
    scales: {y: {beginAtZero: true, title: {display: true, text: yTitle}},
             x: {title: {display: true, text: xTitle},
                 // Names of many weights would leave no room; the tooltip has them.
                 ticks: {display: labels.length <= 24, maxTicksLimit: 24}}}}});
}

// A strip of cells for each layer, one an expert.
function expertTable(layers) {
  table("expert-table", ["layer", "least", "median", "most", "tokens by expert"],
    layers.map((l) => {
      const sorted = [...l.tokens].sort((a, b) => a - b);
      return [l.layer, number(sorted[0]), number(sorted[sorted.length >> 1]),
        number(sorted[sorted.length - 1]), ""];
    }));
  layers.forEach((l, row) => {
    const strip = document.createElement("div"), most = Math.max(...l.tokens, 1);
    strip.className = "strip";
    l.tokens.forEach((tokens, expert) => {
      const cell = document.createElement("span");
      cell.title = "expert " + expert + ": " + number(tokens) + " tokens";
      if (l.tokens.length <= 16) cell.textContent = number(tokens);
      const alpha = Math.round(20 + 140 * tokens / most).toString(16).padStart(2, "0");
      cell.style.backgroundColor = tokens === 0 ? color("--bad-bg") : color("--accent") + alpha;
      strip.appendChild(cell);
    });
    byId("expert-table").querySelectorAll("tbody tr")[row].lastChild.appendChild(strip);
  });
}

const MOST_ROWS = 200;
function moduleTable() {
  const find = byId("module-find").value.toLowerCase();
  const found = modules.filter((m) => m.module.toLowerCase().includes(find))
      .sort((a, b) => b.relative_error - a.relative_error);
  const rows = found.slice(0, MOST_ROWS).map((m) => [m.module, number(m.tokens),
    number(m.relative_error), number(m.rtn_relative_error), number(m.dampening_frac)]);
  table("module-table", ["weight", "tokens", "error", "round-to-nearest", "dampening"],
        rows.length ? rows : [["none of this name", "", "", "", ""]]);
  byId("module-note").textContent = Math.min(MOST_ROWS, found.length) + " of " + modules.length +
      " weights" + (found.length > MOST_ROWS ? "; conversion_report.json has all of them." : ".");
}

byId("title").textContent = "Conversion of " + report.source;
const modules = report.modules || [];
const heldout = report.heldout;
const data = report.data;
const facts = [
  ["Method", report.method + ", scales " + report.scale_rule],
  ["Format", report.scheme + ", scope " + report.scope],
  ["Weights quantised", report.quantized_weights + " of " + report.weights],
  ["Size", megabytes(report.bytes_before) + " to " + megabytes(report.bytes_after) + " (" +
    number(report.bytes_before / report.bytes_after, 3) + "x smaller)"],
  ["Time, peak memory", number(report.seconds, 3) + " s, " + megabytes(report.peak_memory_bytes) +
    " (planned " + number(report.planned.seconds, 2) + " s, " +
    megabytes(report.planned.memory_bytes) + " beside the program itself)"],
  ["Seed", String(report.seed)],
];
if (data) facts.push(["Calibration", data.samples + " samples, " + number(data.tokens) +
  " tokens of " + data.source + ", fingerprint " + data.fingerprint]);
if (report.errors) facts.push(["Mean output error", number(report.errors.mean_relative_error) +
  " (round-to-nearest " + number(report.errors.mean_rtn_relative_error) + ")"]);
if (heldout) {
  facts.push(["Perplexity on held-out text", number(heldout.perplexity_bf16, 6) + " in BF16, " +
    number(heldout.perplexity, 6) + " quantised (" + number(heldout.positions) + " tokens)"]);
  facts.push(["Mean KL to BF16", number(heldout.mean_kl)]);
  facts.push(["Mean |log-probability difference|", number(heldout.mean_abs_logprob_difference)]);
}
table("facts", null, facts);
table("warning-table", ["What", "Why"], [].concat(
  (report.fallbacks || []).map((f) => [f.module, "rounded to nearest: " + f.reason]),
  (report.cold_modules || []).map((m) => [m, "no calibration token was routed to it"]),
  report.kept_in_bf16.map((m) => [m, "left in BF16: the group size does not divide it"]),
  report.copied_tensors.map((t) => [t, "copied byte for byte: it has no place in the model"]),
  report.cast_to_bf16.map((t) => [t, "rounded to BF16 first"])));
if (modules.length) {
  const names = modules.map((m) => m.module.replace("model.layers.", ""));
  chart("error-chart", "line", names, [
    {label: "this conversion", data: modules.map((m) => m.relative_error),
     borderColor: color("--accent"), pointRadius: 2, showLine: modules.length > 1},
    {label: "round-to-nearest", data: modules.map((m) => m.rtn_relative_error),
     borderColor: color("--warn"), pointRadius: 2}], "relative error", "weight");
} else byId("errors").remove();
const counts = report.codes.counts;
const total = counts.reduce((a, b) => a + b, 0);
chart("code-chart", "bar", counts.map((_, i) => String(report.codes.lowest + i)),
  [{label: "share of all codes", data: counts.map((c) => c / total),
    backgroundColor: color("--accent")}], "share", "code");
if (report.expert_tokens && report.expert_tokens.length) expertTable(report.expert_tokens);
else byId("experts").remove();
table("parallel-table", ["linear", "TP1", "TP2", "TP4", "TP8"],
  report.tensor_parallel.map((row) => [row.module].concat(
    row.sizes.map((s) => s.verdict + (s.reason ? " (" + s.reason + ")" : "")))));
if (modules.length) {
  byId("module-find").addEventListener("input", moduleTable);
  moduleTable();
} else byId("modules").remove();
})();
)js";

}  // namespace

std::string BuildConversionPage(const Json& report, const std::filesystem::path& chart_js) {
  return BuildHtmlPage({.title = "Quatrain conversion report",
                        .style = kReportStyle,
                        .markup = kMarkup,
                        .script = std::string(kScript),
                        .data = report,
                        .chart_js = chart_js});
}

}  // namespace quatrain
