"""Codes to kernel layout, the gradients' products from codes, and torch's own INT4 linear, in one run.

Started by bench.py. int4pack: at::_weight_int4pack_mm (another number format: 4 bits with zero points, the
same bytes) beside our linear and the library's BF16 product.
"""

import ctypes

import torch

import bench_kernels
from bench_kernels import call, emit, normal, struct, time_us
from bench_moe import EXPERTS, HIDDEN, INTER, Tokens, Weight, bf16, every_expert, ints, quantized, read_rate

Linear = struct("Linear", ["packed", "x", "y"], ["rows", "columns", "group", "tokens"])
CodesGrad = struct("CodesGrad", ["dy", "packed", "expert_begin", "dx"], ["rows", "n", "k", "group", "experts"])
Grad = struct("Grad", ["dy", "x", "expert_begin", "dweight"], ["rows", "n", "k", "experts", "replaces"])


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


def weight_grad(dy, x, dweight, expert_begin=None, replaces=0):
    experts = 1 if expert_begin is None else expert_begin.numel() - 1
    args = Grad(dy=dy, x=x, expert_begin=expert_begin, dweight=dweight, rows=dy.shape[0], n=dy.shape[1], k=x.shape[1],
                experts=experts, replaces=replaces)
    return lambda: call("QtWeightGrad", args, 1)


def input_grad(dy, packed, dx, shape, expert_begin=None):
    n, k, group = shape
    experts = 1 if expert_begin is None else expert_begin.numel() - 1
    args = CodesGrad(dy=dy, packed=packed, expert_begin=expert_begin, dx=dx, rows=dy.shape[0], n=n, k=k, group=group,
                     experts=experts)
    return lambda: call("QtInputGrad", args, 1)


def bench_gradients():
    """dx = dy W' (from codes on the way; dequantised into scratch, then the library) and dW = dy^T x."""
    for n, k, group in ((8192, 8192, 128), (24576, 4096, 128), (8192, 8192, 32)):
        packed, plain, codes, scale = quantized(n, k, group, keep_codes=True)
        scratch = torch.empty_like(plain)
        args = Weight(codes=codes, scale=scale, packed=None, plain=scratch, rows=n, columns=k, group=group)
        for m in (512, 2048, 8192):
            dy, x, dx = normal(m, n), normal(m, k), bf16(m, k)
            dw, dw_float = bf16(n, k), torch.zeros(n, k, device="cuda")

            def both():
                call("QtDequantizeWeights", args)
                torch.mm(dy, scratch, out=dx)

            flops = 2 * m * n * k / 1e6
            us = time_us({
                "dgrad": [both] * 3, "direct": [input_grad(dy, packed, dx, (n, k, group))] * 3,
                "mm": [lambda: torch.mm(dy, plain, out=dx)] * 3,
            })
            for kind, kernel in (("dgrad", "dgrad from codes"), ("direct", "dgrad from codes on the way")):
                emit(kernel, [m, n, k], us[kind], group=group, ratio_to_mm=us["mm"] / us[kind],
                     tflops=flops / us[kind], mm_tflops=flops / us["mm"])
            if group != 128:
                continue
            us = time_us({
                "wgrad": [lambda: torch.mm(dy.t(), x, out=dw)] * 3,
                "wgrad float": [lambda: torch.addmm(dw_float, dy.t(), x, out_dtype=torch.float32)] * 3,
                "ours": [weight_grad(dy, x, dw_float)] * 3,
                "ours replaced": [weight_grad(dy, x, dw_float, replaces=1)] * 3,
            })
            for name, kernel in (("ours", "weight grad added in FP32"), ("ours replaced", "weight grad in FP32")):
                emit(kernel, [m, n, k], us[name], ratio_to_mm=us["wgrad"] / us[name],
                     ratio_to_addmm=us["wgrad float"] / us[name], tflops=flops / us[name], mm_tflops=flops / us["wgrad"])
            emit("wgrad added in FP32", [m, n, k], us["wgrad float"], ratio_to_mm=us["wgrad"] / us["wgrad float"],
                 tflops=flops / us["wgrad float"], mm_tflops=flops / us["wgrad"])


