#!/usr/bin/env python3
"""Checks quatrain's outputs with the programs that read them: transformers and compressed-tensors.

  run.py QUATRAIN     QUATRAIN is the program under test

They live in a virtual environment of their own, .deps/peers, which takes about 5 GB and is made on first use.
PEERS=1 makes it and runs the check; PEERS=auto does so too, but skips the check with a line where it cannot be made (no
network, no room); PEERS=0 skips it; unset it runs where it is there already. Exit status 77: skipped.
"""

import os
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
    peers = PythonEnvironment("peers", HERE / "requirements.txt", 8e9)
    peers.provide("transformers and compressed-tensors (5 GB of disk)")
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
                       CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    check = [peers.python, str(HERE / "check_outputs.py"), sys.argv[1]]
    sys.exit(subprocess.run(check, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
