#if defined(QT_WITH_CUDA)
#include <limits>

#include "kernels/cuda/adamw.h"
#include "kernels/cuda/device_test.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

struct State {
  std::vector<float> master, exp_avg, exp_avg_sq, weight_float;
  std::vector<BFloat16> weight_bf16, scale;
  std::vector<int32_t> packed;
};

struct Case {
  int64_t rows, columns;
  QuantizeSpec spec;
  AdamWStep step;
};

State NewState(const Case& c) {
  const auto size = static_cast<size_t>(c.rows * c.columns);
  return {RandomFloats(c.rows * c.columns, 1, 0.02f),
          std::vector<float>(size),
          std::vector<float>(size),
          std::vector<float>(size),
          std::vector<BFloat16>(size),
          std::vector<BFloat16>(size / c.spec.group_size, ToBFloat16(0.004f)),
          std::vector<int32_t>(c.rows * PackedWords(c.columns, c.spec.grid.num_bits))};
}

AdamWTask TaskOf(const Case& c, float* master, float* m, float* v, const float* grad) {
  return {.master = master,
          .exp_avg = m,
          .exp_avg_sq = v,
          .grad = grad,
          .out_features = c.rows,
          .in_features = c.columns,
          .weight_decay = 0.1,
          .spec = c.spec};
}

// Codes of the masters, as every step finds them.
void WriteFirstCodes(ThreadPool& pool, const Case& c, State* state) {
  AdamWTask task = TaskOf(c, state->master.data(), nullptr, nullptr, nullptr);
  task.packed = state->packed.data();
  task.scale = state->scale.data();
  WriteWeightFromMaster(pool, {&task, 1});
}

void ExpectSameSteps(Case c) {
  ThreadPool pool(4);
  State cpu = NewState(c);
  WriteFirstCodes(pool, c, &cpu);
  DeviceVector<float> master(cpu.master), m(cpu.exp_avg), v(cpu.exp_avg_sq), wf(cpu.weight_float);
  DeviceVector<BFloat16> w(cpu.weight_bf16), scale(cpu.scale);
  DeviceVector<int32_t> packed(cpu.packed);
  DeviceVector<AdamWCounters> counters(1);
  const bool counts = c.spec.group_size % 32 == 0 && c.spec.group_size <= 256;
  for (c.step.step = 1; c.step.step <= 4; ++c.step.step) {
    const auto grad = RandomFloats(c.rows * c.columns, 100 + c.step.step, 1e-3f);
    DeviceVector<float> g(grad);
    AdamWTask task =
        TaskOf(c, cpu.master.data(), cpu.exp_avg.data(), cpu.exp_avg_sq.data(), grad.data());
    task.weight_float = cpu.weight_float.data();
    task.weight_bf16 = cpu.weight_bf16.data();
    task.packed = cpu.packed.data();
    task.scale = cpu.scale.data();
    const AdamWStats stats = quatrain::AdamWUpdate(pool, c.step, {&task, 1});
    task = TaskOf(c, master.data(), m.data(), v.data(), g.data());
    task.weight_float = wf.data();
    task.weight_bf16 = w.data();
    task.packed = packed.data();
    task.scale = scale.data();
    counters.Zero();
    AdamWUpdate(c.step, task, counters.data(), nullptr);
    EXPECT_EQ(CountDifferences(master.Download(), cpu.master), 0);
    EXPECT_EQ(CountDifferences(m.Download(), cpu.exp_avg), 0);
    EXPECT_EQ(CountDifferences(v.Download(), cpu.exp_avg_sq), 0);
    EXPECT_EQ(CountDifferences(wf.Download(), cpu.weight_float), 0);
    EXPECT_EQ(CountDifferences(w.Download(), cpu.weight_bf16), 0);
    EXPECT_EQ(CountDifferences(packed.Download(), cpu.packed), 0);
    EXPECT_EQ(CountDifferences(scale.Download(), cpu.scale), 0);
    const AdamWCounters device = counters.Download()[0];
    EXPECT_FALSE(FirstBadElement(device));
    if (!counts) continue;
    EXPECT_EQ(static_cast<int64_t>(device.num_flipped_codes), stats.num_flipped_codes);
    EXPECT_EQ(static_cast<int64_t>(device.num_changed_scales), stats.num_changed_scales);
    EXPECT_GT(stats.num_flipped_codes, 0);
  }
}

TEST(AdamWGpu, EqualsTheCpuBitForBit) {
  QT_NEEDS_DEVICE();
  const AdamWStep steps[] = {{.lr = 1e-3, .grad_scale = 0.37}, {.lr = 2e-3, .beta1 = 0.0}};
  for (const AdamWStep& step : steps) {
    for (const int num_bits : {4, 8}) {
      for (const int64_t group : {32, 64, 128, 256, 768}) {
        for (const ScaleRule rule :
             {ScaleRule::kAbsmax7, ScaleRule::kAbsmax7_5, ScaleRule::kFrozen}) {
          SCOPED_TRACE(testing::Message() << num_bits << " bits, group " << group);
          ExpectSameSteps({37, 768, {rule, GridOf(rule, num_bits), group}, step});
        }
      }
    }
  }
  // More chunks than one wave of CTAs, and an end inside a warp.
  ExpectSameSteps({5003, 1056, {ScaleRule::kAbsmax7, {}, 32}, {.lr = 1e-3}});
}

TEST(AdamWGpu, ReportsTheFirstMasterWithoutAWeight) {
  QT_NEEDS_DEVICE();
  std::vector<float> master = RandomFloats(8 * 128, 1);
  master[300] = std::numeric_limits<float>::infinity();
  master[302] = std::numeric_limits<float>::quiet_NaN();
  master[900] = 3.4e38f;
  const std::vector<float> zeros(master.size());
  DeviceVector<float> w(master), m(zeros), v(zeros), g(zeros);
  DeviceVector<BFloat16> out(master.size());
  DeviceVector<AdamWCounters> counters(1);
  counters.Zero();
  AdamWTask task = TaskOf({8, 128, {}, {}}, w.data(), m.data(), v.data(), g.data());
  task.weight_bf16 = out.data();
  AdamWUpdate({}, task, counters.data(), nullptr);
  EXPECT_EQ(FirstBadElement(counters.Download()[0]), 300);
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
