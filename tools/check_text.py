#!/usr/bin/env python3
"""Text files are ASCII and finished: no unfinished-work marks in sources.

Others' bytes stay as they are: tests/goldens, examples, patches of third-party files, and whatever holds a NUL.
"""

import re
import sys

import source_tree

DATA = ("tests/goldens/", "examples/", "cmake/patches/jinja-")
SOURCE_SUFFIXES = source_tree.CPP_SUFFIXES | {".py", ".sh", ".cmake"}
MARK = re.compile(rb"\b(TO" rb"DO|FIX" rb"ME|X" rb"XX)\b")


def check_bytes(name, content):
    """Yields the problems of one file. `name` is its path from the root."""
    if name.startswith(DATA) or b"\0" in content:
        return
    is_source = name.endswith(tuple(SOURCE_SUFFIXES))
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.isascii():
            column = next(n for n, byte in enumerate(line, 1) if byte > 127)
            yield f"{name}:{number}:{column}: not ASCII; write an escape or plain words"
        if is_source and (mark := MARK.search(line)):
            yield f"{name}:{number}: {mark[0].decode()}: finish it, or file an issue and name it"


def check(root=source_tree.ROOT):
    problems = []
    for path in source_tree.files(root):
        problems += check_bytes(path.relative_to(root).as_posix(), path.read_bytes())
    return problems


if __name__ == "__main__":
    sys.exit(source_tree.report("text", check()))
