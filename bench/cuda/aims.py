"""What the device kernels shall reach on one H100, and the table of committed rows beside it.

An aim selects rows by kernel and keys and takes the worst of them; of rows that measure the same thing the last in
the files counts. Needs no device: bench.py --table prints it, aims_test.py checks it.
"""

import json

TAGS = ("device", "date", "commit", "command")
SMALL = {"m": 1, "g": 128}


class Aim:
    """`key` of the rows that `where` selects is at least (or, with is_most, at most) `bound`."""

    def __init__(self, what, kernel, where, key, bound, is_most=False):
        self.what, self.kernel, self.where, self.key = what, kernel, where, key
        self.bound, self.is_most = bound, is_most

    def selects(self, row):
        return row.get("kernel") == self.kernel and self.key in row and all(
            row.get(k) in v if isinstance(v, tuple) else row.get(k) == v for k, v in self.where.items())

    def measured(self, rows):
        """The worst value, or None without a row."""
        values = [row[self.key] for row in rows if self.selects(row)]
        return (max if self.is_most else min)(values) if values else None

    def is_met(self, value):
        return value <= self.bound if self.is_most else value >= self.bound


def decode_aims():
    shapes = [(28672, 8192, 0.85, 3.5), (16384, 16384, 0.85, 3.5), (24576, 4096, 0.82, 3.3)]
    for n, k, share, ratio in shapes:
        where, name = {"n": n, "k": k, "g": 128}, f"W4A16 decode {n} x {k}"
        yield Aim(f"{name}, M 1-8, of the read", "linear_decode w4a16", {**where, "m": (1, 8)}, "of_streaming_read", share)
        yield Aim(f"{name}, M 1-8, to cuBLAS", "linear_decode w4a16", {**where, "m": (1, 8)}, "ratio_to_cublas", ratio)
        yield Aim(f"{name}, M 16, of the read", "linear_decode w4a16", {**where, "m": 16}, "of_streaming_read", 0.75)
    for n, k, ratio in ((4096, 4096, 2.3), (6144, 4096, 2.4), (8192, 8192, 2.8), (4096, 12288, 2.6)):
        yield Aim(f"W4A16 decode {n} x {k}, M 1, to cuBLAS", "linear_decode w4a16", {"n": n, "k": k, **SMALL},
                  "ratio_to_cublas", ratio)
    for n, k, share in ((151936, 2048, 0.85), (5120, 2048, 0.7), (2048, 4096, 0.7)):
        where = {"n": n, "k": k}
        yield Aim(f"BF16 decode {n} x {k}, M 1, of the read", "linear_decode bf16", {**where, "m": 1}, "of_streaming_read", share)
        yield Aim(f"BF16 {n} x {k}, every M, to cuBLAS", "linear_decode bf16", where, "ratio_to_cublas", 1.0)
    for m, ratio in ((32, 2.3), (64, 2.1), (128, 1.6)):
        yield Aim(f"W4A16 8192 x 8192, M {m}, to cuBLAS", "linear_decode w4a16",
                  {"n": 8192, "k": 8192, "g": 128, "m": m}, "ratio_to_cublas", ratio)
    for kernel in ("linear_decode w4a16", "linear_decode bf16", "linear_decode w8a16"):
        yield Aim(f"{kernel}: outputs that differ from the chain", kernel, {}, "differ_from_chain", 0, is_most=True)


def prefill_aims():
    for n, k in ((8192, 8192), (24576, 4096)):
        for m, ratio in ((512, 0.75), (2048, 0.85), (8192, 0.94)):
            yield Aim(f"W4A16 prefill {n} x {k}, M {m}, to cuBLAS", "linear_decode w4a16",
                      {"n": n, "k": k, "m": m, "g": 128}, "ratio_to_cublas", ratio)
            yield Aim(f"dW in FP32 {n} x {k}, {m} rows, to a BF16 dW", "weight grad added in FP32", {"shape": [m, n, k]},
                      "ratio_to_mm", {512: 0.25, 2048: 0.57, 8192: 0.87}[m])


