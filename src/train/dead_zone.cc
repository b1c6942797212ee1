#include "train/dead_zone.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "io/tensor_set.h"

namespace quatrain {
namespace {

constexpr const char* kLastCode = "last_code.";
constexpr const char* kFirstScale = "first_scale.";

void SetCode(int code, int64_t index, int num_bits, int32_t* row_words) {
  const int64_t per_word = 32 / num_bits;
  const uint32_t mask = ((1u << num_bits) - 1u) << (num_bits * static_cast<int>(index % per_word));
  int32_t& word = row_words[index / per_word];
  word = static_cast<int32_t>(static_cast<uint32_t>(word) & ~mask);
  PackCode(code, index, num_bits, row_words);
}

// Flips of one row since `codes`, which become those of `now`.
void CountFlips(const int32_t* now, int64_t in_features, int num_bits, int32_t* codes,
                int32_t* last_codes, DeadZoneStats& stats) {
  const int64_t per_word = 32 / num_bits;
  for (int64_t word = 0; word < PackedWords(in_features, num_bits); ++word) {
    if (now[word] == codes[word]) continue;
    const int64_t end = std::min(in_features, (word + 1) * per_word);
    for (int64_t i = word * per_word; i < end; ++i) {
      const int before = UnpackCode(codes, i, num_bits), after = UnpackCode(now, i, num_bits);
      if (before == after) continue;
      ++stats.num_flips;
      // Where both are equal the code has never changed.
      stats.num_flips_back += UnpackCode(last_codes, i, num_bits) == after ? 1 : 0;
      SetCode(before, i, num_bits, last_codes);
    }
    codes[word] = now[word];
  }
}

// Distance of the weight to the nearest rounding boundary, in widths of a code: 0 to 0.5.
int BinOf(float weight, float scale) {
  const float x = weight / scale;
  const float distance = 0.5f - std::fabs(x - std::rint(x));
  const int bin = static_cast<int>(distance * 2.0f * DeadZoneStats::kBins);
  return std::clamp(bin, 0, DeadZoneStats::kBins - 1);
}

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

double MeanDrift(const DeadZoneStats& stats) {
  return stats.num_scales == 0 ? 0.0 : stats.scale_drift / static_cast<double>(stats.num_scales);
}

}  // namespace

void DeadZoneStats::Add(const DeadZoneStats& other) {
  num_codes += other.num_codes;
  num_flips += other.num_flips;
  num_flips_back += other.num_flips_back;
  num_scales += other.num_scales;
  for (size_t i = 0; i < boundary_distance.size(); ++i)
    boundary_distance[i] += other.boundary_distance[i];
  scale_drift += other.scale_drift;
}

DeadZoneMonitor::DeadZoneMonitor(const ModelWeights& table) : table_(table) {
  for (size_t i = 0; i < table.size(); ++i) {
    if (!table[i].is_quantized()) continue;
    const QuantizedWeight& codes = table[i].codes;
    entries_.push_back({i, codes.packed, codes.packed, codes.scale});
  }
}

DeadZoneStats DeadZoneMonitor::ObserveRow(const float* master_I, Entry& entry, int64_t row) const {
  const QuantizedWeight& now = table_[entry.index].codes;
  const int64_t words = PackedWords(now.in_features, now.num_bits), groups = now.num_groups();
  DeadZoneStats stats;
  stats.num_codes = now.in_features;
  stats.num_scales = groups;
  CountFlips(now.packed.data() + row * words, now.in_features, now.num_bits,
             entry.codes.data() + row * words, entry.last_codes.data() + row * words, stats);
  for (int64_t group = 0; group < groups; ++group) {
    const auto at = static_cast<size_t>(row * groups + group);
    const float scale = ToFloat(now.scale[at]);
    stats.scale_drift += std::fabs(scale / ToFloat(entry.first_scale[at]) - 1.0f);
    for (int64_t i = group * now.group_size; i < (group + 1) * now.group_size; ++i) {
      const int bin = BinOf(ToFloat(ToBFloat16(master_I[i])), scale);
      ++stats.boundary_distance[static_cast<size_t>(bin)];
    }
  }
  return stats;
}

void DeadZoneMonitor::Observe(const OpContext& ctx, Parameters& parameters) {
  layers_.clear();
  for (Entry& entry : entries_) {
    const QuantizedWeight& codes = table_[entry.index].codes;
    const float* master = DataOf<float>(parameters.master(entry.index));
    std::vector<DeadZoneStats> rows(static_cast<size_t>(codes.out_features));
    ctx.pool.ParallelFor(codes.out_features, [&](int64_t row, int) {
      rows[static_cast<size_t>(row)] = ObserveRow(master + row * codes.in_features, entry, row);
    });
    DeadZoneStats& layer = layers_[table_[entry.index].spec.layer];
    for (const DeadZoneStats& row : rows) layer.Add(row);
  }
}

void DeadZoneMonitor::AppendTo(Json& row) const {
  DeadZoneStats all;
  for (const auto& [layer, stats] : layers_) {
    all.Add(stats);
    const std::string suffix = layer < 0 ? "/other" : fmt::format("/layer_{}", layer);
    row["qat/code_flip_rate" + suffix] = Share(stats.num_flips, stats.num_codes);
    row["qat/code_flip_back_rate" + suffix] = Share(stats.num_flips_back, stats.num_codes);
    row["qat/near_boundary_rate" + suffix] = Share(stats.boundary_distance[0], stats.num_codes);
    row["qat/scale_drift" + suffix] = MeanDrift(stats);
  }
  if (layers_.empty()) return;
  row["train/code_flip_back_rate"] = Share(all.num_flips_back, all.num_codes);
  row["train/near_boundary_rate"] = Share(all.boundary_distance[0], all.num_codes);
  row["train/scale_drift"] = MeanDrift(all);
  for (int bin = 0; bin < DeadZoneStats::kBins; ++bin) {
    row[fmt::format("train/boundary_distance/{:.2f}", 0.05 * bin)] =
        Share(all.boundary_distance[static_cast<size_t>(bin)], all.num_codes);
  }
}

void DeadZoneMonitor::AddTo(TrainingSnapshot& snapshot) const {
  for (const Entry& entry : entries_) {
    const Weight& weight = table_[entry.index];
    const int64_t rows = weight.codes.out_features;
    at::Tensor last =
        at::empty({rows, PackedWords(weight.codes.in_features, weight.codes.num_bits)}, at::kInt);
    std::memcpy(last.data_ptr(), entry.last_codes.data(), last.nbytes());
    at::Tensor scale = at::empty({rows, weight.codes.num_groups()}, at::kBFloat16);
    std::memcpy(scale.data_ptr(), entry.first_scale.data(), scale.nbytes());
    snapshot.tensors.push_back({kLastCode + weight.spec.name, last});
    snapshot.tensors.push_back({kFirstScale + weight.spec.name, scale});
  }
}

void DeadZoneMonitor::Restore(const std::filesystem::path& folder) {
  const TensorSet tensors(folder);
  for (Entry& entry : entries_) {
    const Weight& weight = table_[entry.index];
    entry.codes = entry.last_codes = weight.codes.packed;
    entry.first_scale = weight.codes.scale;
    const TensorView* last = tensors.Find(kLastCode + weight.spec.name);
    const TensorView* scale = tensors.Find(kFirstScale + weight.spec.name);
    const bool is_known = last != nullptr && scale != nullptr &&
                          last->bytes.size() == entry.last_codes.size() * sizeof(int32_t) &&
                          scale->bytes.size() == entry.first_scale.size() * sizeof(BFloat16);
    if (!is_known) continue;
    std::memcpy(entry.last_codes.data(), last->bytes.data(), last->bytes.size());
    std::memcpy(entry.first_scale.data(), scale->bytes.data(), scale->bytes.size());
  }
}

int64_t DeadZoneMonitor::size_bytes() const {
  size_t bytes = 0;
  for (const Entry& entry : entries_) {
    bytes += (entry.codes.size() + entry.last_codes.size()) * sizeof(int32_t) +
             entry.first_scale.size() * sizeof(BFloat16);
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace quatrain
