#!/usr/bin/env python3
"""Time and peak memory of a GRPO step: quatrain train beside plain PyTorch and transformers, same sizes, one machine.

  compare_with_pytorch.py QUATRAIN --python PYTHON     PYTHON has torch and transformers (e.g. .deps/peers/bin/python)

A step is: sample PROMPTS x SAMPLES responses, score them, forward and backward, AdamW. Quatrain runs with quantisation-aware
training, the reference without: it trains FP32 masters under BF16 autocast (or in FP32, --precision float32), samples with
generate() and a key-value cache, pads, and cuts micro-batches by the same number of tokens. The first step of each is warm-up.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / "examples" / "models" / "tiny-qwen3-moe"
PROMPTS = ROOT / "examples" / "data" / "arithmetic" / "train.jsonl"
TEMPERATURE, LEARNING_RATE, CLIP_LOW, CLIP_HIGH = 0.8, 3e-5, 0.2, 0.28


def status_bytes(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    return 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quatrain")
    parser.add_argument("--python", help="an interpreter with torch and transformers")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-response-len", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=8192, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=3, help="the first is warm-up")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--reference", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- Quatrain ----
def run_quatrain(args, work):
    environment = dict(os.environ, OPEN_TRAINING_INT4_FAKE_QAT_FLAG="1", OPEN_TRAINING_INT4_GROUP_SIZE="32")
    run = lambda *arguments: subprocess.run([args.quatrain, *map(str, arguments)], env=environment, check=True,
                                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run("convert", "--method", "rtn", "--quant-type", "W4A16", "--quant-group-size", "32", "--input-dir", MODEL,
        "--output-dir", work / "int4")
    run("train", "--hf-checkpoint", work / "int4", "--ref-load", MODEL, "--save", work / "run", "--prompt-data", PROMPTS,
        "--input-key", "prompt", "--label-key", "label", "--apply-chat-template", "--rollout-batch-size", args.prompts,
        "--n-samples-per-prompt", args.samples, "--rollout-max-response-len", args.max_response_len,
        "--rollout-temperature", TEMPERATURE, "--eps-clip", CLIP_LOW, "--eps-clip-high", CLIP_HIGH, "--lr", LEARNING_RATE,
        "--weight-decay", "0.1", "--adam-beta2", "0.98", "--use-dynamic-batch-size", "--max-tokens-per-gpu", args.max_tokens,
        "--num-rollout", args.steps)
    steps = []
    for line in (work / "run" / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.append({"rollout": row["perf/rollout_time"],
                      "train": row.get("perf/log_probs_time", 0) + row["perf/actor_train_time"],
                      "step": row["perf/step_time"], "response": row["rollout/response_len/mean"],
                      "reward": row["rollout/raw_reward"], "peak": row["perf/peak_resident_bytes"]})
    return steps


# ---- The reference, in a process of its own ----
class Reference:
    def __init__(self, args):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch, self.args = torch, args
        torch.manual_seed(42)
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="sdpa")
        stop = self.model.generation_config.eos_token_id
        self.stop = set(stop if isinstance(stop, list) else [stop])
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else min(self.stop)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                           lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
        self.rows = [json.loads(line) for line in open(PROMPTS)]

    def autocast(self):
        return self.torch.autocast("cpu", self.torch.bfloat16, enabled=self.args.precision == "bfloat16")

    def sample(self, step):
        """Prompt ids, response ids and rewards of one rollout."""
        torch, args = self.torch, self.args
        rows = self.rows[step * args.prompts:(step + 1) * args.prompts]
        chats = [row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": row["prompt"]}] for row in rows]
        texts = [self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        batch = self.tokenizer([text for text in texts for _ in range(args.samples)], return_tensors="pt", padding=True,
                               add_special_tokens=False)
        with torch.no_grad(), self.autocast():
            output = self.model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=True,
                                         temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=args.max_response_len,
                                         eos_token_id=sorted(self.stop), pad_token_id=self.pad)
        prompt_length = batch["input_ids"].shape[1]
        samples, rewards = [], []
        for i, row in enumerate(output):
            response = row[prompt_length:].tolist()
            end = next((j + 1 for j, token in enumerate(response) if token in self.stop), len(response))
            prompt = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
            samples.append((prompt, response[:end]))
            text = self.tokenizer.decode(response[:end], skip_special_tokens=True)
            # Like the reward that quatrain uses, as far as this model's answers go.
            answer = text.rsplit("\\boxed{", 1)[-1].split("}", 1)[0].strip() if "\\boxed{" in text else None
            rewards.append(float(answer == str(rows[i // args.samples]["label"]).strip()))
        return samples, torch.tensor(rewards)

    def micro_batches(self, samples):
        """Indices in groups whose padded size stays within max_tokens, long ones first."""
        order = sorted(range(len(samples)), key=lambda i: -sum(map(len, samples[i])))
        groups, longest = [], 0
        for i in order:
            if not groups or longest * (len(groups[-1]) + 1) > self.args.max_tokens:
                groups.append([])
                longest = sum(map(len, samples[i]))
            groups[-1].append(i)
        return groups

    def logprobs(self, samples, group):
        """[B, T - 1] log-probabilities of the tokens, and the mask of responses."""
        torch = self.torch
        length = max(sum(map(len, samples[i])) for i in group)
        ids = torch.full((len(group), length), self.pad)
        attention, mask = torch.zeros_like(ids), torch.zeros(len(group), length)
        for row, i in enumerate(group):
            prompt, response = samples[i]
            ids[row, :len(prompt) + len(response)] = torch.tensor(prompt + response)
            attention[row, :len(prompt) + len(response)] = 1
            mask[row, len(prompt):len(prompt) + len(response)] = 1
        with self.autocast():
            logits = self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        logits = logits.float() / TEMPERATURE
        chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        return chosen, mask[:, 1:]

    def train(self, samples, rewards):
        torch = self.torch
        groups = rewards.view(-1, self.args.samples)
        advantages = ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)).flatten()
        batches = self.micro_batches(samples)
        with torch.no_grad():
            old = [self.logprobs(samples, group)[0] for group in batches]
        self.optimizer.zero_grad(set_to_none=True)
        for group, old_logprobs in zip(batches, old):
            new, mask = self.logprobs(samples, group)
            ratio, advantage = (new - old_logprobs).exp(), advantages[group][:, None]
            loss = -torch.min(ratio * advantage, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantage)
            ((loss * mask).sum(1) / mask.sum(1)).sum().div(len(samples)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def steps(self):
        for step in range(self.args.steps):
            start = time.perf_counter()
            samples, rewards = self.sample(step)
            middle = time.perf_counter()
            self.train(samples, rewards)
            end = time.perf_counter()
            yield {"rollout": middle - start, "train": end - middle, "step": end - start,
                   "response": statistics.mean(len(response) for _, response in samples),
                   "reward": rewards.mean().item(), "peak": status_bytes("VmHWM")}


def run_reference(args):
    command = [args.python, __file__, *sys.argv[1:], "--reference"]
    result = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE,
                            env=dict(os.environ, HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", CUDA_VISIBLE_DEVICES=""))
    if result.returncode != 0:
        sys.exit("the reference failed (its message is above)")
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def main():
    args = parse()
    if args.reference:
        for step in Reference(args).steps():
            print(json.dumps(step), flush=True)
        return
    if not args.python:
        sys.exit("--python PYTHON: an interpreter with torch and transformers")
    with tempfile.TemporaryDirectory(prefix="qt-compare-") as work:
        ours = run_quatrain(args, pathlib.Path(work))
    reference = run_reference(args)
    print(f"{args.prompts} x {args.samples} samples, at most {args.max_response_len} tokens, {len(os.sched_getaffinity(0))} CPUs; "
          f"median of {args.steps - 1} steps after one; reference {args.precision}")
    print(f"{'':12}{'quatrain QAT':>14}{'PyTorch':>12}{'ratio':>8}")
    for key in ("rollout", "train", "step"):
        pair = [statistics.median(step[key] for step in steps[1:]) for steps in (ours, reference)]
        print(f"{key:12}{pair[0]:12.2f} s{pair[1]:10.2f} s{pair[1] / pair[0]:8.1f}")
    peak = [max(step["peak"] for step in steps) for steps in (ours, reference)]
    print(f"{'peak memory':12}{peak[0] / 1e6:11.0f} MB{peak[1] / 1e6:9.0f} MB{peak[1] / peak[0]:8.1f}")
    for key in ("response", "reward"):
        print(f"{'mean ' + key:14}{statistics.mean(s[key] for s in ours):12.3f}{statistics.mean(s[key] for s in reference):12.3f}")


if __name__ == "__main__":
    main()
