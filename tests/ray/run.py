#!/usr/bin/env python3
"""Submits examples/run-tiny-qwen3-moe-int4.sh to a real local Ray, and reads the run back with TensorBoard.

  run.py QUATRAIN     QUATRAIN is the program under test

Both live in a virtual environment of their own, .deps/ray, made on first use. RAY=1 makes it and runs the check;
RAY=auto does so too, but skips the check with a line where it cannot be made; RAY=0 skips it; unset it runs where it is
there already. Exit status 77: skipped.
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
from python_environment import PythonEnvironment  # noqa: E402


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    ray = PythonEnvironment("ray", HERE / "requirements.txt", 2e9)
    ray.provide("ray and tensorboard")
    sys.exit(subprocess.run([ray.python, str(HERE / "check_recipe.py"), sys.argv[1]], check=False).returncode)


if __name__ == "__main__":
    main()
