#!/usr/bin/env python3
"""Makes a dense model of random weights, and text to calibrate it on, for measurements of speed and memory.

  make_dense_model.py OUT [--layers 24] [--samples 128] [--characters 4096]

OUT/model has the shape of Qwen2.5-0.5B (hidden 896, intermediate 4864, 14 heads, 2 of keys and values) with the
vocabulary of examples/models/tiny-llama; OUT/text.jsonl has that many rows of text, each of at least 512 tokens.
Needs Python alone.
"""
import argparse
import array
import json
import pathlib
import random
import shutil
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "examples" / "models" / "tiny-llama"
TEXT = ROOT / "examples" / "data" / "arithmetic" / "train.jsonl"
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 896, 4864, 14, 2, 64, 2048


def weights(num_layers):
    """Names and shapes, in the order of the file."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    kv = KV_HEADS * HEAD_DIM
    for layer in range(num_layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (HIDDEN,)
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, HIDDEN)
        yield prefix + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield prefix + "post_attention_layernorm.weight", (HIDDEN,)
        yield prefix + "mlp.gate_proj.weight", (INTERMEDIATE, HIDDEN)
        yield prefix + "mlp.up_proj.weight", (INTERMEDIATE, HIDDEN)
        yield prefix + "mlp.down_proj.weight", (HIDDEN, INTERMEDIATE)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def bfloat16(value):
    return (struct.unpack("<I", struct.pack("<f", value))[0] + 0x8000) >> 16


def write_tensors(path, num_layers, rng):
    # Rows are cut from one long row of random values: a generator for each would take minutes.
    pool = array.array("H", (bfloat16(rng.gauss(0.0, 0.02)) for _ in range(1 << 18)))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in weights(num_layers):
        size = 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in weights(num_layers):
            if len(shape) == 1:
                array.array("H", [bfloat16(1.0)] * shape[0]).tofile(file)
                continue
            for _ in range(shape[0]):
                first = rng.randrange(len(pool) - shape[1])
                pool[first:first + shape[1]].tofile(file)


def write_model(directory, num_layers):
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": None,
        "dtype": "bfloat16", "eos_token_id": 2, "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": INTERMEDIATE, "max_position_embeddings": 2048,
        "mlp_bias": False, "model_type": "llama", "num_attention_heads": HEADS, "num_hidden_layers": num_layers,
        "num_key_value_heads": KV_HEADS, "pad_token_id": 0, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "tie_word_embeddings": False,
        "use_cache": True, "vocab_size": VOCABULARY}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(TOKENIZER / name, directory / name)
    write_tensors(directory / "model.safetensors", num_layers, random.Random(1))


def write_text(path, num_rows, num_characters):
    texts = [message["content"] for line in TEXT.read_text().splitlines() for message in json.loads(line)["prompt"]]
    rng = random.Random(2)
    with open(path, "w") as file:
        for _ in range(num_rows):
            row = ""
            while len(row) < num_characters:
                row += rng.choice(texts) + "\n"
            file.write(json.dumps({"text": row}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--characters", type=int, default=4096)
    arguments = parser.parse_args()
    write_model(arguments.out / "model", arguments.layers)
    write_text(arguments.out / "text.jsonl", arguments.samples, arguments.characters)


if __name__ == "__main__":
    main()
