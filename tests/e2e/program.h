// What the end-to-end tests of training share: the program, run as a user does, in a folder of the
// test's own.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"

namespace quatrain {

namespace fs = std::filesystem;

inline const std::string kSource = QT_SOURCE_DIR;
inline const std::string kBase = kSource + "/examples/models/tiny-qwen3-moe";
inline const std::string kQat =
    "OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 OPEN_TRAINING_INT4_GROUP_SIZE=32 ";

struct Outcome {
  int status;
  std::string text;  // standard output and error
};

class Program : public testing::Test {
 protected:
  Program() : folder_(fs::temp_directory_path() / ("quatrain_e2e_" + std::to_string(getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~Program() override { fs::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }

  Outcome Run(const std::string& arguments, const std::string& environment = "") const {
    const std::string command =
        environment + " " + QT_CLI + " " + arguments + " > " + Path("out") + " 2>&1";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(Path("out"))};
  }

  std::string Int4() const {
    const std::string int4 = Path("int4");
    if (!fs::exists(int4)) {
      const Outcome outcome =
          Run("convert --method rtn --quant-type W4A16 --quant-group-size 32 --input-dir " + kBase +
              " --output-dir " + int4);
      EXPECT_EQ(outcome.status, 0) << outcome.text;
    }
    return int4;
  }

  std::string TrainArguments(const std::string& save, int num_rollout) const {
    return "train --hf-checkpoint " + Int4() + " --ref-load " + kBase + " --save " + Path(save) +
           " --prompt-data " + kSource +
           "/examples/data/arithmetic/train.jsonl --input-key prompt --label-key label " +
           "--apply-chat-template --rollout-shuffle --rollout-batch-size 4 --n-samples-per-prompt "
           "4 " +
           "--rollout-max-response-len 96 --rollout-temperature 1.0 --lr 1e-4 --use-tis "
           "--use-dynamic-batch-size --num-rollout " +
           std::to_string(num_rollout) + " ";
  }

  // EXPECT_EQ would print megabytes, after hours of looking for their difference.
  static void ExpectSameFile(const std::string& a, const std::string& b) {
    EXPECT_TRUE(ReadFile(a) == ReadFile(b)) << a << " and " << b << " differ";
  }

  static std::string Replace(std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
  }

  static std::vector<Json> Rows(const std::string& path) {
    std::vector<Json> rows;
    std::ifstream stream(path);
    for (std::string line; std::getline(stream, line);) rows.push_back(Json::parse(line));
    return rows;
  }

  fs::path folder_;
};

}  // namespace quatrain