def bench_expert_gradients():
    """dX of all experts (dequantised into scratch, then at::_grouped_mm) and dW, added to FP32."""
    for rows_each in (128, 512):
        step = Tokens(every_expert(rows_each)[0])
        begin, ends, rows = step.b["expert_begin"], step.offsets, EXPERTS * rows_each
        for name, n, k in (("gate_up", 2 * INTER, HIDDEN), ("down", HIDDEN, INTER)):
            packed, plain, codes, scale = quantized(EXPERTS * n, k, 32, keep_codes=True)
            dequantise = Weight(codes=codes, scale=scale, packed=None, plain=plain, rows=EXPERTS * n, columns=k, group=32)
            weight = plain.view(EXPERTS, n, k)
            dy, x, dx = normal(rows, n), normal(rows, k), bf16(rows, k)
            dweight = torch.zeros(EXPERTS, n, k, device="cuda")

            def dgrad():
                call("QtDequantizeWeights", dequantise)
                return torch._grouped_mm(dy, weight, offs=ends)

            us = time_us({
                "dgrad": [dgrad] * 3, "direct": [input_grad(dy, packed, dx, (n, k, 32), begin)] * 3,
                "grouped": [lambda: torch._grouped_mm(dy, weight, offs=ends)] * 3,
                "wgrad": [lambda: torch._grouped_mm(dy.t(), x, offs=ends)] * 3,
                "wgrad and add": [lambda: dweight.add_(torch._grouped_mm(dy.t(), x, offs=ends))] * 3,
                "add": [lambda: dweight.add_(1.0)] * 3,
                "ours": [weight_grad(dy, x, dweight, begin)] * 3,
                "ours replaced": [weight_grad(dy, x, dweight, begin, 1)] * 3,
            })
            flops = 2 * rows * n * k / 1e6
            extra = {"group": 32, "rows_each": rows_each, "part": name}
            for kind, kernel in (("dgrad", "moe dgrad from codes"), ("direct", "moe dgrad from codes on the way")):
                emit(kernel, [rows_each, n, k], us[kind], **extra, tflops=flops / us[kind], grouped_us=us["grouped"],
                     ratio_to_grouped=us["grouped"] / us[kind])
            for kind, kernel in (("ours", "moe weight grad added in FP32"), ("ours replaced", "moe weight grad in FP32")):
                emit(kernel, [rows_each, n, k], us[kind], **extra, tflops=flops / us[kind], grouped_us=us["wgrad"],
                     ratio_to_grouped=us["wgrad"] / us[kind], grouped_and_add_us=us["wgrad and add"],
                     ratio_to_grouped_and_add=us["wgrad and add"] / us[kind], add_us=us["add"])


def bench_rows_of_linear():
    """The kernel layout multiplied on the way, beside dequantising it first and the pinned library's product."""
    for n, k in ((4096, 4096), (8192, 8192), (24576, 4096), (4096, 12288)):
        packed, plain = quantized(n, k, 128)
        scratch = torch.empty_like(plain)
        weight = Weight(codes=None, scale=None, packed=packed, plain=scratch, rows=n, columns=k, group=128)
        for m in (64, 128, 512, 1024, 2048, 4096):
            x, y, sums = normal(m, k), bf16(m, n), torch.empty(m, n, device="cuda")
            args = Linear(packed=packed, x=x, y=y, rows=n, columns=k, group=128, tokens=m)

            def dequantised():
                call("QtDequantizePacked", weight)
                call("QtLinearLibrary", args, scratch, sums)

            us = time_us({"direct": [lambda: call("QtLinear", args, 1)] * 3, "dequantised": [dequantised] * 3,
                          "mm": [lambda: torch.mm(x, plain.t(), out=y)] * 3})
            emit("linear of many rows", [m, n, k], us["direct"], group=128, dequantised_us=us["dequantised"],
                 mm_us=us["mm"], ratio_to_mm=us["mm"] / min(us["direct"], us["dequantised"]))


def routings(tokens):
    """Ids of [tokens, 8] by name: all experts alike, at random, and with experts that are liked more than others."""
    random = torch.rand(tokens, EXPERTS)
    liked = -torch.log(-torch.log(random)) + torch.randn(EXPERTS)
    return {"even": torch.arange(8 * tokens).view(-1, 8) % EXPERTS, "random": random.topk(8).indices,
            "skewed": liked.topk(8).indices}


def bench_rows_of_experts():
    """Experts by the kernels for few rows beside those for many with their gathering."""
    weights = quantized(EXPERTS * 2 * INTER, HIDDEN, 32)[0], quantized(EXPERTS * HIDDEN, INTER, 32)[0]
    for rows_each in (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 32, 48):
        rows = EXPERTS * rows_each
        for routing, ids in routings(rows // 8).items():
            step = Tokens(ids)
            few, many = step.args(*weights), step.args(*weights)
            h, y = bf16(rows, INTER), bf16(rows, HIDDEN)

            def for_few(few=few):
                call("QtMoeGateUp", few, 0)
                call("QtMoeDown", few, 1)

            def for_many(step=step, many=many, h=h, y=y):
                gathered = step.b["x"].index_select(0, step.b["row_token"])
                many.x = gathered.data_ptr()
                call("QtMoeGateUpOfRows", many, h, 0)
                many.h = h.data_ptr()
                call("QtMoeDownOfRows", many, y, 1)

            us = time_us({"few": [for_few] * 4, "many": [for_many] * 4})
            most = int(torch.bincount(ids.flatten(), minlength=EXPERTS).max())
            emit("moe experts for few rows", [rows_each, 2 * INTER, HIDDEN], us["few"], routing=routing,
                 rows_each=rows_each, most_rows=most, for_many_us=us["many"])


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


SECTIONS = {"pack": bench_pack, "gradients": bench_gradients, "expert_gradients": bench_expert_gradients,
             "rows": bench_rows_of_linear, "rows_of_experts": bench_rows_of_experts, "int4pack": bench_int4pack}
