#!/usr/bin/env python3
"""A long run, killed in the middle and resumed, beside the same run left alone: bits and memory.

  tools/soak.py QUATRAIN [--rollouts 200] [--out runs/soak]     OUT must not exist

Both train tiny-qwen3-moe on the same INT4 codes (g32, 8 x 4 samples of at most 96 tokens, one thread). The second is killed
by SIGKILL once half of its rollouts are done and goes on from its last checkpoint. Prints which files of the last checkpoint
and which rows are equal bit for bit (exit status 1 if any is not) and, by quarters, the resident memory of the first.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "models" / "tiny-qwen3-moe"
PROMPTS = ROOT / "examples" / "data" / "arithmetic" / "train.jsonl"
COMPARED = ("bf16/model.safetensors", "int4/model.safetensors", "state/model.safetensors")
# What a clock says, and what is said once a start.
UNEQUAL = ("perf/", "memory/")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quatrain")
    parser.add_argument("--rollouts", type=int, default=200)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/soak"))
    args = parser.parse_args()
    if args.out.exists():
        parser.error(f"{args.out} exists")
    return args


def start(args, name, *more):
    """Starts `quatrain train` into OUT/name."""
    environment = dict(os.environ, OPEN_TRAINING_INT4_FAKE_QAT_FLAG="1", OPEN_TRAINING_INT4_GROUP_SIZE="32")
    command = [args.quatrain, "train", "--hf-checkpoint", args.out / "int4", "--ref-load", MODEL, "--save", args.out / name,
               "--prompt-data", PROMPTS, "--input-key", "prompt", "--label-key", "label", "--apply-chat-template",
               "--rollout-shuffle", "--rollout-batch-size", 8, "--n-samples-per-prompt", 4, "--rollout-max-response-len", 96,
               "--rollout-temperature", 0.8, "--eps-clip-high", 0.28, "--use-tis", "--lr", 3e-5, "--weight-decay", 0.1,
               "--adam-beta2", 0.98, "--use-dynamic-batch-size", "--num-rollout", args.rollouts, "--save-interval",
               max(1, args.rollouts // 10), "--keep-last-n", 2, "--threads", 1, *more]
    with open(args.out / f"{name}.log", "a") as log:
        return subprocess.Popen([str(part) for part in command], env=environment, stdout=log, stderr=log)


def finish(process, log):
    if process.wait() != 0:
        sys.exit(f"soak.py: quatrain train ended with status {process.returncode}; see {log}")


def rows_of(run):
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def num_rows(run):
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def numbers(row):
    return {key: value for key, value in row.items() if not key.startswith(UNEQUAL)}


def train_killed_in_the_middle(args):
    """Returns the number of rollouts that the killed process had finished."""
    half = args.rollouts // 2
    process = start(args, "resumed")
    while process.poll() is None and num_rows(args.out / "resumed") < half:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = num_rows(args.out / "resumed")
    finish(start(args, "resumed", "--load", args.out / "resumed"), args.out / "resumed.log")
    return done


def is_equal(args):
    """Prints what was compared."""
    whole, resumed = args.out / "whole", args.out / "resumed"
    last = f"iter_{args.rollouts:07}"
    verdicts = {name: (whole / last / name).read_bytes() == (resumed / last / name).read_bytes() for name in COMPARED}
    pairs = list(zip(rows_of(whole), rows_of(resumed), strict=True))
    verdicts[f"{len(pairs)} rows of metrics.jsonl"] = all(numbers(a) == numbers(b) for a, b in pairs)
    for name, verdict in verdicts.items():
        print(f"{name}: {'equal' if verdict else 'NOT EQUAL'}")
    return all(verdicts.values())


def memory_table(rows):
    """Markdown of perf/resident_bytes by quarters, in MB."""
    lines = ["| rollouts | least | median | most |", "|---|---|---|---|"]
    size = len(rows) // 4
    for quarter in range(4):
        values = [row["perf/resident_bytes"] / 1e6 for row in rows[quarter * size:(quarter + 1) * size]]
        shown = " | ".join(f"{value:.1f}" for value in (min(values), statistics.median(values), max(values)))
        lines.append(f"| {quarter * size + 1}-{(quarter + 1) * size} | {shown} |")
    return "\n".join(lines)


def main():
    args = parse()
    if args.rollouts < 4:
        sys.exit("soak.py: --rollouts must be 4 at least")
    args.out.mkdir(parents=True)
    subprocess.run([args.quatrain, "convert", "--method", "rtn", "--quant-type", "W4A16", "--quant-group-size", "32",
                    "--input-dir", str(MODEL), "--output-dir", str(args.out / "int4")], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finish(start(args, "whole"), args.out / "whole.log")
    killed_after = train_killed_in_the_middle(args)
    print(f"killed after {killed_after} of {args.rollouts} rollouts and resumed; iter_{args.rollouts:07}:")
    equal = is_equal(args)
    print(memory_table(rows_of(args.out / "whole")))
    sys.exit(0 if equal else 1)


if __name__ == "__main__":
    main()
