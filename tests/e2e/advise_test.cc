// quatrain advise as a user runs it: a model, a machine and a run of this program.
#include <map>

#include "tests/e2e/program.h"

namespace quatrain {
namespace {

class AdviseProgram : public Program {
 protected:
  // The advice of `arguments` by its id.
  std::map<std::string, Json> Advice(const std::string& arguments) const {
    const Outcome outcome = Run("advise --json " + arguments);
    EXPECT_EQ(outcome.status, 0) << outcome.text;
    std::map<std::string, Json> advice;
    const Json json = ParseJson(outcome.text, "advise");
    for (const Json& each : json.at("advice")) advice[each.at("id")] = each;
    return advice;
  }
};

TEST_F(AdviseProgram, AnswersFromAModelItsConversionAndARun) {
  ASSERT_EQ(Run(TrainArguments("run", 2), kQat).status, 0);
  const std::string arguments = Int4() + " --machine 8xH100 --metrics " + Path("run");
  const std::map<std::string, Json> advice = Advice(arguments);
  for (const char* id :
       {"fits_without_int4", "trainer_state", "group_size", "calibration", "use_qat", "run"}) {
    EXPECT_TRUE(advice.contains(id)) << id;
  }
  EXPECT_EQ(advice.at("fits_without_int4").at("figures").at("bf16").at("tensor_parallel"), 1);
  EXPECT_EQ(advice.at("group_size").at("figures").at("g32").at("tp1"), "ok");
  // What Int4() was converted by, and what the run's policies did, is read from their files.
  EXPECT_NE(advice.at("calibration").at("answer").get<std::string>().find("round-to-nearest"),
            std::string::npos);
  EXPECT_NE(advice.at("use_qat").at("answer").get<std::string>().find("one policy"),
            std::string::npos);
  // The file says the same as its folder, and the text has every answer.
  EXPECT_EQ(Advice(arguments + "/metrics.jsonl"), advice);
  const Outcome text = Run("advise " + arguments);
  ASSERT_EQ(text.status, 0) << text.text;
  for (const auto& [id, each] : advice) {
    EXPECT_NE(text.text.find(each.at("question").get<std::string>()), std::string::npos) << id;
  }
  // A model that is not quantised, on this machine, without a run.
  const std::map<std::string, Json> base = Advice(kBase + " --calibration-tokens 10");
  EXPECT_FALSE(base.contains("run"));
  EXPECT_EQ(base.at("calibration").at("status"), "look");
}

TEST_F(AdviseProgram, RefusesWhatItCannotRead) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {kBase + " --machine 8xFOO", "8xFOO"},
      {Path("none"), "none"},
      {kBase + " --metrics " + Path("none"), "none"},
      {kBase + " --context 0", "--context"}};
  for (const auto& [arguments, part] : cases) {
    const Outcome outcome = Run("advise " + arguments);
    EXPECT_EQ(outcome.status, 2) << arguments << "\n" << outcome.text;
    EXPECT_NE(outcome.text.find(part), std::string::npos) << outcome.text;
  }
}

}  // namespace
}  // namespace quatrain
