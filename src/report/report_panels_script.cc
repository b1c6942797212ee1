// The script of the report page (report_page.h), second part: warnings, the quantisation panel, the
// table of rollouts.
#include "report/report_page.h"

namespace quatrain {

const std::string_view kReportPanelsScript = R"js(
// ---- Warnings ----
function fillWarnings() {
  const list = byId("warning-list");
  list.replaceChildren();
  for (const run of runs) {
    for (const warning of run.warnings) {
      const box = element("article", "card warning " + warning.level);
      const title = runs.length === 1 ? warning.title : run.name + ": " + warning.title;
      box.append(element("h3", "", title), element("p", "", warning.detail));
      list.append(box);
    }
  }
  const hasAny = list.childElementCount > 0;
  byId("warnings").classList.toggle("quiet", !hasAny);
  if (!hasAny) list.append(element("p", "muted", "Nothing to warn of in these metrics."));
}

// ---- Quantisation ----
const QAT_CURVES = [
  {title: "Code-flip rate", names: ["train/code_flip_rate"],
   note: "Share of the INT4 codes that an optimizer step changed."},
  {title: "Oscillation", names: ["train/code_flip_back_rate"],
   note: "Share of the codes that an optimizer step changed back to what they were before."},
  {title: "Scale drift", names: ["train/scale_drift"],
   note: "Mean |scale / first scale - 1| over all groups."},
  {title: "Scales changed", names: ["train/scale_change_rate"],
   note: "Share of the scales that an optimizer step changed; 0 under frozen scales."},
  {title: "Near a boundary", names: ["train/near_boundary_rate"],
   note: "Share of the masters close to where their code changes: they may flip to and fro."},
];

// "qat/code_flip_rate/layer_3" and the like: one picture a metric, layers by rollouts.
function layerMetrics(run) {
  const found = new Map();
  for (const name of Object.keys(run.metrics)) {
    const match = /^(.*)\/layer_(\d+)$/.exec(name);
    if (!match || !hasValues(run, name)) continue;
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push([Number(match[2]), run.metrics[name]]);
  }
  for (const rows of found.values()) rows.sort((a, b) => a[0] - b[0]);
  return found;
}

// A row of cells for each layer, darker for larger values; the scale is that of the whole picture.
function drawLayers(canvas, rows) {
  const known = rows.flatMap(([, values]) => values.filter((value) => value !== null));
  const largest = Math.max(...known, 0), columns = rows[0][1].length;
  const box = canvas.parentElement.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  canvas.width = box.width * ratio;
  canvas.height = box.height * ratio;
  canvas.style.width = box.width + "px";
  canvas.style.height = box.height + "px";
  const pen = canvas.getContext("2d"), left = 34 * ratio;
  const width = (canvas.width - left) / columns, height = canvas.height / rows.length;
  pen.font = 11 * ratio + "px " + Chart.defaults.font.family;
  pen.textBaseline = "middle";
  rows.forEach(([layer, values], r) => {
    pen.fillStyle = cssColor("--soft");
    if (height >= 12 * ratio || r % 4 === 0) pen.fillText(String(layer), 2, (r + 0.5) * height);
    values.forEach((value, c) => {
      if (value === null) return;
      const part = largest > 0 ? value / largest : 0;
      pen.fillStyle = translucent(palette(0), 0.06 + 0.94 * part);
      pen.fillRect(left + c * width, r * height, Math.ceil(width), Math.max(1, height - ratio));
    });
  });
  return largest;
}

// "train/boundary_distance/0.05": share of the masters whose distance begins there, in widths of a
// code. Bars of the first and the last rollout that have them.
function drawDistances(grid, run) {
  const bins = Object.keys(run.metrics).filter((name) => hasValues(run, name))
      .map((name) => (/^train\/boundary_distance\/([\d.]+)$/.exec(name) || [])[1])
      .filter((bin) => bin !== undefined).sort((a, b) => a - b);
  if (bins.length === 0) return;
  const of = (bin) => run.metrics["train/boundary_distance/" + bin];
  const known = run.rollouts.map((_, i) => i).filter((i) => of(bins[0])[i] !== null);
  const ends = [...new Set([known[0], known[known.length - 1]])];
  const canvas = card(grid, (runs.length === 1 ? "" : run.name + ": ") + "Distance to a boundary",
      "Of the masters from where their code changes, in widths of a code; 0.5 is the middle.");
  const soft = cssColor("--soft");
  const axis = (text) => ({ticks: {color: soft}, title: {display: true, text, color: soft}});
  charts.push(new Chart(canvas, {type: "bar", data: {labels: bins, datasets: ends.map((i, e) =>
      ({label: "rollout " + run.rollouts[i], data: bins.map((bin) => of(bin)[i]),
        backgroundColor: palette(e)}))},
    options: {animation: false, responsive: true, maintainAspectRatio: false,
      scales: {x: axis("distance from"), y: {...axis("share"), beginAtZero: true}},
      plugins: {legend: {position: "bottom", labels: {color: soft, boxWidth: 12}}}}}));
}

function drawQuantisation() {
  const missing = [];
  drawCurves("qat-grid", QAT_CURVES, missing);
  const grid = byId("qat-grid");
  for (const run of runs) {
    drawDistances(grid, run);
    for (const [name, rows] of layerMetrics(run)) {
      const title = (runs.length === 1 ? "" : run.name + ": ") + shortName(name).replace(/_/g, " ");
      const canvas = card(grid, title + " by layer", "Layers downwards, rollouts to the right.");
      const largest = drawLayers(canvas, rows);
      canvas.setAttribute("aria-label", title + " by layer, largest " + formatNumber(largest));
      canvas.closest("article").querySelector(".sub").textContent +=
          " Darkest: " + formatNumber(largest) + ".";
    }
  }
  if (![...runs].some((run) => layerMetrics(run).size)) missing.push("figures by layer");
  const isQuantised = grid.childElementCount > 0;
  byId("qat").hidden = !isQuantised;
  sayMissing("qat-missing", isQuantised ? missing : []);
}

// ---- Rollouts ----
const ROLLOUT_COLUMNS = [
  ["reward", "rollout/raw_reward"], ["correct", "rollout/num_correct"],
  ["wrong", "rollout/num_wrong"], ["no answer", "rollout/num_no_answer"],
  ["unparsable", "rollout/num_unparsable"], ["groups all 0", "rollout/zero_std/count_0"],
  ["groups all 1", "rollout/zero_std/count_1"], ["length", "rollout/response_len/mean"],
  ["truncated", "rollout/truncated_ratio"], ["entropy", "train/entropy_loss"],
  ["difference", "train/train_rollout_logprob_abs_diff"], ["gradient", "train/grad_norm"],
  ["flips", "train/code_flip_rate"], ["seconds", "perf/step_time"]];
const rolloutView = {run: 0, column: -1, ascending: true, least: "", most: "", filter: 0, all: false};

function rolloutRows(run) {
  const columns = ROLLOUT_COLUMNS.filter(([, name]) => hasValues(run, name));
  const rows = run.rollouts.map((rollout, i) =>
      [rollout, ...columns.map(([, name]) => run.metrics[name][i])])
      .filter((row) => row.slice(1).some((value) => value !== null));
  return [columns, rows];
}

function rolloutFilters(columns) {
  const box = byId("rollout-filters");
  const number = (label, key) => {
    const wrap = element("label", "", label + " "), input = element("input", "short");
    input.type = "number";
    input.step = "any";
    input.value = rolloutView[key];
    input.addEventListener("change", () => { rolloutView[key] = input.value; fillRollouts(); });
    wrap.append(input);
    return wrap;
  };
  const pick = (label, options, value, change) => {
    const wrap = element("label", "", label + " "), select = element("select");
    options.forEach((text, i) => {
      const option = element("option", "", text);
      option.value = String(i);
      select.append(option);
    });
    select.value = String(value);
    select.addEventListener("change", () => { change(Number(select.value)); fillRollouts(); });
    wrap.append(select);
    return wrap;
  };
  box.replaceChildren();
  if (runs.length > 1) {
    box.append(pick("Run", runs.map((run) => run.name), rolloutView.run,
                    (value) => { rolloutView.run = value; }));
  }
  box.append(pick("Where", columns.map(([title]) => title), rolloutView.filter,
                  (value) => { rolloutView.filter = value; }),
             number("from", "least"), number("to", "most"));
}

function fillRollouts() {
  rolloutView.run = Math.min(rolloutView.run, runs.length - 1);
  const run = runs[rolloutView.run], [columns, rows] = rolloutRows(run);
  rolloutView.filter = Math.min(rolloutView.filter, Math.max(columns.length - 1, 0));
  rolloutFilters(columns);
  const box = byId("rollout-table");
  if (rows.length === 0) {
    box.replaceChildren(element("p", "muted", "No rollout has ended yet."));
    return;
  }
  const least = rolloutView.least === "" ? -Infinity : Number(rolloutView.least);
  const most = rolloutView.most === "" ? Infinity : Number(rolloutView.most);
  const value = (row) => row[rolloutView.filter + 1];
  const isBounded = rolloutView.least !== "" || rolloutView.most !== "";
  const chosen = rows.filter((row) =>
      !isBounded || (value(row) !== null && value(row) >= least && value(row) <= most));
  const at = rolloutView.column + 1, sign = rolloutView.ascending ? 1 : -1;
  chosen.sort((a, b) => sign * ((a[at] ?? -Infinity) - (b[at] ?? -Infinity)));
  const table = element("table", "rollouts"), head = element("tr");
  ["rollout", ...columns.map(([title]) => title)].forEach((title, i) => {
    const cell = element("th", "number"), mark = i === at ? (sign > 0 ? " \u25B2" : " \u25BC") : "";
    const button = element("button", "plain", title + mark);
    button.type = "button";
    button.addEventListener("click", () => {
      rolloutView.ascending = rolloutView.column === i - 1 ? !rolloutView.ascending : true;
      rolloutView.column = i - 1;
      fillRollouts();
    });
    cell.append(button);
    head.append(cell);
  });
  table.append(head);
  for (const row of rolloutView.all ? chosen : chosen.slice(0, 100)) {
    const line = element("tr", "link");
    line.append(...row.map((cell) => element("td", "number", formatNumber(cell))));
    line.addEventListener("click", () => showSamplesOf(rolloutView.run, row[0]));
    table.append(line);
  }
  const note = element("p", "muted", chosen.length + " of " + rows.length +
      " rollouts; a click on one shows its samples. ");
  if (chosen.length > 100) {
    const more = element("button", "", rolloutView.all ? "Show the first 100" : "Show all");
    more.type = "button";
    more.addEventListener("click", () => { rolloutView.all = !rolloutView.all; fillRollouts(); });
    note.append(more);
  }
  const scroller = element("div", "scroll tall");
  scroller.append(table);
  box.replaceChildren(scroller, note);
}
)js";

}  // namespace quatrain
