"""A Python environment that one test needs and nothing else may: a folder of .deps, made on first use.

A variable of the test's name in capitals says what to do: 1 makes the environment and runs the test; auto does so too, but
skips the test with a line where it cannot be made (no network, no room); 0 skips it; unset it runs where the environment is
there already.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SKIPPED = 77  # the exit status that CTest takes for "skipped"
INSTALL_SECONDS = 480


class PythonEnvironment:
    def __init__(self, name, requirements, free_bytes):
        self.name, self.requirements, self.free_bytes = name, requirements, free_bytes
        self.folder = ROOT / ".deps" / name
        self.python = str(self.folder / "bin" / "python")
        self.wish = os.environ.get(name.upper(), "")
        if self.wish not in ("", "0", "1", "auto"):
            sys.exit(f"{name.upper()}={self.wish}: expected 0, 1 or auto")

    def skip(self, reason):
        print(f"{self.name}: skipped: {reason}", flush=True)
        sys.exit(SKIPPED)

    def give_up(self, reason):
        """Where the test was asked for by name this is a failure, else it is skipped."""
        if self.wish == "1":
            sys.exit(f"{self.name}: {reason}")
        self.skip(reason)

    def provide(self, what):
        """Makes the environment unless it is there and made from the same requirements. `what` it holds, in words."""
        stamp_path = self.folder / ".stamp"
        if self.wish == "0" or (self.wish == "" and not stamp_path.is_file()):
            self.skip(f"{what}: asked for with {self.name.upper()}=1")
        stamp = hashlib.sha256(self.requirements.read_bytes() + sys.version.encode()).hexdigest()
        if stamp_path.is_file() and stamp_path.read_text() == stamp:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        free = shutil.disk_usage(ROOT).free
        if free < self.free_bytes:
            self.give_up(f"its environment needs {self.free_bytes / 1e9:.0f} GB while it is made, {free / 1e9:.1f} GB are free")
        print(f"{self.name}: installing {what} into .deps/{self.name}", flush=True)
        # Debian's python3 has venv but not ensurepip; the pip at hand can install for another interpreter.
        commands = [
            [sys.executable, "-m", "venv", "--without-pip", str(self.folder)],
            [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet", "--no-cache-dir", "--no-compile",
             "--disable-pip-version-check", "--retries", "1", "--timeout", "20", "--requirement", str(self.requirements)],
        ]
        for command in commands:
            try:
                failed = subprocess.run(command, check=False, timeout=INSTALL_SECONDS).returncode != 0
            except subprocess.TimeoutExpired:
                failed = True
            if failed:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.give_up(f"{' '.join(command[1:4])} failed or took over {INSTALL_SECONDS} s (its message is above)")
        stamp_path.write_text(stamp)
