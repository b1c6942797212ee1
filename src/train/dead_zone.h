// Do the codes move? At small learning rates a step seldom carries a weight over a rounding
// boundary, and one that sits on a boundary may flip to and fro (Nagel et al., arXiv:2203.11086).
// Counted after every optimizer step, by layer.
//
//   metric                        meaning
//   train/code_flip_back_rate     share of the codes that this step gave the value back which they
//   had
//                                 before their last change
//   train/near_boundary_rate      share of the weights within 0.05 of a code's width of a boundary
//   train/scale_drift             mean |scale / first scale - 1| over groups
//   train/boundary_distance/0.05  share of the weights 0.05 to 0.10 of a width from one; 0.00 to
//   0.45 qat/code_flip_rate/layer_3, qat/code_flip_back_rate/layer_3,
//   qat/near_boundary_rate/layer_3, qat/scale_drift/layer_3       the same of one layer
#pragma once

#include <array>
#include <filesystem>
#include <map>
#include <vector>

#include "train/checkpoint.h"

namespace quatrain {

struct DeadZoneStats {
  static constexpr int kBins = 10;
  int64_t num_codes = 0, num_flips = 0, num_flips_back = 0, num_scales = 0;
  std::array<int64_t, kBins> boundary_distance = {};  // bins of 0.05 of a code's width
  double scale_drift = 0.0;                           // sum over scales

  void Add(const DeadZoneStats& other);
};

class DeadZoneMonitor {
 public:
  // Borrows the quantised table; its codes and scales of now are the first ones. Keeps, of each
  // quantised weight, two copies of the codes and one of the scales.
  explicit DeadZoneMonitor(const ModelWeights& table);

  // Compares the table with what it was at the last call. The same for any number of threads.
  void Observe(const OpContext& ctx, Parameters& parameters);
  // Of the last call, by layer (-1: outside the layers).
  const std::map<int64_t, DeadZoneStats>& layers() const { return layers_; }
  void AppendTo(Json& row) const;

  // What a resumed run needs to go on counting: last_code.<name>, first_scale.<name>.
  void AddTo(TrainingSnapshot& snapshot) const;
  // After the table was restored. Weights that the folder does not know in this form begin anew.
  void Restore(const std::filesystem::path& folder);

  int64_t size_bytes() const;

 private:
  struct Entry {
    size_t index = 0;                 // in the table
    std::vector<int32_t> codes;       // packed, at the last call
    std::vector<int32_t> last_codes;  // of each code, the value before its last change
    std::vector<BFloat16> first_scale;
  };
  DeadZoneStats ObserveRow(const float* master_I, Entry& entry, int64_t row) const;

  const ModelWeights& table_;
  std::vector<Entry> entries_;
  std::map<int64_t, DeadZoneStats> layers_;
};

}  // namespace quatrain
