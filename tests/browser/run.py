#!/usr/bin/env python3
"""Opens the pages of convert, train, report and the live dashboard in a real browser without a window.

  run.py QUATRAIN [FOLDER]     QUATRAIN is the program under test; screenshots go to FOLDER [a temporary one]

BROWSER_TEST=1 demands a browser, BROWSER_TEST=0 skips; unset or auto it runs where chromium (or what CHROMIUM names) is
installed: `apt-get install chromium`. Exit status 77: skipped.
"""

import json
import math
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from checks import check, finish  # noqa: E402
from devtools import Browser  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BASE = ROOT / "examples" / "models" / "tiny-qwen3-moe"
DATA = ROOT / "examples" / "data"
SKIPPED = 77
QAT = dict(os.environ, OPEN_TRAINING_INT4_FAKE_QAT_FLAG="1", OPEN_TRAINING_INT4_GROUP_SIZE="32")


def find_browser():
    wish = os.environ.get("BROWSER_TEST", "auto")
    if wish not in ("0", "1", "auto"):
        sys.exit(f"BROWSER_TEST={wish}: expected 0, 1 or auto")
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for path in (name and shutil.which(name) for name in names) if path), None)
    if wish == "1" and not found:
        sys.exit("browser: no chromium found; apt-get install chromium, or name it in CHROMIUM")
    if wish == "0" or not found:
        print("browser: skipped: no chromium (apt-get install chromium)", flush=True)
        sys.exit(SKIPPED)
    return found


