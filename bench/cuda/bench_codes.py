#!/usr/bin/env python3
"""Codes to kernel layout, the gradients' products from codes, and torch's own INT4 linear, in one run.

    python3 bench/cuda/bench_codes.py LIBRARY [pack] [gradients] [int4pack] > rows.jsonl

LIBRARY as for bench_kernels.py. int4pack: at::_weight_int4pack_mm (another number format: 4 bits with zero points, the
same bytes) beside our linear and the library's BF16 product.
"""

import ctypes

import torch

import bench_kernels
from bench_kernels import call, emit, normal, struct, time_us
from bench_moe import Weight, bf16, ints, quantized, read_rate

Linear = struct("Linear", ["packed", "x", "y"], ["rows", "columns", "group", "tokens"])


def packed_bytes(rows, columns, group):
    lib = bench_kernels.LIB
    lib.QtPackedBytes.restype = ctypes.c_int64
    return lib.QtPackedBytes(ctypes.c_int64(rows), ctypes.c_int64(columns), ctypes.c_int64(group))


def bench_pack():
    rate = read_rate()
    rows = columns = 1 << 15
    source, target = torch.empty(1 << 28, dtype=torch.int32, device="cuda"), ints(1 << 28)
    copy_rate = 8 * (1 << 28) / time_us({"copy": [lambda: target.copy_(source)] * 3})["copy"]
    for group in (32, 128):
        codes, scale = ints(rows, columns // 8).random_(), normal(rows, columns // group, scale=0.01).abs()
        packed = torch.empty(packed_bytes(rows, columns, group), dtype=torch.uint8, device="cuda")
        args = Weight(codes=codes, scale=scale, packed=packed, plain=None, rows=rows, columns=columns, group=group)
        t = time_us({"pack": [lambda: call("QtPackWeights", args)] * 3})["pack"]
        moved = packed.numel() + 4 * codes.numel() + 2 * scale.numel()
        emit("pack", [rows, columns], t, group=group, bytes=moved, tb_per_s=moved / t / 1e6,
             share_of_read=moved / t / rate, share_of_copy=moved / t / copy_rate)


def bench_gradients():
    """dx = dy W' (dequantised into scratch, then the library) and dW = dy^T x."""
    for n, k, group in ((8192, 8192, 128), (24576, 4096, 128)):
        _, plain, codes, scale = quantized(n, k, group, keep_codes=True)
        scratch = torch.empty_like(plain)
        args = Weight(codes=codes, scale=scale, packed=None, plain=scratch, rows=n, columns=k, group=group)
        for m in (512, 2048, 8192):
            dy, x, dx = normal(m, n), normal(m, k), bf16(m, k)
            dw, dw_float = bf16(n, k), torch.zeros(n, k, device="cuda")

            def both():
                call("QtDequantizeWeights", args)
                torch.mm(dy, scratch, out=dx)

            us = time_us({
                "dgrad": [both] * 3, "mm": [lambda: torch.mm(dy, plain, out=dx)] * 3,
                "wgrad": [lambda: torch.mm(dy.t(), x, out=dw)] * 3,
                "wgrad float": [lambda: torch.addmm(dw_float, dy.t(), x, out_dtype=torch.float32)] * 3,
            })
            flops = 2 * m * n * k / 1e6
            emit("dgrad from codes", [m, n, k], us["dgrad"], group=group, ratio_to_mm=us["mm"] / us["dgrad"],
                 tflops=flops / us["dgrad"], mm_tflops=flops / us["mm"])
            emit("wgrad added in FP32", [m, n, k], us["wgrad float"], ratio_to_mm=us["wgrad"] / us["wgrad float"],
                 tflops=flops / us["wgrad float"], mm_tflops=flops / us["wgrad"])


def bench_int4pack():
    rate = read_rate()
    for n, k in ((4096, 4096), (8192, 8192), (24576, 4096)):
        group, copies = 128, max(2, (250 << 20) // (n * k // 2) + 1)
        packed, plain = quantized(n, k, group)
        ours = [packed] + [packed.clone() for _ in range(copies - 1)]
        words = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
        theirs = [torch._convert_weight_to_int4pack(words, 8) for _ in range(copies)]
        scales = normal(k // group, n, 2, scale=0.01)
        wide = [plain] + [plain.clone() for _ in range(max(1, (250 << 20) // (2 * n * k)))]
        for m in (1, 16):
            x, y = normal(m, k), bf16(m, n)
            args = [Linear(packed=w, x=x, y=y, rows=n, columns=k, group=group, tokens=m) for w in ours]
            us = time_us({
                "ours": [lambda a=a: call("QtLinear", a, 1) for a in args],
                "int4pack": [lambda w=w: torch._weight_int4pack_mm(x, w, group, scales) for w in theirs],
                "mm": [lambda w=w: torch.mm(x, w.t(), out=y) for w in wide],
            })
            emit("linear beside at::_weight_int4pack_mm", [m, n, k], us["ours"], group=group, int4pack_us=us["int4pack"],
                 ratio_to_int4pack=us["int4pack"] / us["ours"], mm_us=us["mm"], ratio_to_mm=us["mm"] / us["ours"],
                 share_of_read=packed.numel() / us["ours"] / rate)


SECTIONS = {"pack": bench_pack, "gradients": bench_gradients, "int4pack": bench_int4pack}


if __name__ == "__main__":
    bench_kernels.run(SECTIONS)
