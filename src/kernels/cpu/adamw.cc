#include "kernels/adamw.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "kernels/adamw_constants.h"
#include "kernels/cpu/quantize_row.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bfloat16-inl.h"

// Plan: rows are cut into chunks of about 2^16 weights. A row is computed into scratch that stays
// in the cache, checked, and only then written: master and moments (28 bytes a weight with the
// gradient), then the weight of the next forward.

#ifndef QUATRAIN_KERNELS_CPU_ADAMW_ROW_
#define QUATRAIN_KERNELS_CPU_ADAMW_ROW_
namespace quatrain {

// One row, [I] each. The new values may stand where the old ones do.
struct AdamWRow {
  const float *grad, *master, *exp_avg, *exp_avg_sq;
  float *new_master, *new_exp_avg, *new_exp_avg_sq;
  int64_t in_features;
};

}  // namespace quatrain
#endif  // QUATRAIN_KERNELS_CPU_ADAMW_ROW_

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// No fused multiply-add: instruction sets without it must give the same bits.
template <class D>
HWY_INLINE void UpdateLanes(D d, const AdamWConstants& c, const AdamWRow& row, int64_t i) {
  const auto g = hn::Mul(hn::LoadU(d, row.grad + i), hn::Set(d, c.grad_scale));
  const auto w = hn::Mul(hn::LoadU(d, row.master + i), hn::Set(d, c.decay));
  const auto old_m = hn::LoadU(d, row.exp_avg + i);
  // torch's lerp starts from the nearer end, so that beta1 = 0 gives the gradient itself.
  const bool from_grad = c.grad_share >= 0.5f;
  const auto share = hn::Set(d, from_grad ? c.grad_share - 1.0f : c.grad_share);
  const auto m = hn::Add(from_grad ? g : old_m, hn::Mul(share, hn::Sub(g, old_m)));
  const auto square = hn::Mul(hn::Mul(hn::Set(d, c.square_share), g), g);
  const auto v = hn::Add(hn::Mul(hn::LoadU(d, row.exp_avg_sq + i), hn::Set(d, c.beta2)), square);
  const auto root = hn::Div(hn::Sqrt(v), hn::Set(d, c.root_correction2));
  const auto denominator = hn::Add(root, hn::Set(d, c.eps));
  const auto step = hn::Div(hn::Mul(hn::Set(d, c.minus_step_size), m), denominator);
  hn::StoreU(hn::Add(w, step), d, row.new_master + i);
  hn::StoreU(m, d, row.new_exp_avg + i);
  hn::StoreU(v, d, row.new_exp_avg_sq + i);
}

void UpdateRow(const AdamWConstants& constants, const AdamWRow& row) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= row.in_features; i += lanes) UpdateLanes(d, constants, row, i);
  for (; i < row.in_features; ++i) UpdateLanes(one, constants, row, i);
}

void RoundRow(const float* master_I, int64_t in_features, BFloat16* weight_I) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= in_features; i += lanes) {
    StoreBFloat16(d, hn::LoadU(d, master_I + i), weight_I + i);
  }
  for (; i < in_features; ++i) weight_I[i] = ToBFloat16(master_I[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(UpdateRow);
HWY_EXPORT(RoundRow);

// Buffers of one thread, as long as the longest row.
struct Scratch {
  std::vector<float> master, exp_avg, exp_avg_sq;
  std::vector<BFloat16> weight, scale;
  std::vector<int8_t> codes;
  std::vector<int32_t> packed;

  void Reserve(const AdamWTask& task) {
    const auto size = static_cast<size_t>(task.in_features);
    if (master.size() >= size) return;
    master.resize(size);
    exp_avg.resize(size);
    exp_avg_sq.resize(size);
    weight.resize(size);
    scale.resize(size);
    codes.resize(size);
    packed.resize(size);
  }
};

struct Chunk {
  int64_t task, row_begin, row_end;
};

std::vector<Chunk> CutIntoChunks(std::span<const AdamWTask> tasks) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tasks.size(); ++i) {
    const AdamWTask& task = tasks[i];
    QT_CHECK(task.master != nullptr && task.in_features > 0 && task.out_features >= 0);
    QT_CHECK((task.packed == nullptr) == (task.scale == nullptr), "codes and scales go together");
    QT_CHECK(task.packed == nullptr || task.in_features % task.spec.group_size == 0,
             "K {} group {}", task.in_features, task.spec.group_size);
    const int64_t rows = RowsPerChunk(task.in_features);
    for (int64_t row = 0; row < task.out_features; row += rows) {
      chunks.push_back({static_cast<int64_t>(i), row, std::min(task.out_features, row + rows)});
    }
  }
  return chunks;
}

