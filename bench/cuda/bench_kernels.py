"""Memory-bound, log-probability and attention kernels on a device, against torch in the same run, and what the other
modules of bench.py share: calls of the library, timing and rows.

The library is kernels_for_python.cu and the kernels as a shared object. Every variant is a CUDA graph of several calls
over rotated buffers; variants are replayed in turn and the median of the replays counts. Data is random normal.
"""

import ctypes
import json
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

LIB = None  # set by bench.py
TAGS = {}  # device, date, commit and command of the rows, set by bench.py
REPLAYS = 7


class Struct(ctypes.Structure):
    """Pointers from tensors, None as null."""

    def __init__(self, **values):
        super().__init__(**{k: v.data_ptr() if torch.is_tensor(v) else v for k, v in values.items()})


def struct(name, pointers, longs=(), ints=()):
    fields = [(f, ctypes.c_void_p) for f in pointers] + [(f, ctypes.c_int64) for f in longs]
    return type(name, (Struct,), {"_fields_": fields + [(f, ctypes.c_int) for f in ints]})


AdamW = struct("AdamW", ["master", "exp_avg", "exp_avg_sq", "grad", "weight", "packed", "scale", "counters"],
               ["rows", "columns", "group"])
Quantize = struct("Quantize", ["weight", "fake", "packed", "scale"], ["rows", "columns", "group"])
Rope = struct("Rope", ["qk", "q_weight", "k_weight", "cos", "sin", "positions"], ["tokens", "row_stride"],
              ["q_heads", "k_heads", "head_dim"])
Logprob = struct("Logprob", ["targets", "inverse", "block_max", "block_sum", "block_moment", "target_x", "row_max",
                             "row_sum"], ["rows", "vocab"])
Attention = struct("Attention", ["q", "k", "v", "out", "lse", "sequences", "scratch"], (),
                   ["heads", "kv_heads", "head_dim", "block_size", "num_sequences", "max_queries", "max_keys"])


def call(name, *args):
    """Calls the library on torch's current stream."""
    converted = []
    for arg in args:
        if torch.is_tensor(arg):
            converted.append(ctypes.c_void_p(arg.data_ptr()))
        elif arg is None:
            converted.append(ctypes.c_void_p(0))
        elif isinstance(arg, Struct):
            converted.append(ctypes.byref(arg))
        else:
            converted.append(ctypes.c_int64(arg))
    getattr(LIB, name)(*converted, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))


def time_us(variants):
    """Microseconds a call of each variant: {name: [calls]} -> {name: us}."""
    graphs = {}
    for name, calls in variants.items():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            calls[0]()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for each in calls:
                each()
        graphs[name] = graph
    times = {name: [] for name in variants}
    for replay in range(REPLAYS + 1):
        for name, graph in graphs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            if replay > 0:
                times[name].append(1000 * begin.elapsed_time(end) / len(variants[name]))
    return {name: statistics.median(each) for name, each in times.items()}


def emit(kernel, shape, us, **extra):
    row = {**TAGS, "kernel": kernel, "shape": shape, "us": round(us, 2)}
    row.update({k: round(v, 4) if isinstance(v, float) else v for k, v in extra.items()})
    print(json.dumps(row), flush=True)


def normal(*size, dtype=torch.bfloat16, scale=1.0):
    out = torch.empty(size, dtype=dtype, device="cuda")
    return out.normal_(0, scale)


