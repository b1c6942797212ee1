"""The experts of a decode step and the trainer's path over codes, against torch in the same run.

Started by bench.py. Experts: Qwen3-30B-A3B (128 experts, 8 a token, 2048 -> 2 x 768 -> 2048), INT4 g32,
weights of 8 layers in turn. at::_grouped_mm gets the BF16 weights rn_bf16(q * s) and sorted rows; bits are compared.
"""

import ctypes

import torch

import bench_kernels
from bench_kernels import call, emit, normal, struct, time_us

EXPERTS, SLOTS, HIDDEN, INTER, GROUP, LAYERS = 128, 8, 2048, 768, 32, 8

Quantize = bench_kernels.Quantize
Weight = struct("Weight", ["codes", "scale", "packed", "plain"], ["rows", "columns", "group"])
Moe = struct("Moe", ["x", "router", "given", "logits", "counters", "ids", "weights", "expert_begin", "row_token",
                     "slot_row", "tiles", "num_tiles", "gate_up", "down", "h", "y", "out"],
             ["tokens", "experts", "slots", "hidden", "inter", "group", "groups", "per_multiprocessor"])


def bf16(*size):
    return torch.empty(size, dtype=torch.bfloat16, device="cuda")


def ints(*size):
    return torch.zeros(size, dtype=torch.int32, device="cuda")


