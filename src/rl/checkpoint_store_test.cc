#include "rl/checkpoint_store.h"

#include <algorithm>

#include "models/test_support.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class CheckpointStoreTest : public ModelFolderTest {
 protected:
  void SetUp() override {
    ModelFolderTest::SetUp();
    source_.emplace(PutSmallMoe("model"));
    start_.emplace(LoadWeights(*source_, at::kBFloat16));
    run_ = folder_ / "run";
    fs::create_directories(run_);
  }
  void TearDown() override {
    start_.reset();
    source_.reset();
    ModelFolderTest::TearDown();
  }

  CheckpointSnapshot Snapshot(int64_t rollout) const {
    CheckpointSnapshot snapshot;
    snapshot.next_rollout = rollout;
    snapshot.source = &*source_;
    snapshot.bf16.emplace(CopyWeights(*start_));
    snapshot.training.tensors.push_back(
        {"master.x", at::full({4}, static_cast<double>(rollout), at::kFloat)});
    snapshot.training.state = {{"step", rollout}};
    return snapshot;
  }

  std::vector<std::string> Folders() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(run_)) {
      if (entry.is_directory()) names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  std::optional<Checkpoint> source_;
  std::optional<ModelWeights> start_;
  fs::path run_;
};

TEST_F(CheckpointStoreTest, TheLastNAreKeptAndAHalfDeletedOneGoes) {
  fs::create_directories(run_ / "iter_0000001.deleting/state");
  CheckpointStore store({.run = run_, .num_kept = 2, .save_hf = (folder_ / "hf-{rollout_id}")});
  EXPECT_TRUE(Folders().empty());
  for (const int64_t rollout : {2, 4, 6}) store.Save(Snapshot(rollout), SaveMode::kNow);
  EXPECT_EQ(Folders(), (std::vector<std::string>{"iter_0000004", "iter_0000006"}));
  EXPECT_EQ(*FindCheckpoint(run_, 0), run_ / "iter_0000006");
  EXPECT_EQ(*FindCheckpoint(run_, 4), run_ / "iter_0000004");
  for (const char* name : {"hf-2", "hf-4", "hf-6"}) {
    const Checkpoint exported(folder_ / name);
    EXPECT_TRUE(at::equal(LoadWeights(exported, at::kBFloat16)[0].dense, (*start_)[0].dense));
  }
}

TEST_F(CheckpointStoreTest, ABackgroundSaveWritesTheSameBytesWhateverHappensToTheWeights) {
  CheckpointStore now({.run = run_});
  now.Save(Snapshot(1), SaveMode::kNow);
  CheckpointStore later({.run = folder_ / "later"});
  CheckpointSnapshot snapshot = Snapshot(1);
  (*start_)[0].dense.zero_();
  later.Save(std::move(snapshot), SaveMode::kInBackground);
  later.Wait();
  for (const char* file : {"bf16/model.safetensors", "state/model.safetensors", "checksums.json"}) {
    EXPECT_EQ(ReadFile(run_ / "iter_0000001" / file),
              ReadFile(folder_ / "later/iter_0000001" / file))
        << file;
  }
}

TEST_F(CheckpointStoreTest, AFailureInTheBackgroundComesWithTheNextCall) {
  CheckpointStore store({.run = run_, .save_hf = (run_ / kLatestFile).string()});
  store.Save(Snapshot(1), SaveMode::kInBackground);
  EXPECT_TRUE(Contains(MessageOf([&] { store.Wait(); }), "the name of a folder"));
  store.Wait();
}

TEST_F(CheckpointStoreTest, ADamagedCheckpointNamesTheFileAndTheOneBefore) {
  EXPECT_FALSE(FindCheckpoint(run_, 0).has_value());
  CheckpointStore store({.run = run_});
  for (const int64_t rollout : {1, 2, 3}) store.Save(Snapshot(rollout), SaveMode::kNow);
  const auto flip = [&](const std::string& file) {
    std::string bytes = ReadFile(run_ / file);
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    WriteFileAtomic(run_ / file, bytes);
  };
  flip("iter_0000003/state/model.safetensors");
  std::string message = MessageOf([&] { FindCheckpoint(run_, 0); });
  EXPECT_TRUE(Contains(message, "iter_0000003/state/model.safetensors")) << message;
  EXPECT_TRUE(Contains(message, "iter_0000002 is whole: add --ckpt-step 2")) << message;
  flip("iter_0000002/state/state.json");
  message = MessageOf([&] { FindCheckpoint(run_, 0); });
  EXPECT_TRUE(Contains(message, "--ckpt-step 1")) << message;
  EXPECT_EQ(*FindCheckpoint(run_, 1), run_ / "iter_0000001");
  EXPECT_TRUE(Contains(MessageOf([&] { FindCheckpoint(run_, 7); }), "1, 2, 3"));
  WriteFileAtomic(run_ / kLatestFile, "l\n");
  message = MessageOf([&] { FindCheckpoint(run_, 0); });
  EXPECT_TRUE(Contains(message, kLatestFile)) << message;
  EXPECT_TRUE(Contains(message, "--ckpt-step 1")) << message;
}

}  // namespace
}  // namespace quatrain
