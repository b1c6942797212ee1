"""The operators under torch.compile: check_compile.py LIBRARY [cpu | cuda]. Started by run.py."""

import logging
import sys

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GROUP = 32


def int4(ops, device, *sizes):
    """Codes and scales, codes as the device's kernels read them."""
    packed, scale = ops.pack_int4(torch.randn(*sizes, device=device) * 0.2, GROUP)
    return ops.kernel_layout_int4(packed, scale) if device == "cuda" else packed, scale


def samples(ops, device):
    """Operator and arguments, with and without what may be left out; leaves ask for gradients."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16

    def leaf(*sizes, type=kind):
        return (torch.randn(*sizes, device=device) * 0.2).to(type).requires_grad_()

    packed, scale = ops.pack_int4(torch.randn(16, 64, device=device), GROUP)
    up, down = int4(ops, device, 8, 64, 64), int4(ops, device, 8, 64, 32)
    masters = leaf(8, 64, 64, type=torch.float32), leaf(8, 64, 32, type=torch.float32)
    ids = torch.tensor([[0, 3], [7, 1], [2, 5]], dtype=torch.int32, device=device)
    x, router, dout = leaf(3, 64), leaf(8, 64), torch.randn(3, 64, device=device).to(kind)
    yield "fake_quant_int4", (leaf(16, 64, type=torch.float32), GROUP)
    yield "fake_quant_int4", (leaf(2, 16, 64, type=torch.bfloat16), 64)
    yield "pack_int4", (leaf(16, 64), GROUP)
    yield "pack_int4", (leaf(64, 16).T, GROUP)
    yield "unpack_int4", (packed, scale)
    yield "w4a16_linear", (leaf(3, 64), packed, scale)
    yield "w4a16_linear", (leaf(2, 3, 64), packed, scale, leaf(16))
    yield "w4a16_linear_train", (leaf(3, 64), leaf(16, 64, type=torch.float32), GROUP)
    yield "w4a16_linear_train", (leaf(2, 3, 64), leaf(2, 8, 64, type=torch.float32), GROUP, leaf(16))
    yield "w4a16_moe", (x.detach(), router.detach(), up, down, 2)
    yield "w4a16_moe", (x.detach(), router.detach(), up, down, 2, False, ids)
    yield "w4a16_moe_train", (x, router, *masters, GROUP, 2)
    yield "w4a16_moe_train", (x, router, *masters, GROUP, 2, False, ids)
    yield "_linear_input_grad", (leaf(3, 16), packed, scale, 64)
    yield "_linear_weight_grad", (torch.randn(3, 16, device=device).to(kind), dout)
    forward = (x.detach(), router.detach(), up, down, 2, True, ids)
    yield "_moe_forward", forward
    for needs in ([True] * 4, [True, False, False, True], [False, True, True, False]):
        yield "_moe_backward", (dout, ops._moe_forward(*forward), *forward[:4], True, needs)
    if device == "cuda":
        yield "kernel_layout_int4", (packed, scale)
        yield "unpack_layout_int4", (ops.kernel_layout_int4(packed, scale), scale, 64)


def check_operators(ops, device):
    """Schema, gradients and fake kernels of every operator, with known sizes and with symbols."""
    seen = set()
    for name, arguments in samples(ops, device):
        torch.library.opcheck(getattr(ops, name).default, arguments)
        seen.add(name)
    ours = {name.removeprefix("quatrain::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("quatrain::")}
    assert ours, "no operators"
    for name in ours:
        kernels = ("Meta", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
        assert any(torch._C._dispatch_has_kernel_for_dispatch_key(f"quatrain::{name}", key) for key in kernels), name
    left_out = {"kernel_layout_int4", "unpack_layout_int4"} if device == "cpu" else set()
    assert ours == seen | left_out, ours ^ (seen | left_out)


class Rollout(nn.Module):
    """A linear from codes, and experts beside it."""

    def __init__(self, ops, device, kind):
        super().__init__()
        self.ops, self.kind = ops, kind
        self.linear, self.up, self.down = int4(ops, device, 64, 64), int4(ops, device, 8, 64, 64), int4(ops, device, 8, 64, 32)
        self.bias = nn.Parameter(torch.randn(64, device=device))
        self.router = torch.randn(8, 64, device=device).to(kind)

    def forward(self, x):
        h = self.ops.w4a16_linear(x, *self.linear, self.bias)
        return h + self.ops.w4a16_moe(h.detach(), self.router, self.up, self.down, 2)


class Training(nn.Module):
    """The training forms over masters, and a plain linear over a fake-quantised weight."""

    def __init__(self, ops, device, kind):
        super().__init__()
        self.ops, self.kind = ops, kind
        self.first, self.last = (nn.Linear(64, 64, device=device) for _ in range(2))
        self.router = nn.Parameter(torch.randn(8, 64, device=device))
        self.gate_up = nn.Parameter(torch.randn(8, 64, 64, device=device) * 0.2)
        self.down = nn.Parameter(torch.randn(8, 64, 32, device=device) * 0.2)

    def forward(self, x):
        h = self.ops.w4a16_linear_train(x, self.first.weight, GROUP, self.first.bias)
        h = h + self.ops.w4a16_moe_train(h, self.router.to(self.kind), self.gate_up, self.down, GROUP, 2)
        weight = self.ops.fake_quant_int4(self.last.weight, GROUP)
        return nn.functional.linear(h, weight.to(self.kind), self.last.bias.to(self.kind))


def run(model, forward, tokens, device, kind):
    """Output of seeded inputs and the gradients of all that asks for one."""
    torch.manual_seed(tokens)
    x = torch.randn(tokens, 64, device=device).to(kind).requires_grad_()
    model.zero_grad()
    y = forward(x)
    y.backward(torch.randn_like(y))
    return [y, x.grad] + [parameter.grad.clone() for parameter in model.parameters()]


def check_modules(ops, device):
    """In one graph, with the bits of eager, for any number of tokens after the second."""
    kinds = (torch.float32, torch.bfloat16) if device == "cpu" else (torch.bfloat16,)
    for make, backend, kind in ((m, b, k) for m in (Rollout, Training) for b in ("eager", "aot_eager") for k in kinds):
        torch._dynamo.reset()
        graphs = torch._dynamo.testing.CompileCounterWithBackend(backend)
        torch.manual_seed(0)
        model = make(ops, device, kind)
        compiled = torch.compile(model, backend=graphs, fullgraph=True)
        for tokens in (5, 9, 33, 70):
            for ours, theirs in zip(run(model, compiled, tokens, device, kind), run(model, model, tokens, device, kind)):
                assert torch.equal(ours, theirs), (make.__name__, backend, kind, tokens)
        assert graphs.frame_count <= 2, (make.__name__, backend, graphs.frame_count)


def check_export(ops, device):
    """An exported program, for any number of tokens, has the bits of the module."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    tokens = torch.export.Dim("tokens", min=2)
    for make in (Rollout, Training):
        model = make(ops, device, kind)
        inputs = [torch.randn(rows, 64, device=device).to(kind) for rows in (5, 33)]
        program = torch.export.export(model, (inputs[0],), dynamic_shapes=({0: tokens},))
        for x in inputs:
            assert torch.equal(program.module()(x), model(x)), make.__name__


