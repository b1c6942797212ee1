"""What follows the LM head on a device, against torch in the same run: sampling, log-probabilities, their gradient.

Part logits of bench.py. As bench_kernels.py: CUDA graphs, logits rotated past the L2, medians.
"""

import struct

import bench_kernels as kernels
import torch

VOCAB = 151936
SampleCall = kernels.struct("Sample", ["logits", "sampling", "tokens"], ["rows", "stride", "vocab"])
# Name -> temperature, top_p, top_k.
LIMITS = {"no limits": (1.0, 1.0, 0), "top_p .95": (1.0, 0.95, 0), "top_k 50": (1.0, 1.0, 50),
          "top_k 50, top_p .95": (1.0, 0.95, 50), "greedy": (0.0, 1.0, 0)}


def sampling_rows(rows, limits):
    """DeviceSamplingRow: the draw, inverse temperature, top_p, top_k, greedy."""
    temperature, top_p, top_k = limits
    greedy = temperature == 0.0
    draws = torch.rand(rows, dtype=torch.float64).tolist()
    packed = b"".join(struct.pack("dffii", draw, 1.0 if greedy else 1 / temperature, top_p, top_k, greedy)
                      for draw in draws)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8).cuda()


def torch_sample(logits, limits):
    """As the engines of the field do it in torch: one sort for the limits, exponential noise for the draw."""
    temperature, top_p, top_k = limits
    if temperature == 0.0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k > 0 or top_p < 1.0:
        ordered, index = logits.sort(-1)
        if top_k > 0:
            ordered = ordered.masked_fill(ordered < ordered[:, -top_k].unsqueeze(1), float("-inf"))
        if top_p < 1.0:
            dropped = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
            dropped[:, -1] = False
            ordered = ordered.masked_fill(dropped, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return logits.softmax(-1).div_(torch.empty_like(logits).exponential_()).argmax(-1)


def peaked_logits(rows):
    """As a trained model has them: 40 tokens share all but .3 % of the whole; some 2 nats of entropy."""
    logits = kernels.normal(rows, VOCAB, dtype=torch.float32, scale=2.0)
    tokens = torch.randint(0, VOCAB, (rows, 40), device="cuda")
    return logits.scatter_(1, tokens, 14 + 2 * torch.randn(rows, 40, device="cuda"))


def flat_logits(rows):
    """Normal with a deviation of 3: 7.4 nats of entropy."""
    return kernels.normal(rows, VOCAB, dtype=torch.float32, scale=3.0)


def bench_sample():
    for form, make in (("peaked", peaked_logits), ("flat", flat_logits)):
        for rows in (1, 8, 64, 256):
            bench_sample_of(rows, form, make)


def bench_sample_of(rows, form, make):
    sink = torch.zeros(4, dtype=torch.int32, device="cuda")
    size = rows * VOCAB * 4
    logits = [make(rows) for _ in range(-(-(1 << 27) // size))]
    tokens, keep, variants = torch.zeros(rows, dtype=torch.int32, device="cuda"), [], {}
    for name, limits in LIMITS.items():
        sampling = sampling_rows(rows, limits)
        calls = [SampleCall(logits=z, sampling=sampling, tokens=tokens, rows=rows, stride=VOCAB, vocab=VOCAB)
                 for z in logits]
        keep.append(sampling)
        variants[name] = [lambda a=a: kernels.call("QtSample", a) for a in calls]
        variants["torch, " + name] = [lambda z=z, limits=limits: torch_sample(z, limits) for z in logits[:2]]
    variants["read"] = [lambda z=z: kernels.call("QtRead", z, size, sink) for z in logits]
    us = kernels.time_us(variants)
    for name in LIMITS:
        t = us[name]
        kernels.emit(f"sample {name}, {form}", [rows, VOCAB], t, bytes=size, tb_per_s=size / t / 1e6,
                     share_of_read=us["read"] / t, speed_to_torch=us["torch, " + name] / t)


def bench_logprob():
    """Log-probabilities and entropies of a decode step's tokens, the vocabulary whole."""
    sink, blocks = torch.zeros(4, dtype=torch.int32, device="cuda"), (VOCAB + 127) // 128
    for rows in (1, 8, 64, 256):
        size = rows * VOCAB * 4
        logits = [flat_logits(rows) for _ in range(-(-(1 << 27) // size))]
        targets = torch.randint(0, VOCAB, (rows,), device="cuda", dtype=torch.int32)
        place = targets.long().unsqueeze(1)
        of_blocks = {name: kernels.floats(rows, blocks) for name in ("block_max", "block_sum", "block_moment")}
        of_rows = {name: kernels.floats(rows) for name in ("target_x", "row_max", "row_sum")}
        inverse = torch.ones(1, device="cuda")
        args = kernels.Logprob(targets=targets, inverse=inverse, rows=rows, vocab=VOCAB, **of_blocks, **of_rows)
        out, entropy = kernels.floats(rows), kernels.floats(rows)

        def ours(z, args=args, out=out, entropy=entropy):
            kernels.call("QtLogprobBlocks", args, z, VOCAB, 0, VOCAB)
            kernels.call("QtLogprobMerge", args, out, entropy)

        def library(z, place=place):
            logprobs = torch.log_softmax(z, -1)
            return logprobs.gather(1, place), -(logprobs.exp() * logprobs).sum(-1)

        ours(logits[0])
        error = (out - library(logits[0])[0].view(-1)).abs().max().item()
        us = kernels.time_us({"ours": [lambda z=z: ours(z) for z in logits],
                              "torch": [lambda z=z: library(z) for z in logits[:2]],
                              "read": [lambda z=z: kernels.call("QtRead", z, size, sink) for z in logits]})
        kernels.emit("logprob and entropy of tokens", [rows, VOCAB], us["ours"], bytes=size,
                     tb_per_s=size / us["ours"] / 1e6, share_of_read=us["read"] / us["ours"],
                     speed_to_torch=us["torch"] / us["ours"], largest_difference=error)


def bench_gradient():
    """dlogits of slices of the vocabulary, as the backward of the LM head takes them: FP32 read, BF16 written."""
    for rows, columns in ((8192, 8192), (8192, 16384), (512, VOCAB)):
        logits = [kernels.normal(rows, columns, dtype=torch.float32) for _ in range(2)]
        out = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
        targets = torch.randint(0, columns, (rows,), device="cuda", dtype=torch.int32)
        dlogprobs, state = torch.randn(rows, device="cuda"), [torch.zeros(rows, device="cuda") for _ in range(2)]
        state[0].copy_(logits[0].amax(-1))
        state[1].copy_((logits[0] - state[0].unsqueeze(1)).exp().sum(-1))
        inverse = torch.ones(1, device="cuda")
        args = kernels.Logprob(targets=targets, inverse=inverse, block_max=None, block_sum=None, block_moment=None,
                               target_x=None, row_max=state[0], row_sum=state[1], rows=rows, vocab=columns)
        one_hot = torch.nn.functional.one_hot

        def expected(some):
            share = logits[0][:some].double().softmax(-1)
            return (one_hot(targets[:some].long(), columns) - share) * dlogprobs[:some].double().unsqueeze(1)

        kernels.call("QtLogprobBackward", args, logits[0], 0, columns, dlogprobs, out)
        want = expected(64)
        error = ((out[:64].double() - want).norm() / want.norm()).item()
        us = kernels.time_us({
            "ours": [lambda z=z: kernels.call("QtLogprobBackward", args, z, 0, columns, dlogprobs, out)
                     for z in logits] * 2,
            "copy": [lambda z=z: kernels.call("QtCopy", z, out, 2 * rows * columns) for z in logits] * 2})
        size = 6 * rows * columns
        kernels.emit("logprob gradient", [rows, columns], us["ours"], bytes=size, tb_per_s=size / us["ours"] / 1e6,
                     share_of_copy=size / us["ours"] / (4 * rows * columns / us["copy"]), error_to_double=error)


SECTIONS = {"sample": bench_sample, "logprob": bench_logprob, "gradient": bench_gradient}
