#!/usr/bin/env bash
# The static checks, all of them even when one fails; some seconds.
set -u
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1

failed=()
run() {
  python3 "tools/$1" "${@:2}" || failed+=("tools/$1")
}

run presubmit_test.py --quiet --buffer
run check_includes.py
run check_budgets.py
run check_docs.py
run check_text.py
run check_format.py

if ((${#failed[@]})); then
  echo "presubmit: failed: ${failed[*]}" >&2
  exit 1
fi
echo "presubmit: passed"
