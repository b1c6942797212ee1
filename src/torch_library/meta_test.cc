#include "torch_library/meta.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "torch_library/gradients.h"

namespace quatrain::torch_library {
namespace {

at::Tensor Meta(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.to(at::kMeta) : tensor;
}

MoeCall Meta(const MoeCall& call) {
  MoeCall meta = call;
  for (at::Tensor MoeCall::*tensor :
       {&MoeCall::x_TD, &MoeCall::router_ED, &MoeCall::gate_up, &MoeCall::gate_up_scale,
        &MoeCall::down, &MoeCall::down_scale, &MoeCall::ids_TK}) {
    meta.*tensor = Meta(call.*tensor);
  }
  return meta;
}

void ExpectAlike(const at::Tensor& meta, const at::Tensor& real, const char* what) {
  EXPECT_TRUE(meta.is_meta()) << what;
  EXPECT_EQ(meta.sizes(), real.sizes()) << what;
  EXPECT_EQ(meta.strides(), real.strides()) << what;
  EXPECT_EQ(meta.scalar_type(), real.scalar_type()) << what;
}

TEST(TorchLibraryMeta, CodesHaveTheShapesOfTheOperators) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{24, 64}, {3, 16, 128}, {0, 8, 64}}) {
      const at::Tensor weight = at::randn(sizes).to(type);
      const auto [packed, scale] = PackCpu(weight, 32);
      const auto [meta_packed, meta_scale] = PackMeta(Meta(weight), 32);
      ExpectAlike(meta_packed, packed, "packed");
      ExpectAlike(meta_scale, scale, "scale");
      ExpectAlike(FakeQuantMeta(Meta(weight), 32), FakeQuantCpu(weight, 32), "fake_quant");
      ExpectAlike(UnpackMeta(meta_packed, meta_scale), UnpackCpu(packed, scale), "unpack");
    }
  }
}

TEST(TorchLibraryMeta, LinearsHaveTheShapesOfTheOperators) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const std::vector<int64_t>& sizes :
         {std::vector<int64_t>{24, 64}, {3, 12, 64}, {0, 8, 64}}) {
      for (const std::vector<int64_t>& of_x :
           {std::vector<int64_t>{64}, {5, 64}, {2, 3, 64}, {0, 64}}) {
        const auto [packed, scale] = PackCpu(at::randn(sizes), 32);
        const at::Tensor x = at::randn(of_x).to(type);
        const at::Tensor bias = at::randn({scale.numel() / 2});
        const at::Tensor y = LinearCpu(x, packed, scale, bias);
        const at::Tensor meta = LinearMeta(Meta(x), Meta(packed), Meta(scale), Meta(bias));
        ExpectAlike(meta, y, "linear");
        ExpectAlike(InputGradMeta(meta, Meta(packed), Meta(scale), 64),
                    InputGradCpu(y, packed, scale, 64), "input grad");
        ExpectAlike(WeightGradMeta(meta, Meta(x)), WeightGradCpu(y, x), "weight grad");
      }
    }
  }
}

TEST(TorchLibraryMeta, ExpertsHaveTheShapesOfTheOperators) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t tokens : {0, 7}) {
      MoeCall call;
      call.x_TD = at::randn({tokens, 64}).to(type);
      call.router_ED = at::randn({6, 64}).to(type);
      std::tie(call.gate_up, call.gate_up_scale) = PackCpu(at::randn({6, 64, 64}), 32);
      std::tie(call.down, call.down_scale) = PackCpu(at::randn({6, 64, 32}), 32);
      call.experts_per_token = 2;
      call.ids_TK = at::tensor({4, 1}, at::kInt).expand({tokens, 2});
      const MoeSaved saved = MoeForwardCpu(call), meta = MoeForwardMeta(Meta(call));
      for (size_t i = 0; i < MoeSaved::kTensors; ++i) {
        const std::string what = "saved tensor " + std::to_string(i);
        ExpectAlike(meta.ToList()[i], saved.ToList()[i], what.c_str());
      }
      ExpectAlike(MoeMeta(Meta(call)), MoeCpu(call), "moe");
      const MoeGrads grads = MoeBackwardCpu(call, saved, saved.out_TD, {});
      const MoeGrads meta_grads = MoeBackwardMeta(Meta(call), meta, meta.out_TD, {});
      ExpectAlike(meta_grads.dx, grads.dx, "dx");
      ExpectAlike(meta_grads.drouter, grads.drouter, "drouter");
      ExpectAlike(meta_grads.dgate_up, grads.dgate_up, "dgate_up");
      ExpectAlike(meta_grads.ddown, grads.ddown, "ddown");
    }
  }
}

TEST(TorchLibraryMeta, KernelLayoutsHaveTheirBytes) {
  // 16 rows are 2 units of 8; 192 inputs 2 chunks of 512 bytes of codes and 8 x 4 scales.
  const auto [packed, scale] = PackMeta(at::empty({2, 8, 192}, at::kMeta), 32);
  const at::Tensor layout = KernelLayoutMeta(packed, scale);
  EXPECT_EQ(layout.sizes(), (at::IntArrayRef{2 * 2 * (512 + 64)}));
  EXPECT_EQ(layout.scalar_type(), at::kByte);
  EXPECT_EQ(UnpackLayoutMeta(layout, scale, 192).sizes(), (at::IntArrayRef{2, 8, 192}));
  const at::Tensor x = at::empty({5, 192}, at::kMeta);
  EXPECT_EQ(LinearMeta(x, layout, scale, {}).sizes(), (at::IntArrayRef{5, 16}));
  EXPECT_THROW(LinearMeta(x, layout.narrow(0, 0, 64), scale, {}), Error);
  // 12 rows are padded to 16, matrix by matrix; none have no bytes.
  const auto [odd, odd_scale] = PackMeta(at::empty({3, 12, 128}, at::kMeta), 128);
  EXPECT_EQ(KernelLayoutMeta(odd, odd_scale).numel(), 3 * 2 * (512 + 16));
  const auto [none, none_scale] = PackMeta(at::empty({0, 12, 128}, at::kMeta), 128);
  EXPECT_EQ(KernelLayoutMeta(none, none_scale).numel(), 0);
}

TEST(TorchLibraryMeta, RefusesWhatTheOperatorsRefuse) {
  EXPECT_THROW(PackMeta(at::empty({8, 64}, at::kMeta), 48), Error);
  const auto [packed, scale] = PackMeta(at::empty({8, 64}, at::kMeta), 32);
  EXPECT_THROW(UnpackMeta(packed, scale.narrow(0, 0, 4)), Error);
  EXPECT_THROW(LinearMeta(at::empty({2, 56}, at::kMeta), packed, scale, {}), Error);
  EXPECT_THROW(LinearMeta(at::empty({2, 64}), packed, scale, {}), Error);  // another device
}

}  // namespace
}  // namespace quatrain::torch_library
