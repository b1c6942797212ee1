#!/usr/bin/env python3
"""Checks quatrain's outputs with the programs that read them: transformers and compressed-tensors.

  run.py QUATRAIN     QUATRAIN is the program under test

They live in a virtual environment of their own, .deps/peers, which takes about 5 GB and is made on first use.
PEERS=1 makes it and runs the check; PEERS=auto does so too, but skips the check with a line where it cannot be made (no
network, no room); PEERS=0 skips it; unset it runs where it is there already. Exit status 77: skipped.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HERE = pathlib.Path(__file__).resolve().parent
VENV = ROOT / ".deps" / "peers"
SKIPPED = 77
INSTALL_SECONDS = 480


def skip(reason):
    print(f"peers: skipped: {reason}", flush=True)
    sys.exit(SKIPPED)


def is_wanted():
    wish = os.environ.get("PEERS", "")
    if wish not in ("", "0", "1", "auto"):
        sys.exit(f"PEERS={wish}: expected 0, 1 or auto")
    return wish in ("1", "auto") or (wish == "" and (VENV / ".stamp").is_file())


def give_up(reason):
    """Where the peers were asked for by name their absence is a failure, else the check is skipped."""
    if os.environ.get("PEERS") == "1":
        sys.exit(f"peers: {reason}")
    skip(reason)


def install():
    """Makes the environment unless it is there and made from the same requirements."""
    requirements = HERE / "requirements.txt"
    stamp = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp_path = VENV / ".stamp"
    if stamp_path.is_file() and stamp_path.read_text() == stamp:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    free = shutil.disk_usage(ROOT).free
    if free < 8e9:
        give_up(f"its environment needs 8 GB while it is made, {free / 1e9:.1f} GB are free")
    print("peers: installing transformers and compressed-tensors into .deps/peers (about 3 GB)", flush=True)
    # Debian's python3 has venv but not ensurepip; the pip at hand can install for another interpreter.
    commands = [
        [sys.executable, "-m", "venv", "--without-pip", str(VENV)],
        [sys.executable, "-m", "pip", "--python", str(VENV / "bin" / "python"), "install", "--quiet",
         "--no-cache-dir", "--no-compile", "--disable-pip-version-check", "--retries", "1", "--timeout", "20",
         "--requirement", str(requirements)],
    ]
    for command in commands:
        try:
            failed = subprocess.run(command, check=False, timeout=INSTALL_SECONDS).returncode != 0
        except subprocess.TimeoutExpired:
            failed = True
        if failed:
            shutil.rmtree(VENV, ignore_errors=True)
            give_up(f"{' '.join(command[1:4])} failed or took over {INSTALL_SECONDS} s (its message is above)")
    stamp_path.write_text(stamp)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if not is_wanted():
        skip("transformers and compressed-tensors are asked for with PEERS=1 (5 GB of disk)")
    install()
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false",
                       CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    check = [str(VENV / "bin" / "python"), str(HERE / "check_outputs.py"), sys.argv[1]]
    sys.exit(subprocess.run(check, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
