"""Every kind of directory that quatrain writes, read by transformers and compressed-tensors.

For each kind: transformers loads it and gives the same log-probabilities (cosine above 0.9999) and the same greedy
tokens (on 9 of 10 prompts) as quatrain; compressed-tensors' own decompressor gives quatrain's dequantised weights bit
for bit. Both sides compute in FP32 on the same BF16 weights, so that they differ by the order of sums alone.
Run by run.py inside its environment.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "examples" / "models"
DATA = ROOT / "examples" / "data"
MIN_COSINE = 0.9999
NUM_PROMPTS = 10
MIN_EQUAL_PROMPTS = 9
MAX_NEW_TOKENS = 24

# name, model, flags of quatrain convert
KINDS = [
    ("W4 g32 experts, GPTQ", "tiny-qwen3-moe", "--quant-group-size 32 --scope experts"),
    ("W4 g64 experts, GPTQ reference", "tiny-qwen3-moe", "--quant-group-size 64 --scope experts --method reference"),
    ("W4 g128 all, GPTQ", "tiny-qwen3-moe", "--quant-group-size 128 --scope all-linear"),
    ("W8 channel all, GPTQ", "tiny-qwen3-moe", "--quant-type W8A16 --quant-group-size channel --scope all-linear"),
    ("W8 g32 experts, RTN", "tiny-qwen3-moe", "--quant-type W8A16 --quant-group-size 32 --method rtn"),
    ("W4 g32 all, GPTQ", "tiny-llama", "--quant-group-size 32"),
    ("W4 g64 all, RTN", "tiny-llama", "--quant-group-size 64 --method rtn"),
    ("W4 g128 all, GPTQ", "tiny-llama", "--quant-group-size 128"),
    ("W8 g128 all, GPTQ", "tiny-llama", "--quant-type W8A16 --quant-group-size 128"),
    ("W8 channel all, RTN", "tiny-llama", "--quant-type W8A16 --quant-group-size channel --method rtn"),
    ("W4 g32 attention only", "tiny-llama", "--quant-group-size 32 --scope re:.*self_attn"),
]


def run(quatrain, *arguments):
    result = subprocess.run([quatrain, *map(str, arguments)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def ask(quatrain, command, rows, folder, *flags):
    """The answers of a JSON lines command."""
    questions, answers = folder / "questions.jsonl", folder / "answers.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(quatrain, command, "--input", questions, "--output", answers, "--dtype", "float32", *flags)
    return [json.loads(line) for line in answers.read_text().splitlines()]


def prompts():
    rows = (DATA / "arithmetic" / "eval.jsonl").read_text().splitlines()[:NUM_PROMPTS]
    return [json.loads(row)["prompt"] for row in rows]


def load_tensors(directory):
    tensors = {}
    for path in sorted(pathlib.Path(directory).glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def check_decompressor(quatrain, directory, folder):
    """Every quantised weight by compressed-tensors against quatrain dequantize; returns how many."""
    bf16 = folder / "bf16"
    run(quatrain, "dequantize", "--input-dir", directory, "--output-dir", bf16)
    ours = load_tensors(bf16)
    packed = load_tensors(directory)
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    scheme = next(iter(QuantizationConfig.model_validate(config).config_groups.values()))
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    modules = [name[: -len(".weight_packed")] for name in packed if name.endswith(".weight_packed")]
    for module in modules:
        parts = {suffix: packed[f"{module}.{suffix}"] for suffix in ("weight_packed", "weight_scale", "weight_shape")}
        theirs = compressor.decompress(parts, scheme)["weight"]
        if theirs.dtype != torch.bfloat16 or not torch.equal(theirs, ours[f"{module}.weight"]):
            sys.exit(f"{directory.name}: {module}: decompressed weights differ")
    return len(modules)


def their_logprobs(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def greedy(model, ids, stop_ids):
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=MAX_NEW_TOKENS, pad_token_id=0,
                             eos_token_id=stop_ids)
    return out[0, len(ids):].tolist()


def check_model(quatrain, directory, folder):
    """Loads the directory in transformers; returns the worst cosine and the number of equal completions."""
    # Weights as BF16 values, arithmetic in FP32.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    model(torch.tensor([[1, 2]]))  # compressed modules are decompressed by the first call
    model = torch.nn.Module.float(model).eval()  # transformers' own refuses quantised models
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = [tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
             for messages in prompts()]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    scored = ask(quatrain, "score", [{"ids": row} for row in ids], folder, "--model", directory)
    worst = 1.0
    for row, answer in zip(ids, scored):
        ours = torch.tensor(answer["logprobs"], dtype=torch.float64)
        cosine = torch.nn.functional.cosine_similarity(their_logprobs(model, row), ours, dim=0).item()
        worst = min(worst, cosine)
    answers = ask(quatrain, "generate", [{"prompt": row} for row in ids], folder, "--model", directory,
                  "--temperature", 0, "--max-new-tokens", MAX_NEW_TOKENS)
    stop_ids = model.generation_config.eos_token_id
    equal = sum(greedy(model, row, stop_ids) == answer["ids"] for row, answer in zip(ids, answers))
    return worst, equal


def main():
    quatrain = str(pathlib.Path(sys.argv[1]).resolve())
    torch.set_num_threads(1)  # models this small are slower on two
    num_failed = 0
    for name, model, flags in KINDS:
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="quatrain-peers-") as temporary:
            folder = pathlib.Path(temporary)
            directory = folder / "int"
            run(quatrain, "convert", "--input-dir", MODELS / model, "--output-dir", directory, *flags.split(),
                "--data-dir", DATA / "calibration", "--num-calibration-samples", 16, "--max-sequence-length", 128)
            modules = check_decompressor(quatrain, directory, folder)
            cosine, equal = check_model(quatrain, directory, folder)
        passed = cosine > MIN_COSINE and equal >= MIN_EQUAL_PROMPTS
        num_failed += not passed
        print(f"peers: {model}, {name}: {modules} weights equal bit for bit, cosine {cosine:.8f}, greedy {equal} of "
              f"{NUM_PROMPTS}, {time.monotonic() - start:.0f} s: {'ok' if passed else 'FAILED'}", flush=True)
    print(f"peers: {len(KINDS) - num_failed} passed, {num_failed} failed")
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
