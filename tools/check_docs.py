#!/usr/bin/env python3
"""Every path that the documentation names exists.

Checked in *.md: targets of relative links and images, and words in backticks or code blocks that start with an
entry of the root (`tools/setup.sh`) or, with a source suffix, a folder of src/ (`kernels/int4.h`). Checked in
source comments: names of pages under docs/.
"""

import pathlib
import re
import sys

import source_tree

LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)(?:\s+\"[^\"]*\")?\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
PATH = re.compile(r"(?<![\w./<>*$-])[\w.*-]+(?:/[\w.*-]+)+/?(?![\w/<{$])|(?<![\w./-])[\w-]+\.md\b")
DOCS_PAGE = re.compile(r"\bdocs/[\w./-]+?\.md\b")
GENERATED = source_tree.GENERATED | {"shared"}
SOURCE_SUFFIXES = source_tree.CPP_SUFFIXES
# Scripts of Miles and slime that the README's table of equivalents names.
FOREIGN = {"tools/convert_hf_to_int4.py", "tools/convert_hf_to_int4_direct.py"}
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:|#")


def exists(name, *folders):
    """Whether a path or pattern matches something below one of the folders."""
    name = name.rstrip("/")
    return any(any(folder.glob(name)) if "*" in name else (folder / name).exists() for folder in folders)


def is_ours(name, root):
    """Whether a word is meant as a path of this repository."""
    path = pathlib.PurePosixPath(name)
    first = path.parts[0]
    if first in GENERATED or name in FOREIGN:
        return False
    if len(path.parts) == 1:
        return path.suffix == ".md"
    return (root / first).exists() or ((root / "src" / first).is_dir() and path.suffix in SOURCE_SUFFIXES)


def check_markdown(path, root):
    """Yields the problems of one page."""
    text = path.read_text(errors="replace")
    place = path.relative_to(root).as_posix()
    for match in LINK.finditer(CODE.sub("", text)):
        target = match[1].split("#")[0]
        if target and not EXTERNAL.match(match[1]) and not (path.parent / target).exists():
            yield f"{place}: link to {match[1]}, which does not exist"
    for code in CODE.finditer(text):
        for match in PATH.finditer(code[0]):
            name = match[0].rstrip(".")
            if is_ours(name, root) and not exists(name, root, root / "src", path.parent):
                yield f"{place}: names {name}, which does not exist"


def check_source(path, root):
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        for match in DOCS_PAGE.finditer(line):
            if not (root / match[0]).is_file():
                yield f"{path.relative_to(root).as_posix()}:{number}: names {match[0]}, which does not exist"


def check(root=source_tree.ROOT):
    problems = []
    for path in source_tree.files(root):
        if path.suffix == ".md":
            problems += check_markdown(path, root)
        elif path.suffix in SOURCE_SUFFIXES:
            problems += check_source(path, root)
    return problems


if __name__ == "__main__":
    sys.exit(source_tree.report("docs", check()))
