// The prompts of a run, in an order and from a position that a checkpoint can bring back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "rl/sample.h"

namespace quatrain {

enum class PromptOrder {
  kFile,
  kShuffled,  // --rollout-shuffle: a new permutation every epoch, keyed by (seed, epoch)
};

struct PromptDatasetOptions {
  std::string input_key = "input";        // --input-key
  std::string label_key = {};             // --label-key; empty: prompts have no label
  std::string metadata_key = "metadata";  // --metadata-key; rows may lack it
  std::string tool_key = "tools";         // --tool-key; rows may lack it
  double max_malformed_fraction = 0.0;    // of the lines of a JSONL file
  PromptOrder order = PromptOrder::kFile;
  uint64_t seed = 42;  // --rollout-seed
};

// One Prompt a row, ids ascending from 0. `where` names the rows in errors, usually the path.
// Error kData: no rows, a row without the input or label key (names row and key and lists the keys
// it has), a prompt that is neither a non-empty string nor an array of {"role", "content"} objects,
// a label that is empty or no scalar, tools that are no array of objects (or the JSON text of one).
std::vector<Prompt> PromptsOfRows(const std::vector<Json>& rows, const std::string& where,
                                  const PromptDatasetOptions& options);

// The same for a JSONL or Parquet file (io/rows.h); warns of malformed lines that were left out.
std::vector<Prompt> ReadPrompts(const std::filesystem::path& path,
                                const PromptDatasetOptions& options);

// An endless sequence of prompts: after the last one the next epoch begins, even in mid-batch.
class PromptDataset {
 public:
  PromptDataset(std::vector<Prompt> prompts, const PromptDatasetOptions& options);

  int64_t size() const { return static_cast<int64_t>(prompts_.size()); }
  const std::vector<Prompt>& prompts() const { return prompts_; }  // in file order
  int64_t epoch() const { return epoch_; }
  int64_t position() const { return position_; }  // prompts of this epoch already given

  std::vector<Prompt> Next(int64_t num_prompts);

  // {"num_prompts", "seed", "is_shuffled", "epoch", "position"}
  Json State() const;
  // Error kData if the state is of another file, seed or order: the run would not continue as it
  // went.
  void Restore(const Json& state);

 private:
  void StartEpoch(int64_t epoch);

  std::vector<Prompt> prompts_;
  PromptDatasetOptions options_;
  std::vector<int64_t> order_;
  int64_t epoch_ = 0;
  int64_t position_ = 0;
};

// Rollouts in --num-epoch epochs: whole batches only, as in the field. Error kUsage if a batch
// exceeds the file.
int64_t NumRollouts(int64_t num_prompts, int64_t rollout_batch_size, int64_t num_epoch);

}  // namespace quatrain
