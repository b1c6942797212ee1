// The script of the report page (report_page.h), first part: numbers, curves, step times, tables.
// Every text of a run reaches the page through textContent.
#include "report/report_page.h"

namespace quatrain {

const std::string_view kReportCurvesScript = R"js("use strict";
(() => {
let report = JSON.parse(document.getElementById("report-data").textContent);
let runs = report.runs;
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// ---- Numbers ----
function formatNumber(value) {
  if (value === null || value === undefined) return "";
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 0.001 && size < 1e6 ? String(Number(value.toPrecision(4)))
      : value.toExponential(2);
}

function formatBytes(value) {
  if (value === null || value === undefined) return "";
  return value >= 1e9 ? (value / 1e9).toPrecision(3) + " GB" : (value / 1e6).toPrecision(3) + " MB";
}
const formatOf = (names) => names.every((name) => /_bytes$/.test(name)) ? formatBytes : formatNumber;

function formatCell(name, value) {
  if (typeof value !== "number") {
    return value === null || value === undefined ? ""
        : typeof value === "object" ? JSON.stringify(value) : String(value);
  }
  return /accuracy/.test(name) && value >= 0 && value <= 1
      ? (100 * value).toFixed(1) + " %" : formatNumber(value);
}

// Mean of the last `window` values that exist, where the series has a value.
function smooth(values, window) {
  const recent = [];
  return values.map((value) => {
    if (value === null) return null;
    recent.push(value);
    if (recent.length > window) recent.shift();
    return recent.reduce((a, b) => a + b, 0) / recent.length;
  });
}

// ---- Curves ----
const CURVES = [
  {title: "Reward", names: ["rollout/raw_reward"],
   note: "Mean over the samples of a rollout, before normalisation."},
  {title: "Evaluation accuracy", pattern: /^eval\/(?!.*-truncated_ratio$)[^\/]+$/,
   note: "On held-out prompts, with the weights of that rollout."},
  {title: "Train-rollout difference", names: ["train/train_rollout_logprob_abs_diff"],
   exact: true,
   note: "Mean |log p trainer - log p rollout| of the sampled tokens. 0: both are one policy."},
  {title: "Entropy", names: ["train/entropy_loss"],
   note: "Of the distributions that tokens were drawn from, nats."},
  {title: "Response length", names: ["rollout/response_len/mean"],
   note: "Mean tokens of a response, the stop token included."},
  {title: "Answers", names: ["rollout/num_correct", "rollout/num_wrong", "rollout/num_no_answer",
   "rollout/num_unparsable"], colors: ["--good", "--bad", "--warn", "--soft"],
   note: "What became of each sample of a rollout."},
  {title: "Truncated responses", names: ["rollout/truncated_ratio"],
   note: "Share of samples cut off at the length limit."},
  {title: "Policy loss", names: ["train/pg_loss"],
   note: "Clipped objective, importance weight included."},
  {title: "Gradient norm", names: ["train/grad_norm"], note: "Global L2 norm before clipping."},
  {title: "KL to old and reference", names: ["train/ppo_kl", "train/kl_loss"],
   note: "ppo_kl: mean of old - new log-probability; kl_loss: to the reference."},
  {title: "Clipping and importance weight",
   names: ["train/pg_clipfrac", "train/tis", "train/tis_clipfrac"],
   note: "Share of clipped tokens; weight of train against rollout before its clamp."},
  {title: "Memory", names: ["perf/resident_bytes", "perf/peak_resident_bytes"],
   note: "Of the process after each rollout, and the most it has ever had."},
];
const LIGHT = ["#3457d5", "#d6409f", "#12a594", "#e5a000", "#8e4ec6", "#c2410c", "#0891b2",
  "#64748b"];
const DARK = ["#8aa4ff", "#f38bc8", "#4fd1c0", "#f5c451", "#c69bf0", "#fb9160", "#5cc8e0",
  "#a3afc2"];
const DASHES = [[], [6, 4], [2, 3], [8, 3, 2, 3]];
const charts = [];

const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const isDark = () => document.documentElement.classList.contains("dark");
const palette = (i) => (isDark() ? DARK : LIGHT)[i % LIGHT.length];
const translucent = (color, alpha) => color + Math.round(255 * alpha).toString(16).padStart(2, "0");
const shortName = (name) => name.replace(/^[^\/]*\//, "");
const hasValues = (run, name) => (run.metrics[name] || []).some((value) => value !== null);

function namesOf(curve) {
  const known = curve.names || [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))]
      .filter((name) => curve.pattern.test(name)).sort();
  return known.filter((name) => runs.some((run) => hasValues(run, name)));
}

function pointsOf(run, values) {
  return run.rollouts.map((rollout, i) => ({x: rollout, y: values[i]}))
      .filter((point) => point.y !== null);
}

// One line for each run and name: colour tells runs apart, or names if there is only one run. Rare
// values (evaluations) get points and are not smoothed.
function lineDatasets(names, window) {
  const datasets = [];
  runs.forEach((run, r) => names.forEach((name, n) => {
    if (!hasValues(run, name)) return;
    const label = runs.length === 1 ? shortName(name)
        : names.length === 1 ? run.name : run.name + ": " + shortName(name);
    const color = palette(runs.length === 1 ? n : r);
    const raw = run.metrics[name];
    const known = raw.filter((value) => value !== null).length;
    const line = {label, borderColor: color, backgroundColor: color, borderWidth: 2, tension: 0,
      borderDash: runs.length === 1 ? [] : DASHES[n % DASHES.length],
      pointRadius: 2 * known <= raw.length || known < 3 ? 3 : 0, pointHitRadius: 8};
    if (window > 1 && known > 2 * window && 2 * known > raw.length) {
      datasets.push({...line, data: pointsOf(run, smooth(raw, window))});
      datasets.push({...line, label: label + " (raw)", isRaw: true, borderWidth: 1, order: 1,
        borderColor: translucent(color, 0.35), data: pointsOf(run, raw)});
    } else {
      datasets.push({...line, data: pointsOf(run, raw)});
    }
  }));
  return datasets;
}

// Areas on top of each other, of one run: [label, values, color] triples.
function stackedDatasets(run, parts) {
  const kept = run.rollouts.map((_, k) => k)
      .filter((k) => parts.some(([, values]) => values[k] !== null));
  return parts.map(([label, values, color], i) => ({label,
    data: kept.map((k) => ({x: run.rollouts[k], y: values[k] || 0})),
    fill: i === 0 ? "origin" : "-1", borderColor: color, borderWidth: 1,
    backgroundColor: translucent(color, 0.55),
    pointRadius: run.rollouts.length < 3 ? 3 : 0, pointHitRadius: 8, tension: 0}));
}

function draw(canvas, datasets, stacked, yTitle, format = formatNumber) {
  const soft = cssColor("--soft"), grid = cssColor("--line");
  const axis = (text) => ({type: "linear", grid: {color: grid, borderColor: grid},
    ticks: {color: soft, maxTicksLimit: 8, font: {size: 11}},
    title: {display: Boolean(text), text, color: soft, font: {size: 11}}});
  const y = {...axis(yTitle), stacked: Boolean(stacked)};
  y.ticks = {...y.ticks, callback: (value) => format(value)};
  const levels = new Set(datasets.flatMap((set) => set.data.map((point) => point.y)));
  if (stacked || levels.size === 1) y.beginAtZero = true;
  if (levels.size === 1 && levels.has(0)) y.max = 1;
  const x = axis("rollout");
  x.ticks = {...x.ticks, precision: 0};
  charts.push(new Chart(canvas, {type: "line", data: {datasets}, options: {
    animation: false, responsive: true, maintainAspectRatio: false, spanGaps: true,
    interaction: {mode: "index", intersect: false, axis: "x"},
    scales: {x, y},
    plugins: {
      legend: {display: stacked || datasets.filter((set) => !set.isRaw).length > 1,
        position: "bottom", labels: {color: soft, boxWidth: 12, boxHeight: 2, font: {size: 11},
          filter: (item, chart) => !chart.datasets[item.datasetIndex].isRaw}},
      tooltip: {callbacks: {title: (items) => items.length ? "rollout " + items[0].parsed.x : "",
        label: (item) => " " + item.dataset.label + ": " + format(item.parsed.y)}},
    }}}));
}

function card(grid, title, note, badge) {
  const article = element("article", "card");
  const head = element("div", "head");
  head.style.marginBottom = "0";
  head.append(element("h3", "", title));
  if (badge) head.append(badge);
  const plot = element("div", "plot"), canvas = element("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", title);
  plot.append(canvas);
  article.append(head, element("p", "sub", note), plot);
  grid.append(article);
  return canvas;
}

// Says where a curve is 0 throughout, which a chart cannot tell from nearly 0.
function zeroBadge(curve, names) {
  const values = runs.flatMap((run) => names.flatMap((name) => run.metrics[name] || []))
      .filter((value) => value !== null);
  if (values.every((value) => value === 0)) {
    return element("span", curve.exact ? "badge good" : "badge", "exactly 0");
  }
  return curve.exact ? element("span", "badge",
      "largest " + formatNumber(Math.max(...values.map(Math.abs)))) : null;
}

function drawCurves(gridId, curves, missing) {
  const grid = byId(gridId), window = Number(byId("smoothing").value);
  grid.replaceChildren();
  for (const curve of curves) {
    const names = namesOf(curve);
    if (names.length === 0) {
      missing.push(curve.title + " (" + (curve.names ? curve.names[0] : "eval/<data set>") + ")");
    } else if (curve.colors) {
      for (const run of runs.filter((run) => names.some((name) => hasValues(run, name)))) {
        const parts = names.filter((name) => hasValues(run, name)).map((name) =>
            [shortName(name).replace(/^num_/, "").replace(/_/g, " "), run.metrics[name],
             cssColor(curve.colors[curve.names.indexOf(name)])]);
        const title = runs.length === 1 ? curve.title : curve.title + ": " + run.name;
        draw(card(grid, title, curve.note), stackedDatasets(run, parts), true);
      }
    } else {
      const canvas = card(grid, curve.title, curve.note, zeroBadge(curve, names));
      draw(canvas, lineDatasets(names, curve.exact ? 1 : window), false, "", formatOf(names));
    }
  }
}

function sayMissing(id, missing) {
  byId(id).textContent =
      missing.length ? "Not logged by " + (runs.length === 1 ? "this run: " : "these runs: ") +
      missing.join(", ") + "." : "";
}

function drawAnyMetric() {
  const canvas = byId("any-metric"), old = Chart.getChart(canvas);
  if (old) {
    charts.splice(charts.indexOf(old), 1);
    old.destroy();
  }
  const name = byId("metric").value;
  if (!name) return;
  draw(canvas, lineDatasets([name], Number(byId("smoothing").value)), false, "", formatOf([name]));
}

// ---- Step time ----
// In the order of a step. The optimizer runs inside actor_train; evaluation comes after the step.
const PHASES = ["rollout", "ref_log_probs", "log_probs", "actor_train", "update_weights"];
const NOT_PHASES = [...PHASES, "optimizer", "eval", "step"];

function timeParts(run) {
  const series = (phase) => run.metrics["perf/" + phase + "_time"];
  const combine = (a, b, f) => a.map((value, i) => value === null ? null : f(value, b[i] || 0));
  const minus = (a, b) => combine(a, b, (x, y) => Math.max(0, x - y));
  const further = Object.keys(run.metrics).map((name) => (/^perf\/(.*)_time$/.exec(name) || [])[1])
      .filter((phase) => phase && !NOT_PHASES.includes(phase)).sort();
  const parts = [];
  let rest = series("step");
  for (const phase of [...PHASES, ...further].filter(series)) {
    const optimizer = phase === "actor_train" && series("optimizer");
    const values = optimizer ? minus(series(phase), optimizer) : series(phase);
    parts.push([phase.replace(/_/g, " "), values]);
    if (optimizer) parts.push(["optimizer", optimizer]);
    if (rest) rest = minus(rest, series(phase));
  }
  if (rest && rest.some((value) => value > 0)) parts.push([parts.length ? "other" : "step", rest]);
  if (series("eval")) parts.push(["evaluation", series("eval")]);
  return parts.map(([label, values], i) => [label, values, palette(i)]);
}

function drawTimes() {
  const grid = byId("time-grid");
  grid.replaceChildren();
  for (const run of runs) {
    if (run.rollouts.length === 0) continue;
    const parts = timeParts(run);
    if (parts.length === 0) {
      grid.append(element("p", "card muted", run.name + " logged no perf/*_time metrics."));
      continue;
    }
    const means = parts.map(([label, values]) => {
      const known = values.filter((value) => value !== null);
      return label + " " + formatNumber(known.reduce((a, b) => a + b, 0) / known.length) + " s";
    });
    const canvas = card(grid, runs.length === 1 ? "Where the time of a step goes" : run.name,
                        "Mean: " + means.join(", ") + ".");
    draw(canvas, stackedDatasets(run, parts), true, "seconds");
  }
}

// ---- Tables ----
// rows: objects; columns: union of their keys in order of appearance.
function tableOf(rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const isNumber = (name) => rows.some((row) => typeof row[name] === "number");
  const table = element("table"), head = element("tr");
  for (const name of columns) {
    head.append(element("th", isNumber(name) ? "number" : "", name.replace(/_/g, " ")));
  }
  table.append(head);
  for (const row of rows) {
    const line = element("tr");
    for (const name of columns) {
      line.append(element("td", isNumber(name) ? "number" : "", formatCell(name, row[name])));
    }
    table.append(line);
  }
  return table;
}

function fillFacts() {
  const box = byId("facts");
  box.replaceChildren();
  if (runs.length > 1) {
    const rows = runs.map((run) => {
      const row = {run: run.name};
      for (const fact of run.facts) row[fact.label] = fact.value;
      return row;
    });
    box.className = "card scroll";
    box.append(tableOf(rows));
    return;
  }
  box.className = "tiles";
  for (const fact of runs[0].facts) {
    const tile = element("div", "card tile");
    tile.append(element("div", "label", fact.label), element("div", "value", fact.value),
                element("div", "note", fact.note));
    box.append(tile);
  }
}

function fillAccuracy() {
  const rows = runs.flatMap((run) => run.evaluations.map((row) =>
      runs.length === 1 ? row : {run: run.name, ...row}));
  const box = byId("accuracy-table");
  box.replaceChildren(rows.length ? tableOf(rows) : element("p", "muted",
      "No accuracy table: give the one of quatrain eval with --eval."));
}

function fillConfig() {
  const names = [...new Set(runs.flatMap((run) => run.config.map((pair) => pair[0])))];
  const values = runs.map((run) => new Map(run.config));
  const find = byId("config-find").value.toLowerCase();
  const box = byId("config-table"), table = element("table"), head = element("tr");
  head.append(element("th", "", "name"));
  for (const run of runs) head.append(element("th", "", runs.length === 1 ? "value" : run.name));
  table.append(head);
  for (const name of names) {
    const cells = values.map((map) => map.has(name) ? map.get(name) : "");
    if (find && ![name, ...cells].some((text) => text.toLowerCase().includes(find))) continue;
    const row = element("tr", cells.some((text) => text !== cells[0]) ? "differs" : "");
    row.append(element("td", "", name), ...cells.map((text) => element("td", "value", text)));
    table.append(row);
  }
  box.replaceChildren(names.length ? table
      : element("p", "muted", "No config.json in the run directory."));
}

)js";

}  // namespace quatrain
