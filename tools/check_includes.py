#!/usr/bin/env python3
"""Holds every file under src/ to the ranks of the folders.

A file includes its own folder and folders of strictly lower rank; two folders of one rank never meet. The folders
named as dependencies in src/CMakeLists.txt keep to the same ranks. Folders without torch include no torch header.
"""

import re
import sys

import source_tree

RANKS = {
    "base": 0,
    "kernels": 1,
    "ops": 2,
    "quant": 3,
    "io": 3,
    "text": 3,
    "parallel": 3,
    "models": 4,
    "calibrate": 5,
    "engine": 5,
    "train": 5,
    "rl": 6,
    "server": 6,
    "report": 6,
    "torch_library": 6,
    "cli": 7,
}
TORCH_FREE = {"base", "kernels", "text", "io", "server"}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|caffe2)/")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
CMAKE_FOLDER = re.compile(r"^quatrain_folder\(([^)]*)\)", re.MULTILINE)


def may_use(folder, other):
    return other == folder or RANKS[other] < RANKS[folder]


def check_file(path, source_root):
    """Yields the problems of one file."""
    relative = path.relative_to(source_root)
    place = f"src/{relative}"
    folder = relative.parts[0]
    if len(relative.parts) == 1 or folder not in RANKS:
        yield f"{place}: not in a folder with a rank ({', '.join(RANKS)})"
        return
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        name = match[2]
        if folder in TORCH_FREE and TORCH_HEADER.match(name):
            yield f"{place}:{number}: {folder} must not include torch headers, found {name}"
        other = name.split("/")[0]
        if match[1] == '"' and "/" not in name:
            yield f'{place}:{number}: "{name}" is written from src/: "{folder}/{name}"'
        elif match[1] == '"' and other in RANKS and not may_use(folder, other):
            yield (
                f"{place}:{number}: {folder} (rank {RANKS[folder]}) must not include {name} "
                f"(rank {RANKS[other]}): own folder and lower ranks only"
            )


def check_cmake(text):
    """Yields the problems of src/CMakeLists.txt."""
    for match in CMAKE_FOLDER.finditer(text):
        folder, *words = match[1].split()
        if folder not in RANKS:
            yield f"src/CMakeLists.txt: folder {folder} has no rank"
            continue
        for word in words:
            if word in RANKS and (word == folder or not may_use(folder, word)):
                yield f"src/CMakeLists.txt: {folder} must not depend on {word}: lower ranks only"


def check(root=source_tree.ROOT):
    source_root = root / "src"
    problems = []
    for path in source_tree.cpp_files(root):
        if source_root in path.parents:
            problems += check_file(path, source_root)
    cmake = source_root / "CMakeLists.txt"
    if cmake.is_file():
        problems += check_cmake(cmake.read_text())
    return problems


if __name__ == "__main__":
    sys.exit(source_tree.report("includes", check()))
