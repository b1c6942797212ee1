#include "torch_library/operators.h"

#include <gtest/gtest.h>

#include "base/threads.h"
#include "kernels/int4.h"
#include "kernels/linear.h"
#include "ops/tensor.h"

namespace quatrain::torch_library {
namespace {

at::Tensor RandomRounded(at::IntArrayRef sizes, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(sizes).to(at::kBFloat16);
}

// The format's own words, weight by weight.
at::Tensor ExpectedFake(const at::Tensor& weight, int64_t group_size) {
  at::Tensor out = at::empty_like(weight);
  const BFloat16* w = DataOf<BFloat16>(weight);
  BFloat16* fake = DataOf<BFloat16>(out);
  const CodeGrid grid = GridOf(ScaleRule::kAbsmax7, 4);
  for (int64_t begin = 0; begin < weight.numel(); begin += group_size) {
    float amax = 0.0f;
    for (int64_t i = begin; i < begin + group_size; ++i) {
      amax = std::max(amax, std::fabs(ToFloat(w[i])));
    }
    const BFloat16 scale = ScaleFromAbsmax(amax, ScaleRule::kAbsmax7, grid);
    for (int64_t i = begin; i < begin + group_size; ++i) {
      fake[i] = DequantizeCode(QuantizeCode(ToFloat(w[i]), scale, grid), scale);
    }
  }
  return out;
}

TEST(TorchLibrary, FakeQuantIsTheFormat) {
  const at::Tensor weight = RandomRounded({24, 96}, 1);
  EXPECT_TRUE(at::equal(FakeQuantCpu(weight, 32), ExpectedFake(weight, 32)));
  EXPECT_TRUE(at::equal(FakeQuantCpu(weight, 96), ExpectedFake(weight, 96)));
}

TEST(TorchLibrary, FloatWeightsAreRoundedFirstAndKeepTheirType) {
  at::manual_seed(2);
  const at::Tensor weight = at::randn({8, 64});
  const at::Tensor fake = FakeQuantCpu(weight, 32);
  EXPECT_EQ(fake.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(fake, ExpectedFake(weight.to(at::kBFloat16), 32).to(at::kFloat)));
}

TEST(TorchLibrary, UnpackOfPackIsFakeQuant) {
  const at::Tensor weight = RandomRounded({3, 16, 64}, 3);  // leading dimensions are rows
  const auto [packed, scale] = PackCpu(weight, 32);
  EXPECT_EQ(packed.sizes(), (at::IntArrayRef{3, 16, 8}));
  EXPECT_EQ(scale.sizes(), (at::IntArrayRef{3, 16, 2}));
  EXPECT_TRUE(at::equal(UnpackCpu(packed, scale), FakeQuantCpu(weight, 32)));
}

TEST(TorchLibrary, LayoutsOfMemoryDoNotMatter) {
  const at::Tensor weight = RandomRounded({64, 32}, 4);
  const at::Tensor turned = weight.t();
  ASSERT_FALSE(turned.is_contiguous());
  EXPECT_TRUE(at::equal(FakeQuantCpu(turned, 32), FakeQuantCpu(turned.contiguous(), 32)));
}

TEST(TorchLibrary, LinearIsTheChainOverDequantisedWeights) {
  const at::Tensor weight = RandomRounded({24, 64}, 5), bias = RandomRounded({24}, 6);
  const at::Tensor x = RandomRounded({2, 3, 64}, 7);
  const auto [packed, scale] = PackCpu(weight, 32);
  const at::Tensor plain = UnpackCpu(packed, scale);
  at::Tensor expected = at::empty({2, 3, 24}, at::kBFloat16);
  ThreadPool pool(1);
  const LinearTask<BFloat16> task{
      .x = DataOf<BFloat16>(x),
      .rows = 6,
      .weight = {WeightType::kBFloat16, 24, 64, 0, plain.data_ptr(), nullptr},
      .bias = DataOf<BFloat16>(bias),
      .y = DataOf<BFloat16>(expected)};
  LinearForward<BFloat16>(pool, {&task, 1});
  EXPECT_TRUE(at::equal(LinearCpu(x, packed, scale, bias), expected));
  // Without bias, in FP32, beside torch's own product.
  const at::Tensor wide = x.to(at::kFloat);
  EXPECT_TRUE(at::allclose(LinearCpu(wide, packed, scale, std::nullopt),
                           at::linear(wide, plain.to(at::kFloat)), 1e-5, 1e-5));
}

// The layer as torch would write it, in FP32.
at::Tensor ExpectedMoe(const MoeCall& call, bool norm_topk_prob) {
  const at::Tensor up = UnpackCpu(call.gate_up, call.gate_up_scale).to(at::kFloat);
  const at::Tensor down = UnpackCpu(call.down, call.down_scale).to(at::kFloat);
  const at::Tensor p = at::softmax(at::linear(call.x_TD, call.router_ED), -1);
  auto [weights, ids] = at::topk(p, call.experts_per_token, -1);
  if (call.ids_TK.defined()) {
    ids = call.ids_TK.to(at::kLong);
    weights = at::gather(p, 1, ids);
  }
  if (norm_topk_prob) weights = weights / weights.sum(-1, true);
  at::Tensor out = at::zeros_like(call.x_TD);
  for (int64_t t = 0; t < call.x_TD.size(0); ++t) {
    for (int64_t k = 0; k < call.experts_per_token; ++k) {
      const int64_t e = ids[t][k].item<int64_t>();
      const std::vector<at::Tensor> parts = at::linear(call.x_TD[t], up[e]).chunk(2);
      out[t] += weights[t][k] * at::linear(at::silu(parts[0]) * parts[1], down[e]);
    }
  }
  return out;
}

MoeCall RandomMoe() {
  at::manual_seed(8);
  MoeCall call;
  call.x_TD = at::randn({7, 64});
  call.router_ED = at::randn({6, 64});
  std::tie(call.gate_up, call.gate_up_scale) = PackCpu(at::randn({6, 64, 64}), 32);
  std::tie(call.down, call.down_scale) = PackCpu(at::randn({6, 64, 32}), 32);
  call.experts_per_token = 2;
  return call;
}

TEST(TorchLibrary, MoeIsRouterExpertsAndCombine) {
  MoeCall call = RandomMoe();
  EXPECT_TRUE(at::allclose(MoeCpu(call), ExpectedMoe(call, true), 1e-4, 1e-3));
  call.norm_topk_prob = false;
  EXPECT_TRUE(at::allclose(MoeCpu(call), ExpectedMoe(call, false), 1e-4, 1e-3));
}

TEST(TorchLibrary, MoeReplaysGivenExperts) {
  MoeCall call = RandomMoe();
  const at::Tensor chosen = MoeCpu(call);
  call.ids_TK = at::tensor({0, 1, 2, 3, 4, 5, 1, 0, 3, 2, 5, 4, 0, 5}, at::kInt).view({7, 2});
  EXPECT_TRUE(at::allclose(MoeCpu(call), ExpectedMoe(call, true), 1e-4, 1e-3));
  EXPECT_FALSE(at::allclose(MoeCpu(call), chosen, 1e-2, 1e-2));
}

TEST(TorchLibrary, NothingInIsNothingOut) {
  const at::Tensor x = RandomRounded({5, 64}, 12);
  for (const std::vector<int64_t>& sizes : {std::vector<int64_t>{0, 64}, {0, 12, 64}, {3, 0, 64}}) {
    const at::Tensor weight = RandomRounded(sizes, 13);
    EXPECT_EQ(FakeQuantCpu(weight, 32).sizes(), at::IntArrayRef(sizes));
    const auto [packed, scale] = PackCpu(weight, 32);
    EXPECT_EQ(UnpackCpu(packed, scale).sizes(), at::IntArrayRef(sizes));
    EXPECT_EQ(LinearCpu(x, packed, scale, at::empty({0})).sizes(), (at::IntArrayRef{5, 0}));
  }
  const auto [packed, scale] = PackCpu(RandomRounded({16, 64}, 14), 32);
  EXPECT_EQ(LinearCpu(x.narrow(0, 0, 0), packed, scale, {}).sizes(), (at::IntArrayRef{0, 16}));
  EXPECT_EQ(LinearCpu(at::empty({2, 0, 64}), packed, scale, {}).sizes(),
            (at::IntArrayRef{2, 0, 16}));
  MoeCall call = RandomMoe();
  call.x_TD = call.x_TD.narrow(0, 0, 0);
  EXPECT_EQ(MoeCpu(call).sizes(), (at::IntArrayRef{0, 64}));
}

// What an error names.
template <class Body>
std::string MessageOf(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kShape) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(TorchLibrary, ErrorsNameArgumentExpectedAndFound) {
  const auto [packed, scale] = PackCpu(RandomRounded({2, 8, 64}, 15), 32);
  const auto linear = [&, &p = packed, &s = scale](at::IntArrayRef x) {
    return MessageOf([&] { LinearCpu(at::zeros(x), p, s, {}); });
  };
  EXPECT_EQ(linear({5, 128}), "x: expected [..., 64], found Float [5, 128].");
  EXPECT_EQ(linear({}), "x: expected BF16 or FP32 [..., I], found Float [].");
  EXPECT_EQ(MessageOf([&, &p = packed, &s = scale] {
              UnpackCpu(p.view({8, 2, 8}), s);
            }),
            "packed: expected int32 codes [2, 8, 8], found Int [8, 2, 8].");
  EXPECT_EQ(MessageOf([] {
              PackCpu(at::zeros({8, 0}), 32);
            }),
            "weight: expected BF16 or FP32 [..., O, I], I a multiple of the group size, that of 8, "
            "found Float [8, 0], group size 32.");
  MoeCall call = RandomMoe();
  call.experts_per_token = 7;
  EXPECT_EQ(MessageOf([&] { MoeCpu(call); }),
            "experts_per_token: expected 1 to 6, the router's experts, found 7.");
  call = RandomMoe();
  call.router_ED = call.router_ED.narrow(0, 0, 0);
  EXPECT_EQ(MessageOf([&] { MoeCpu(call); }),
            "experts_per_token: expected 1 to 0, the router's experts, found 2.");
  call = RandomMoe();
  call.ids_TK = at::zeros({6, 2}, at::kInt);
  EXPECT_EQ(MessageOf([&] { MoeCpu(call); }),
            "ids: expected int32 [T, 2] for x Float [7, 64], found Int [6, 2].");
  call = RandomMoe();
  call.down = call.gate_up;
  EXPECT_EQ(MessageOf([&] { MoeCpu(call); }),
            "down: expected int32 codes [6, 64, 4], found Int [6, 64, 8].");
}

TEST(TorchLibrary, RefusesWhatDoesNotFit) {
  const at::Tensor weight = RandomRounded({8, 64}, 9);
  const auto [packed, scale] = PackCpu(weight, 32);
  EXPECT_THROW(FakeQuantCpu(weight, 48), Error);                  // does not divide
  EXPECT_THROW(FakeQuantCpu(weight, 4), Error);                   // no multiple of 8
  EXPECT_THROW(FakeQuantCpu(weight[0], 32), Error);               // no rows
  EXPECT_THROW(FakeQuantCpu(weight.to(at::kHalf), 32), Error);    // type
  EXPECT_THROW(UnpackCpu(packed, scale.narrow(0, 0, 4)), Error);  // rows differ
  EXPECT_THROW(UnpackCpu(packed.to(at::kLong), scale), Error);
  const at::Tensor x = RandomRounded({2, 64}, 10);
  EXPECT_THROW(LinearCpu(x.narrow(1, 0, 56), packed, scale, std::nullopt), Error);
  EXPECT_THROW(LinearCpu(x, packed, scale, RandomRounded({7}, 11)), Error);
  at::Tensor bad = weight.clone();
  bad[3][5] = NAN;
  EXPECT_THROW(PackCpu(bad, 32), Error);
  MoeCall call = RandomMoe();
  call.router_ED = call.router_ED.narrow(0, 0, 5);
  EXPECT_THROW(MoeCpu(call), Error);
  call = RandomMoe();
  call.ids_TK = at::zeros({7, 3}, at::kInt);
  EXPECT_THROW(MoeCpu(call), Error);
}

}  // namespace
}  // namespace quatrain::torch_library
