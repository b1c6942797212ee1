#include "kernels/adamw.h"

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/random.h"

namespace quatrain {
namespace {

// Buffers of one tensor and the task over them.
struct Tensor {
  int64_t out_features, in_features;
  std::vector<float> master, exp_avg, exp_avg_sq, grad, weight_float;
  std::vector<BFloat16> weight_bf16, scale;
  std::vector<int32_t> packed;
  QuantizeSpec spec;

  Tensor(int64_t rows, int64_t columns, uint64_t seed, int num_bits = 4)
      : out_features(rows), in_features(columns) {
    const auto count = static_cast<size_t>(rows * columns);
    for (size_t i = 0; i < count; ++i) {
      master.push_back(static_cast<float>(UniformDouble(seed, 0, i) - 0.5) * 0.2f);
    }
    exp_avg.resize(count);
    exp_avg_sq.resize(count);
    grad.resize(count);
    weight_float.resize(count);
    weight_bf16.resize(count);
    spec.grid = GridOf(ScaleRule::kAbsmax7, num_bits);
    packed.resize(static_cast<size_t>(rows * PackedWords(columns, num_bits)));
    scale.resize(static_cast<size_t>(rows * (columns / 32)));
  }

  void DrawGrad(uint64_t seed, int64_t step) {
    for (size_t i = 0; i < grad.size(); ++i) {
      const double u = UniformDouble(seed, static_cast<uint64_t>(step), i);
      grad[i] = static_cast<float>((u - 0.5) * 1e-2);
    }
  }

  AdamWTask Task(double weight_decay) {
    return {.master = master.data(),
            .exp_avg = exp_avg.data(),
            .exp_avg_sq = exp_avg_sq.data(),
            .grad = grad.data(),
            .out_features = out_features,
            .in_features = in_features,
            .weight_decay = weight_decay};
  }

