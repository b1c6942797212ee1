#!/usr/bin/env python3
"""Fetches the pinned third-party libraries into .deps/ through pip, and keeps only the files the build needs.

  .deps/torch/{include,lib}     libtorch for the CPU: headers, libtorch_cpu, libc10, and the libraries these load
  .deps/arrow/{include,lib}     Arrow and Parquet C++
  .deps/clang-format/bin/       the one version that decides on layout
  .deps/llama-jinja/            llama.cpp's Jinja engine with cmake/patches/jinja-*.patch applied

Every archive is checked against the SHA-256 written here. A stamp in each folder holds the hash of everything
that decides its content, so a call with nothing to do takes milliseconds. pip's own configuration (index, proxy,
certificates) is honoured; the Python that runs this does not matter, since the wheels are named explicitly.
"""

import dataclasses
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps"
PATCHES = ROOT / "cmake" / "patches"
LAYOUT_VERSION = 1  # raise it when the unpacking below changes

# Wheels of CPython 3.11 for any glibc >= 2.28; nothing of Python is kept from them.
WHEEL_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 11, -1)] + ["manylinux2014_x86_64", "manylinux2010_x86_64"]
WHEEL_FLAGS = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp"] + [
    f"--platform={platform}" for platform in WHEEL_PLATFORMS
]


@dataclasses.dataclass(frozen=True)
class Archive:
    """One file of a package index. `members` maps a pattern of names in it to where the match goes."""

    requirement: str
    sha256: str
    megabytes: int
    members: tuple  # of (regular expression, replacement)
    is_wheel: bool = True


@dataclasses.dataclass(frozen=True)
class Dependency:
    """One folder of .deps, made of one or more archives."""

    name: str
    archives: tuple
    links: tuple = ()  # of (new name, target), inside the folder


DEPENDENCIES = (
    Dependency(
        "torch",
        (
            Archive(
                "torch==2.11.0",
                "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
                531,
                (
                    # The rest of torch/include is others' headers, an fmt of another version among them.
                    (r"torch/(include/(?:ATen|c10|caffe2|torch)/.*)", r"\1"),
                    (r"torch/(lib/(libtorch_cpu\.so|libc10\.so|libgomp\.so\.1))", r"\1"),
                    (r"torch-[^/]*\.dist-info/(?:licenses/)?(LICENSE|NOTICE)", r"\1"),
                ),
            ),
            Archive(
                "nvidia-cuda-runtime==13.0.96",
                "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
                2,
                ((r"nvidia/cu13/(lib/libcudart\.so\.13)", r"\1"),),
            ),
            Archive(
                "nvidia-cuda-cupti==13.0.85",
                "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
                11,
                ((r"nvidia/cu13/(lib/libcupti\.so\.13)", r"\1"),),
            ),
        ),
    ),
    Dependency(
        "arrow",
        (
            Archive(
                "pyarrow==26.0.1",
                "39cb0f2418282c24bea6ceda77b03e5a8f0a5766b63a8bf194d4e2a2c423548c",
                55,
                (
                    (r"pyarrow/(include/.*)", r"\1"),
                    (r"pyarrow/(lib(?:arrow|parquet)\.so\.2600)", r"lib/\1"),
                    (r"pyarrow-[^/]*\.dist-info/(?:licenses/)?(LICENSE\.txt|NOTICE\.txt)", r"\1"),
                ),
            ),
        ),
        (("lib/libarrow.so", "libarrow.so.2600"), ("lib/libparquet.so", "libparquet.so.2600")),
    ),
    Dependency(
        "clang-format",
        (
            Archive(
                "clang-format==14.0.6",
                "d7c1c5e404c58e55f0170f01b3c5611dce6c119e62b5d1020347e0ad97d5a047",
                1,
                ((r"clang_format/data/(bin/clang-format)", r"\1"), (r"[^/]*\.dist-info/(LICENSE\.md)", r"\1")),
            ),
        ),
    ),
    Dependency(
        "llama-jinja-original",
        (
            Archive(
                "llama-cpp-python==0.3.36",
                "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
                77,
                (
                    (r"[^/]*/vendor/llama\.cpp/common/(jinja/.*|unicode\.(h|cpp))", r"\1"),
                    (r"[^/]*/vendor/llama\.cpp/(LICENSE)", r"\1"),
                ),
                is_wheel=False,
            ),
        ),
    ),
)


class FetchError(Exception):
    """A message for the user: what failed and what to do."""


def say(text):
    print(f"setup: {text}", flush=True)


