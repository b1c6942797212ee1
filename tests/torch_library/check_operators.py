"""The operators against plain torch: check_operators.py LIBRARY [cpu | cuda]. Started by run.py."""

import sys

import torch

GROUPS = (32, 64, 128)


def fake_quant(weight, group):
    """The format, written with torch: docs/int4_format.md."""
    w = weight.to(torch.bfloat16).float().view(*weight.shape[:-1], -1, group)
    scale = (w.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-5).to(torch.bfloat16).float()
    codes = torch.round(w / scale).clamp(-7, 7)
    return (codes * scale).to(torch.bfloat16).view(weight.shape), codes.view(weight.shape).int()


def codes_of(packed):
    shifts = torch.arange(0, 32, 4, device=packed.device)
    return (((packed.unsqueeze(-1) >> shifts) & 15) - 8).flatten(-2).int()


def check_format(ops, device):
    for group in GROUPS:
        weight = torch.randn(48, 512, device=device).to(torch.bfloat16)
        expected, codes = fake_quant(weight, group)
        packed, scale = ops.pack_int4(weight, group)
        assert torch.equal(ops.fake_quant_int4(weight, group), expected), group
        assert torch.equal(ops.fake_quant_int4(weight.float(), group), expected.float()), group
        assert torch.equal(codes_of(packed), codes), group
        assert torch.equal(ops.unpack_int4(packed, scale), expected), group


def check_linear(ops, device):
    bound = 2 ** -7
    for group, (n, k) in zip(GROUPS, ((256, 512), (96, 1024), (64, 384))):
        packed, scale = ops.pack_int4(torch.randn(n, k, device=device) * 0.05, group)
        plain = ops.unpack_int4(packed, scale)
        bias = torch.randn(n, device=device).to(torch.bfloat16)
        for rows in (1, 5, 64, 200):
            x = torch.randn(rows, k, device=device).to(torch.bfloat16)
            expected = x.double() @ plain.double().T + bias.double()
            y = ops.w4a16_linear(x, packed, scale, bias)
            assert (y.double() - expected).abs().max() <= bound * expected.abs().max(), (n, k, rows)
            if device == "cuda":
                layout = ops.kernel_layout_int4(packed, scale)
                whole = ops.w4a16_linear(x, layout, scale, bias)
                assert (whole.double() - expected).abs().max() <= bound * expected.abs().max()
                assert torch.equal(ops.unpack_layout_int4(layout, scale, k), plain), (n, k)
                # Exact: a row's bits depend neither on the rows beside it nor on the form of the weight.
                assert torch.equal(whole[:1], ops.w4a16_linear(x[:1], packed, scale, bias)), (n, k, rows)
                assert torch.equal(whole, y), (n, k, rows)


def check_rows_of_linear(ops, device):
    """Every number of rows has the same bits: few rows, many, and those that go to the library."""
    if device != "cuda":
        return
    for n, k, group in ((1024, 768, 32), (2048, 4096, 128), (512, 8448, 128)):
        packed, scale = ops.pack_int4(torch.randn(n, k, device=device) * 0.05, group)
        layout, bias = ops.kernel_layout_int4(packed, scale), torch.randn(n, device=device).to(torch.bfloat16)
        x = torch.randn(4096, k, device=device).to(torch.bfloat16)
        for b in (None, bias):
            whole = ops.w4a16_linear(x, layout, scale, b)
            for rows in (1, 7, 33, 64, 127, 128, 513, 2047, 2048):
                assert torch.equal(ops.w4a16_linear(x[:rows], layout, scale, b), whole[:rows]), (n, k, rows)
                assert torch.equal(ops.w4a16_linear(x[-rows:], packed, scale, b), whole[-rows:]), (n, k, rows)


