"""Attention over a latent (MLA, absorbed) on a device, against torch in the same run.

Part latent of bench.py. As bench_kernels.py: CUDA graphs, caches rotated past the L2, medians.
"""

import ctypes

import bench_kernels as kernels
import torch

Latent = kernels.struct("Latent", ["q", "kv", "out", "lse", "sequences", "scratch"], (),
                        ["heads", "block_size", "num_sequences", "max_queries", "max_keys"])


def latent_call(q, kv, sequences, page, max_queries, max_keys, lse=None):
    """A call of the kernel, which keeps what it needs, and its output."""
    out = torch.empty(*q.shape[:2], 512, dtype=torch.bfloat16, device="cuda")
    args = Latent(q=q, kv=kv, out=out, lse=lse, sequences=sequences, scratch=None, heads=q.shape[1], block_size=page,
                  num_sequences=len(sequences), max_queries=max_queries, max_keys=max_keys)
    kernels.LIB.QtLatentScratch.restype = ctypes.c_int64
    scratch = torch.zeros(kernels.LIB.QtLatentScratch(ctypes.byref(args)), dtype=torch.uint8, device="cuda")
    args.scratch = scratch.data_ptr()
    return lambda keep=(q, kv, out, lse, scratch, sequences): kernels.call("QtAttentionLatent", args), out


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


def expanded(leaves):
    """Queries, keys and values per head, [T, heads, 192, 192 and 128], of what attention over a latent comes from."""
    q, latent, rotated, up_k, up_v = leaves
    heads = q.shape[1]
    k = torch.cat([torch.einsum("tl,hdl->thd", latent, up_k), rotated.unsqueeze(1).expand(-1, heads, -1)], -1)
    return q, k, torch.einsum("tl,hdl->thd", latent, up_v)


def flash_backward(leaves, out, lse, dout):
    """Gradients of the leaves: the library's backward of expanded attention, which computes the probabilities again from
    `lse`, then the products with the up-projections. out, dout [T, heads, 128]; lse [1, heads, T]."""
    q, latent, _, up_k, up_v = leaves
    tokens = q.shape[0]
    _, k, v = expanded(leaves)
    # One head dimension for all: values, outputs and their gradients are filled up with zeros.
    wide = [torch.nn.functional.pad(t, (0, 192 - t.shape[-1])).transpose(0, 1).unsqueeze(0)
            for t in (dout, q, k, v, out)]
    none = torch.zeros(2, dtype=torch.uint64, device="cuda")
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_backward(
        *wide, lse, None, None, tokens, tokens, 0.0, True, none, none, scale=192 ** -0.5)
    dq, dk, dv = (t[0].transpose(0, 1) for t in (dq, dk, dv))
    dk, drotated, dv = dk[..., :128], dk[..., 128:].sum(1), dv[..., :128]
    dlatent = torch.einsum("thd,hdl->tl", dk, up_k) + torch.einsum("thd,hdl->tl", dv, up_v)
    return dq, dlatent, drotated, torch.einsum("thd,tl->hdl", dk, latent), torch.einsum("thd,tl->hdl", dv, latent)


def gradients_in_double(leaves, dout):
    leaves = [t.double().requires_grad_() for t in leaves]
    q, k, v = (t.transpose(0, 1) for t in expanded(leaves))
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device="cuda").triu(1)
    p = torch.softmax((q @ k.transpose(1, 2) * 192 ** -0.5).masked_fill(hidden, float("-inf")), -1)
    return torch.autograd.grad((p @ v).transpose(0, 1), leaves, dout.double())


def bench_latent_backward():
    """The library's backward from the absorbed form's output and log-sum-exp: how near its gradients are to those in
    double precision, beside those of its own forward over expanded keys and values."""
    for tokens, heads in ((1000, 16), (4096, 128)):
        leaves = [kernels.normal(tokens, heads, 192), kernels.normal(tokens, 512), kernels.normal(tokens, 64),
                  kernels.normal(heads, 128, 512, scale=512 ** -0.5), kernels.normal(heads, 128, 512, scale=512 ** -0.5)]
        q, latent, rotated, up_k, up_v = leaves
        dout = kernels.normal(tokens, heads, 128)
        absorbed = torch.cat([torch.einsum("thd,hdl->thl", q[..., :128], up_k), q[..., 128:]], -1)
        sequences = kernels.sequences_tensor([[0, tokens, tokens, 0, 0]])
        lse = torch.empty(tokens, heads, device="cuda")
        attend, out = latent_call(absorbed, torch.cat([latent, rotated], -1), sequences, 0, tokens, tokens, lse)
        attend()
        ours = torch.einsum("thl,hdl->thd", out, up_v), lse.t().contiguous().unsqueeze(0)
        qt, kt, vt = (torch.nn.functional.pad(t, (0, 192 - t.shape[-1])).transpose(0, 1).unsqueeze(0)
                      for t in expanded(leaves))
        theirs = torch.ops.aten._scaled_dot_product_flash_attention(qt, kt, vt, 0.0, True, scale=192 ** -0.5)
        own = theirs[0][0].transpose(0, 1)[..., :128], theirs[1]
        extra = {"lse_difference": (ours[1] - theirs[1]).abs().max().item()}
        if tokens <= 1024:
            expected = gradients_in_double(leaves, dout)
            for name, forward in (("error_to_double", ours), ("error_of_own_forward", own)):
                extra[name] = max(relative_error(g, e) for g, e in zip(flash_backward(leaves, *forward, dout), expected))
        us = kernels.time_us({"ours": [lambda: flash_backward(leaves, *ours, dout)],
                              "own": [lambda: flash_backward(leaves, *own, dout)], "forward": [attend]})
        kernels.emit("latent backward of the library", [tokens, heads], us["ours"], to_own_forward=us["ours"] / us["own"],
                     to_absorbed_forward=us["ours"] / us["forward"], **extra)


SECTIONS = {"decode": bench_latent_decode, "prefill": bench_latent_prefill, "backward": bench_latent_backward}
