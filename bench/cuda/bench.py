#!/usr/bin/env python3
"""All measurements of the device kernels, as rows, and the table of what they shall reach.

    python3 bench/cuda/bench.py BUILD_DIR [part ...] > rows.jsonl
    python3 bench/cuda/bench.py --table bench/results/h100/*.jsonl

A part is a file or one section of it: kernels, kernels.adamw, logits.sample, latent.decode, moe.decode,
codes.gradients, linear, linear.int4, swiglu, limits. Without a part: everything but the sweeps of plans. BUILD_DIR holds
libquatrain_kernels_gpu.so (the kernels and kernels_for_python.cu), bench_linear_decode, bench_linear_swiglu and
measure_limits; the head comments of their sources say how they are built. Needs torch with CUDA for kernels, logits,
latent, moe and codes. Every row names device, date, commit and command;
QT_COMMIT names the commit where there is no git. A part that fails leaves an error row, and the status is 1.
"""

import ctypes
import datetime
import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import aims  # noqa: E402

PROGRAMS = {"linear": "bench_linear_decode", "swiglu": "bench_linear_swiglu", "limits": "measure_limits"}
# Modules with SECTIONS, and those sections that run only when named.
MODULES = {"kernels": "bench_kernels", "logits": "bench_logits", "latent": "bench_latent", "moe": "bench_moe",
           "codes": "bench_codes"}
ONLY_NAMED = {"moe.plans"}


def commit():
    if "QT_COMMIT" in os.environ:
        return os.environ["QT_COMMIT"]
    return subprocess.run(["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], check=True, capture_output=True,
                          text=True).stdout.strip()


def device():
    names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], check=True,
                           capture_output=True, text=True).stdout
    return names.splitlines()[0]


def tags(part):
    return {"device": device(), "date": datetime.date.today().isoformat(), "commit": commit(),
            "command": f"python3 bench/cuda/bench.py BUILD_DIR {part}"}


def emit(row):
    print(json.dumps(row), flush=True)


def run_program(build, part, of_part):
    """Rows of a program; its argument is the section."""
    name, _, section = part.partition(".")
    command = [str(build / PROGRAMS[name])] + ([section] if section else [])
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    for line in result.stdout.splitlines():
        if line.startswith("{"):
            emit({**of_part, **json.loads(line)})


def run_module(build, part, of_part):
    """Rows of a module's sections."""
    import torch  # pylint: disable=import-outside-toplevel

    import bench_kernels  # pylint: disable=import-outside-toplevel

    if bench_kernels.LIB is None:
        bench_kernels.LIB = ctypes.CDLL(str((build / "libquatrain_kernels_gpu.so").resolve()))
        torch.manual_seed(0)
    name, _, section = part.partition(".")
    sections = __import__(MODULES[name]).SECTIONS
    if section:
        chosen = [section]
    else:
        chosen = [s for s in sections if f"{name}.{s}" not in ONLY_NAMED]
    for each in chosen:
        bench_kernels.TAGS = {**of_part, "command": of_part["command"].rsplit(" ", 1)[0] + f" {name}.{each}"}
        sections[each]()
        torch.cuda.empty_cache()


def main():
    arguments = sys.argv[1:]
    if len(arguments) >= 2 and arguments[0] == "--table":
        print("\n".join(aims.table(aims.read_rows(arguments[1:]))))
        return 0
    if not arguments or arguments[0].startswith("-"):
        sys.exit(__doc__)
    build, failed = pathlib.Path(arguments[0]), False
    for part in arguments[1:] or [*MODULES, *PROGRAMS]:
        of_part = tags(part)
        try:
            run = run_program if part.partition(".")[0] in PROGRAMS else run_module
            run(build, part, of_part)
        except Exception as error:  # one part's failure leaves the others their rows
            failed = True
            emit({**of_part, "section": part, "error": str(error)[:300]})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
