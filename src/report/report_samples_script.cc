// The script of the report page (report_page.h), third part: samples with their tokens, and the
// start of the page.
#include "report/report_page.h"

namespace quatrain {

const std::string_view kReportSamplesScript = R"js(
// ---- Samples ----
const PAGE = 8;
const shown = {run: 0, rollout: "", verdict: "", least: "", most: "", text: "", color: "logprob",
  page: 0};

const verdictOf = (sample) => sample.verdict || (sample.reward > 0 ? "correct" : "no reward");

function promptText(prompt) {
  if (typeof prompt === "string") return prompt;
  if (!Array.isArray(prompt)) return prompt === undefined ? "" : JSON.stringify(prompt);
  const text = (content) => typeof content === "string" ? content : JSON.stringify(content);
  return prompt.map((message) => message.role + ": " + text(message.content)).join("\n\n");
}

// What a token's background says. Each: values of a sample, the colour and its strength 0..1, note.
const TOKEN_COLORS = {
  logprob: {title: "log-probability", values: (sample) => sample.rollout_logprobs,
    color: (value) => ["--warn", Math.min(1, -value / 3)],
    note: "Darker: less likely when it was drawn; darkest from p = 0.05 down."},
  difference: {title: "trainer - rollout", values: (sample) => sample.logprob_differences,
    color: (value) => value === 0 ? ["--good", 0.16]
        : [value > 0 ? "--accent" : "--bad", Math.min(1, 0.3 + Math.abs(value) / 0.05)],
    note: "Green: exactly 0. Blue: the trainer finds the token likelier, red: less likely."},
  advantage: {title: "advantage", values: (sample) =>
      sample.advantages || (sample.tokens || []).map(() => sample.advantage),
    color: (value) => [value >= 0 ? "--good" : "--bad", Math.min(1, Math.abs(value) / 2)],
    note: "Green: made likelier, red: less likely; darkest from an advantage of 2 on."},
};

// "#rrggbb" of a CSS variable with the strength as its alpha.
const tint = (name, strength) => translucent(cssColor(name), 0.75 * Math.max(0, strength));

function tokenTitle(sample, i) {
  const say = (name, value) => value === undefined || value === null ? "" : name + " " + value;
  const logprob = (sample.rollout_logprobs || [])[i];
  const advantage = (sample.advantages || [])[i] ?? sample.advantage;
  return ["token " + i, say("log p", logprob),
    logprob === undefined ? "" : "p " + formatNumber(Math.exp(logprob)),
    say("trainer - rollout", (sample.logprob_differences || [])[i]),
    say("advantage", formatNumber(advantage)),
    i < (sample.num_masked_tokens || 0) ? "masked: not trained on" : ""]
      .filter((part) => part).join("\n");
}

function tokenStrip(sample) {
  const strip = element("pre", "tokens"), mode = TOKEN_COLORS[shown.color];
  const values = mode.values(sample) || [];
  sample.tokens.forEach((text, i) => {
    const isMasked = i < (sample.num_masked_tokens || 0);
    const token = element("span", isMasked ? "token masked" : "token", text);
    const value = values[i];
    if (value !== undefined && value !== null && !isMasked) {
      token.style.backgroundColor = tint(...mode.color(value));
    }
    token.title = tokenTitle(sample, i);
    strip.append(token);
  });
  return strip;
}

function sampleCard(sample) {
  const box = element("article", "card sample"), meta = element("div", "meta");
  const verdict = verdictOf(sample);
  const kind = sample.reward > 0 ? "good" : verdict === "wrong" ? "bad" : "warn";
  meta.append(element("span", "badge " + kind,
                      verdict.replace(/_/g, " ") + ", reward " + formatNumber(sample.reward)));
  const known = ["prompt", "response", "reward", "verdict", "truncated"];
  for (const [name, value] of Object.entries(sample)) {
    if (known.includes(name) || (typeof value === "object" && value !== null)) continue;
    meta.append(element("span", "badge", name.replace(/_/g, " ") + " " + formatCell(name, value)));
  }
  if (sample.truncated) meta.append(element("span", "badge warn", "truncated"));
  const differences = sample.logprob_differences || [];
  if (differences.length) {
    const largest = Math.max(...differences.map(Math.abs));
    meta.append(element("span", "badge " + (largest === 0 ? "good" : "warn"),
        largest === 0 ? "trainer = rollout" : "largest difference " + formatNumber(largest)));
  }
  const texts = element("div", "texts"), prompt = element("div"), response = element("div");
  prompt.append(element("div", "muted", "Prompt"), element("pre", "", promptText(sample.prompt)));
  response.append(element("div", "muted", "Response"),
      sample.tokens ? tokenStrip(sample) : element("pre", "", sample.response));
  texts.append(prompt, response);
  box.append(meta, texts);
  return box;
}

function chooser(label, options, value, change) {
  const box = element("label", "", label + " "), select = element("select");
  for (const [key, text] of options) {
    const option = element("option", "", text);
    option.value = key;
    select.append(option);
  }
  select.value = value;
  select.addEventListener("change", () => { change(select.value); shown.page = 0; fillSamples(); });
  box.append(select);
  return box;
}

function entry(label, type, key) {
  const box = element("label", "", label + " ");
  const input = element("input", type === "number" ? "short" : "");
  input.type = type;
  if (type === "number") input.step = "any";
  input.value = shown[key];
  input.addEventListener("change", () => { shown[key] = input.value; shown.page = 0; fillSamples(); });
  box.append(input);
  return box;
}

function chosenSamples() {
  const find = shown.text.toLowerCase();
  const least = shown.least === "" ? -Infinity : Number(shown.least);
  const most = shown.most === "" ? Infinity : Number(shown.most);
  return runs[shown.run].samples.filter((sample) =>
      (shown.rollout === "" || String(sample.rollout) === shown.rollout) &&
      (shown.verdict === "" || verdictOf(sample) === shown.verdict) &&
      sample.reward >= least && sample.reward <= most &&
      (find === "" || (promptText(sample.prompt) + "\n" + sample.response + "\n" + sample.label)
          .toLowerCase().includes(find)));
}

function fillSampleFilters() {
  const samples = runs[shown.run].samples, filters = byId("sample-filters");
  const distinct = (values) => [...new Set(values)].map((value) => [String(value), String(value)]);
  filters.replaceChildren();
  if (runs.length > 1) {
    filters.append(chooser("Run", runs.map((run, i) => [String(i), run.name]), String(shown.run),
                           (value) => { shown.run = Number(value); shown.rollout = ""; }));
  }
  const rollouts = distinct(samples.map((sample) => sample.rollout));
  if (shown.rollout !== "" && !rollouts.some(([key]) => key === shown.rollout)) {
    rollouts.push([shown.rollout, shown.rollout]);  // of a row of the table above
  }
  filters.append(
      chooser("Rollout", [["", "all"], ...rollouts], shown.rollout,
              (value) => { shown.rollout = value; }),
      chooser("Verdict", [["", "all"], ...distinct(samples.map(verdictOf))],
              shown.verdict, (value) => { shown.verdict = value; }),
      entry("Reward from", "number", "least"), entry("to", "number", "most"),
      entry("Text", "search", "text"),
      chooser("Colour", Object.entries(TOKEN_COLORS).map(([key, mode]) => [key, mode.title]),
              shown.color, (value) => { shown.color = value; }));
}

function fillSamples() {
  shown.run = Math.min(shown.run, runs.length - 1);
  const samples = runs[shown.run].samples;
  fillSampleFilters();
  const chosen = chosenSamples();
  byId("color-note").textContent =
      samples.some((sample) => sample.tokens) ? TOKEN_COLORS[shown.color].note : "";
  const pages = Math.max(1, Math.ceil(chosen.length / PAGE));
  shown.page = Math.min(shown.page, pages - 1);
  const list = byId("sample-list"), pager = byId("sample-pager");
  list.replaceChildren(...chosen.slice(shown.page * PAGE, (shown.page + 1) * PAGE).map(sampleCard));
  if (chosen.length === 0) {
    list.append(element("p", "card muted", samples.length ? "No sample matches."
        : "No samples.jsonl in the run directory."));
  }
  const turn = (text, by) => {
    const button = element("button", "", text);
    button.type = "button";
    button.disabled = shown.page + by < 0 || shown.page + by >= pages;
    button.addEventListener("click", () => { shown.page += by; fillSamples(); });
    return button;
  };
  const total = runs[shown.run].num_samples;
  const thinned = total > samples.length ? " (of " + total + " recorded)" : "";
  pager.replaceChildren(turn("Previous", -1), element("span", "muted",
      "page " + (shown.page + 1) + " of " + pages + ", " + chosen.length + " samples" + thinned),
      turn("Next", 1));
  pager.hidden = samples.length === 0;
}

function showSamplesOf(run, rollout) {
  Object.assign(shown, {run, rollout: String(rollout), verdict: "", page: 0});
  fillSamples();
  byId("samples").scrollIntoView();
}

// ---- Page ----
function drawAll() {
  charts.splice(0).forEach((chart) => chart.destroy());
  const missing = [];
  drawCurves("curve-grid", CURVES, missing);
  sayMissing("missing", runs.some((run) => run.rollouts.length) ? missing : []);
  drawAnyMetric();
  drawQuantisation();
  drawTimes();
}

function setTheme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  byId("theme").textContent = dark ? "Light" : "Dark";
  drawAll();
  fillSamples();
}

