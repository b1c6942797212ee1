"""Quantisation-aware training in a plain torch script: classes that swap the INT4 operators into any model.

    cmake --build build/release --target quatrain_torch
    python3 examples/torch_training.py build/release/quatrain_torch.so [cpu | cuda]

QatLinear trains the weight that the codes stand for: the forward sees rn_bf16(q * s), the gradient passes straight through.
Int4Linear holds codes and scales only: what a rollout or a server reads. The script trains a small network in BF16-rounded
INT4 weights, packs it, and shows that the packed network answers as the trained one; trained without QAT it does not.

QatExperts is a mixture of experts whose training forward is the rollout's arithmetic (w4a16_moe_train): a packed copy
of it, Int4Experts, answers with the same bits, so that rollout and training never differ. All of it may be compiled:
torch.compile(model) traces the operators, whose bits stay what they are.
"""

import sys

import torch
from torch import nn

GROUP = 32


def pack(weight):
    """Codes as the device's kernels read them, and scales."""
    packed, scale = torch.ops.quatrain.pack_int4(weight.detach(), GROUP)
    return torch.ops.quatrain.kernel_layout_int4(packed, scale) if packed.is_cuda else packed, scale


class QatLinear(nn.Linear):
    """nn.Linear whose forward sees the weight as INT4 codes will store it."""

    def forward(self, x):
        weight = torch.ops.quatrain.fake_quant_int4(self.weight, GROUP)
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


class Int4Linear(nn.Module):
    """The same layer from codes and scales."""

    def __init__(self, linear):
        super().__init__()
        packed, scale = pack(linear.weight)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x):
        y = torch.ops.quatrain.w4a16_linear(x.to(torch.bfloat16), self.packed, self.scale, self.bias)
        return y.to(x.dtype)


class QatExperts(nn.Module):
    """A router and experts; FP32 masters, BF16 activations, every forward over the codes of the masters."""

    def __init__(self, hidden, inner, experts, slots):
        super().__init__()
        self.slots = slots
        self.router = nn.Parameter(torch.randn(experts, hidden) * hidden ** -0.5)
        self.gate_up = nn.Parameter(torch.randn(experts, 2 * inner, hidden) * hidden ** -0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, inner) * inner ** -0.5)

    def forward(self, x):
        return torch.ops.quatrain.w4a16_moe_train(x.to(torch.bfloat16), self.router.to(torch.bfloat16), self.gate_up,
                                                  self.down, GROUP, self.slots).to(x.dtype)


class Int4Experts(nn.Module):
    """The same from codes and scales."""

    def __init__(self, trained):
        super().__init__()
        self.slots = trained.slots
        self.register_buffer("router", trained.router.detach().to(torch.bfloat16))
        for name in ("gate_up", "down"):
            packed, scale = pack(getattr(trained, name))
            self.register_buffer(name, packed)
            self.register_buffer(name + "_scale", scale)

    def forward(self, x):
        return torch.ops.quatrain.w4a16_moe(x.to(torch.bfloat16), self.router, (self.gate_up, self.gate_up_scale),
                                            (self.down, self.down_scale), self.slots).to(x.dtype)


def swap(model, old, make):
    """Replaces every layer of type `old` by make(layer)."""
    for name, child in model.named_children():
        if type(child) is old:
            setattr(model, name, make(child))
        else:
            swap(child, old, make)
    return model


def to_qat(linear):
    layer = QatLinear(linear.in_features, linear.out_features, linear.bias is not None)
    layer.load_state_dict(linear.state_dict())
    return layer.to(linear.weight.device)


def network(device):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 32)).to(device)


def data(device):
    torch.manual_seed(1)
    x = torch.randn(1024, 64, device=device)
    teacher = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)).to(device)
    with torch.no_grad():
        return x, teacher(x)


def train(model, x, y, steps=400):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def loss_in_int4(model, kind, x, y):
    with torch.no_grad():
        return nn.functional.mse_loss(swap(model, kind, Int4Linear)(x), y).item()


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


def train_experts(device, x, y):
    """Trains a network with experts; its loss before and after, and whether a packed copy has the same bits."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(64, 64), Residual(QatExperts(64, 32, 8, 2)), nn.Linear(64, 32)).to(device)
    with torch.no_grad():
        before = nn.functional.mse_loss(model(x), y).item()
    after = train(model, x, y, steps=60)
    with torch.no_grad():
        trained = model(x)
        packed = swap(model, QatExperts, Int4Experts)(x)
    return before, after, torch.equal(trained, packed)


def main():
    torch.ops.load_library(sys.argv[1])
    device = sys.argv[2] if len(sys.argv) > 2 else "cpu"
    x, y = data(device)
    plain = network(device)
    plain_loss = train(plain, x, y)
    plain_int4 = loss_in_int4(plain, nn.Linear, x, y)
    qat = swap(network(device), nn.Linear, to_qat)
    qat_loss = train(qat, x, y)
    with torch.no_grad():
        trained = qat(x)
    qat_int4 = loss_in_int4(qat, QatLinear, x, y)
    with torch.no_grad():
        difference = ((qat(x) - trained).norm() / trained.norm()).item()
    print(f"trained in FP32:     loss {plain_loss:.5f}, from INT4 codes {plain_int4:.5f}")
    print(f"trained with QAT:    loss {qat_loss:.5f}, from INT4 codes {qat_int4:.5f}")
    print(f"packed beside QAT:   relative difference of the outputs {difference:.5f}")
    if not (difference < 1e-2 and qat_int4 < plain_int4):
        sys.exit("the packed network does not answer as the trained one")
    before, after, is_same = train_experts(device, x[:256], y[:256])
    print(f"experts with QAT:    loss {before:.5f} before, {after:.5f} after; packed experts have "
          f"{'the same bits' if is_same else 'OTHER BITS'}")
    if not (is_same and after < before / 2):
        sys.exit("the packed experts do not answer as the trained ones")


if __name__ == "__main__":
    main()