def moe_aims():
    for kernel in ("gate_up", "down"):
        where = {"shape": "all experts", "rows_each": (1, 2, 4, 8, 16)}
        yield Aim(f"MoE decode, {kernel}, 1-16 rows an expert, of the read", f"moe {kernel}", where, "share_of_read", 0.75)
        yield Aim(f"MoE decode, {kernel}, 1-16 rows an expert, to at::_grouped_mm", f"moe {kernel}", where,
                  "ratio_to_grouped", 3.2)
        yield Aim(f"MoE decode, {kernel}, batch 1, of the read", f"moe {kernel}", {"shape": "batch 1"}, "share_of_read",
                  {"gate_up": 0.6, "down": 0.45}[kernel])
        yield Aim(f"MoE {kernel}: outputs that differ from at::_grouped_mm", f"moe {kernel}", {}, "differ_from_grouped",
                  0, is_most=True)
    for rows, tflops in ((128, 360), (256, 450), (512, 510)):
        yield Aim(f"MoE prefill, gate_up, {rows} rows an expert, TFLOP/s", "moe gate_up from codes", {"rows_each": rows},
                  "tflops", tflops)
    for rows in (128, 512):
        yield Aim(f"MoE dW in FP32, {rows} rows an expert, to at::_grouped_mm and an addition",
                  "moe weight grad added in FP32", {"rows_each": rows}, "ratio_to_grouped_and_add", 1.0)


def other_aims():
    yield Aim("attention prefill, to the flash path", "attention prefill", {}, "speed_to_flash", 1.2)
    for keys, share in (([128, 4096, 32, 8, 128], 0.8), ([8, 4096, 32, 8, 128], 0.8), ([4, 4096, 32, 8, 128], 0.7)):
        yield Aim(f"paged decode, {keys[0]} x {keys[1]} keys, of the read", "attention decode", {"shape": keys},
                  "share_of_read", share)
    for kernel in ("attention decode", "attention decode, overlapped"):
        for keys in (256, 1024, 4096):
            yield Aim(f"paged {kernel[10:]}, 1 x {keys} keys, us", kernel, {"shape": [1, keys, 32, 8, 128]}, "us", 6,
                      is_most=True)
    yield Aim("attention over a latent, prefill, TFLOP/s", "latent prefill", {}, "tflops", 350)
    for shape in ([128, 4096, 128], [64, 8192, 128], [128, 8192, 128]):
        yield Aim(f"attention over a latent, decode {shape[0]} x {shape[1]} keys, 128 heads, TFLOP/s", "latent decode",
                  {"shape": shape}, "tflops", 350)
    yield Aim("fake-quant, of a copy", "fake_quant", {}, "share_of_copy", 0.85)
    yield Aim("pack, of the read", "pack", {}, "share_of_read", 0.8)
    for group in (32, 128):
        yield Aim(f"AdamW + requantise g{group}, flips counted, time of AdamW alone", f"adamw codes g{group}", {},
                  "to_plain", 1.03, is_most=True)
        yield Aim(f"AdamW + requantise g{group}, time of torch's and a pack", f"adamw codes g{group}", {},
                  "to_torch_fused_and_pack", 1.0, is_most=True)
    yield Aim("LM-head log-probability, time of the library", "logprob sliced 8192x8192", {}, "to_library", 0.95,
              is_most=True)


def aims():
    return [*decode_aims(), *prefill_aims(), *moe_aims(), *other_aims()]


def read_rows(paths):
    """Rows of the files; of equal measurements the last."""
    latest = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                key = tuple(str(row.get(k)) for k in ("kernel", "shape", "n", "k", "m", "g", "group", "rows_each", "plan",
                                                      "pdl", "megabytes", "variant", "warps_per_sm", "blocks_per_sm"))
                latest.pop(key, None)
                latest[key] = row
    return list(latest.values())


def table(rows):
    """Lines: what, wanted, measured, and whether that is enough."""
    lines = [f"{'what':<72} {'wanted':>9} {'measured':>9}"]
    for aim in aims():
        value = aim.measured(rows)
        wanted = f"{'<=' if aim.is_most else '>='} {aim.bound:g}"
        verdict = "" if value is None else "met" if aim.is_met(value) else "missed"
        lines.append(f"{aim.what:<72} {wanted:>9} {'-' if value is None else f'{value:g}':>9} {verdict}".rstrip())
    return lines