def download(archive, folder):
    """Downloads one archive with pip, which checks the hash; returns its path."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
    say(f"downloading {archive.requirement} (about {archive.megabytes} MB)")
    if archive.is_wheel:
        command = [sys.executable, "-m", "pip", "download", *WHEEL_FLAGS]
    else:
        # pip runs the build back end of a source archive for its metadata, hence not --require-hashes here.
        requirements.write_text(f"{archive.requirement}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-binary=:none:"]
    command += ["--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    if not sys.stdout.isatty():
        command.append("--quiet")  # else pip draws its progress bar
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    if subprocess.run(command, check=False).returncode != 0:
        raise FetchError(
            f"pip could not download {archive.requirement} (its message is above). Check the network, and that "
            "pip reaches a package index (`python3 -m pip config list`, PIP_INDEX_URL, HTTPS_PROXY); then run "
            "this again: what was already fetched is kept."
        )
    requirements.unlink()
    (path,) = folder.iterdir()
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != archive.sha256:
        raise FetchError(
            f"{path.name}: expected SHA-256 {archive.sha256}, found {digest.hexdigest()}. The package index "
            "serves another file than the pinned one; use an index that mirrors PyPI unchanged."
        )
    return path


def open_archive(path):
    """Yields (name, readable stream) for each regular file of a wheel or a tar archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir():
                    yield member.filename, lambda member=member: archive.open(member)
    else:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    yield member.name, lambda member=member: archive.extractfile(member)


def unpack(archive, path, folder):
    """Copies the wanted members of an archive into a folder."""
    matched = set()
    for name, open_member in open_archive(path):
        for pattern, replacement in archive.members:
            match = re.fullmatch(pattern, name)
            if not match:
                continue
            target = folder / match.expand(replacement)
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            if target.parent.name == "bin":
                target.chmod(0o755)
            matched.add(pattern)
            break
    missing = [pattern for pattern, _ in archive.members if pattern not in matched]
    if missing:
        raise FetchError(f"{archive.requirement}: the archive holds nothing that matches {missing[0]}")


def is_current(folder, stamp):
    path = folder / ".stamp"
    return path.is_file() and path.read_text() == stamp


def publish(temporary, folder, stamp):
    """Puts a finished folder in place, stamp last, so that a broken run is noticed by the next one."""
    (temporary / ".stamp").write_text(stamp)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def fetch(dependency):
    """Brings one folder of .deps up to date."""
    stamp = hashlib.sha256(f"{LAYOUT_VERSION} {dependency!r}".encode()).hexdigest()
    folder = DEPS / dependency.name
    if is_current(folder, stamp):
        return
    with tempfile.TemporaryDirectory(prefix=f".{dependency.name}-", dir=DEPS) as temporary:
        content = pathlib.Path(temporary) / "content"
        content.mkdir()
        for number, archive in enumerate(dependency.archives):
            downloads = pathlib.Path(temporary) / f"download{number}"
            downloads.mkdir()
            unpack(archive, download(archive, downloads), content)
            shutil.rmtree(downloads)
        for name, target in dependency.links:
            (content / name).symlink_to(target)
        publish(content, folder, stamp)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    say(f"{dependency.name} is in {folder.relative_to(ROOT)}, {size / 1e6:.0f} MB")


def patch_jinja():
    """Copies the Jinja engine and applies our patches, in order of their names."""
    original, folder = DEPS / "llama-jinja-original", DEPS / "llama-jinja"
    patches = sorted(PATCHES.glob("jinja-*.patch"))
    digest = hashlib.sha256((original / ".stamp").read_bytes())
    for patch in patches:
        digest.update(patch.name.encode() + b"\0" + patch.read_bytes())
    stamp = digest.hexdigest()
    if is_current(folder, stamp):
        return
    with tempfile.TemporaryDirectory(prefix=".llama-jinja-", dir=DEPS) as temporary:
        content = pathlib.Path(temporary) / "content"
        shutil.copytree(original, content, ignore=shutil.ignore_patterns(".stamp"))
        for patch in patches:
            command = ["patch", "--strip=1", "--quiet", "--fuzz=0", "--no-backup-if-mismatch"]
            with patch.open("rb") as stream:
                if subprocess.run(command, cwd=content, stdin=stream, check=False).returncode != 0:
                    raise FetchError(f"{patch.relative_to(ROOT)} does not apply to llama.cpp's Jinja engine")
        publish(content, folder, stamp)
    say(f"llama-jinja is in .deps/llama-jinja, {len(patches)} patches applied")


def main():
    DEPS.mkdir(exist_ok=True)
    try:
        for dependency in DEPENDENCIES:
            fetch(dependency)
        patch_jinja()
    except FetchError as error:
        sys.exit(f"setup: {error}")
    except OSError as error:
        sys.exit(f"setup: {error}. The libraries need about 1.6 GB of disk while they are fetched, 0.6 GB after.")


if __name__ == "__main__":
    main()
