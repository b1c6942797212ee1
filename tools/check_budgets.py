#!/usr/bin/env python3
"""Holds files and functions to a size that one can read, and the tree to a size that one can clone.

  C++      file 600 lines, function 60 (150 under src/kernels), 7 parameters; a header opens with a comment
  Python   file 400 lines, function 60, 7 parameters
  shell    file 400 lines
  tree     45 MiB

A comment `budget: reason` waives one: on the lines directly above a function, or, for the file's length, above the
file's first line of code.
"""

import ast
import re
import sys

import cpp_functions
import source_tree

MAX_CPP_LINES = 600
MAX_SCRIPT_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 150
MAX_PARAMETERS = 7
MAX_TREE_BYTES = 45 << 20

WAIVER = re.compile(r"(//|#)\s*budget:\s*\w.{9,}")
COMMENT = re.compile(r"\s*(//|#(?!\s*(include|pragma|if|define)))")


def is_waived(lines, first_line):
    """Whether the comment above (or on) line `first_line`, counted from 1, waives the budget."""
    if WAIVER.search(lines[first_line - 1]):
        return True
    index = first_line - 2
    while index >= 0 and COMMENT.match(lines[index]):
        if WAIVER.search(lines[index]):
            return True
        index -= 1
    return False


def is_file_waived(lines):
    first_code = next((n for n, line in enumerate(lines, 1) if line.strip() and not COMMENT.match(line)), 1)
    return is_waived(lines, first_code)


def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = node.args
            count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
            yield cpp_functions.Function(node.name, node.lineno, node.end_lineno, count, True)


def check_text(name, text):
    """Yields the problems of one file. `name` is its path from the root."""
    lines = text.splitlines()
    is_cpp = name.endswith(tuple(source_tree.CPP_SUFFIXES))
    max_lines = MAX_CPP_LINES if is_cpp else MAX_SCRIPT_LINES
    if len(lines) > max_lines and not is_file_waived(lines):
        yield f"{name}: {len(lines)} lines, at most {max_lines}: split it by what its parts answer"
    if name.endswith(".h") and not text.startswith("//"):
        yield f"{name}:1: a header opens with a comment that says what it is for"
    found = []
    if is_cpp:
        found = cpp_functions.functions(text)
    elif name.endswith(".py"):
        found = python_functions(text)
    max_function = MAX_KERNEL_LINES if name.startswith("src/kernels/") else MAX_FUNCTION_LINES
    for function in found:
        place = f"{name}:{function.first_line}: {function.name}"
        if is_waived(lines, function.first_line):
            continue
        if function.is_definition and function.num_lines > max_function:
            yield f"{place} has {function.num_lines} lines, at most {max_function}"
        if function.num_parameters > MAX_PARAMETERS:
            yield f"{place} takes {function.num_parameters} parameters, at most {MAX_PARAMETERS}: make a struct"


def check(root=source_tree.ROOT):
    problems = []
    total_bytes = 0
    for path in source_tree.files(root):
        total_bytes += path.stat().st_size
        if path.suffix in source_tree.CPP_SUFFIXES | {".py", ".sh"}:
            problems += check_text(path.relative_to(root).as_posix(), path.read_text(errors="replace"))
    if total_bytes > MAX_TREE_BYTES:
        problems.append(f"the tree holds {total_bytes / 2**20:.1f} MiB, at most {MAX_TREE_BYTES >> 20}")
    return problems


if __name__ == "__main__":
    sys.exit(source_tree.report("budgets", check()))
