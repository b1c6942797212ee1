"""Attention over a latent (MLA, absorbed) on a device, against torch in the same run.

Part latent of bench.py. As bench_kernels.py: CUDA graphs, caches rotated past the L2, medians.
"""

import ctypes

import bench_kernels as kernels
import torch

Latent = kernels.struct("Latent", ["q", "kv", "out", "lse", "sequences", "scratch"], (),
                        ["heads", "block_size", "num_sequences", "max_queries", "max_keys"])


def latent_call(q, kv, sequences, page, max_queries, max_keys):
    """A call of the kernel, its output, and what it needs to stay alive."""
    out = torch.empty(*q.shape[:2], 512, dtype=torch.bfloat16, device="cuda")
    args = Latent(q=q, kv=kv, out=out, lse=None, sequences=sequences, scratch=None, heads=q.shape[1], block_size=page,
                  num_sequences=len(sequences), max_queries=max_queries, max_keys=max_keys)
    kernels.LIB.QtLatentScratch.restype = ctypes.c_int64
    scratch = torch.zeros(kernels.LIB.QtLatentScratch(ctypes.byref(args)), dtype=torch.uint8, device="cuda")
    args.scratch = scratch.data_ptr()
    return lambda keep=(q, kv, out, scratch, sequences): kernels.call("QtAttentionLatent", args), out


def library_latent(q, kv, **options):
    """torch's attention over the same latent, whichever backend takes it; q [B, H, L, 576], kv [B, H, S, 576]."""
    return torch.nn.functional.scaled_dot_product_attention(q, kv, kv[..., :512], scale=192 ** -0.5, **options)


def relative_error(out, expected):
    return ((out.float() - expected.float()).norm() / expected.float().norm()).item()


def bench_latent_decode():
    page, sink = 64, torch.zeros(4, dtype=torch.int32, device="cuda")
    for batch, keys, heads in ((128, 4096, 128), (64, 8192, 128), (128, 8192, 128), (64, 4096, 64), (128, 4096, 16),
                               (64, 8192, 16), (16, 8192, 16), (1, 8192, 16), (1, 8192, 128), (1, 1024, 16)):
        size = batch * keys * 576 * 2
        copies = max(1, -(-(1 << 27) // size))
        table = torch.randperm(batch * keys // page, device="cuda").int()
        sequences = kernels.sequences_tensor([[i, 1, keys, table.data_ptr() + 4 * i * (keys // page), 0]
                                      for i in range(batch)])
        q, caches = kernels.normal(batch, heads, 576), [kernels.normal(batch * keys, 576) for _ in range(copies)]
        calls = [latent_call(q, kv, sequences, page, 1, keys) for kv in caches]
        # The rows of one request are the queries of the library's attention.
        plain = caches[0].view(-1, page, 576)[table.long()].view(batch, 1, keys, 576)
        expected = library_latent(q.unsqueeze(1), plain)
        calls[0][0]()
        error = relative_error(calls[0][1], expected[:, 0])
        times = max(1, 8 // copies)
        us = kernels.time_us({"latent decode": [c[0] for c in calls] * times,
                      "latent decode, torch": [lambda: library_latent(q.unsqueeze(1), plain)] * 2,
                      "read": [lambda kv=kv: kernels.call("QtRead", kv, size, sink) for kv in caches] * times})
        flops = 2 * batch * heads * keys * (576 + 512)
        for name in ("latent decode", "latent decode, torch"):
            t = us[name]
            kernels.emit(name, [batch, keys, heads], t, bytes=size, tb_per_s=size / t / 1e6, tflops=flops / t / 1e6,
                 share_of_read=us["read"] / t, speed_to_torch=us["latent decode, torch"] / t, error_to_torch=error)


def bench_latent_prefill():
    for tokens, heads in ((4096, 128), (8192, 128), (8192, 16), (2048, 128)):
        q, kv = kernels.normal(tokens, heads, 576), kernels.normal(tokens, 576)
        sequences = kernels.sequences_tensor([[0, tokens, tokens, 0, 0]])
        ours, out = latent_call(q, kv, sequences, 0, tokens, tokens)
        qt = q.transpose(0, 1).unsqueeze(0)
        kt = kv.expand(1, heads, tokens, 576)

        def unfused():
            """Eight heads at a time: products by the library, softmax in FP32."""
            for h in range(0, heads, 8):
                scores = torch.matmul(qt[0, h:h + 8], kv.t()) * 192 ** -0.5
                p = torch.softmax(scores.masked_fill_(mask, float("-inf")), -1, dtype=torch.float32)
                torch.matmul(p.bfloat16(), kv[:, :512])

        mask = torch.ones(tokens, tokens, dtype=torch.bool, device="cuda").triu(1)
        ours()
        some = slice(0, min(heads, 4))
        expected = library_latent(qt[:, some].float(), kt[:, some].float(), is_causal=True)
        error = relative_error(out[:, some], expected[0].transpose(0, 1))
        variants = {"latent prefill": [ours] * 2, "latent prefill, unfused": [unfused]}
        if tokens * heads <= 1 << 19:
            variants["latent prefill, torch"] = [lambda: library_latent(qt, kt, is_causal=True)]
        us = kernels.time_us(variants)
        flops = heads * tokens * tokens * (576 + 512)
        for name, t in us.items():
            kernels.emit(name, [tokens, heads], t, tflops=flops / t / 1e6, speed_to_unfused=us["latent prefill, unfused"] / t,
                 error_to_torch=error)


SECTIONS = {"decode": bench_latent_decode, "prefill": bench_latent_prefill}
