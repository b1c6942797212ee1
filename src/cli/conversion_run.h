// The work of a conversion between its checks and its publication: stage after stage, each recorded
// when it is whole.
#pragma once

#include <memory>

#include "base/file.h"
#include "calibrate/heldout.h"
#include "cli/conversion.h"
#include "cli/conversion_journal.h"

namespace quatrain {

// What is converted; all of it is borrowed.
struct ConversionJob {
  const OpContext& ctx;
  const ConversionConfig& config;
  const Checkpoint& source;
  const QuantPlan& plan;
  const CalibrationData* data;  // nullptr for round-to-nearest
  const CalibrateProgress& progress;
};

class ConversionRun {
 public:
  // Takes up what the journal has.
  ConversionRun(const ConversionJob& job, WorkFolder& work, ConversionJournal& journal);
  ~ConversionRun();

  size_t num_stages() const;
  // Bytes that the disk must still have free: for tensors, and for all that waits on disk between,
  // less what of that is there already.
  uint64_t RemainingBytes() const;
  // Does every stage that has no record.
  void Run();
  // Completes the directory and reads it back: every tensor must have the bytes that were recorded.
  void Finish(const ExportOptions& options);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace quatrain
