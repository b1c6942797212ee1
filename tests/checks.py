"""Checks of a test script: each is printed as it is made, and those that fail are counted."""

import sys

failures = []


def check(is_right, what, seen=""):
    print(f"  {'ok ' if is_right else 'BAD'} {what}", flush=True)
    if not is_right:
        failures.append(what)
        print(f"      seen: {seen}"[:3000], flush=True)


def finish(test):
    """Ends the script with status 1 if a check failed."""
    if failures:
        sys.exit(f"{test}: {len(failures)} of the checks failed: {'; '.join(failures)}")
    print(f"{test}: all checks passed", flush=True)
