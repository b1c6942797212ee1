// The operators of torch.ops.quatrain, for plain torch programs: the number format of
// kernels/int4.h on CPU and CUDA tensors. main.cc registers them; examples/torch_training.py swaps
// them into a training script.
//
// Letters: O out_features, I in_features, g group size, G = I / g, T tokens, D hidden, E experts,
// F inner size of an expert. Weights may have leading dimensions, which count as further rows.
// Scales follow rule kAbsmax7 (amax / 7, codes -7..7). Codes are packed as compressed-tensors packs
// them, eight to an int32 along I. I is a multiple of g, g of 8. Error(kShape) for tensors that do
// not fit, which names argument, expected and found; Error(kData) for weights without codes (CPU
// only; on CUDA weights must be finite).
//
// Tensors of a call are on one device; they may be views of any strides and offset, which are
// copied where a kernel wants them otherwise. No rows of x or of a weight give empty results and
// gradients of nothing: empty, or zeros. Results are contiguous. torch.compile traces all of it
// (meta.h).
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace quatrain::torch_library {

// w' = rn_bf16(q * s) in the type of the weight, BF16 or FP32 (rounded to BF16 first).
at::Tensor FakeQuantCpu(const at::Tensor& weight_OI, int64_t group_size);
at::Tensor FakeQuantCuda(const at::Tensor& weight_OI, int64_t group_size);

// packed [O, I / 8] int32 and scale [O, G] BF16.
std::tuple<at::Tensor, at::Tensor> PackCpu(const at::Tensor& weight_OI, int64_t group_size);
std::tuple<at::Tensor, at::Tensor> PackCuda(const at::Tensor& weight_OI, int64_t group_size);

// w' as BF16 [O, I].
at::Tensor UnpackCpu(const at::Tensor& packed, const at::Tensor& scale);
at::Tensor UnpackCuda(const at::Tensor& packed, const at::Tensor& scale);

// Codes and scales as the CUDA linears read them (kernels/cuda/packed_layout.h), uint8; leading
// dimensions of a weight are experts. w4a16_linear and w4a16_moe take it in place of the codes.
at::Tensor KernelLayoutCuda(const at::Tensor& packed, const at::Tensor& scale);

// The weight w' (BF16 [..., O, I], shape and leading dimensions of the scale) of a kernel layout.
at::Tensor UnpackLayoutCuda(const at::Tensor& layout, const at::Tensor& scale, int64_t in_features);

// y [..., O] = x [..., I] w'^T (+ bias), BF16 (on the CPU also FP32). On CUDA the canonical chain
// of docs/numerics.md for every number of rows: codes dequantised on the way, or first (many rows
// of x and a bias, or K in segments). A call with codes in place of the kernel layout packs them
// first (few rows), which reads and writes all of them: more than a decode step's product itself.
at::Tensor LinearCpu(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                     const std::optional<at::Tensor>& bias);
at::Tensor LinearCuda(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& scale,
                      const std::optional<at::Tensor>& bias);

// A mixture of experts with its router, for rollouts (no gradient). On CUDA few rows an expert and
// many take different kernels, which give the same bits.
struct MoeCall {
  at::Tensor x_TD;           // BF16 (on the CPU also FP32)
  at::Tensor router_ED;      // type of x
  at::Tensor gate_up;        // codes [E, 2F, D / 8]: F rows of gate, F of up; or kernel layout
  at::Tensor gate_up_scale;  // [E, 2F, D / g]
  at::Tensor down;           // codes [E, D, F / 8], or kernel layout
  at::Tensor down_scale;     // [E, D, F / g]
  int64_t experts_per_token = 0;
  bool norm_topk_prob = true;
  // int32 [T, experts_per_token] to replay, or undefined: experts 0 .. E - 1, each token's
  // distinct, which gradients need. The caller answers for both on CUDA, where looking would stop
  // the stream.
  at::Tensor ids_TK;
};
// [T, D].
at::Tensor MoeCpu(const MoeCall& call);
at::Tensor MoeCuda(const MoeCall& call);

}  // namespace quatrain::torch_library