// Rounds a row of masters into scratch.weight; refuses what has no BF16 weight.
void RoundChecked(const AdamWTask& task, int64_t task_index, int64_t row, const float* master_I,
                  Scratch& scratch) {
  HWY_DYNAMIC_DISPATCH(RoundRow)(master_I, task.in_features, scratch.weight.data());
  const int64_t column = FindBadColumn(scratch.weight.data(), task.in_features);
  if (column < 0) return;
  throw Error(ErrorCode::kData,
              {.where = fmt::format("{}{}AdamW task {}, row {}, column {}", task.name,
                                    *task.name != '\0' ? ", " : "", task_index, row, column),
               .what = "the master weight left the range of BF16 weights",
               .expected = "a finite value",
               .found = fmt::format("{}", master_I[column]),
               .todo = "Lower the learning rate or clip gradients harder."});
}

// Codes whose bits differ between two words.
int64_t CountFlips(uint32_t before, uint32_t after, int num_bits) {
  uint32_t difference = before ^ after;
  for (int shift = 1; shift < num_bits; shift *= 2) difference |= difference >> shift;
  return std::popcount(difference & (num_bits == 4 ? 0x11111111u : 0x01010101u));
}

// Codes and scales of scratch.weight over those that stand in the task; counts what changed.
void WriteCodes(const AdamWTask& task, int64_t row, Scratch& scratch, AdamWStats& stats) {
  const QuantizeSpec& spec = task.spec;
  const int64_t groups = task.in_features / spec.group_size;
  const int64_t words = PackedWords(task.in_features, spec.grid.num_bits);
  BFloat16* scale_G = task.scale + row * groups;
  int32_t* packed_P = task.packed + row * words;
  std::copy_n(scale_G, groups, scratch.scale.data());
  QuantizeRow(scratch.weight.data(), task.in_features, spec, scratch.codes.data(), scale_G);
  PackRow(scratch.codes.data(), task.in_features, spec.grid.num_bits, scratch.packed.data());
  for (int64_t i = 0; i < groups; ++i) {
    stats.num_changed_scales += scale_G[i].bits != scratch.scale[static_cast<size_t>(i)].bits;
  }
  for (int64_t i = 0; i < words; ++i) {
    const auto after = static_cast<uint32_t>(scratch.packed[static_cast<size_t>(i)]);
    stats.num_flipped_codes +=
        CountFlips(static_cast<uint32_t>(packed_P[i]), after, spec.grid.num_bits);
  }
  std::copy_n(scratch.packed.data(), words, packed_P);
  stats.num_codes += task.in_features;
  stats.num_scales += groups;
}

// Every weight the task asks for, from scratch.weight and the master row it was rounded from.
void WriteWeight(const AdamWTask& task, int64_t row, const float* master_I, Scratch& scratch,
                 AdamWStats& stats) {
  const int64_t offset = row * task.in_features;
  if (task.weight_float != nullptr) {
    std::copy_n(master_I, task.in_features, task.weight_float + offset);
  }
  if (task.weight_bf16 != nullptr) {
    std::copy_n(scratch.weight.data(), task.in_features, task.weight_bf16 + offset);
  }
  if (task.packed != nullptr) WriteCodes(task, row, scratch, stats);
}

