// The checkpoints of a run directory: folders that appear whole, the file that names the newest
// one, what is kept, and what a resume finds.
//
//   <run>/iter_0000020/{bf16,int4,reference,state}/, checksums.json
//   <run>/latest_checkpointed_iteration.txt
#pragma once

#include <filesystem>
#include <future>
#include <optional>
#include <string>

#include "models/exporter.h"
#include "train/checkpoint.h"

namespace quatrain {

// All of one checkpoint. Under SnapshotMode::kCopy it shares no memory with the run, so that it can
// be written while training goes on.
struct CheckpointSnapshot {
  int64_t next_rollout = 0;
  const Checkpoint* source = nullptr;  // of auxiliary files; borrowed for the length of the run
  std::optional<ModelWeights> bf16;    // the masters, rounded
  std::optional<ModelWeights> quantized;
  ExportOptions quantized_format;
  std::optional<ModelWeights> reference;
  TrainingSnapshot training;
  std::string partial_rollouts;  // CBOR; empty: none
};

// Its tensors with memory of their own.
ModelWeights CopyWeights(const ModelWeights& weights);

struct CheckpointStoreOptions {
  std::filesystem::path run;
  int64_t num_kept = 0;  // --keep-last-n; 0: all
  // --save-hf: a folder for the weights alone, in the format of the rollout; "{rollout_id}" in it
  // stands for the number of rollouts. Empty: none.
  std::string save_hf;
};

enum class SaveMode {
  kNow,
  kInBackground,  // --async-save; one at a time
};

inline constexpr const char* kPartialFile = "partial_rollouts.cbor";  // in state/

// Owned by the run's thread.
class CheckpointStore {
 public:
  // Removes what a run that was killed while it deleted a checkpoint left.
  explicit CheckpointStore(const CheckpointStoreOptions& options);
  ~CheckpointStore();

  // Waits for the save before, then writes: the folder, its checksums, the name of the newest,
  // --save-hf; then deletes what is not kept. Error kIo, kResource; of a background save at the
  // next call or in Wait.
  void Save(CheckpointSnapshot snapshot, SaveMode mode);
  void Wait();

 private:
  void Write(const CheckpointSnapshot& snapshot) const;
  void Prune(int64_t newest) const;

  CheckpointStoreOptions options_;
  std::future<void> pending_;
};

std::filesystem::path IterationFolder(const std::filesystem::path& run, int64_t iteration);
inline constexpr const char* kLatestFile = "latest_checkpointed_iteration.txt";

// The checkpoint to resume from: --ckpt-step, or (0) the one that the run names as its newest;
// nullopt if the run names none. Its training state is checked against its checksums. Error kData
// naming the damaged file and the newest older checkpoint that is whole; kUsage for a --ckpt-step
// that is not there.
std::optional<std::filesystem::path> FindCheckpoint(const std::filesystem::path& run,
                                                    int64_t ckpt_step);

}  // namespace quatrain
