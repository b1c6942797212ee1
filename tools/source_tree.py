"""Which files the presubmit checks look at, in a git clone and in an exported tree alike."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What .gitignore names; an exported tree has no git to ask.
GENERATED = {".git", ".deps", "build", "runs", "__pycache__"}

CPP_SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def _git_files(root):
    """Files that git tracks or would add, or None where `root` is not the top of a clone."""
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        # GIT_* of a hook would point elsewhere, and a clone of another owner is still readable.
        result = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [root / name.decode() for name in result.stdout.split(b"\0") if name]


def files(root=ROOT):
    """All source files below `root`, sorted; generated and fetched ones left out."""
    listed = _git_files(root)
    if listed is None:
        listed = [path for path in root.rglob("*") if not GENERATED & set(path.relative_to(root).parts)]
    return sorted(path for path in listed if path.is_file() and not path.is_symlink())


def cpp_files(root=ROOT):
    return [path for path in files(root) if path.suffix in CPP_SUFFIXES]


def report(name, problems):
    """Prints the problems of one check; the exit status."""
    for problem in problems:
        print(f"{name}: {problem}")
    return 1 if problems else 0
