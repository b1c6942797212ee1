#!/usr/bin/env python3
"""C++ sources are laid out by clang-format, one pinned version. With --fix, lays them out."""

import concurrent.futures
import os
import subprocess
import sys

import source_tree

CLANG_FORMAT = source_tree.ROOT / ".deps/clang-format/bin/clang-format"
BATCH = 8  # files a process: large enough to amortise its start, small enough to keep all cores busy


def _run(paths, *flags):
    command = [str(CLANG_FORMAT), "--style=file", *flags, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _unformatted(paths):
    """Those of the files that clang-format would change, with the first line it would touch."""
    first_lines = {}
    for line in _run(paths, "--dry-run", "-Werror").stderr.splitlines():
        name, _, rest = line.partition(":")
        number, _, message = rest.partition(":")
        if "error: code should be clang-formatted" in message and number.isdigit():
            first_lines.setdefault(name, int(number))
    return first_lines


def _map_batches(function, paths):
    batches = [paths[start : start + BATCH] for start in range(0, len(paths), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, batches))


def check(root=source_tree.ROOT):
    problems = []
    for first_lines in _map_batches(_unformatted, source_tree.cpp_files(root)):
        for name, number in first_lines.items():
            place = os.path.relpath(name, root)
            problems.append(f"{place}:{number}: not as clang-format lays it out; `make format` mends it")
    return problems


def fix(root=source_tree.ROOT):
    _map_batches(lambda paths: _run(paths, "-i"), source_tree.cpp_files(root))


def main():
    if not CLANG_FORMAT.is_file():
        sys.exit(f"format: {CLANG_FORMAT} is missing. Run tools/setup.sh first.")
    if sys.argv[1:] == ["--fix"]:
        fix()
    else:
        sys.exit(source_tree.report("format", check()))


if __name__ == "__main__":
    main()
