#include "rl/checkpoint_store.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "io/checksums.h"
#include "rl/sample_io.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFolderPrefix = "iter_";
constexpr const char* kDeletingMark = ".deleting";

// What a resume reads.
const std::vector<std::string> kStateParts = {"state/", "reference/"};

// Numbers of the checkpoints in a run directory, ascending.
std::vector<int64_t> Iterations(const fs::path& run) {
  std::vector<int64_t> iterations;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(run, absent)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kFolderPrefix)) continue;
    const std::string digits = name.substr(kFolderPrefix.size());
    int64_t iteration = 0;
    const auto [end, status] =
        std::from_chars(digits.data(), digits.data() + digits.size(), iteration);
    if (status == std::errc() && end == digits.data() + digits.size())
      iterations.push_back(iteration);
  }
  std::sort(iterations.begin(), iterations.end());
  return iterations;
}

// What to do instead of resuming from `iteration` (-1: from the newest).
std::string Alternative(const fs::path& run, int64_t iteration) {
  const std::vector<int64_t> all = Iterations(run);
  for (auto it = all.rbegin(); it != all.rend(); ++it) {
    if (iteration >= 0 && *it >= iteration) continue;
    if (FindDamage(IterationFolder(run, *it), kStateParts)) continue;
    return fmt::format("{} is whole: add --ckpt-step {} to go on from it",
                       IterationFolder(run, *it).filename().string(), *it);
  }
  return "No other checkpoint of the run is whole; train without --load";
}

int64_t ReadLatest(const fs::path& run) {
  const fs::path latest = run / kLatestFile;
  const std::string text = ReadFile(latest);
  int64_t iteration = -1;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), iteration);
  const bool is_whole =
      std::string_view(end, text.data() + text.size()) == "\n" || end == text.data() + text.size();
  if (status == std::errc() && is_whole && iteration >= 0) return iteration;
  throw Error(ErrorCode::kData, {.where = latest.string(),
                                 .what = "the file is damaged",
                                 .expected = "the number of a checkpoint",
                                 .found = "'" + text.substr(0, 40) + "'",
                                 .todo = Alternative(run, -1)});
}

void CheckStep(const fs::path& run, int64_t ckpt_step) {
  const std::vector<int64_t> all = Iterations(run);
  if (std::find(all.begin(), all.end(), ckpt_step) != all.end()) return;
  throw Error(ErrorCode::kUsage,
              {.where = "--ckpt-step",
               .what = "the run has no such checkpoint",
               .expected = all.empty() ? "none is there" : fmt::format("{}", fmt::join(all, ", ")),
               .found = fmt::format("{}", ckpt_step)});
}

// Fills a folder with a model.
void WriteModel(const CheckpointSnapshot& snapshot, const ModelWeights& weights,
                const ExportOptions& options, const fs::path& folder) {
  fs::create_directories(folder);
  ExportModel(*snapshot.source, weights, options, folder);
}

}  // namespace

ModelWeights CopyWeights(const ModelWeights& weights) {
  std::vector<Weight> copies;
  for (size_t i = 0; i < weights.size(); ++i) {
    copies.push_back(weights[i]);
    if (weights[i].dense.defined()) copies.back().dense = weights[i].dense.clone();
  }
  return ModelWeights(std::move(copies));
}

fs::path IterationFolder(const fs::path& run, int64_t iteration) {
  return run / fmt::format("{}{:07}", kFolderPrefix, iteration);
}

CheckpointStore::CheckpointStore(const CheckpointStoreOptions& options) : options_(options) {
  std::error_code ignored;
  std::vector<fs::path> left_overs;
  for (const auto& entry : fs::directory_iterator(options.run, ignored)) {
    if (entry.path().extension() == kDeletingMark) left_overs.push_back(entry.path());
  }
  for (const fs::path& path : left_overs) fs::remove_all(path, ignored);
}

CheckpointStore::~CheckpointStore() {
  if (pending_.valid()) pending_.wait();  // whoever wants its error calls Wait
}

void CheckpointStore::Save(CheckpointSnapshot snapshot, SaveMode mode) {
  Wait();
  if (mode == SaveMode::kNow) {
    Write(snapshot);
    return;
  }
  pending_ =
      std::async(std::launch::async, [this, contents = std::move(snapshot)] { Write(contents); });
}

void CheckpointStore::Wait() {
  if (pending_.valid()) pending_.get();
}

void CheckpointStore::Write(const CheckpointSnapshot& snapshot) const {
  const fs::path target = IterationFolder(options_.run, snapshot.next_rollout);
  AtomicFolder folder(target);
  WriteModel(snapshot, *snapshot.bf16, {}, folder.path() / "bf16");
  if (snapshot.quantized)
    WriteModel(snapshot, *snapshot.quantized, snapshot.quantized_format, folder.path() / "int4");
  if (snapshot.reference)
    WriteModel(snapshot, *snapshot.reference, {}, folder.path() / "reference");
  SaveTrainingState(snapshot.training, folder.path() / "state");
  if (!snapshot.partial_rollouts.empty())
    WriteFileAtomic(folder.path() / "state" / kPartialFile, snapshot.partial_rollouts);
  WriteChecksums(folder.path());
  folder.Commit();
  WriteFileAtomic(options_.run / kLatestFile, fmt::format("{}\n", snapshot.next_rollout));
  if (!options_.save_hf.empty()) {
    AtomicFolder hf(WithRolloutId(options_.save_hf, snapshot.next_rollout));
    WriteModel(snapshot, snapshot.quantized ? *snapshot.quantized : *snapshot.bf16,
               snapshot.quantized ? snapshot.quantized_format : ExportOptions{}, hf.path());
    hf.Commit();
  }
  Log().info("saved {}", target.string());
  Prune(snapshot.next_rollout);
}

// Checkpoints beyond the newest are of a time line that a resume left; they do not count.
void CheckpointStore::Prune(int64_t newest) const {
  if (options_.num_kept == 0) return;
  std::vector<int64_t> older = Iterations(options_.run);
  std::erase_if(older, [&](int64_t iteration) { return iteration > newest; });
  while (static_cast<int64_t>(older.size()) > options_.num_kept) {
    const fs::path folder = IterationFolder(options_.run, older.front());
    const fs::path doomed = folder.string() + kDeletingMark;
    fs::rename(folder, doomed);  // so that half a checkpoint never has a checkpoint's name
    fs::remove_all(doomed);
    older.erase(older.begin());
  }
}

std::optional<fs::path> FindCheckpoint(const fs::path& run, int64_t ckpt_step) {
  if (ckpt_step > 0) {
    CheckStep(run, ckpt_step);
  } else if (!fs::exists(run / kLatestFile)) {
    return std::nullopt;
  }
  const int64_t iteration = ckpt_step > 0 ? ckpt_step : ReadLatest(run);
  const fs::path folder = IterationFolder(run, iteration);
  if (const auto damage = FindDamage(folder, kStateParts)) {
    throw Error(ErrorCode::kData, {.where = damage->file.string(),
                                   .what = "the checkpoint is damaged",
                                   .expected = damage->expected,
                                   .found = damage->found,
                                   .todo = Alternative(run, iteration)});
  }
  return folder;
}

}  // namespace quatrain
