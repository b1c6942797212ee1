#!/usr/bin/env python3
"""Wall-clock time and peak memory of whole conversions: quatrain convert beside llm-compressor, one after the other.

  compare_llmcompressor.py QUATRAIN PYTHON MODEL DATA [--samples 256] [--tokens 512] [--threads 1] [--group 128]
                           [--scope all-linear] [--only ours|theirs] [--method gptq] [--their-dtype auto]

PYTHON is an interpreter that has llmcompressor==0.14.0.1 (with torch on the CPU, transformers and compressed-tensors).
Both take the first rows of DATA (a Parquet or JSON Lines file with a column `text`), cut at --tokens, quantise the
same linears to W4A16 with the defaults of each program, and write a directory. One line of JSON for each.
On a processor without BF16 instructions libtorch multiplies BF16 matrices some hundred times slower than FP32 ones;
--their-dtype float32 has llm-compressor run the model in FP32.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time


def convert_theirs(arguments, output):
    """Runs in PYTHON."""
    import torch
    torch.set_num_threads(arguments.threads)
    from datasets import load_dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    kind = "parquet" if arguments.data.suffix == ".parquet" else "json"
    rows = load_dataset(kind, data_files=str(arguments.data), split="train").select(range(arguments.samples))
    rows = rows.map(lambda row: tokenizer(row["text"], max_length=arguments.tokens, truncation=True,
                                          add_special_tokens=False), remove_columns=rows.column_names)
    ignore = ["lm_head", "re:.*mlp.gate$"]
    if arguments.scope == "experts":
        ignore.append("re:.*self_attn.*")
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": arguments.group}
    recipe = GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=ignore)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=arguments.their_dtype)
    oneshot(model=model, dataset=rows, recipe=recipe, max_seq_length=arguments.tokens,
            num_calibration_samples=arguments.samples, shuffle_calibration_samples=False)
    model.save_pretrained(output, save_compressed=True)
    tokenizer.save_pretrained(output)


def command_of(arguments, is_ours, output):
    if is_ours:
        return [str(arguments.quatrain), "convert", "--input-dir", arguments.model, "--output-dir", output,
                "--data-dir", arguments.data, "--num-calibration-samples", arguments.samples,
                "--max-sequence-length", arguments.tokens, "--num-heldout-samples", 0,
                "--no-shuffle-calibration-samples", "--quant-group-size", arguments.group, "--scope", arguments.scope,
                "--method", arguments.method, "--threads", arguments.threads]
    return [arguments.python, __file__, *sys.argv[1:], "--output", output]


def measure(arguments, is_ours):
    name = f"quatrain {arguments.method}" if is_ours else "llm-compressor"
    environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads), HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="",
                       HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    with tempfile.TemporaryDirectory(prefix="quatrain-compare-") as folder:
        command = [str(part) for part in command_of(arguments, is_ours, pathlib.Path(folder) / "out")]
        with open(pathlib.Path(folder) / "log", "w+") as log:
            start = time.monotonic()
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - start
            if status != 0:
                log.seek(0)
                sys.exit(f"{name} failed:\n{log.read()[-4000:]}")
    if not is_ours and arguments.their_dtype != "auto":
        name += f" in {arguments.their_dtype}"
    print(json.dumps({"program": name, "model": arguments.model.name, "threads": arguments.threads,
                      "seconds": round(seconds, 1), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                      "peak_memory_mb": round(usage.ru_maxrss / 1000)}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("quatrain", "python", "model", "data"):
        parser.add_argument(name, type=pathlib.Path)
    for name, default in (("samples", 256), ("tokens", 512), ("threads", 1), ("group", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--scope", choices=("all-linear", "experts"), default="all-linear")
    parser.add_argument("--method", choices=("gptq", "reference"), default="gptq")
    parser.add_argument("--their-dtype", choices=("auto", "float32"), default="auto")
    parser.add_argument("--only", choices=("ours", "theirs"))
    parser.add_argument("--output", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.output:
        convert_theirs(arguments, arguments.output)
        return
    for is_ours in (True, False):
        if arguments.only != ("theirs" if is_ours else "ours"):
            measure(arguments, is_ours)


if __name__ == "__main__":
    main()
