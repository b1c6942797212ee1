"""Table of the runs that tools/ablation.sh wrote: python3 tools/ablation_table.py FOLDER [--last N].

One row a run, then one a cell with the mean and the standard deviation over its seeds. Reward: mean of
rollout/raw_reward over the last N rollouts (50); eval: the first and the last evaluation of the run, per
cent; difference: mean over all rollouts of train/train_rollout_logprob_abs_diff; flips: mean
train/code_flip_rate. A dash: the run has no such number.
"""
import argparse
import collections
import json
import pathlib
import re
import statistics
import sys

COLUMNS = ("rollouts", "reward", "eval start", "eval end", "difference", "flips")
FORMATS = ("{:.0f}", "{:.3f}", "{:.1f}", "{:.1f}", "{:.2g}", "{:.2g}")


def mean(values):
    return statistics.fmean(values) if values else None


def of_key(rows, key):
    return [row[key] for row in rows if isinstance(row.get(key), (int, float))]


def summary(path, last):
    """The columns of one run, in the order of COLUMNS."""
    rows = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that is being written
        # A rollout that was repeated after a resume counts once. Row 0 is the evaluation of the start.
        rows[row.get("rollout", len(rows))] = row
    rows = [rows[key] for key in sorted(rows)]
    names = {key for row in rows for key in row if re.fullmatch("eval/[^/]+", key)}
    evals = [100 * value for value in of_key(rows, min(names))] if names else []
    rewards = of_key(rows, "rollout/raw_reward")
    return (len(rewards), mean(rewards[-last:]), evals[0] if evals else None, evals[-1] if evals else None,
            mean(of_key(rows, "train/train_rollout_logprob_abs_diff")), mean(of_key(rows, "train/code_flip_rate")))


def cell_of(run):
    """A run's name without its seed."""
    return re.sub("-s[0-9]+$", "", run)


def text(column, values):
    """One value, or mean and standard deviation over seeds."""
    values = [value for value in values if value is not None]
    if not values:
        return "-"
    shown = FORMATS[column].format(mean(values))
    if len(values) > 1 and column > 0:
        shown += " +- " + FORMATS[column].format(statistics.stdev(values))
    return shown


def table(runs):
    """Markdown of {name: columns}."""
    lines = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    cells = collections.defaultdict(list)
    for name in sorted(runs):
        cells[cell_of(name)].append(runs[name])
        lines.append(f"| {name} | " + " | ".join(text(i, [v]) for i, v in enumerate(runs[name])) + " |")
    for name, members in sorted(cells.items()):
        if len(members) < 2:
            continue
        columns = [text(i, [run[i] for run in members]) for i in range(len(COLUMNS))]
        lines.append(f"| **{name}, {len(members)} seeds** | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--last", type=int, default=50)
    args = parser.parse_args()
    runs = {path.parent.name: summary(path, args.last) for path in sorted(args.folder.glob("*/metrics.jsonl"))}
    if not runs:
        sys.exit(f"ablation_table.py: no */metrics.jsonl in {args.folder}")
    print(table(runs))


if __name__ == "__main__":
    main()
