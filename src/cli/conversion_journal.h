// What a conversion leaves in its work folder so that the same command can go on after any kind of
// death: what it was asked for, and a record of every stage that is whole.
//
// A stage is the embedding, one layer, or the head with all the rest. Its record is written last,
// after its tensors and hidden states are on disk, and in one step; a stage without a record is
// done again, which gives the same bytes.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "io/tensor_set.h"

namespace quatrain {

// Facts about the files of a source that tell when it was changed: a member a file, with size, time
// of change and a hash of its header.
Json SourceFingerprint(const std::filesystem::path& directory, const TensorSet& tensors);

class ConversionJournal {
 public:
  // `request` is an object: what decides the result, by the flag or thing that a user would name.
  // Starts a journal in `folder`, or takes up the one that is there. Error kUsage naming the first
  // member that is not what it was then, and what to do.
  ConversionJournal(const std::filesystem::path& folder, const Json& request);

  // Is there anything in a work folder to go on with?
  static bool HasStages(const std::filesystem::path& folder);

  // Records of the stages that are whole, in order.
  const std::vector<Json>& stages() const { return stages_; }
  void Add(Json stage);

 private:
  void CheckRequest(const Json& earlier, const Json& request) const;

  std::filesystem::path folder_;
  std::vector<Json> stages_;
};

}  // namespace quatrain
