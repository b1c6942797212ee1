#!/usr/bin/env python3
"""Checks quatrain's outputs with the programs that read them: transformers and compressed-tensors, and the config parsers
of vLLM and SGLang.

  run.py QUATRAIN     QUATRAIN is the program under test

They live in a virtual environment of their own, .deps/peers, which takes about 5 GB and is made on first use.
PEERS=1 makes it and runs the check; PEERS=auto does so too, but skips the check with a line where it cannot be made (no
network, no room); PEERS=0 skips it; unset it runs where it is there already. Exit status 77: skipped.
"""

import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(HERE.parent))
from python_environment import INSTALL_SECONDS, PythonEnvironment  # noqa: E402


def provide_engines(peers):
    """Their folder, or None. Without dependencies but for what their parsers import (engines.txt)."""
    folder, requirements = peers.folder / "engines", HERE / "engines.txt"
    stamp = folder / ".stamp"
    if stamp.is_file() and stamp.read_text() == requirements.read_text():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--python", peers.python, "install", "--quiet", "--no-cache-dir", "--no-compile",
               "--disable-pip-version-check", "--no-deps", "--target", str(folder), "--requirement", str(requirements)]
    try:
        failed = subprocess.run(command, check=False, timeout=INSTALL_SECONDS).returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        print("engines: skipped: vLLM's and SGLang's packages cannot be installed", flush=True)
        return None
    stamp.write_text(requirements.read_text())
    return folder


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    peers = PythonEnvironment("peers", HERE / "requirements.txt", 8e9)
    peers.provide("transformers and compressed-tensors (5 GB of disk)")
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
                       CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    check = [peers.python, str(HERE / "check_outputs.py"), sys.argv[1]]
    status = subprocess.run(check, env=environment, check=False).returncode
    engines = provide_engines(peers)
    if engines is not None:
        environment["PYTHONPATH"] = str(engines)
        check[1] = str(HERE / "check_engines.py")
        status = subprocess.run(check, env=environment, check=False).returncode or status
    sys.exit(status)


if __name__ == "__main__":
    main()