def quantized(rows, columns, group, keep_codes=False):
    """Random weights as (kernel layout, BF16) and, if asked for, codes and scales."""
    codes, scale = ints(rows, columns // 8), bf16(rows, columns // group)
    call("QtQuantizeMatrix", Quantize(weight=normal(rows, columns, scale=0.02), packed=codes, scale=scale, rows=rows,
                                      columns=columns, group=group))
    lib = bench_kernels.LIB
    lib.QtPackedBytes.restype = ctypes.c_int64
    size = lib.QtPackedBytes(ctypes.c_int64(rows), ctypes.c_int64(columns), ctypes.c_int64(group))
    packed, plain = torch.empty(size, dtype=torch.uint8, device="cuda"), bf16(rows, columns)
    args = Weight(codes=codes, scale=scale, packed=packed, plain=plain, rows=rows, columns=columns, group=group)
    call("QtPackWeights", args)
    call("QtDequantizeWeights", args)
    torch.cuda.synchronize()
    return (packed, plain, codes, scale) if keep_codes else (packed, plain)


def read_rate():
    """Bytes a microsecond of a plain read."""
    data, sink = torch.ones(1 << 28, dtype=torch.int32, device="cuda"), ints(4)
    return 4 * (1 << 28) / time_us({"read": [lambda: call("QtRead", data, 4 << 28, sink)] * 4})["read"]


class Tokens:
    """Buffers of a step of T tokens with the experts given as ids_TS."""

    def __init__(self, ids):
        self.ids_given = ids.int().cuda()
        t = ids.shape[0]
        rows = t * SLOTS
        lib = bench_kernels.LIB
        lib.QtMaxMoeTiles.restype = lib.QtRouterCounters.restype = ctypes.c_int64
        tiles = lib.QtMaxMoeTiles(ctypes.c_int64(rows), ctypes.c_int64(EXPERTS))
        self.b = dict(x=normal(t, HIDDEN), router=normal(EXPERTS, HIDDEN, scale=0.02), given=self.ids_given,
                      logits=torch.empty(t, EXPERTS, device="cuda"),
                      counters=ints(lib.QtRouterCounters(ctypes.c_int64(t))), ids=ints(t, SLOTS),
                      weights=torch.empty(t, SLOTS, device="cuda"), expert_begin=ints(EXPERTS + 1),
                      row_token=ints(rows), slot_row=ints(t, SLOTS), tiles=ints(tiles, 4), num_tiles=ints(1),
                      h=bf16(rows, INTER), y=bf16(rows, HIDDEN), out=bf16(t, HIDDEN))
        self.tokens = t
        call("QtMoeRouter", self.args(None, None), 0)
        torch.cuda.synchronize()
        self.sorted_x = self.b["x"][self.b["row_token"].long()]
        self.offsets = self.b["expert_begin"][1:].contiguous()

    def args(self, gate_up, down, plan=(0, 0)):
        return Moe(**self.b, gate_up=gate_up, down=down, tokens=self.tokens, experts=EXPERTS, slots=SLOTS,
                   hidden=HIDDEN, inter=INTER, group=GROUP, groups=plan[0], per_multiprocessor=plan[1])


def grouped(x, plain, rows):
    n = plain.shape[0] // EXPERTS
    return torch._grouped_mm(x, plain.view(EXPERTS, n, -1).transpose(-2, -1), offs=rows.offsets)


def differing(a, b):
    return int((a.view(torch.int16) != b.view(torch.int16)).sum())


def check(tokens, layer):
    """Bits of one layer that differ from at::_grouped_mm's, and of the combine in one call from that alone."""
    (gate_up, gate_up_plain), (down, down_plain) = layer
    for name in ("h", "y", "out"):
        tokens.b[name].fill_(float("nan"))
    args = tokens.args(gate_up, down)
    for name in ("QtMoeGateUp", "QtMoeDown", "QtMoeCombine"):
        call(name, args, 0)
    out = tokens.b["out"].clone()
    for name in ("y", "out"):
        tokens.b[name].fill_(float("nan"))
    call("QtMoeDownAndCombine", args, 0)
    both = grouped(tokens.sorted_x, gate_up_plain, tokens)
    h = torch.empty_like(tokens.b["h"])
    call("QtSwiGlu", both, h.shape[0], INTER, h)
    y = grouped(h, down_plain, tokens)
    torch.cuda.synchronize()
    return differing(h, tokens.b["h"]), differing(y, tokens.b["y"]), differing(out, tokens.b["out"])


def random_layers():
    return [(quantized(EXPERTS * 2 * INTER, HIDDEN, GROUP), quantized(EXPERTS * HIDDEN, INTER, GROUP))
            for _ in range(LAYERS)]


def every_expert(rows_each):
    return [torch.arange(16 * rows_each * SLOTS).view(-1, SLOTS) % EXPERTS]


def bench_plans():
    """Microseconds of other plans than the launcher's."""
    layers = random_layers()
    one = [torch.arange(SLOTS).view(1, SLOTS) * 16, torch.arange(SLOTS).view(1, SLOTS) * 16 + 5]
    for name, ids in (("4 rows each", every_expert(4)), ("batch 1", one)):
        pairs = [(s, layer) for s in map(Tokens, ids) for layer in layers]
        for kernel, most in (("QtMoeGateUp", (2, 3, 4, 6, 8)), ("QtMoeDown", (2, 4, 5, 6, 8))):
            variants = {}
            for groups in most:
                for each in (1, 2):
                    args = [s.args(layer[0][0], layer[1][0], (groups, each)) for s, layer in pairs]
                    variants[f"{groups} groups, {each} CTAs"] = [lambda a=a, k=kernel: call(k, a, 1) for a in args]
            for plan, t in time_us(variants).items():
                emit(kernel, name, t, plan=plan)


def bench_decode():
    layers = random_layers()
    rate = read_rate()
    emit("read", [1 << 30], (1 << 30) / rate, tb_per_s=rate / 1e6)
    # One token; two sets of experts, so that the weights of all calls outgrow the L2.
    cases = [("batch 1", 1, [torch.arange(SLOTS).view(1, SLOTS) * 16, torch.arange(SLOTS).view(1, SLOTS) * 16 + 5])]
    cases += [("all experts", r, every_expert(r)) for r in (1, 2, 4, 8, 16)]
    for name, rows_each, ids in cases:
        steps = [Tokens(i) for i in ids]
        pairs = [(s, layer) for s in steps for layer in layers]
        bits = check(*pairs[0])
        if name == "batch 1":
            # A replay of a graph begins some microseconds late: of 16 such calls that is 4 to 7 %.
            pairs *= 8
        args = [s.args(layer[0][0], layer[1][0]) for s, layer in pairs]

        def whole(a):
            for kernel in ("QtMoeRouter", "QtMoeGateUp", "QtMoeDownAndCombine"):
                call(kernel, a, 1)

        us = time_us({
            "gate_up": [lambda a=a: call("QtMoeGateUp", a, 1) for a in args],
            "grouped gate_up": [lambda s=s, l=l: grouped(s.sorted_x, l[0][1], s) for s, l in pairs],
            "down": [lambda a=a: call("QtMoeDown", a, 1) for a in args],
            "grouped down": [lambda s=s, l=l: grouped(s.b["h"], l[1][1], s) for s, l in pairs],
            "down and combine": [lambda a=a: call("QtMoeDownAndCombine", a, 1) for a in args],
            "gate_up, down, combine": [lambda a=a: [call(k, a, 1) for k in ("QtMoeGateUp", "QtMoeDownAndCombine")]
                                       for a in args],
            "router": [lambda a=a: call("QtMoeRouter", a, 1) for a in args],
            "combine": [lambda a=a: call("QtMoeCombine", a, 1) for a in args],
            "layer": [lambda a=a: whole(a) for a in args],
        })
        experts = EXPERTS if name == "all experts" else SLOTS
        sizes = {"gate_up": experts * 2 * INTER * HIDDEN * 9 // 16, "down": experts * INTER * HIDDEN * 9 // 16}
        sizes["gate_up, down, combine"] = sizes["layer"] = sizes["gate_up"] + sizes["down"]
        library = us["grouped gate_up"] + us["grouped down"]
        for kernel, t in us.items():
            extra = {"rows_each": rows_each, "tokens": steps[0].tokens}
            if kernel in sizes:
                extra.update(bytes=sizes[kernel], tb_per_s=sizes[kernel] / t / 1e6, share_of_read=sizes[kernel] / t / rate)
            if "grouped " + kernel in us:
                extra.update(grouped_us=us["grouped " + kernel], ratio_to_grouped=us["grouped " + kernel] / t,
                             differ_from_grouped=bits[0 if kernel == "gate_up" else 1])
            if kernel in ("gate_up, down, combine", "layer"):
                extra.update(grouped_us=library, ratio_to_grouped=library / t, differ_from_combine=bits[2])
            emit("moe " + kernel, name, t, calls=len(args), **extra)


def bench_prefill():
    """Dequantise into scratch, then the library's product."""
    for n, k, group in ((8192, 8192, 128), (24576, 4096, 128)):
        _, plain, codes, scale = quantized(n, k, group, keep_codes=True)
        scratch = torch.empty_like(plain)
        args = Weight(codes=codes, scale=scale, packed=None, plain=scratch, rows=n, columns=k, group=group)
        for m in (512, 2048, 8192):
            x, y = normal(m, k), bf16(m, n)
            times = max(2, 16384 // m)

            def both():
                call("QtDequantizeWeights", args)
                torch.mm(x, scratch.t(), out=y)

            us = time_us({"both": [both] * times, "mm": [lambda: torch.mm(x, plain.t(), out=y)] * times,
                          "dequantise": [lambda: call("QtDequantizeWeights", args)] * 8,
                          "copy": [lambda: scratch.copy_(plain)] * 8})
            emit("dequantise, then mm", [m, n, k], us["both"], group=group, mm_us=us["mm"],
                 dequantise_us=us["dequantise"], ratio_to_mm=us["mm"] / us["both"],
                 tflops=2 * m * n * k / us["both"] / 1e6, mm_tflops=2 * m * n * k / us["mm"] / 1e6,
                 dequantise_tb_per_s=n * k * (2.5 + 2 / group) / us["dequantise"] / 1e6,
                 copy_tb_per_s=4 * n * k / us["copy"] / 1e6)


def bench_expert_rows():
    """Experts with many rows: from codes on the way, beside dequantising all of them first."""
    weights = {"gate_up": quantized(EXPERTS * 2 * INTER, HIDDEN, GROUP, keep_codes=True),
               "down": quantized(EXPERTS * HIDDEN, INTER, GROUP, keep_codes=True)}
    for rows_each in (32, 64, 128, 256, 512):
        step = Tokens(every_expert(rows_each)[0])
        h_in = normal(EXPERTS * rows_each, INTER)
        for name, n, k in (("gate_up", 2 * INTER, HIDDEN), ("down", HIDDEN, INTER)):
            packed, plain, codes, scale = weights[name]
            x = step.sorted_x if name == "gate_up" else h_in
            out = torch.empty(EXPERTS * rows_each, INTER if name == "gate_up" else HIDDEN, dtype=torch.bfloat16,
                              device="cuda")
            args = step.args(packed, packed)
            args.x = args.h = x.data_ptr()
            scratch = torch.empty_like(plain)
            dequantise = Weight(codes=codes, scale=scale, packed=None, plain=scratch, rows=EXPERTS * n, columns=k,
                                group=GROUP)
            ours = "QtMoeGateUpOfRows" if name == "gate_up" else "QtMoeDownOfRows"
            call(ours, args, out, 0)
            expected = grouped(x, plain, step)
            if name == "gate_up":
                both = torch.empty_like(out)
                call("QtSwiGlu", expected, out.shape[0], INTER, both)
                expected = both
            bits = differing(out, expected)

            def dequantised():
                call("QtDequantizeWeights", dequantise)
                return grouped(x, scratch, step)

            us = time_us({"ours": [lambda: call(ours, args, out, 0)] * 4,
                          "grouped": [lambda: grouped(x, plain, step)] * 4, "dequantised": [dequantised] * 4})
            flops = 2 * EXPERTS * rows_each * n * k / 1e6
            emit(f"moe {name} from codes", [rows_each, n, k], us["ours"], group=GROUP, rows_each=rows_each,
                 tflops=flops / us["ours"], grouped_us=us["grouped"], grouped_tflops=flops / us["grouped"],
                 ratio_to_grouped=us["grouped"] / us["ours"], dequantise_then_grouped_us=us["dequantised"],
                 differ_from_grouped=bits)


SECTIONS = {"decode": bench_decode, "prefill": bench_prefill, "experts": bench_expert_rows, "plans": bench_plans}
