// Checkpoints as a user meets them: killed runs, damaged files, what is kept, and a run that goes
// on under other weights.
#include <fmt/format.h>

#include "io/checksums.h"
#include "report/tensorboard_test_support.h"
#include "tests/e2e/program.h"

namespace quatrain {
namespace {

class CheckpointProgram : public Program {
 protected:
  // Rows without what a clock says, and what is said once a start.
  std::vector<Json> Numbers(const std::string& save) const {
    std::vector<Json> rows = Rows(Path(save + "/metrics.jsonl"));
    for (Json& row : rows) {
      Json kept = Json::object();
      for (const auto& [key, value] : row.items()) {
        if (!key.starts_with("perf/") && !key.starts_with("memory/")) kept[key] = value;
      }
      row = kept;
    }
    return rows;
  }

  // Starts a training and kills it `milliseconds` after it has saved checkpoint `iteration`.
  void KillAfter(const std::string& arguments, const std::string& save, int iteration,
                 int milliseconds) const {
    const std::string latest = Path(save + "/latest_checkpointed_iteration.txt");
    const std::string script = "sh -c '" + kQat + QT_CLI + " " + arguments +
                               "& while kill -0 $! 2> /dev/null; do n=$(cat " + latest +
                               " 2> /dev/null || echo 0); [ $n -ge " + std::to_string(iteration) +
                               " ] && break; sleep 0.01; done; sleep " +
                               fmt::format("{:.3f}", milliseconds / 1000.0) +
                               "; kill -9 $!; wait $!' > " + Path("log") + " 2>&1";
    ASSERT_NE(std::system(script.c_str()), -1);
  }