void UpdateTaskRow(const AdamWConstants& constants, const AdamWTask& task, const Chunk& chunk,
                   int64_t row, Scratch& scratch, AdamWStats& stats) {
  const int64_t offset = row * task.in_features;
  const AdamWRow update = {.grad = task.grad + offset,
                           .master = task.master + offset,
                           .exp_avg = task.exp_avg + offset,
                           .exp_avg_sq = task.exp_avg_sq + offset,
                           .new_master = scratch.master.data(),
                           .new_exp_avg = scratch.exp_avg.data(),
                           .new_exp_avg_sq = scratch.exp_avg_sq.data(),
                           .in_features = task.in_features};
  HWY_DYNAMIC_DISPATCH(UpdateRow)(constants, update);
  RoundChecked(task, chunk.task, row, scratch.master.data(), scratch);
  std::copy_n(scratch.master.data(), task.in_features, task.master + offset);
  std::copy_n(scratch.exp_avg.data(), task.in_features, task.exp_avg + offset);
  std::copy_n(scratch.exp_avg_sq.data(), task.in_features, task.exp_avg_sq + offset);
  WriteWeight(task, row, scratch.master.data(), scratch, stats);
}

}  // namespace

AdamWStats AdamWUpdate(ThreadPool& pool, const AdamWStep& step, std::span<const AdamWTask> tasks) {
  QT_CHECK(step.step >= 1, "step {}", step.step);
  std::vector<AdamWConstants> constants;
  for (const AdamWTask& task : tasks) {
    QT_CHECK(task.exp_avg != nullptr && task.exp_avg_sq != nullptr && task.grad != nullptr);
    constants.push_back(ConstantsOf(step, task.weight_decay));
  }
  const std::vector<Chunk> chunks = CutIntoChunks(tasks);
  std::vector<AdamWStats> stats(chunks.size());
  std::vector<Scratch> scratch(static_cast<size_t>(pool.num_threads()));
  pool.ParallelFor(static_cast<int64_t>(chunks.size()), [&](int64_t index, int worker) {
    const Chunk& chunk = chunks[static_cast<size_t>(index)];
    const AdamWTask& task = tasks[static_cast<size_t>(chunk.task)];
    Scratch& mine = scratch[static_cast<size_t>(worker)];
    mine.Reserve(task);
    for (int64_t row = chunk.row_begin; row < chunk.row_end; ++row) {
      UpdateTaskRow(constants[static_cast<size_t>(chunk.task)], task, chunk, row, mine,
                    stats[static_cast<size_t>(index)]);
    }
  });
  AdamWStats total;
  for (const AdamWStats& part : stats) {
    total.num_codes += part.num_codes;
    total.num_flipped_codes += part.num_flipped_codes;
    total.num_scales += part.num_scales;
    total.num_changed_scales += part.num_changed_scales;
  }
  return total;
}

void WriteWeightFromMaster(ThreadPool& pool, std::span<const AdamWTask> tasks) {
  const std::vector<Chunk> chunks = CutIntoChunks(tasks);
  std::vector<Scratch> scratch(static_cast<size_t>(pool.num_threads()));
  pool.ParallelFor(static_cast<int64_t>(chunks.size()), [&](int64_t index, int worker) {
    const Chunk& chunk = chunks[static_cast<size_t>(index)];
    const AdamWTask& task = tasks[static_cast<size_t>(chunk.task)];
    Scratch& mine = scratch[static_cast<size_t>(worker)];
    mine.Reserve(task);
    AdamWStats ignored;
    for (int64_t row = chunk.row_begin; row < chunk.row_end; ++row) {
      const float* master_I = task.master + row * task.in_features;
      RoundChecked(task, chunk.task, row, master_I, mine);
      WriteWeight(task, row, master_I, mine, ignored);
    }
  });
}

}  // namespace quatrain
#endif  // HWY_ONCE