class Calls(TorchDispatchMode):
    """The operators of ours that run, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "quatrain":
            self.names.append(function._schema.name.removeprefix("quatrain::"))
        return function(*args, **(kwargs or {}))


def check_fake_cuda(ops):
    """What is traced for a CUDA device goes through the kernel layout; seen without one, so forwards and parts of backwards."""
    with FakeTensorMode(), torch.no_grad():
        x, dy = torch.empty(5, 64, device="cuda", dtype=torch.bfloat16), torch.empty(5, 24, device="cuda")
        weight = torch.empty(2, 12, 64, device="cuda")
        with Calls() as calls:
            y = ops.w4a16_linear_train(x, weight, GROUP)
        assert calls.names == ["pack_int4", "kernel_layout_int4", "w4a16_linear"], calls.names
        assert y.device.type == "cuda" and y.shape == (5, 24) and y.dtype == torch.bfloat16
        layout, scale = int4(ops, "cuda", 24, 64)
        assert layout.shape == (3 * (512 + 8 * 4 * 2),) and ops.unpack_layout_int4(layout, scale, 64).shape == (24, 64)
        dx, dweight = ops._linear_input_grad(dy, layout, scale, 64), ops._linear_weight_grad(dy, x)
        assert dx.shape == x.shape and dx.dtype == dy.dtype and dweight.shape == (24, 64) and dx.is_cuda
        router, masters = x.new_empty(8, 64), (torch.empty(8, 64, 64, device="cuda"), torch.empty(8, 64, 32, device="cuda"))
        with Calls() as calls:
            y = ops.w4a16_moe_train(x, router, *masters, GROUP, 2)
        assert calls.names == ["pack_int4", "kernel_layout_int4"] * 2 + ["_moe_forward"], calls.names
        assert y.is_cuda and y.shape == x.shape
        weights = int4(ops, "cuda", 8, 64, 64), int4(ops, "cuda", 8, 64, 32)
        saved = ops._moe_forward(x, router, *weights, 2, True, None)
        grads = ops._moe_backward(y, saved, x, router, *weights, True, [True] * 4)
        assert [tuple(grad.shape) for grad in grads] == [(5, 64), (8, 64), (8, 64, 64), (8, 64, 32)]
        # torch logs what a Meta kernel refuses.
        logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
        for call in (lambda: ops.w4a16_linear(x.float(), layout, scale), lambda: ops._linear_weight_grad(dy, x.float()),
                     lambda: ops.w4a16_linear_train(x.float(), weight, GROUP),
                     lambda: ops.w4a16_moe(x.float(), router.float(), *weights, 2),
                     lambda: ops.w4a16_moe_train(x.float(), router.float(), *masters, GROUP, 2)):
            try:
                call()
            except RuntimeError as error:
                assert "x: expected BF16 on CUDA" in str(error), error
            else:
                raise AssertionError("FP32 x was taken for CUDA")


def check_gradients_that_none_has(ops, device):
    """Codes have no gradient; the rollout's experts refuse theirs instead of leaving it out."""
    weight = torch.randn(16, 64, device=device, requires_grad=True)
    packed, scale = ops.pack_int4(weight, GROUP)
    assert not packed.requires_grad and not scale.requires_grad
    x = torch.randn(3, 64, device=device).to(torch.bfloat16).requires_grad_()
    router = torch.randn(8, 64, device=device).to(torch.bfloat16)
    y = ops.w4a16_moe(x, router, int4(ops, device, 8, 64, 64), int4(ops, device, 8, 64, 32), 2)
    try:
        y.sum().backward()
    except RuntimeError as error:
        assert "not implemented" in str(error), error
    else:
        raise AssertionError("a gradient of w4a16_moe was left out")


def main():
    import torch._dynamo.testing
    torch.ops.load_library(sys.argv[1])
    torch.manual_seed(0)
    check_fake_cuda(torch.ops.quatrain)
    print("check_fake_cuda passed", flush=True)
    for device in ["cpu"] + (["cuda"] if sys.argv[2:] == ["cuda"] else []):
        for check in (check_operators, check_modules, check_export, check_gradients_that_none_has):
            check(torch.ops.quatrain, device)
            print(f"{device}: {check.__name__} passed", flush=True)


if __name__ == "__main__":
    main()
