#include "quant/fake_quant.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace quatrain {
namespace {

// w' of one group by the scalar functions of kernels/int4.h.
void FakeQuantGroup(std::span<const BFloat16> weight, BFloat16 scale, const CodeGrid& grid,
                    BFloat16* out) {
  for (const BFloat16 w : weight)
    *out++ = DequantizeCode(QuantizeCode(ToFloat(w), scale, grid), scale);
}

float AbsmaxOf(std::span<const BFloat16> weight) {
  float amax = 0.0f;
  for (const BFloat16 w : weight) amax = std::max(amax, std::fabs(ToFloat(w)));
  return amax;
}

// Calls body(group, first weight of it) for every group of the matrix; groups never straddle rows.
template <class Body>
void ForEachGroup(ThreadPool& pool, const NamedMatrix& matrix, int64_t group_size,
                  const Body& body) {
  constexpr int64_t kGroupsPerChunk = 1024;
  const int64_t num_groups = static_cast<int64_t>(matrix.weight_OI.size()) / group_size;
  const int64_t num_chunks = (num_groups + kGroupsPerChunk - 1) / kGroupsPerChunk;
  pool.ParallelFor(num_chunks, [&](int64_t chunk, int /*worker*/) {
    const int64_t end = std::min(num_groups, (chunk + 1) * kGroupsPerChunk);
    for (int64_t group = chunk * kGroupsPerChunk; group < end; ++group) {
      body(static_cast<size_t>(group), static_cast<size_t>(group * group_size));
    }
  });
}

}  // namespace

std::vector<BFloat16> FakeQuant(ThreadPool& pool, const NamedMatrix& matrix,
                                const QuantScheme& scheme) {
  QT_CHECK(scheme.scale_rule == ScaleRule::kAbsmax7 || scheme.scale_rule == ScaleRule::kAbsmax7_5,
           "{}: rule {} needs scales", matrix.tensor, ScaleRuleName(scheme.scale_rule));
  CheckQuantizable(matrix, scheme);
  const int64_t group_size = scheme.GroupSizeFor(matrix.in_features);
  std::vector<BFloat16> out(matrix.weight_OI.size());
  ForEachGroup(pool, matrix, group_size, [&](size_t /*group*/, size_t first) {
    const auto weight = matrix.weight_OI.subspan(first, static_cast<size_t>(group_size));
    const BFloat16 scale = ScaleFromAbsmax(AbsmaxOf(weight), scheme.scale_rule, scheme.grid());
    FakeQuantGroup(weight, scale, scheme.grid(), &out[first]);
  });
  return out;
}

std::vector<BFloat16> FakeQuantWithScales(ThreadPool& pool, const NamedMatrix& matrix,
                                          const QuantScheme& scheme,
                                          std::span<const BFloat16> scale_OG) {
  CheckQuantizable(matrix, scheme);
  const int64_t group_size = scheme.GroupSizeFor(matrix.in_features);
  CheckScales(matrix.tensor, scale_OG, matrix.in_features / group_size, scheme.grid());
  QT_CHECK(scale_OG.size() * static_cast<size_t>(group_size) == matrix.weight_OI.size(),
           "{}: {} scales", matrix.tensor, scale_OG.size());
  std::vector<BFloat16> out(matrix.weight_OI.size());
  ForEachGroup(pool, matrix, group_size, [&](size_t group, size_t first) {
    const auto weight = matrix.weight_OI.subspan(first, static_cast<size_t>(group_size));
    FakeQuantGroup(weight, scale_OG[group], scheme.grid(), &out[first]);
  });
  return out;
}

void MaskClippedGradient(std::span<const BFloat16> weight_OI, std::span<const BFloat16> scale_OG,
                         int64_t in_features, const QuantScheme& scheme, std::span<float> grad_OI) {
  QT_CHECK(weight_OI.size() == grad_OI.size(), "{} gradients of {} weights", grad_OI.size(),
           weight_OI.size());
  const auto group_size = static_cast<size_t>(scheme.GroupSizeFor(in_features));
  QT_CHECK(scale_OG.size() * group_size == weight_OI.size(), "{} scales", scale_OG.size());
  const CodeGrid grid = scheme.grid();
  // One code beyond each bound shows whether the clamp acted.
  const CodeGrid wider = {grid.num_bits, grid.lo - 1, grid.hi + 1};
  for (size_t i = 0; i < weight_OI.size(); ++i) {
    const int code = QuantizeCode(ToFloat(weight_OI[i]), scale_OG[i / group_size], wider);
    if (code < grid.lo || code > grid.hi) grad_OI[i] = 0.0f;
  }
}

}  // namespace quatrain
