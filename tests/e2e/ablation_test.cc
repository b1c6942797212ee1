// tools/ablation.sh and its table, on rollouts of a few samples: the stress case of a 3-bit grid.
#include "tests/e2e/program.h"

namespace quatrain {
namespace {

class Ablation : public Program {
 protected:
  std::string Cell(const std::string& cell) const {
    return "OUT=" + Path("cells") + " QUATRAIN=" + QT_CLI + " CODE_MAX=3 NUM_ROLLOUT=2 THREADS=2 " +
           kSource + "/tools/ablation.sh " + cell +
           " 42 --rollout-batch-size 4 --n-samples-per-prompt 4 --global-batch-size 16 "
           "--rollout-max-response-len 64 --skip-eval-before-train --eval-prompt-data arithmetic " +
           kSource + "/examples/data/arithmetic/eval.jsonl@[0:8] --eval-interval 2";
  }
  Outcome Shell(const std::string& command) const {
    const int status = std::system((command + " > " + Path("log") + " 2>&1").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, ReadFile(Path("log"))};
  }
};

TEST_F(Ablation, CellsOfAThreeBitGridTrainAndAreTabled) {
  for (const std::string cell : {"qat-int4", "bf16-int4", "qat-bf16"}) {
    const Outcome outcome = Shell(Cell(cell));
    ASSERT_EQ(outcome.status, 0) << outcome.text;
    if (cell == "qat-int4") {
      EXPECT_NE(outcome.text.find("codes -3..3"), std::string::npos) << outcome.text;
    }
    const std::string int4 = Path("cells/" + cell + "-g128-c3-tis1-s42/iter_0000002/int4");
    const Outcome inspected = Run("inspect " + int4);
    EXPECT_EQ(inspected.status, 0) << inspected.text;
    const Json metadata = ParseJson(ReadFile(int4 + "/quatrain.json"), "quatrain.json");
    EXPECT_EQ(metadata.at("code_min"), -3) << cell;
    EXPECT_EQ(metadata.at("code_max"), 3) << cell;
  }
  const Outcome table = Shell("python3 " + kSource + "/tools/ablation_table.py " + Path("cells"));
  ASSERT_EQ(table.status, 0) << table.text;
  for (const char* row :
       {"| qat-int4-g128-c3-tis1-s42 | 2 |", "| bf16-int4-g128-c3-tis1-s42 | 2 |"}) {
    EXPECT_NE(table.text.find(row), std::string::npos) << table.text;
  }
  const auto difference = [&](const std::string& cell) {
    double sum = 0.0;
    for (const Json& row : Rows(Path("cells/" + cell + "-g128-c3-tis1-s42/metrics.jsonl")))
      sum += row.value("train/train_rollout_logprob_abs_diff", 0.0);
    return sum;
  };
  EXPECT_EQ(difference("qat-int4"), 0.0);
  // .039 and .02 a rollout in the reference experiment; the 4-bit grid has .004.
  EXPECT_GT(difference("bf16-int4"), 0.01);
  EXPECT_GT(difference("qat-bf16"), 0.01);
}

TEST_F(Ablation, ACalibratedThreeBitGridIsTheFirstPolicy) {
  const Outcome outcome = Shell("METHOD=gptq CALIBRATED=1 " + Cell("qat-int4"));
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  const std::string run = Path("cells/qat-int4-g128-c3-tis1-gptq-s42");
  for (const std::string& folder : {Path("cells/int4-g128-c3-gptq"), run + "/iter_0000002/int4"}) {
    const Outcome inspected = Run("inspect " + folder);
    EXPECT_EQ(inspected.status, 0) << inspected.text;
    const Json metadata = ParseJson(ReadFile(folder + "/quatrain.json"), "quatrain.json");
    EXPECT_EQ(metadata.at("code_min"), -3) << folder;
    EXPECT_EQ(metadata.at("code_max"), 3) << folder;
  }
  for (const Json& row : Rows(run + "/metrics.jsonl")) {
    EXPECT_EQ(row.value("train/train_rollout_logprob_abs_diff", 0.0), 0.0);
    EXPECT_EQ(row.value("train/scale_change_rate", 0.0), 0.0) << "frozen";
  }
}

TEST_F(Ablation, AnotherSizeOfGroupsInTheMiddleOfARun) {
  const std::string first = Path("cells/qat-int4-g128-c3-tis1-s42");
  ASSERT_EQ(Shell("SAVE_INTERVAL=1 " + Cell("qat-int4")).status, 0);
  const Outcome outcome = Shell("REGROUP=64 FROM=" + first + " FROM_STEP=1 " + Cell("qat-int4"));
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  const std::string run = Path("cells/qat-int4-g128-c3-tis1-to64-s42");
  const std::vector<Json> rows = Rows(run + "/metrics.jsonl");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].at("rollout"), 2);
  EXPECT_EQ(rows[0].at("train/train_rollout_logprob_abs_diff"), 0.0);
  const Outcome inspected = Run("inspect " + run + "/iter_0000002/int4");
  EXPECT_EQ(inspected.status, 0);
  EXPECT_NE(inspected.text.find("g64"), std::string::npos) << inspected.text;
}

}  // namespace
}  // namespace quatrain