def check_moe(ops, device):
    experts, slots, hidden, inner, group = 16, 4, 256, 128, 32
    for tokens in (1, 9, 70):
        x = torch.randn(tokens, hidden, device=device).to(torch.bfloat16)
        router = torch.randn(experts, hidden, device=device).to(torch.bfloat16) * 0.2
        up, up_scale = ops.pack_int4(torch.randn(experts, 2 * inner, hidden, device=device) * 0.05, group)
        down, down_scale = ops.pack_int4(torch.randn(experts, hidden, inner, device=device) * 0.05, group)
        plain_up, plain_down = ops.unpack_int4(up, up_scale).double(), ops.unpack_int4(down, down_scale).double()
        logits = x.double() @ router.double().T
        weights, ids = torch.softmax(logits, -1).topk(slots, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        expected = torch.zeros(tokens, hidden, device=device, dtype=torch.float64)
        for slot in range(slots):
            gate, value = torch.einsum("td,tfd->tf", x.double(), plain_up[ids[:, slot]]).chunk(2, -1)
            y = torch.einsum("tf,tdf->td", torch.nn.functional.silu(gate) * value, plain_down[ids[:, slot]])
            expected += weights[:, slot, None] * y
        out = ops.w4a16_moe(x, router, (up, up_scale), (down, down_scale), slots)
        error = (out.double() - expected).norm() / expected.norm()
        assert error < 1e-2, (tokens, error.item())
        replayed = ops.w4a16_moe(x, router, (up, up_scale), (down, down_scale), slots, True, ids.int())
        assert (replayed.double() - expected).norm() / expected.norm() < 1e-2, tokens
        if device == "cuda":
            layouts = ops.kernel_layout_int4(up, up_scale), ops.kernel_layout_int4(down, down_scale)
            again = ops.w4a16_moe(x, router, (layouts[0], up_scale), (layouts[1], down_scale), slots)
            assert torch.equal(again, out), tokens


def check_rows_of_moe(ops, device):
    """The kernels for few rows an expert and for many: a token's bits do not depend on the other tokens."""
    experts, slots, hidden, inner, group = 8, 2, 256, 128, 32
    up = ops.pack_int4(torch.randn(experts, 2 * inner, hidden, device=device) * 0.05, group)
    down = ops.pack_int4(torch.randn(experts, hidden, inner, device=device) * 0.05, group)
    x = torch.randn(300, hidden, device=device).to(torch.bfloat16)
    router = torch.randn(experts, hidden, device=device).to(torch.bfloat16) * 0.2
    whole = ops.w4a16_moe(x, router, up, down, slots)
    for tokens in (1, 5, 40, 63, 64, 65, 128, 299):
        assert torch.equal(ops.w4a16_moe(x[:tokens], router, up, down, slots), whole[:tokens]), tokens


def plain_moe(x, router, gate_up, down, slots, norm):
    """The formula, in torch's own operators; every token through all experts."""
    logits = x.float() @ router.float().T
    probabilities = torch.softmax(logits, -1)
    weights, ids = probabilities.topk(slots, -1)
    if norm:
        weights = weights / weights.sum(-1, keepdim=True)
    gate, value = torch.einsum("td,efd->tef", x.float(), gate_up.float()).chunk(2, -1)
    y = torch.einsum("tef,edf->ted", torch.nn.functional.silu(gate) * value, down.float())
    return (weights.unsqueeze(-1) * y.gather(1, ids.unsqueeze(-1).expand(-1, -1, y.shape[-1]))).sum(1)


def check_moe_gradients(ops, device):
    experts, slots, hidden, inner, group = 8, 2, 128, 64, 32
    for kind in (torch.float32, torch.bfloat16) if device == "cpu" else (torch.bfloat16,):
        bound = 1e-4 if kind == torch.float32 else 2e-2
        for tokens, norm in ((5, True), (100, True), (100, False)):
            x = torch.randn(tokens, hidden, device=device).to(kind).requires_grad_()
            router = (torch.randn(experts, hidden, device=device) * 0.2).to(kind).requires_grad_()
            gate_up = (torch.randn(experts, 2 * inner, hidden, device=device) * 0.2).requires_grad_()
            down = (torch.randn(experts, hidden, inner, device=device) * 0.2).to(kind).requires_grad_()
            leaves = (x, router, gate_up, down)
            out = ops.w4a16_moe_train(x, router, gate_up, down, group, slots, norm)
            with torch.no_grad():
                rollout = ops.w4a16_moe(x, router, ops.pack_int4(gate_up, group), ops.pack_int4(down, group), slots,
                                        norm)
                assert torch.equal(out, rollout), (kind, tokens)
                assert torch.equal(out, ops.w4a16_moe_train(x, router, gate_up, down, group, slots, norm))
            dout = torch.randn(tokens, hidden, device=device)
            grads = torch.autograd.grad(out, leaves, dout.to(out.dtype))
            plain = plain_moe(x, router, ops.fake_quant_int4(gate_up, group), ops.fake_quant_int4(down, group), slots,
                              norm)
            expected = torch.autograd.grad(plain, leaves, dout.to(kind).float())
            for name, ours, theirs, leaf in zip(("x", "router", "gate_up", "down"), grads, expected, leaves):
                assert ours.dtype == leaf.dtype and ours.shape == leaf.shape, name
                error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
                assert error < bound, (name, kind, tokens, norm, error.item())


def check_moe_gradients_asked_for(ops, device):
    """Each gradient alone has the bits of all together: nobody computes what nobody asks for."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    tensors = [torch.randn(sizes, device=device).to(kind) * 0.2 for sizes in ((40, 128), (8, 128), (8, 128, 128), (8, 128, 64))]
    dout = torch.randn(40, 128, device=device).to(kind)

    def gradients(asked):
        leaves = [tensor.clone().requires_grad_(i in asked) for i, tensor in enumerate(tensors)]
        ops.w4a16_moe_train(*leaves, 32, 2).backward(dout)
        return [leaf.grad for leaf in leaves]

    whole = gradients(range(4))
    for asked in ((0,), (1,), (2,), (3,), (0, 1), (2, 3)):
        for i, grad in enumerate(gradients(asked)):
            assert torch.equal(grad, whole[i]) if i in asked else grad is None, (asked, i)


def check_linear_gradients(ops, device):
    for kind in (torch.float32, torch.bfloat16) if device == "cpu" else (torch.bfloat16,):
        bound = 1e-4 if kind == torch.float32 else 2e-2
        weight = torch.randn(96, 256, device=device, requires_grad=True)
        bias = torch.randn(96, device=device).to(kind).requires_grad_()
        x = torch.randn(3, 50, 256, device=device).to(kind).requires_grad_()
        y = ops.w4a16_linear_train(x, weight, 64, bias)
        assert torch.equal(y, ops.w4a16_linear(x, *ops.pack_int4(weight.detach(), 64), bias))
        dy = torch.randn(3, 50, 96, device=device).to(kind)
        grads = torch.autograd.grad(y, (x, weight, bias), dy)
        plain = torch.nn.functional.linear(x.float(), ops.fake_quant_int4(weight, 64), bias.float())
        for ours, theirs in zip(grads, torch.autograd.grad(plain, (x, weight, bias), dy.float())):
            assert (ours.float() - theirs.float()).norm() / theirs.float().norm() < bound, kind
        if device == "cuda":
            packed, scale = ops.pack_int4(weight.detach(), 64)
            layout = ops.kernel_layout_int4(packed, scale)
            assert torch.equal(torch.autograd.grad(ops.w4a16_linear(x, layout, scale, bias), x, dy)[0], grads[0])


def check_linear_gradients_of_any_shape(ops, device):
    """Weights with leading dimensions count as further rows, which need not come by eights; nobody computes what nobody asks for."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    bound = 1e-4 if kind == torch.float32 else 2e-2
    for sizes in ((2, 12, 128), (3, 16, 128), (100, 128)):
        weight = torch.randn(sizes, device=device, requires_grad=True)
        x = torch.randn(70, 128, device=device).to(kind).requires_grad_()
        dy = torch.randn(70, weight[..., 0].numel(), device=device).to(kind)
        plain = torch.nn.functional.linear(x.float(), ops.fake_quant_int4(weight, 64).flatten(0, -2))
        expected = torch.autograd.grad(plain, (x, weight), dy.float())
        y = ops.w4a16_linear_train(x, weight, 64)
        for of in (y, ops.w4a16_linear(x, *ops.pack_int4(weight.detach(), 64))):
            assert (of.float() - plain).norm() / plain.norm() < bound, sizes
        grads = torch.autograd.grad(y, (x, weight), dy)
        for ours, theirs in zip(grads, expected):
            assert ours.shape == theirs.shape, sizes
            assert (ours.float() - theirs).norm() / theirs.norm() < bound, sizes
        frozen = ops.w4a16_linear_train(x, weight.detach(), 64)
        (dx,) = torch.autograd.grad(frozen, x, dy)
        assert torch.equal(dx, grads[0])


def refuse(derivative):
    try:
        derivative()
    except RuntimeError as error:
        assert "not implemented" in str(error), error
    else:
        raise AssertionError("a derivative that there is not was given")


def check_second_derivatives(ops, device):
    """w4a16_linear is linear in x: its second derivative by dy is itself. The training form's dx has gradients of dy and
    of the weight, as through fake_quant_int4; a gradient of its dweight and those of experts' gradients are refused."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    packed, scale = ops.pack_int4(torch.randn(16, 128, device=device), 32)
    x = torch.randn(5, 128, device=device).to(kind).requires_grad_()
    dy = torch.randn(5, 16, device=device).to(kind).requires_grad_()
    (dx,) = torch.autograd.grad(ops.w4a16_linear(x, packed, scale), x, dy, create_graph=True)
    ddx = torch.randn_like(dx)
    (ddy,) = torch.autograd.grad(dx, dy, ddx)
    assert torch.equal(ddy, ops.w4a16_linear(ddx, packed, scale))
    weight = torch.randn(16, 128, device=device, requires_grad=True)
    (dweight,) = torch.autograd.grad(ops.w4a16_linear_train(x, weight, 32), weight, dy, create_graph=True)
    refuse(lambda: torch.autograd.grad(dweight.sum(), dy))
    for sizes in ((16, 128), (2, 8, 128)):
        weight = torch.randn(sizes, device=device, requires_grad=True)
        plain = torch.nn.functional.linear(x.float(), ops.fake_quant_int4(weight, 32).flatten(0, -2))
        pairs = []
        for y in (ops.w4a16_linear_train(x, weight, 32), plain):
            (dx,) = torch.autograd.grad(y, x, dy.to(y.dtype), create_graph=True)
            pairs.append(torch.autograd.grad(dx.float().square().sum(), (weight, dy)))
        for ours, theirs in zip(*pairs):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and theirs.norm() > 1, sizes
            error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
            assert error < (1e-4 if kind == torch.float32 else 2e-2), (sizes, error.item())
    router = torch.randn(8, 128, device=device).to(kind)
    masters = [torch.randn(8, *sizes, device=device, requires_grad=True) for sizes in ((128, 128), (128, 64))]
    for inputs, of in ((x, x), (x.detach(), masters[0]), (x.detach(), masters[1])):
        y = ops.w4a16_moe_train(inputs, router, *masters, 32, 2)
        (grad,) = torch.autograd.grad(y.float().sum(), of, create_graph=True)
        refuse(lambda: (grad.float().square().sum() + masters[0].sum()).backward())


def check_rows_of_input_gradient(ops, device):
    """A row's gradient has the same bits beside any number of rows, from codes and from the kernel layout."""
    if device != "cuda":
        return
    for n, k, group in ((1024, 768, 32), (2048, 4096, 128), (8448, 512, 128), (100, 256, 64)):
        packed, scale = ops.pack_int4(torch.randn(n, k, device=device) * 0.05, group)
        plain, layout = ops.unpack_int4(packed, scale), ops.kernel_layout_int4(packed, scale)
        x = torch.randn(2048, k, device=device).to(torch.bfloat16).requires_grad_()
        dy = torch.randn(2048, n, device=device).to(torch.bfloat16)

        def grad(rows, weight):
            return torch.autograd.grad(ops.w4a16_linear(x[:rows], weight, scale), x, dy[:rows])[0][:rows]

        whole = grad(2048, layout)
        assert torch.equal(whole, grad(2048, packed)), (n, k)
        expected = dy.double() @ plain.double()
        assert (whole.double() - expected).norm() / expected.norm() < 1e-2, (n, k)
        for rows in (1, 7, 33, 64, 127, 128, 513) if n % 8 == 0 else ():
            assert torch.equal(grad(rows, layout), whole[:rows]), (n, k, rows)


def check_gradients(ops, device):
    weight = torch.randn(64, 128, device=device, requires_grad=True)
    dy = torch.randn(64, 128, device=device)
    ops.fake_quant_int4(weight, 32).backward(dy)
    assert torch.equal(weight.grad, dy)
    packed, scale = ops.pack_int4(weight.detach(), 32)
    x = torch.randn(7, 128, device=device).to(torch.bfloat16).requires_grad_()
    ops.w4a16_linear(x, packed, scale).float().sum().backward()
    expected = ops.unpack_int4(packed, scale).float().sum(0).expand(7, -1)
    assert (x.grad.float() - expected).norm() / expected.norm() < 1e-2


def shifted(tensor):
    """The same values one element further in memory, where no wide load may begin."""
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def check_places_in_memory(ops, device):
    """Slices of a larger tensor, at any offset, give the bits of a tensor of their own."""
    weight = (torch.randn(3, 16, 128, device=device) * 0.2).to(torch.bfloat16)
    x = torch.randn(5, 128, device=device).to(torch.bfloat16)
    packed, scale = ops.pack_int4(weight, 32)
    for ours, theirs in zip(ops.pack_int4(shifted(weight), 32), (packed, scale)):
        assert torch.equal(ours, theirs)
    assert torch.equal(ops.fake_quant_int4(shifted(weight), 32), ops.fake_quant_int4(weight, 32))
    assert torch.equal(ops.unpack_int4(shifted(packed), shifted(scale)), ops.unpack_int4(packed, scale))
    y = ops.w4a16_linear(x, packed, scale)
    assert torch.equal(ops.w4a16_linear(shifted(x), shifted(packed), shifted(scale)), y)
    router = torch.randn(3, 128, device=device).to(torch.bfloat16)
    up = ops.pack_int4(torch.randn(3, 64, 128, device=device) * 0.2, 32)
    down = ops.pack_int4(torch.randn(3, 128, 32, device=device) * 0.2, 32)
    whole = ops.w4a16_moe(x, router, up, down, 2)
    assert torch.equal(ops.w4a16_moe(shifted(x), shifted(router), [shifted(t) for t in up],
                                     [shifted(t) for t in down], 2), whole)
    if device == "cuda":
        layout = ops.kernel_layout_int4(packed, scale)
        assert torch.equal(layout, torch.cat([ops.kernel_layout_int4(p, s) for p, s in zip(packed, scale)]))
        assert torch.equal(ops.w4a16_linear(x, shifted(layout), scale), y)
        assert torch.equal(ops.unpack_layout_int4(shifted(layout), scale, 128), ops.unpack_int4(packed, scale))


def check_nothing(ops, device):
    """Nothing in is nothing out: no rows of x, no rows of a weight, no experts' tokens; gradients are empty or zero."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    for sizes in ((0, 128), (0, 12, 128), (3, 0, 128), (2, 16, 128)):
        for leading in ((5,), (0,), (2, 0)):
            weight = torch.randn(sizes, device=device, requires_grad=True)
            outputs = weight[..., 0].numel()
            if outputs > 0 and 0 not in leading:
                continue
            x = torch.randn(*leading, 128, device=device).to(kind).requires_grad_()
            bias = torch.randn(outputs, device=device).to(kind).requires_grad_()
            packed, scale = ops.pack_int4(weight, 32)
            assert packed.shape == (*sizes[:-1], 16) and scale.shape == (*sizes[:-1], 4), sizes
            assert ops.unpack_int4(packed, scale).shape == weight.shape, sizes
            assert ops.fake_quant_int4(weight, 32).shape == weight.shape, sizes
            forms = [packed]
            if device == "cuda":
                forms.append(ops.kernel_layout_int4(packed, scale))
                assert (forms[1].numel() == 0) == (outputs == 0), sizes
                assert ops.unpack_layout_int4(forms[1], scale, 128).shape == weight.shape, sizes
            for y in [ops.w4a16_linear(x, form, scale, bias) for form in forms] + [
                    ops.w4a16_linear_train(x, weight, 32, bias)]:
                assert y.shape == (*leading, outputs), (sizes, leading)
            for leaf, grad in zip((x, weight, bias), torch.autograd.grad(y.sum(), (x, weight, bias))):
                assert torch.equal(grad, torch.zeros_like(leaf)), (sizes, leading)
    leaves = [torch.randn(sizes, device=device).to(kind).requires_grad_()
              for sizes in ((0, 128), (8, 128), (8, 128, 128), (8, 128, 64))]
    out = ops.w4a16_moe_train(*leaves, 32, 2)
    assert out.shape == (0, 128)
    for leaf, grad in zip(leaves, torch.autograd.grad(out.sum(), leaves)):
        assert torch.equal(grad, torch.zeros_like(leaf)), leaf.shape


def check_refusals(ops, device):
    """What does not fit is refused by its name."""
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    weight = torch.randn(16, 64, device=device)
    packed, scale = ops.pack_int4(weight, 32)
    x = torch.randn(5, 64, device=device).to(kind)
    router = torch.randn(8, 64, device=device).to(kind)
    up, down = (ops.pack_int4(torch.randn(8, 64, columns, device=device), 32) for columns in (64, 32))
    ids = torch.zeros(5, 2, dtype=torch.int32, device=device)
    calls = {
        "weight": (lambda: ops.fake_quant_int4(weight, 48), lambda: ops.pack_int4(weight.half(), 32),
                   lambda: ops.pack_int4(weight[0], 32), lambda: ops.pack_int4(weight[:, :0], 32)),
        "packed": (lambda: ops.unpack_int4(weight, weight), lambda: ops.unpack_int4(packed[:8], scale),
                   lambda: ops.w4a16_linear(x, packed.view(2, 8, 8), scale)),
        "scale": (lambda: ops.unpack_int4(packed, scale.float()), lambda: ops.w4a16_linear(x, packed, scale[:, :0])),
        "x": (lambda: ops.w4a16_linear(x[:, :56], packed, scale), lambda: ops.w4a16_linear(x.half(), packed, scale),
              lambda: ops.w4a16_moe(x[0], router, up, down, 2)),
        "bias": (lambda: ops.w4a16_linear(x, packed, scale, weight[:1]),
                 lambda: ops.w4a16_linear_train(x, weight, 32, x[0]),
                 lambda: ops.w4a16_linear(x, packed, scale, ids[0, :1].expand(16))),
        "router": (lambda: ops.w4a16_moe(x, router.half(), up, down, 2),),
        "experts_per_token": (lambda: ops.w4a16_moe(x, router, up, down, 0),
                              lambda: ops.w4a16_moe(x, router, up, down, 9)),
        "gate_up's scale": (lambda: ops.w4a16_moe(x, router[:7], up, down, 2),),
        "down": (lambda: ops.w4a16_moe(x, router, up, (up[0], down[1]), 2),),
        "ids": (lambda: ops.w4a16_moe(x, router, up, down, 2, True, ids.long()),
                lambda: ops.w4a16_moe(x, router, up, down, 2, True, ids[:4])),
        "gate_up and down": (lambda: ops.w4a16_moe(x, router, up[:1], down, 2),),
    }
    if device == "cuda":
        calls["packed"] += (lambda: ops.w4a16_linear(x.cpu(), packed, scale),
                            lambda: ops.w4a16_linear(x, torch.zeros(9, dtype=torch.uint8, device=device), scale))
        calls["scale"] += (lambda: ops.unpack_int4(packed, scale.cpu()),)
        calls["bias"] += (lambda: ops.w4a16_linear(x, packed, scale, torch.zeros(16)),)
    for name, call in ((name, call) for name, some in calls.items() for call in some):
        try:
            call()
        except RuntimeError as error:
            assert str(error).startswith(name + ": expected ") and ", found " in str(error), (name, error)
        else:
            raise AssertionError(f"{name}: a call that does not fit was taken")


def main():
    torch.ops.load_library(sys.argv[1])
    torch.manual_seed(0)
    for device in ["cpu"] + (["cuda"] if sys.argv[2:] == ["cuda"] else []):
        for check in (check_format, check_linear, check_rows_of_linear, check_moe, check_rows_of_moe, check_gradients,
                      check_linear_gradients, check_linear_gradients_of_any_shape, check_second_derivatives,
                      check_rows_of_input_gradient, check_moe_gradients, check_moe_gradients_asked_for, check_places_in_memory, check_nothing, check_refusals):
            check(torch.ops.quatrain, device)
            print(f"{device}: {check.__name__} passed", flush=True)


if __name__ == "__main__":
    main()
