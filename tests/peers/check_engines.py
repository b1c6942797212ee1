"""The quantization_config of every kind of directory, read by the inference engines that serve them: vLLM's and, where it
can be imported, SGLang's parser. Neither engine runs here (no GPU); their parsers decide whether they would load it.

For each kind: the parser accepts the config, gives every quantised linear of the directory the bits, group size, strategy
and format that quatrain wrote, and ignores every linear that was left in BF16.
Run by run.py inside its environment, with the engines' packages on PYTHONPATH.
"""

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open

from check_outputs import KINDS, MODELS

MODULE = ".layers.quantization.compressed_tensors."
ENGINES = {"vLLM": "vllm.model_executor" + MODULE, "SGLang": "sglang.srt" + MODULE}
# What the engines fuse, under the names that the files have.
FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}


def convert(quatrain, model, flags, directory):
    """By round-to-nearest: the config does not tell how codes were chosen."""
    words = [word for word in flags.split() if word not in ("--method", "rtn", "reference")]
    command = [quatrain, "convert", "--input-dir", MODELS / model, "--output-dir", directory, *words, "--method", "rtn"]
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{command} failed:\n{result.stdout}{result.stderr}")


def linears_of(directory):
    """Names of quantised linears, and of those that stayed BF16."""
    names = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            names.update(tensors.keys())
    quantised = sorted(name[: -len(".weight_packed")] for name in names if name.endswith(".weight_packed"))
    dense = sorted(name[: -len(".weight")] for name in names if name.endswith("_proj.weight"))
    return quantised, dense


def check(parser, should_ignore, directory):
    """Returns what is wrong, or None."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    wanted = next(iter(config["config_groups"].values()))["weights"]
    parsed = parser.from_config(config)
    if parsed.quant_format != "pack-quantized":
        return f"format {parsed.quant_format}"
    scheme = parsed.target_scheme_map["Linear"]
    found = scheme["weights"]
    for key in ("num_bits", "strategy", "symmetric", "group_size"):
        value = getattr(getattr(found, key), "value", getattr(found, key))
        if value != wanted.get(key) and not (key == "group_size" and wanted["strategy"] == "channel"):
            return f"{key} is {value}, not {wanted.get(key)}"
    if not parsed._is_wNa16_group_channel(found, scheme["input_activations"]):
        return "not taken for weights alone in integers"
    quantised, dense = linears_of(directory)
    if not quantised:
        return "no quantised linear"
    for names, is_ignored in ((quantised, False), (dense, True)):
        for name in names:
            if should_ignore(name, ignore=parsed.ignore, fused_mapping=FUSED) != is_ignored:
                return f"{name} is {'not ' if is_ignored else ''}ignored"
    return None


def main():
    quatrain = str(pathlib.Path(sys.argv[1]).resolve())
    torch.set_num_threads(1)
    engines = {}
    for name, package in ENGINES.items():
        try:
            engines[name] = (importlib.import_module(package + "compressed_tensors").CompressedTensorsConfig,
                             importlib.import_module(package + "utils").should_ignore_layer)
        except Exception as error:  # whatever an engine raises without a GPU
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            print(f"engines: skipped: {name}'s parser cannot be imported: {type(error).__name__}: {reason}", flush=True)
    num_failed = 0
    for kind, model, flags in KINDS if engines else []:
        with tempfile.TemporaryDirectory(prefix="quatrain-engines-") as folder:
            directory = pathlib.Path(folder) / "int"
            convert(quatrain, model, flags, directory)
            for name, (parser, should_ignore) in engines.items():
                problem = check(parser, should_ignore, directory)
                num_failed += problem is not None
                print(f"engines: {name}: {model}, {kind}: {'ok' if problem is None else 'FAILED: ' + problem}", flush=True)
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
