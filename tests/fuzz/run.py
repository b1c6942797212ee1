#!/usr/bin/env python3
"""Fuzzes the readers of files that others made, with clang's libFuzzer and the sanitizers.

  run.py [--seconds 600] [--corpus FOLDER] [safetensors json tokenizer parquet]

Builds build/fuzz (clang 14 or later; some minutes) and runs each reader that long on one thread. Inputs that led
somewhere new stay in the corpus (build/fuzz/corpus); one that crashes, hangs for 10 s, takes 2 GB or is taken though it
should not be is written beside it and the exit status is 1.
"""
import argparse
import json
import pathlib
import struct
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "fuzz"
READERS = ("safetensors", "json", "tokenizer", "parquet")
GOLDENS = ROOT / "tests" / "goldens"
MODELS = ROOT / "examples" / "models"


def safetensors_seeds():
    tensors = {"__metadata__": {"format": "pt"},
               "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
               "b": {"dtype": "I64", "shape": [], "data_offsets": [12, 20]},
               "c": {"dtype": "F4", "shape": [4], "data_offsets": [20, 22]},
               "d": {"dtype": "U8", "shape": [0, 7], "data_offsets": [22, 22]}}
    for names in (list(tensors), ["a"], ["__metadata__"], []):
        text = json.dumps({name: tensors[name] for name in names}).encode()
        size = max([0] + [tensors[name]["data_offsets"][1] for name in names if name != "__metadata__"])
        yield struct.pack("<Q", len(text)) + text + bytes(range(size))
    yield b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def json_seeds():
    for path in [*MODELS.glob("*/config.json"), *MODELS.glob("*/generation_config.json"),
                 *GOLDENS.glob("models/*/config.json")]:
        yield path.read_bytes()
    yield b'{"a": [1, -0.5e-3, true, null, "\\u00e9\\ud83d\\ude00"], "b": {"c": 18446744073709551615}}'


def tokenizer_seeds():
    """With the first tokens and merges alone: a mutation of a long file would seldom hit what matters."""
    tokenizer = json.loads((MODELS / "tiny-llama" / "tokenizer.json").read_text())
    model = tokenizer["model"]
    vocabulary = {token: index for token, index in model["vocab"].items() if index < 300}
    merges = [pair for pair in model["merges"] if all(part in vocabulary for part in [*pair, "".join(pair)])]
    model.update(vocab=vocabulary, merges=merges)
    yield json.dumps(tokenizer).encode()
    model.update(merges=[" ".join(pair) for pair in merges])
    tokenizer["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}
    yield json.dumps(tokenizer).encode()


def parquet_seeds():
    for path in (GOLDENS / "parquet").glob("*.parquet"):
        yield path.read_bytes()


def build():
    if not (BUILD / "build.ninja").is_file():
        subprocess.run(["cmake", "-G", "Ninja", "-S", ROOT, "-B", BUILD, "-DCMAKE_CXX_COMPILER=clang++",
                        "-DCMAKE_C_COMPILER=clang", "-DCMAKE_BUILD_TYPE=Release", "-DQT_FUZZ=ON", "-DQT_CUDA=OFF",
                        "-DQT_PRECOMPILED_HEADERS=OFF"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", BUILD, "--target", "fuzz", "--parallel", "1"], check=True)


def fuzz(reader, corpus, seconds):
    folder = corpus / reader
    folder.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(globals()[f"{reader}_seeds"]()):
        (folder / f"seed-{index}").write_bytes(seed)
    command = [BUILD / f"fuzz_{reader}", folder, f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048",
               f"-artifact_prefix={corpus}/{reader}-", "-max_len=65536", "-print_final_stats=1"]
    if reader != "parquet":
        command.append(f"-dict={pathlib.Path(__file__).parent / 'json.dict'}")
    print(f"fuzz: {reader}, {seconds} s", flush=True)
    # libparquet is not instrumented, so that its containers must not be checked for overflows within.
    status = subprocess.run(command, check=False, env={"ASAN_OPTIONS": "detect_container_overflow=0:detect_leaks=0",
                                                       "PATH": "/usr/bin:/bin"}).returncode
    print(f"fuzz: {reader}: {'ok' if status == 0 else 'FAILED'}", flush=True)
    return status == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", choices=[*READERS, []])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=pathlib.Path, default=BUILD / "corpus")
    arguments = parser.parse_args()
    build()
    results = [fuzz(reader, arguments.corpus, arguments.seconds) for reader in arguments.readers or READERS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