  AdamWTask CodesTask(double weight_decay) {
    AdamWTask task = Task(weight_decay);
    task.packed = packed.data();
    task.scale = scale.data();
    task.spec = spec;
    return task;
  }
};

template <class T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

std::vector<BFloat16> Rounded(const std::vector<float>& values) {
  std::vector<BFloat16> rounded;
  for (float value : values) rounded.push_back(ToBFloat16(value));
  return rounded;
}

// torch 2.11's torch::optim::AdamW on the same numbers (lr 1e-3, betas 0.9 0.98, eps 1e-8, five
// steps).
TEST(AdamW, MatchesTorch) {
  const std::vector<float> kNoDecay = {-0.50076586f, -0.0634154901f, 0.376548946f,  -0.625248134f,
                                       -0.18906188f, 0.248483315f,   0.688334703f,  -0.309301496f,
                                       0.123455204f, 0.560412884f,   -0.437380433f, 0.00165918912f};
  const std::vector<float> kDecay = {-0.50051558f,  -0.0633837283f, 0.376360923f,  -0.624935746f,
                                     -0.188967764f, 0.24835892f,    0.687990546f,  -0.309146047f,
                                     0.123393223f,  0.560132265f,   -0.437162012f, 0.00165885268f};
  ThreadPool pool(1);
  for (double weight_decay : {0.0, 0.1}) {
    Tensor tensor(1, 12, 1);
    for (int i = 0; i < 12; ++i) {
      tensor.master[static_cast<size_t>(i)] = static_cast<float>((7 * i + 3) % 23 - 11) / 16.0f;
    }
    for (int64_t t = 1; t <= 5; ++t) {
      for (int64_t i = 0; i < 12; ++i) {
        tensor.grad[static_cast<size_t>(i)] = static_cast<float>((5 * i + 11 * t) % 19 - 9) / 64.0f;
      }
      const AdamWTask task = tensor.Task(weight_decay);
      AdamWUpdate(pool, {.lr = 1e-3, .step = t}, {&task, 1});
    }
    const std::vector<float>& want = weight_decay == 0.0 ? kNoDecay : kDecay;
    for (size_t i = 0; i < 12; ++i) {
      EXPECT_NEAR(tensor.master[i], want[i], 1e-6 * std::fabs(want[i]) + 1e-9) << i;
    }
  }
}

// The formulas of the header in double; 1e-6 of the step is left to FP32.
TEST(AdamW, FollowsTheFormulaInDouble) {
  ThreadPool pool(2);
  const AdamWStep step = {
      .lr = 3e-4, .beta1 = 0.9, .beta2 = 0.98, .eps = 1e-8, .step = 0, .grad_scale = 0.37};
  Tensor tensor(5, 37, 4);
  std::vector<double> w(tensor.master.begin(), tensor.master.end());
  std::vector<double> m(w.size()), v(w.size());
  for (int64_t t = 1; t <= 20; ++t) {
    tensor.DrawGrad(8, t);
    AdamWStep now = step;
    now.step = t;
    const AdamWTask task = tensor.Task(0.1);
    AdamWUpdate(pool, now, {&task, 1});
    for (size_t i = 0; i < w.size(); ++i) {
      const double g = tensor.grad[i] * now.grad_scale;
      w[i] -= now.lr * 0.1 * w[i];
      m[i] = now.beta1 * m[i] + (1 - now.beta1) * g;
      v[i] = now.beta2 * v[i] + (1 - now.beta2) * g * g;
      const double root = std::sqrt(v[i]) / std::sqrt(1 - std::pow(now.beta2, t));
      w[i] -= now.lr / (1 - std::pow(now.beta1, t)) * m[i] / (root + now.eps);
      ASSERT_NEAR(tensor.master[i], w[i], 1e-6 * std::fabs(w[i]) + 1e-7) << t << " " << i;
      ASSERT_NEAR(tensor.exp_avg[i], m[i], 1e-6 * std::fabs(m[i]) + 1e-9);
      ASSERT_NEAR(tensor.exp_avg_sq[i], v[i], 2e-6 * v[i]);
    }
  }
}

TEST(AdamW, ZeroBeta1KeepsTheGradientItself) {
  ThreadPool pool(1);
  Tensor tensor(1, 19, 6);
  tensor.DrawGrad(1, 1);
  std::fill(tensor.exp_avg.begin(), tensor.exp_avg.end(), 123.0f);
  const AdamWTask task = tensor.Task(0.0);
  AdamWUpdate(pool, {.beta1 = 0.0}, {&task, 1});
  EXPECT_EQ(tensor.exp_avg, tensor.grad);
}

TEST(AdamW, WithoutGradientOnlyDecayMovesAWeight) {
  ThreadPool pool(1);
  for (double weight_decay : {0.0, 0.1}) {
    Tensor tensor(2, 21, 7);
    const std::vector<float> before = tensor.master;
    const AdamWTask task = tensor.Task(weight_decay);
    AdamWUpdate(pool, {.lr = 0.01}, {&task, 1});
    const float keep = static_cast<float>(1.0 - 0.01 * weight_decay);
    for (size_t i = 0; i < before.size(); ++i) EXPECT_EQ(tensor.master[i], before[i] * keep);
  }
}

TEST(AdamW, WritesEveryFormOfTheNextWeight) {
  ThreadPool pool(2);
  for (int num_bits : {4, 8}) {
    Tensor tensor(7, 96, 3, num_bits);
    tensor.DrawGrad(2, 1);
    AdamWTask task = tensor.CodesTask(0.1);
    task.weight_float = tensor.weight_float.data();
    task.weight_bf16 = tensor.weight_bf16.data();
    AdamWUpdate(pool, {.lr = 1e-2}, {&task, 1});
    EXPECT_TRUE(SameBits(tensor.weight_float, tensor.master));
    EXPECT_TRUE(SameBits(tensor.weight_bf16, Rounded(tensor.master)));
    std::vector<int32_t> packed(tensor.packed.size());
    std::vector<BFloat16> scale(tensor.scale.size());
    QuantizeMatrix(pool, tensor.weight_bf16.data(), 7, 96, tensor.spec, packed.data(),
                   scale.data());
    EXPECT_EQ(tensor.packed, packed);
    EXPECT_TRUE(SameBits(tensor.scale, scale));
  }
}

TEST(AdamW, WriteWeightFromMasterIsTheLastPartAlone) {
  ThreadPool pool(2);
  Tensor tensor(7, 96, 3);
  const std::vector<float> master = tensor.master;
  AdamWTask task = tensor.CodesTask(0.1);
  task.weight_bf16 = tensor.weight_bf16.data();
  task.grad = nullptr;
  task.exp_avg = task.exp_avg_sq = nullptr;
  WriteWeightFromMaster(pool, {&task, 1});
  EXPECT_TRUE(SameBits(tensor.master, master));
  EXPECT_TRUE(SameBits(tensor.weight_bf16, Rounded(master)));
  std::vector<int32_t> packed(tensor.packed.size());
  std::vector<BFloat16> scale(tensor.scale.size());
  QuantizeMatrix(pool, tensor.weight_bf16.data(), 7, 96, tensor.spec, packed.data(), scale.data());
  EXPECT_EQ(tensor.packed, packed);
  EXPECT_TRUE(SameBits(tensor.scale, scale));
}

TEST(AdamW, CountsFlippedCodesAndChangedScalesAsBruteForceDoes) {
  ThreadPool pool(2);
  for (int num_bits : {4, 8}) {
    Tensor tensor(9, 96, 5, num_bits);
    const AdamWTask task = tensor.CodesTask(0.0);
    WriteWeightFromMaster(pool, {&task, 1});
    int64_t all_flips = 0;
    for (int64_t t = 1; t <= 3; ++t) {
      const std::vector<int32_t> old_packed = tensor.packed;
      const std::vector<BFloat16> old_scale = tensor.scale;
      tensor.DrawGrad(9, t);
      const AdamWStats stats = AdamWUpdate(pool, {.lr = 3e-3, .step = t}, {&task, 1});
      int64_t flips = 0, changed = 0;
      const int64_t words = PackedWords(96, num_bits);
      for (int64_t row = 0; row < 9; ++row) {
        for (int64_t i = 0; i < 96; ++i) {
          flips += UnpackCode(old_packed.data() + row * words, i, num_bits) !=
                   UnpackCode(tensor.packed.data() + row * words, i, num_bits);
        }
      }
      for (size_t i = 0; i < old_scale.size(); ++i) {
        changed += old_scale[i].bits != tensor.scale[i].bits;
      }
      EXPECT_EQ(stats.num_codes, 9 * 96);
      EXPECT_EQ(stats.num_scales, 9 * 3);
      EXPECT_EQ(stats.num_flipped_codes, flips);
      EXPECT_EQ(stats.num_changed_scales, changed);
      all_flips += flips;
    }
    EXPECT_GT(all_flips, 0);
  }
}

TEST(AdamW, FrozenScalesAreKeptWhileCodesMove) {
  ThreadPool pool(1);
  Tensor tensor(4, 64, 8);
  tensor.spec = {ScaleRule::kFrozen, GridOf(ScaleRule::kFrozen, 4), 32};
  std::fill(tensor.scale.begin(), tensor.scale.end(), ToBFloat16(0.015f));
  const std::vector<BFloat16> scale = tensor.scale;
  const AdamWTask task = tensor.CodesTask(0.0);
  WriteWeightFromMaster(pool, {&task, 1});
  tensor.DrawGrad(1, 1);
  const AdamWStats stats = AdamWUpdate(pool, {.lr = 1e-2}, {&task, 1});
  EXPECT_TRUE(SameBits(tensor.scale, scale));
  EXPECT_EQ(stats.num_changed_scales, 0);
  EXPECT_GT(stats.num_flipped_codes, 0);
}

TEST(AdamW, GivesTheSameBytesForAnyThreadCount) {
  std::vector<Tensor> matrices, vectors;
  for (int num_threads : {1, 2, 3}) {
    ThreadPool pool(num_threads);
    Tensor matrix(2100, 96, 1), vector(1, 50, 2);
    for (int64_t t = 1; t <= 2; ++t) {
      matrix.DrawGrad(4, t);
      vector.DrawGrad(5, t);
      AdamWTask vector_task = vector.Task(0.0);
      vector_task.weight_bf16 = vector.weight_bf16.data();
      const AdamWTask tasks[] = {matrix.CodesTask(0.1), vector_task};
      AdamWUpdate(pool, {.lr = 1e-3, .step = t, .grad_scale = 0.9}, tasks);
    }
    matrices.push_back(std::move(matrix));
    vectors.push_back(std::move(vector));
  }
  for (size_t i = 1; i < matrices.size(); ++i) {
    EXPECT_TRUE(SameBits(matrices[i].master, matrices[0].master));
    EXPECT_TRUE(SameBits(matrices[i].exp_avg, matrices[0].exp_avg));
    EXPECT_TRUE(SameBits(matrices[i].exp_avg_sq, matrices[0].exp_avg_sq));
    EXPECT_EQ(matrices[i].packed, matrices[0].packed);
    EXPECT_TRUE(SameBits(matrices[i].scale, matrices[0].scale));
    EXPECT_TRUE(SameBits(vectors[i].weight_bf16, vectors[0].weight_bf16));
  }
}

TEST(AdamW, GivesTheSameBytesOnEveryInstructionSet) {
  ThreadPool pool(1);
  std::vector<Tensor> results;
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  for (int64_t rest = targets; rest != 0; rest &= rest - 1) {
    hwy::SetSupportedTargetsForTest(rest & -rest);
    hwy::GetChosenTarget().DeInit();
    Tensor tensor(3, 96, 1);
    AdamWTask task = tensor.CodesTask(0.1);
    task.weight_bf16 = tensor.weight_bf16.data();
    for (int64_t t = 1; t <= 4; ++t) {
      tensor.DrawGrad(2, t);
      AdamWUpdate(pool, {.lr = 1e-2, .step = t, .grad_scale = 0.7}, {&task, 1});
    }
    results.push_back(std::move(tensor));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
  ASSERT_GE(results.size(), 1u);
  for (const Tensor& result : results) {
    EXPECT_TRUE(SameBits(result.master, results[0].master));
    EXPECT_TRUE(SameBits(result.exp_avg_sq, results[0].exp_avg_sq));
    EXPECT_TRUE(SameBits(result.weight_bf16, results[0].weight_bf16));
    EXPECT_EQ(result.packed, results[0].packed);
    EXPECT_TRUE(SameBits(result.scale, results[0].scale));
  }
}

// What a lane of a vector computes does not depend on where the row's tail begins.
TEST(AdamW, AWeightDoesNotDependOnItsPlaceInTheRow) {
  ThreadPool pool(1);
  for (int64_t columns = 1; columns <= 40; ++columns) {
    Tensor tensor(1, columns, 1);
    std::fill(tensor.master.begin(), tensor.master.end(), 0.731f);
    std::fill(tensor.grad.begin(), tensor.grad.end(), -0.00317f);
    const AdamWTask task = tensor.Task(0.1);
    for (int64_t t = 1; t <= 3; ++t) AdamWUpdate(pool, {.lr = 1e-3, .step = t}, {&task, 1});
    for (float master : tensor.master) ASSERT_EQ(master, tensor.master[0]) << columns;
  }
}

TEST(AdamW, NamesANonFiniteMasterAndLeavesItsRowAlone) {
  ThreadPool pool(1);
  Tensor good(2, 32, 1), bad(3, 96, 2);
  bad.grad[96 + 71] = std::numeric_limits<float>::infinity();
  const std::vector<float> before = bad.master;
  const AdamWTask tasks[] = {good.Task(0.0), bad.CodesTask(0.0)};
  try {
    AdamWUpdate(pool, {.lr = 1e-3}, tasks);
    FAIL() << "an infinite gradient must be refused";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_NE(std::string(error.what()).find("task 1, row 1, column 71"), std::string::npos)
        << error.what();
  }
  for (size_t i = 96; i < 192; ++i) {
    EXPECT_EQ(bad.master[i], before[i]);
    EXPECT_EQ(bad.exp_avg[i], 0.0f);
  }
}

}  // namespace
}  // namespace quatrain
