#!/usr/bin/env bash
# The static checks, well under a minute. With --format, clang-format rewrites the sources instead.
set -u
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

clang_format=.deps/clang-format/bin/clang-format
[[ -x $clang_format ]] || {
  echo "presubmit: $clang_format is missing. Run tools/setup.sh first." >&2
  exit 1
}

# Runs clang-format with the given flags on every source file, on all cores.
format() {
  python3 -c 'import sys; sys.path.insert(0, "tools"); import source_tree
print(*source_tree.cpp_files(), sep="\0", end="")' |
    xargs --null --no-run-if-empty --max-args=8 --max-procs="$(nproc)" "$clang_format" --style=file "$@"
}

if [[ ${1:-} == --format ]]; then
  format -i
  exit
fi

failed=()
check() {
  local name=$1
  shift
  "$@" || failed+=("$name")
}

# One line a file that clang-format would change; `make format` shows the rest.
check_format() {
  format --dry-run -Werror 2>&1 |
    sed -nE "s|^$PWD/(.*):([0-9]+):[0-9]+: error: .*|\1|p" | sort | uniq -c |
    awk '{ print "format: " $2 ": " $1 " places; `make format` mends them"; bad = 1 } END { exit bad }'
}

check "checks' own tests" python3 tools/presubmit_test.py --quiet --buffer
check includes python3 tools/check_includes.py
check budgets python3 tools/check_budgets.py
check docs python3 tools/check_docs.py
check text python3 tools/check_text.py
check format check_format

if ((${#failed[@]})); then
  printf 'presubmit: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "presubmit: passed"
