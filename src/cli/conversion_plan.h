// What a conversion will take, told before it begins.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "calibrate/calibrate.h"
#include "models/exporter.h"

namespace quatrain {

// Upper bounds, and a guess of the time.
struct ConversionPlan {
  uint64_t memory_bytes = 0;
  uint64_t output_bytes = 0;  // of tensors
  uint64_t cache_bytes = 0;   // of hidden states of two layers on disk, and of one layer's steps
  double seconds = 0.0;
};

// Memory beside what the process holds already: the largest tensor of the mapped source, the
// weights of the largest layer (or embedding) and their codes, one layer's Hessians with a factor
// of the largest, and the activations of one batch; hidden states wait on disk. `data` is nullptr
// for round-to-nearest. The time is that of the arithmetic, at a rate that is measured for some
// hundredths of a second.
ConversionPlan PlanConversion(ThreadPool& pool, const Checkpoint& source, const QuantPlan& plan,
                              const CalibrateOptions& options, const CalibrationData* data);

// How every row of the table is stored.
std::vector<WeightFormat> FormatsOf(const std::vector<WeightSpec>& table, const QuantPlan& plan);

// Bytes of the tensors of one row.
uint64_t StoredBytes(const WeightSpec& spec, const WeightFormat& format);

// "about 2 min": of a guess.
std::string GuessText(double seconds);

}  // namespace quatrain
