#include "rl/run_folder.h"

#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class RunFolder : public testing::Test {
 protected:
  RunFolder() : root_(fs::path(testing::TempDir()) / "quatrain_run_folder") {
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~RunFolder() override { fs::remove_all(root_); }

  fs::path With(const std::string& folder, const std::string& file, const std::string& text) const {
    fs::create_directories(root_ / folder);
    std::ofstream(root_ / folder / file) << text;
    return root_ / folder;
  }

  static std::string Refusal(const fs::path& save, const fs::path& load = {}) {
    try {
      PrepareRunFolder(save, load);
    } catch (const Error& error) {
      EXPECT_EQ(ExitStatus(error.code()), 2);
      return error.what();
    }
    return "";
  }

  fs::path root_;
};

TEST_F(RunFolder, ANewOneIsCreatedWithItsParents) {
  EXPECT_EQ(Refusal(root_ / "a" / "b"), "");
  EXPECT_TRUE(fs::is_directory(root_ / "a" / "b"));
  EXPECT_EQ(Refusal(root_ / "a" / "b"), "") << "an empty one may be taken";
}

TEST_F(RunFolder, AModelIsNeverWrittenOver) {
  const fs::path model = With("model", "model.safetensors", "x");
  EXPECT_NE(Refusal(model).find("a model"), std::string::npos);
  EXPECT_NE(Refusal(model, model).find("a model"), std::string::npos) << "not even with --load";
}

TEST_F(RunFolder, AnotherRunIsNotMixedWithThisOne) {
  const fs::path run = With("run", "metrics.jsonl", "{\"rollout\":1}\n");
  EXPECT_NE(Refusal(run).find("--load " + run.string()), std::string::npos);
  EXPECT_EQ(Refusal(run, run / "."), "") << "resuming is not another run";
  const fs::path other = With("other", "latest_checkpointed_iteration.txt", "3\n");
  EXPECT_NE(Refusal(run, other), "");
}

TEST_F(RunFolder, ARunThatEndedBeforeItsFirstRolloutMayBeTakenAgain) {
  EXPECT_EQ(Refusal(With("early", "metrics.jsonl", "")), "");
}

TEST_F(RunFolder, AFileInTheWayIsNamed) {
  const fs::path file = With("x", "file", "x") / "file";
  EXPECT_NE(Refusal(file).find(file.string()), std::string::npos);
  EXPECT_NE(Refusal(file / "below").find("below"), std::string::npos);
}

}  // namespace
}  // namespace quatrain