  static void Flip(const std::string& file) {
    std::string bytes = ReadFile(file);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
    WriteFileAtomic(file, bytes);
  }
};

TEST_F(CheckpointProgram, KilledAtAnyMomentItEndsWithTheBitsOfARunThatWasNot) {
  const std::string evaluated =
      "--save-interval 1 --eval-interval 2 --eval-temperature 0 --eval-prompt-data arithmetic " +
      kSource + "/examples/data/arithmetic/eval.jsonl@[0:4] ";
  ASSERT_EQ(Run(TrainArguments("whole", 6) + evaluated, kQat).status, 0);
  const std::string killed = TrainArguments("killed", 6) + evaluated +
                             "--async-save --keep-last-n 3 --load " + Path("killed");
  for (int i = 0; i < 6; ++i) {
    KillAfter(killed + " --threads " + std::to_string(1 + i % 2), "killed", i, 90 * i * i % 400);
  }
  const Outcome last = Run(killed + " --threads 1", kQat);
  ASSERT_EQ(last.status, 0) << last.text;
  for (const char* file :
       {"bf16/model.safetensors", "int4/model.safetensors", "state/model.safetensors"}) {
    ExpectSameFile(Path("whole/iter_0000006/") + file, Path("killed/iter_0000006/") + file);
  }
  EXPECT_EQ(Numbers("whole"), Numbers("killed"));
  ExpectSameFile(Path("whole/samples.jsonl"), Path("killed/samples.jsonl"));
  EXPECT_FALSE(fs::exists(Path("killed/iter_0000003")));
  EXPECT_TRUE(fs::exists(Path("killed/iter_0000004")));
}

TEST_F(CheckpointProgram, TensorBoardShowsEveryStepOfAResumedRunOnce) {
  const std::string arguments =
      TrainArguments("run", 4) + "--use-tensorboard --save-interval 2 --load " + Path("run ");
  ASSERT_EQ(Run(arguments, kQat).status, 0);
  // Steps 3 and 4 are run and written again.
  ASSERT_EQ(Run(arguments + "--ckpt-step 2", kQat).status, 0);
  const fs::path events = Path("run/tensorboard");
  EXPECT_EQ(std::distance(fs::directory_iterator(events), fs::directory_iterator()), 2);
  const ShownScalars shown = ScalarsShown(events);
  const std::vector<Json> rows = Rows(Path("run/metrics.jsonl"));
  ASSERT_EQ(rows.size(), 4u);
  size_t num_values = 0, num_shown = 0;
  for (const Json& row : rows) {
    for (const auto& [name, value] : row.items()) {
      if (name == "rollout" || !value.is_number()) continue;
      const std::vector<float> expected = {value.get<float>()};
      ASSERT_TRUE(shown.contains(name)) << name;
      const auto& steps = shown.at(name);
      const auto at = steps.find(row.at("rollout").get<int64_t>());
      ASSERT_NE(at, steps.end()) << name;
      EXPECT_EQ(at->second, expected) << name << " of rollout " << at->first;
      ++num_values;
    }
  }
  for (const auto& [name, steps] : shown) num_shown += steps.size();
  EXPECT_EQ(num_shown, num_values) << "a step that metrics.jsonl does not have";
}

TEST_F(CheckpointProgram, TheSoakScriptFindsAKilledRunEqualAndTablesItsMemory) {
  const std::string command = "python3 " + kSource + "/tools/soak.py " + QT_CLI +
                              " --rollouts 8 --out " + Path("soak") + " > " + Path("log") + " 2>&1";
  const int status = std::system(command.c_str());
  const std::string log = ReadFile(Path("log"));
  ASSERT_EQ(status, 0) << log;
  for (const char* part :
       {"state/model.safetensors: equal", "8 rows of metrics.jsonl: equal", "| 7-8 | "}) {
    EXPECT_NE(log.find(part), std::string::npos) << log;
  }
}

TEST_F(CheckpointProgram, ADamagedCheckpointIsNotReadAndTheOneBeforeGoesOn) {
  const std::string flags =
      "--save-interval 1 --keep-last-n 2 --save-hf " + Path("hf-{rollout_id}");
  ASSERT_EQ(Run(TrainArguments("whole", 4) + flags, kQat).status, 0);
  EXPECT_FALSE(fs::exists(Path("whole/iter_0000002")));
  ExpectSameFile(Path("hf-4/model.safetensors"), Path("whole/iter_0000004/int4/model.safetensors"));
  EXPECT_EQ(Run("inspect " + Path("hf-2")).status, 0);
  const std::string parts = TrainArguments("parts", 4) + flags + " --load " + Path("parts");
  ASSERT_EQ(Run(parts + " --debug-exit-after-rollout 3", kQat).status, 130);
  Flip(Path("parts/iter_0000003/state/model.safetensors"));
  const Outcome refused = Run(parts, kQat);
  EXPECT_EQ(refused.status, 2) << refused.text;
  for (const char* part : {"iter_0000003/state/model.safetensors", "XXH3", "--ckpt-step 2"}) {
    EXPECT_NE(refused.text.find(part), std::string::npos) << refused.text;
  }
  const Outcome resumed = Run(parts + " --ckpt-step 2", kQat);
  ASSERT_EQ(resumed.status, 0) << resumed.text;
  ExpectSameFile(Path("whole/iter_0000004/state/model.safetensors"),
                 Path("parts/iter_0000004/state/model.safetensors"));
  EXPECT_EQ(Numbers("whole"), Numbers("parts"));
  EXPECT_FALSE(FindDamage(Path("parts/iter_0000003"), {""}).has_value()) << "written again";
}

TEST_F(CheckpointProgram, QuantisationIsSwitchedOnAndOffInTheMiddleOfARun) {
  const auto codes_of = [&](const std::string& iteration, const std::string& group) {
    const std::string output = Path("again-g" + group);
    EXPECT_EQ(Run("convert --method rtn --quant-group-size " + group + " --input-dir " +
                  Path(iteration + "/bf16") + " --output-dir " + output + " --overwrite")
                  .status,
              0);
    return output + "/model.safetensors";
  };
  const auto with = [&](int rollouts, const std::string& checkpoint) {
    return Replace(TrainArguments("run", rollouts), Int4(), checkpoint) + "--load " + Path("run ");
  };
  ASSERT_EQ(Run(with(2, kBase)).status, 0);
  const Outcome on = Run(with(3, Int4()), kQat);
  ASSERT_EQ(on.status, 0) << on.text;
  EXPECT_NE(on.text.find("hf-checkpoint"), std::string::npos) << "the change is noted" << on.text;
  ExpectSameFile(Path("run/iter_0000003/int4/model.safetensors"),
                 codes_of("run/iter_0000003", "32"));
  // The same masters in groups of 64.
  const Outcome grouped =
      Run(with(4, Int4()) + "--requantise-group-size 64",
          "OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 OPEN_TRAINING_INT4_GROUP_SIZE=64 ");
  ASSERT_EQ(grouped.status, 0) << grouped.text;
  ExpectSameFile(Path("run/iter_0000004/int4/model.safetensors"),
                 codes_of("run/iter_0000004", "64"));
  ASSERT_EQ(Run(with(5, kBase)).status, 0);
  EXPECT_FALSE(fs::exists(Path("run/iter_0000005/int4")));
  const std::vector<Json> rows = Rows(Path("run/metrics.jsonl"));
  ASSERT_EQ(rows.size(), 5u);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].at("train/train_rollout_logprob_abs_diff").get<double>(), 0.0) << i;
    EXPECT_EQ(rows[i].contains("train/code_flip_rate"), i == 2 || i == 3) << i;
  }
}

}  // namespace
}  // namespace quatrain