def bench_quantize():
    rows, columns = 1 << 15, 1 << 15
    n = rows * columns
    w, out = normal(rows, columns, scale=0.02), torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
    packed = torch.empty(rows, columns // 8, dtype=torch.int32, device="cuda")
    sink, keep = torch.zeros(4, dtype=torch.int32, device="cuda"), []
    variants = {"copy": [lambda: call("QtCopy", w, out, 2 * n)], "torch copy": [lambda: out.copy_(w)],
                "read": [lambda: call("QtRead", w, 2 * n, sink)]}
    for group in (32, 128):
        scale = torch.empty(rows, columns // group, dtype=torch.bfloat16, device="cuda")
        fake = Quantize(weight=w, fake=out, rows=rows, columns=columns, group=group)
        codes = Quantize(weight=w, packed=packed, scale=scale, rows=rows, columns=columns, group=group)
        variants[f"fake g{group}"] = [lambda a=fake: call("QtQuantizeMatrix", a)]
        variants[f"codes g{group}"] = [lambda a=codes: call("QtQuantizeMatrix", a)]
        keep.append(scale)
    us = time_us(variants)
    copy = min(us["copy"], us["torch copy"])
    read_rate = 2 * n / us["read"]
    emit("copy", [rows, columns], copy, bytes=4 * n, tb_per_s=4 * n / copy / 1e6)
    emit("read", [rows, columns], us["read"], bytes=2 * n, tb_per_s=read_rate / 1e6)
    for group in (32, 128):
        t = us[f"fake g{group}"]
        emit("fake_quant", [rows, columns], t, group=group, bytes=4 * n, tb_per_s=4 * n / t / 1e6,
             share_of_copy=copy / t)
        t = us[f"codes g{group}"]
        size = 2 * n + n // 2 + 2 * n // group
        emit("quantize_to_codes", [rows, columns], t, group=group, bytes=size, tb_per_s=size / t / 1e6,
             share_of_read=size / t / read_rate)


def bench_adamw():
    rows, columns = 1 << 15, 1 << 15
    n = rows * columns
    master, grad = normal(rows, columns, dtype=torch.float32, scale=0.02), normal(rows, columns, dtype=torch.float32)
    m, v = torch.zeros_like(master), torch.zeros_like(master)
    weight = torch.empty(rows, columns, dtype=torch.bfloat16, device="cuda")
    packed = torch.zeros(rows, columns // 8, dtype=torch.int32, device="cuda")
    counters = torch.zeros(3, dtype=torch.int64, device="cuda")
    step = torch.ones((), dtype=torch.float32, device="cuda")

    def ours(group=32, **outputs):
        args = AdamW(master=master, exp_avg=m, exp_avg_sq=v, grad=grad, counters=counters, rows=rows, columns=columns,
                     group=group, **outputs)
        return lambda: call("QtAdamWUpdate", args)

    def torchs():
        torch._fused_adamw_([master], [grad], [m], [v], [], [step], amsgrad=False, lr=1e-6, beta1=0.9, beta2=0.98,
                            weight_decay=0.0, eps=1e-8, maximize=False)

    scales = {g: torch.zeros(rows, columns // g, dtype=torch.bfloat16, device="cuda") for g in (32, 128)}

    def torchs_then_pack(group):
        torchs()
        weight.copy_(master)
        call("QtQuantizeMatrix", Quantize(weight=weight, packed=packed, scale=scales[group], rows=rows,
                                          columns=columns, group=group))

    variants = {"plain": [ours()], "bf16": [ours(weight=weight)], "torch": [torchs]}
    for g, scale in scales.items():
        variants[f"codes g{g}"] = [ours(g, packed=packed, scale=scale)]
        variants[f"torch, pack g{g}"] = [lambda g=g: torchs_then_pack(g)]
    us = time_us(variants)
    for name, t in us.items():
        extra = {"to_plain": t / us["plain"], "to_torch_fused": t / us["torch"]}
        if name.startswith("codes"):
            extra["to_torch_fused_and_pack"] = t / us["torch, pack" + name[5:]]
        emit("adamw " + name, [rows, columns], t, bytes=28 * n, tb_per_s=28 * n / t / 1e6, **extra)


def bench_rows():
    for tokens, dim, inter in ((8192, 2048, 768 * 8), (8192, 4096, 12288), (8, 4096, 12288)):
        copies = max(1, (1 << 28) // (tokens * dim * 2))
        xs, bs = [[normal(tokens, dim) for _ in range(min(copies, 16))] for _ in range(2)]
        w, y = normal(dim), torch.empty(tokens, dim, dtype=torch.bfloat16, device="cuda")
        gu, h = normal(tokens, 2 * inter), torch.empty(tokens, inter, dtype=torch.bfloat16, device="cuda")
        qkv = normal(tokens, (32 + 16) * 128)
        table = torch.rand(8192, 64, device="cuda")
        positions = torch.arange(tokens, dtype=torch.int32, device="cuda")
        rope = Rope(qk=qkv, q_weight=w, k_weight=w, cos=table, sin=table, positions=positions, tokens=tokens,
                    row_stride=48 * 128, q_heads=32, k_heads=8, head_dim=128)
        us = time_us({
            "rms_norm": [lambda x=x: call("QtRmsNorm", x, None, w, tokens, dim, y) for x in xs],
            "residual_rms_norm": [lambda x=x, b=b: call("QtRmsNorm", x, b, w, tokens, dim, y) for x, b in zip(xs, bs)],
            "copy": [lambda x=x: call("QtCopy", x, y, 2 * tokens * dim) for x in xs],
            "torch rms_norm": [lambda x=x: torch.nn.functional.rms_norm(x, (dim,), w, 1e-6) for x in xs],
            "swiglu": [lambda: call("QtSwiGlu", gu, tokens, inter, h)] * 4,
            "head_norm_rope": [lambda: call("QtHeadNormRopeForward", rope)] * 4,
        })
        element = tokens * dim * 2
        sizes = {"rms_norm": 2 * element, "residual_rms_norm": 4 * element, "copy": 2 * element,
                 "torch rms_norm": 2 * element, "swiglu": 6 * tokens * inter, "head_norm_rope": 4 * tokens * 40 * 128}
        rate = sizes["copy"] / us["copy"]
        for name, t in us.items():
            emit(name, [tokens, inter if name == "swiglu" else dim], t, bytes=sizes[name],
                 tb_per_s=sizes[name] / t / 1e6, share_of_copy=sizes[name] / t / rate)


def floats(*size):
    return torch.empty(size, dtype=torch.float32, device="cuda")


def sliced_logprob(x, w, targets, state, out, tile):
    """A closure that computes `out` by tiles of (rows, vocabulary); `tile` says how."""
    tile_rows, columns, entropy, overlaps = tile
    side = torch.cuda.Stream()
    rows, vocab = x.shape[0], w.shape[0]
    scratch = [floats(tile_rows, columns) for _ in range(2)]
    moment, h = (torch.empty_like(state["block_max"]), floats(rows)) if entropy else (None, None)
    tiles = []
    for first in range(0, rows, tile_rows):
        part = {k: v[first:] if torch.is_tensor(v) and k != "inverse" else v for k, v in state.items()}
        if entropy:
            part["block_moment"] = moment[first:]
        tiles.append((first, Logprob(targets=targets[first:], rows=tile_rows, vocab=vocab, **part)))

    def run():
        main, done = torch.cuda.current_stream(), [None, None]
        index = 0
        for begin in range(0, vocab, columns):
            part = w[begin:begin + columns]
            for first, args in tiles:
                # The product of the next tile runs beside the sums of this one.
                logits = scratch[index % 2].view(-1)[:tile_rows * part.shape[0]].view(tile_rows, part.shape[0])
                if done[index % 2] is not None:
                    main.wait_event(done[index % 2])
                torch.mm(x[first:first + tile_rows], part.t(), out_dtype=torch.float32, out=logits)
                (side if overlaps else main).wait_event(main.record_event())
                with torch.cuda.stream(side if overlaps else main):
                    call("QtLogprobBlocks", args, logits, part.shape[0], begin, part.shape[0])
                    done[index % 2] = torch.cuda.current_stream().record_event()
                index += 1
        main.wait_event(done[(index - 1) % 2])
        for first, args in tiles:
            call("QtLogprobMerge", args, out[first:], h[first:] if entropy else None)
    return run


def bench_logprob():
    rows, hidden, vocab = 8192, 2048, 151936
    x, w = normal(rows, hidden), normal(vocab, hidden, scale=0.05)
    targets = torch.randint(0, vocab, (rows,), device="cuda", dtype=torch.int32)
    long_targets = targets.long().unsqueeze(1)
    blocks = (vocab + 127) // 128
    state = dict(inverse=torch.ones(1, device="cuda"), block_max=floats(rows, blocks), block_sum=floats(rows, blocks),
                 block_moment=None, target_x=floats(rows), row_max=floats(rows), row_sum=floats(rows))
    out = floats(rows)

    def sliced(tile_rows, columns, entropy=False, overlaps=True):
        return sliced_logprob(x, w, targets, state, out, (tile_rows, columns, entropy, overlaps))

    def library():
        logits = torch.mm(x, w.t())
        return torch.log_softmax(logits, -1, dtype=torch.float32).gather(1, long_targets)

    def library_bf16():
        return torch.log_softmax(torch.mm(x, w.t()), -1).gather(1, long_targets)

    def peak(run):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        value = run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20, value

    library_mib, expected = peak(library)
    sliced(8192, 8192)()
    error = (out - expected.view(-1)).abs().max().item()
    first = out.clone()
    variants = {"library": [library], "library, bf16 softmax": [library_bf16], "mm": [lambda: torch.mm(x, w.t())]}
    for tile in ((8192, 16384), (8192, 8192), (4096, 8192), (2048, 16384)):
        variants[f"sliced {tile[0]}x{tile[1]}"] = [sliced(*tile)]
    variants["sliced 8192x8192, no overlap"] = [sliced(8192, 8192, overlaps=False)]
    variants["sliced 8192x8192, entropy"] = [sliced(8192, 8192, True)]
    us = time_us(variants)
    torch.cuda.synchronize()
    for name, t in us.items():
        emit("logprob " + name, [rows, hidden, vocab], t, to_library=t / us["library"], to_mm=t / us["mm"])
    mib = (2 * 8192 * 8192 + 2 * rows * blocks) * 4 / 2**20
    emit("logprob memory", [rows, hidden, vocab], 0.0, library_mib=library_mib, ours_mib=mib,
         largest_difference=error, same_bits_for_other_tiles=bool((first == out).all()))


def sequences_tensor(rows):
    """AttentionSequence structs: q_begin, num_queries, num_keys, block_table, kv_begin."""
    return torch.tensor(rows, dtype=torch.int64, device="cuda")


def prefill_of(q, k, v):
    """Ours of one causal sequence, q [T, heads, dim], and what it writes: out as q, log-sum-exp [T, heads]."""
    tokens, heads, dim = q.shape
    out, lse = torch.empty_like(q), torch.empty(tokens, heads, device="cuda")
    sequences = sequences_tensor([[0, tokens, tokens, 0, 0]])
    args = Attention(q=q, k=k, v=v, out=out, lse=lse, sequences=sequences, scratch=None, heads=heads,
                     kv_heads=k.shape[1], head_dim=dim, block_size=0, num_sequences=1, max_queries=tokens,
                     max_keys=tokens)
    return lambda keep=(q, k, v, out, lse, sequences): call("QtAttentionPrefill", args), out, lse


def bench_prefill():
    for heads, kv_heads, tokens, dim in ((32, 8, 8192, 128), (16, 16, 8192, 128), (32, 4, 8192, 128), (32, 8, 2048, 128),
                                         (16, 8, 8192, 256), (16, 16, 8192, 256), (16, 8, 2048, 256)):
        q, k, v = normal(tokens, heads, dim), normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
        prefill, out, _ = prefill_of(q, k, v)
        qt, kt, vt = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))

        def library(backend):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(qt, kt, vt, is_causal=True, enable_gqa=True)

        expected = library(SDPBackend.FLASH_ATTENTION)[0].transpose(0, 1)
        prefill()
        error = ((out.float() - expected.float()).norm() / expected.float().norm()).item()
        us = time_us({"prefill": [prefill] * 2,
                      "flash": [lambda: library(SDPBackend.FLASH_ATTENTION)] * 2,
                      "cudnn": [lambda: library(SDPBackend.CUDNN_ATTENTION)] * 2})
        flops = 2 * heads * tokens * tokens * dim
        for name, t in us.items():
            emit("attention " + name, [tokens, heads, kv_heads, dim], t, tflops=flops / t / 1e6,
                 speed_to_flash=us["flash"] / t, error_to_flash=error)


def gradients_in_double(q, k, v, dout):
    """Of causal attention, written with torch's operators."""
    leaves = [t.double().requires_grad_() for t in (q, k, v)]
    qd, kd, vd = (t.transpose(0, 1) for t in leaves)
    kd, vd = (t.repeat_interleave(q.shape[1] // k.shape[1], 0) for t in (kd, vd))
    scores = qd @ kd.transpose(1, 2) / q.shape[2] ** 0.5
    hidden = torch.ones(scores.shape[1:], dtype=torch.bool, device="cuda").triu(1)
    out = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ vd
    return torch.autograd.grad(out.transpose(0, 1), leaves, dout.double())


def bench_backward():
    """The library's backward takes our output and log-sum-exp: its gradients are as near to those in double precision
    as from its own forward."""
    for heads, kv_heads, tokens, dim in ((8, 8, 1023, 64), (8, 2, 1024, 128), (4, 1, 777, 256), (32, 8, 8192, 128)):
        q, k, v = normal(tokens, heads, dim), normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
        dout = normal(tokens, heads, dim)
        qt, kt, vt, dt = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v, dout))
        ops = torch.ops.aten
        theirs = ops._scaled_dot_product_flash_attention(qt, kt, vt, 0.0, True)
        prefill, out, lse = prefill_of(q, k, v)
        prefill()
        ours = (out.transpose(0, 1).unsqueeze(0), lse.t().contiguous().unsqueeze(0))

        def backward(forward):
            return ops._scaled_dot_product_flash_attention_backward(
                dt, qt, kt, vt, forward[0], forward[1], theirs[2], theirs[3], tokens, tokens, 0.0, True, theirs[6],
                theirs[7])

        def error(gradients, expected):
            return max(((g[0].transpose(0, 1).double() - e).norm() / e.norm()).item()
                       for g, e in zip(gradients, expected))

        torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-4)
        extra = {}
        if tokens <= 1024:
            expected = gradients_in_double(q, k, v, dout)
            extra["error_to_double"] = error(backward(ours), expected)
            extra["error_of_own_forward"] = error(backward(theirs), expected)
        us = time_us({"backward": [lambda: backward(ours)] * 2, "own": [lambda: backward(theirs)] * 2})
        emit("attention backward of the library", [tokens, heads, kv_heads, dim], us["backward"],
             to_own_forward=us["backward"] / us["own"], **extra)


def bench_decode():
    heads, kv_heads, page = 32, 8, 16
    sink = torch.zeros(4, dtype=torch.int32, device="cuda")
    for batch, keys in ((1, 256), (1, 512), (1, 1024), (1, 2048), (1, 4096), (4, 512), (4, 4096), (8, 4096), (32, 4096),
                        (8, 32768), (128, 4096)):
        size = batch * keys * kv_heads * 128 * 4
        copies = max(1, -(-(1 << 28) // size))
        # Copies are layers: keys and values of their own, one block table.
        pages = batch * keys // page
        ks, vs = ([normal(pages * page, kv_heads, 128) for _ in range(copies)] for _ in range(2))
        table = torch.randperm(pages, device="cuda").int()
        q, out = normal(batch, heads, 128), torch.empty(batch, heads, 128, dtype=torch.bfloat16, device="cuda")
        sequences = sequences_tensor([[i, 1, keys, table.data_ptr() + 4 * i * (keys // page), 0]
                                      for i in range(batch)])
        calls, scratch = [], None
        for k, v in zip(ks, vs):
            args = Attention(q=q, k=k, v=v, out=out, lse=None, sequences=sequences, scratch=scratch, heads=heads,
                             kv_heads=kv_heads, head_dim=128, block_size=page, num_sequences=batch, max_queries=1,
                             max_keys=keys)
            LIB.QtDecodeScratch.restype = ctypes.c_int64
            if scratch is None:
                scratch = torch.zeros(LIB.QtDecodeScratch(ctypes.byref(args)), dtype=torch.uint8, device="cuda")
                args.scratch = scratch.data_ptr()
            calls.append(args)
        part = size // 2
        reads = [lambda k=k: call("QtRead", k, part, sink) for k in ks]
        times = max(1, 8 // copies)
        us = time_us({"attention decode": [lambda a=a: call("QtAttentionDecode", a, 0) for a in calls] * times,
                      "attention decode, overlapped": [lambda a=a: call("QtAttentionDecode", a, 1)
                                                       for a in calls] * times, "read": reads * times})
        rate = part / us["read"]
        for name in ("attention decode", "attention decode, overlapped"):
            t = us[name]
            emit(name, [batch, keys, heads, kv_heads, 128], t, bytes=size, tb_per_s=size / t / 1e6,
                 share_of_read=size / t / rate, read_us_half=us["read"])


SECTIONS = {"quantize": bench_quantize, "adamw": bench_adamw, "rows": bench_rows, "logprob": bench_logprob,
            "prefill": bench_prefill, "backward": bench_backward, "decode": bench_decode}
