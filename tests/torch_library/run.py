#!/usr/bin/env python3
"""Checks the operators of torch.ops.quatrain from Python, under torch.compile too, and the example that trains with them.

  run.py LIBRARY            LIBRARY is quatrain_torch.so; on the CPU, in the environment of tests/peers
  run.py LIBRARY cuda       with the Python that runs this script, on its CUDA device too

Exit status 77: skipped (see tests/python_environment.py for PEERS).
"""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
from python_environment import PythonEnvironment  # noqa: E402


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    library, device = sys.argv[1], sys.argv[2] if len(sys.argv) == 3 else "cpu"
    python, environment = sys.executable, dict(os.environ)
    if device == "cpu":
        peers = PythonEnvironment("peers", ROOT / "tests" / "peers" / "requirements.txt", 8e9)
        peers.provide("torch (5 GB of disk)")
        python = peers.python
        environment["CUDA_VISIBLE_DEVICES"] = ""
    for script in (HERE / "check_operators.py", HERE / "check_compile.py", ROOT / "examples" / "torch_training.py"):
        command = [python, str(script), library, device]
        status = subprocess.run(command, env=environment, check=False).returncode
        if status != 0:
            sys.exit(status)


if __name__ == "__main__":
    main()