function fillMetricNames() {
  const select = byId("metric"), chosen = select.value;
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.metrics)))].sort();
  select.replaceChildren(...names.map((name) => {
    const option = element("option", "", name);
    option.value = name;
    return option;
  }));
  if (names.includes(chosen)) select.value = chosen;
}

// Everything that follows from the data but for what the theme draws again.
function fillAll() {
  byId("title").textContent = report.title + (runs.length === 1 ? ": " + runs[0].name : "");
  fillMetricNames();
  fillFacts();
  fillWarnings();
  fillRollouts();
  fillAccuracy();
  fillConfig();
}

Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
fillAll();
setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches);
byId("theme").addEventListener("click", () => setTheme(!isDark()));
byId("smoothing").addEventListener("change", drawAll);
byId("metric").addEventListener("change", drawAnyMetric);
byId("config-find").addEventListener("input", fillConfig);
// A page that follows a run (live_script) hands over new data in this way.
document.addEventListener("report-data", (event) => {
  report = event.detail;
  runs = report.runs;
  fillAll();
  drawAll();
  if (!document.activeElement || !document.activeElement.closest("#sample-filters")) fillSamples();
});
})();
)js";

// Asks the program for news; what it says reaches the page through textContent too.
const std::string_view kReportLiveScript = R"js("use strict";
(() => {
const status = document.getElementById("status");
let version = "";
const text = (news) => {
  const age = news.seconds_since_row < 0 ? "" :
      ", last rollout " + Math.round(news.seconds_since_row) + " s ago";
  return news.what + age;
};
async function ask() {
  try {
    const news = await (await fetch("status.json")).json();
    status.textContent = text(news);
    status.className = "badge good";
    if (news.version !== version) {
      const data = await (await fetch("data.json")).json();
      version = news.version;
      document.dispatchEvent(new CustomEvent("report-data", {detail: data}));
    }
  } catch (error) {
    status.textContent = "the run has ended or cannot be reached";
    status.className = "badge warn";
  }
  setTimeout(ask, 2000);
}
status.hidden = false;
ask();
})();
)js";

}  // namespace quatrain