def quatrain(program, *arguments):
    result = subprocess.run([program, *map(str, arguments)], check=False, text=True, env=QAT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode != 0:
        sys.exit(f"browser: quatrain {arguments[0]} failed:\n{result.stdout[-3000:]}")
    return result.stdout


def train_arguments(work, num_rollout):
    return ["train", "--hf-checkpoint", work / "int4", "--ref-load", BASE, "--save", work / "run", "--prompt-data",
            DATA / "arithmetic" / "train.jsonl", "--input-key", "prompt", "--label-key", "label", "--apply-chat-template",
            "--rollout-batch-size", "4", "--n-samples-per-prompt", "4", "--rollout-max-response-len", "96",
            "--lr", "1e-4", "--use-tis", "--use-dynamic-batch-size", "--num-rollout", num_rollout]


def make_sick_run(folder):
    """A run of 60 rollouts in which everything that a page warns of is wrong."""
    folder.mkdir()
    draw = random.Random(7)
    with open(folder / "metrics.jsonl", "w") as metrics:
        for rollout in range(1, 61):
            row = {"rollout": rollout, "rollout/raw_reward": 0.0 if rollout == 13 else 0.6 + 0.1 * math.sin(rollout / 9),
                   "rollout/num_correct": 160, "rollout/num_wrong": 80, "rollout/num_no_answer": 16,
                   "rollout/num_unparsable": 0, "rollout/zero_std/count_0": 2, "rollout/zero_std/count_1": 20,
                   "rollout/truncated_ratio": 0.3, "rollout/response_len/mean": 90 + draw.random(),
                   "train/entropy_loss": 0.5 * math.exp(-rollout / 15), "train/grad_norm": draw.random(),
                   "train/train_rollout_logprob_abs_diff": 0.004 * draw.random(), "train/code_flip_rate": 3e-4,
                   "train/code_flip_back_rate": 5e-5 * draw.random(), "train/scale_change_rate": 0.02,
                   "perf/step_time": 600.0 if rollout == 40 else 20 + draw.random(), "perf/rollout_time": 12.0,
                   "perf/actor_train_time": 6.0, "perf/optimizer_time": 1.0,
                   "perf/resident_bytes": 2e9 + 3e7 * rollout, "perf/peak_resident_bytes": 4e9,
                   "perf/disk_free_bytes": 1e11 - 1.6e9 * rollout}
            for bin_index in range(10):
                row[f"train/boundary_distance/{0.05 * bin_index:.2f}"] = 0.1 + 0.02 * math.sin(bin_index + rollout / 20)
            for layer in range(12):
                row[f"qat/code_flip_rate/layer_{layer}"] = 3e-4 * (1 + math.sin(layer + rollout / 10)) * draw.random()
            metrics.write(json.dumps(row) + "\n")
    (folder / "config.json").write_text(json.dumps({"rollout-batch-size": "32", "num-rollout": "200"}))
    hostile = "</script><img src=x onerror=window.hacked=1>"
    words = ["The", " sum", " is", " 12", ".", "\n", hostile, " \u2713"]
    with open(folder / "samples.jsonl", "w") as samples:
        for rollout in range(1, 61):
            logprobs = [-3 * draw.random() ** 3 for _ in words]
            samples.write(json.dumps({
                "rollout": rollout, "prompt": "What is 5 + 7?", "response": "".join(words), "label": "12",
                "reward": rollout % 2, "verdict": ["wrong", "correct"][rollout % 2], "advantage": [-1.3, 0.7][rollout % 2],
                "truncated": rollout % 5 == 0, "tokens": words, "rollout_logprobs": logprobs,
                "logprob_differences": [0.0 if i < 4 else 0.02 * draw.gauss(0, 1) for i in range(len(words))]}) + "\n")


def check_quiet(page, name, prefix):
    check(page.complaints() == [], f"{name}: no script error, nothing blocked", page.complaints())
    foreign = [url for url in page.requests() if not url.startswith((prefix, "data:", "blob:"))]
    check(foreign == [], f"{name}: nothing is fetched from elsewhere", foreign)


# Canvases on which something was drawn: not all of their pixels are equal.
DRAWN = """[...document.querySelectorAll('canvas')].map((canvas) => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return data.some((value) => value !== data[0]);
})"""


def check_conversion(browser, program, work, shots):
    quatrain(program, "convert", "--method", "gptq", "--quant-type", "W4A16", "--quant-group-size", "32", "--input-dir", BASE,
             "--output-dir", work / "int4", "--data-dir", DATA / "calibration", "--num-calibration-samples", "8",
             "--max-sequence-length", "128")
    url = (work / "int4" / "conversion_report.html").as_uri()
    page = browser.open(url)
    check(all(page.value(DRAWN)) and len(page.value(DRAWN)) >= 2, "conversion report: charts are drawn", page.value(DRAWN))
    check_quiet(page, "conversion report", "file:")
    page.value("document.getElementById('module-find').value = 'layers.1.mlp.experts.3'; "
               "document.getElementById('module-find').dispatchEvent(new Event('input'))")
    names = page.value("[...document.querySelectorAll('#module-table tbody tr')].map((row) => row.cells[0].textContent)")
    check(len(names) == 3 and all("layers.1.mlp.experts.3." in name for name in names), "conversion report: finds weights", names)
    page.screenshot(shots / "conversion.png")


def check_live(browser, program, work, shots):
    log_path = work / "train.out"
    with open(log_path, "wb") as log:
        train = subprocess.Popen([program, *map(str, train_arguments(work, 12)), "--dashboard-port", "0"], env=QAT,
                                 stdout=log, stderr=subprocess.STDOUT)
    url = None
    while url is None and train.poll() is None:
        url = re.search(r"the run's page: (\S+)", log_path.read_text(errors="replace"))
        try:
            train.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            pass
    if url is None:
        sys.exit("browser: the run said no address:\n" + log_path.read_text()[-2000:])
    page = browser.open(url[1])
    page.wait_for("document.querySelectorAll('#rollout-table tr.link').length >= 2")
    check(True, "live page: rollouts appear while the run goes on")
    status = page.value("document.getElementById('status').textContent")
    check("rollout" in status, "live page: says what the run does", status)
    page.screenshot(shots / "live.png", whole=False)
    check_quiet(page, "live page", url[1])
    train.wait()
    page.wait_for("document.getElementById('status').textContent.includes('ended')")
    check(train.returncode == 0, "live page: the run ends well and the page says so", log_path.read_text()[-1500:])


def check_report(browser, program, work, shots):
    quatrain(program, "report", work / "run")
    page = browser.open((work / "run" / "report.html").as_uri())
    check(all(page.value(DRAWN)), "report: every chart is drawn", page.value(DRAWN))
    check(page.value("document.querySelectorAll('#facts .tile').length") >= 4, "report: headline facts")
    check("exactly 0" in page.value("document.getElementById('curve-grid').textContent"),
          "report: the difference is said to be exactly 0")
    tokens = page.value("document.querySelectorAll('.token').length")
    check(tokens > 50, "report: samples are shown token by token", tokens)
    check("trainer = rollout" in page.value("document.getElementById('sample-list').textContent"),
          "report: a sample says that trainer and rollout agree")
    check_quiet(page, "report", "file:")
    page.screenshot(shots / "report.png")
    dark = browser.open((work / "run" / "report.html").as_uri(), width=480, height=900, dark=True)
    check(dark.value("document.documentElement.scrollWidth <= window.innerWidth"), "report: fits a narrow window",
          dark.value("document.documentElement.scrollWidth"))
    dark.screenshot(shots / "report-dark-narrow.png")


PICK = """((label, value) => {
  const field = [...document.querySelectorAll('#sample-filters label')].find((l) => l.textContent.startsWith(label))
      .querySelector('select, input');
  field.value = value;
  field.dispatchEvent(new Event('change'));
})"""


def check_sick(browser, program, work, shots):
    make_sick_run(work / "sick")
    quatrain(program, "report", work / "sick", "--title", "A run with every fault")
    page = browser.open((work / "sick" / "report.html").as_uri())
    warnings = page.value("[...document.querySelectorAll('.warning h3')].map((h) => h.textContent)")
    expected = ["Rollouts without any reward", "The disk will be full", "Stalled steps", "are not one policy",
                "Most groups have no wrong answer", "cut off", "entropy has collapsed", "Memory grows"]
    check(all(any(part in title for title in warnings) for part in expected), "warnings: every fault is named", warnings)
    panel = page.value("document.getElementById('qat-grid').textContent")
    check("by layer" in panel and "Distance to a boundary" in panel and all(page.value(DRAWN)),
          "quantisation: layers and distances are drawn", panel)
    check(page.value("window.hacked") is None, "samples: what a model writes stays text")
    page.screenshot(shots / "sick.png")
    page.value(PICK + "('Verdict', 'wrong')")
    badges = page.value("[...document.querySelectorAll('.sample .badge')].map((b) => b.textContent)")
    check(badges and not any(badge.startswith("correct") for badge in badges), "samples: the filter keeps wrong ones", badges)
    colours = {}
    for mode in ("logprob", "difference", "advantage"):
        page.value(PICK + f"('Colour', '{mode}')")
        colours[mode] = page.value("[...document.querySelector('.tokens').children].map((t) => t.style.backgroundColor)")
        page.value("document.getElementById('samples').scrollIntoView({behavior: 'instant'})")
        page.screenshot(shots / f"tokens-{mode}.png", whole=False)
    check(len({tuple(value) for value in colours.values()}) == 3 and len(set(colours["advantage"])) == 1 and
          len(set(colours["logprob"])) > 3, "samples: three colourings, by token and by sample", colours)
    page.value("document.querySelectorAll('#rollout-table tr.link')[4].click()")
    only = page.value("[...document.querySelectorAll('.sample .badge')].filter((b) => b.textContent.startsWith('rollout '))"
                      ".map((b) => b.textContent)")
    check(set(only) == {"rollout 5"}, "rollouts: a click shows the samples of that row", only)
    check_quiet(page, "report with faults", "file:")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    chromium = find_browser()
    program = str(pathlib.Path(sys.argv[1]).resolve())
    work = pathlib.Path(tempfile.mkdtemp(prefix="qt-pages-"))
    shots = pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else work
    shots.mkdir(parents=True, exist_ok=True)
    try:
        with Browser(chromium) as browser:
            check_conversion(browser, program, work, shots)
            check_live(browser, program, work, shots)
            check_report(browser, program, work, shots)
            check_sick(browser, program, work, shots)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    finish("browser")


if __name__ == "__main__":
    main()
