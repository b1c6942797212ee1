#include "cli/advice.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "cli/memory_need.h"

namespace quatrain {
namespace {

// Qwen3-30B-A3B, as its config.json has it.
AdviceInput LargeMoe(const std::string& machine) {
  AdviceInput input;
  input.model = "Qwen3-30B-A3B";
  const Json config = {{"model_type", "qwen3_moe"},
                       {"vocab_size", 151936},
                       {"hidden_size", 2048},
                       {"intermediate_size", 6144},
                       {"num_hidden_layers", 48},
                       {"num_attention_heads", 32},
                       {"num_key_value_heads", 4},
                       {"head_dim", 128},
                       {"max_position_embeddings", 40960},
                       {"num_experts", 128},
                       {"num_experts_per_tok", 8},
                       {"moe_intermediate_size", 768},
                       {"norm_topk_prob", true},
                       {"tie_word_embeddings", false}};
  input.config = ParseModelConfig(config, "config.json");
  input.table = WeightTableOf(input.config);
  input.scope = QuantScope::kExperts;
  input.machine = ParseMachine(machine);
  input.context_tokens = 16384;
  input.calibration_tokens = 256 * 2048;
  return input;
}

Advice Find(const AdviceInput& input, const std::string& id) {
  for (const Advice& advice : MakeAdvice(input)) {
    if (advice.id == id) return advice;
  }
  ADD_FAILURE() << id;
  return {};
}

TEST(MemoryNeed, CountsByHand) {
  const MemoryNeed need = MemoryNeedOf(LargeMoe("8xH100"), 128);
  const double experts = 48.0 * 128 * 3 * 2048 * 768;
  EXPECT_EQ(need.quantised_parameters, experts);
  EXPECT_NEAR(need.parameters, 30.5e9, 0.1e9);
  EXPECT_EQ(need.bf16_bytes, 2 * need.parameters);
  const double codes = experts * (0.5 + 2.0 / 128);
  EXPECT_NEAR(need.int4_bytes, 2 * (need.parameters - experts) + codes, 1e-4 * codes);
  EXPECT_EQ(need.kv_bytes_per_token, 48.0 * 2 * 4 * 128 * 2);
  EXPECT_EQ(need.bf16_train_bytes, 18 * need.parameters);
  EXPECT_NEAR(need.qat_train_bytes, 16 * need.parameters + need.int4_bytes, 1);
}

TEST(Advice, SaysFromHowManyDevicesAModelFits) {
  // 61 GB in BF16 and 19 GB in INT4: one 80 GB device takes either.
  const Advice roomy = Find(LargeMoe("8xH100"), "fits_without_int4");
  EXPECT_EQ(roomy.figures["bf16"]["tensor_parallel"], 1);
  EXPECT_EQ(roomy.figures["int4"]["tensor_parallel"], 1);
  EXPECT_EQ(roomy.status, AdviceStatus::kGood);
  // Of 48 GB devices BF16 takes two.
  const Advice narrow = Find(LargeMoe("8xL40S"), "fits_without_int4");
  EXPECT_EQ(narrow.figures["bf16"]["tensor_parallel"], 2);
  EXPECT_EQ(narrow.figures["int4"]["tensor_parallel"], 1);
  EXPECT_EQ(narrow.status, AdviceStatus::kLook);
  // One such device holds only INT4.
  const Advice single = Find(LargeMoe("1xL40S"), "fits_without_int4");
  EXPECT_EQ(single.figures["bf16"]["tensor_parallel"], 0);
  EXPECT_EQ(single.status, AdviceStatus::kBad);
  EXPECT_NE(single.answer.find("makes rollout possible"), std::string::npos);
}

TEST(Advice, TrainerStateIsComparedWithTheWholeMachine) {
  EXPECT_EQ(Find(LargeMoe("8xH100"), "trainer_state").status, AdviceStatus::kGood);
  EXPECT_EQ(Find(LargeMoe("4xH100"), "trainer_state").status, AdviceStatus::kBad);
}

TEST(Advice, GroupSizesFollowTheCutOfTheExperts) {
  const Advice advice = Find(LargeMoe("8xH100"), "group_size");
  // 768 / 8 = 96 inputs of down_proj on a rank: whole groups of 32 only.
  EXPECT_EQ(advice.figures["g128"]["tp2"], "ok");
  EXPECT_EQ(advice.figures["g128"]["tp4"], "breaks");
  EXPECT_NE(advice.figures["g64"]["tp4"], "breaks");
  EXPECT_EQ(advice.figures["g64"]["tp8"], "breaks");
  EXPECT_NE(advice.figures["g32"]["tp8"], "breaks");
  AdviceInput own = LargeMoe("8xH100");
  own.scheme = QuantScheme{.group_size = 128};
  EXPECT_EQ(Find(own, "group_size").status, AdviceStatus::kLook);
  EXPECT_NE(Find(own, "group_size").answer.find("cannot be served at TP4 TP8"), std::string::npos);
}

TEST(Advice, CalibrationThatIsPlannedIsHeldAgainstTheRarestExpert) {
  AdviceInput input = LargeMoe("8xH100");
  EXPECT_EQ(Find(input, "calibration").status, AdviceStatus::kGood);
  EXPECT_EQ(Find(input, "calibration").figures["needed_tokens"], 2048.0 * 16);
  input.calibration_tokens = 100'000;
  EXPECT_EQ(Find(input, "calibration").status, AdviceStatus::kLook);
}

TEST(Advice, CalibrationThatWasIsReadFromItsReport) {
  AdviceInput input = LargeMoe("8xH100");
  const auto module = [](int expert, int64_t tokens) {
    return Json{{"module", fmt::format("model.layers.0.mlp.experts.{}.gate_proj", expert)},
                {"tokens", tokens}};
  };
  input.conversion_report = {{"modules", {module(0, 4096), module(1, 2048)}},
                             {"fallbacks", Json::array()}};
  EXPECT_EQ(Find(input, "calibration").status, AdviceStatus::kGood);
  input.conversion_report["modules"].push_back(module(2, 512));
  const Advice advice = Find(input, "calibration");
  EXPECT_EQ(advice.status, AdviceStatus::kLook);
  EXPECT_EQ(advice.figures["short"], 1);
  EXPECT_NE(advice.answer.find("4 times the calibration text"), std::string::npos);
  input.conversion_report = {{"method", "rtn"}};
  EXPECT_NE(Find(input, "calibration").answer.find("round-to-nearest"), std::string::npos);
}

TEST(Advice, QatIsForWhatNeedsInt4) {
  EXPECT_EQ(Find(LargeMoe("1xL40S"), "use_qat").answer.substr(0, 3), "Yes");
  EXPECT_EQ(Find(LargeMoe("8xH200"), "use_qat").answer.substr(0, 4), "Only");
  // On 80 GB BF16 leaves room for 4 sequences of 16384 tokens, INT4 for 31.
  EXPECT_NE(Find(LargeMoe("8xH100"), "use_qat").answer.find("room for 4 of them"),
            std::string::npos);
}

RunData RunWith(const std::string& metric, double value) {
  RunData run;
  run.rollouts = {1, 2};
  run.metrics[metric] = {value, value};
  return run;
}

TEST(Advice, ARunSaysWhetherItsCodesMoveAndItsPoliciesAgree) {
  AdviceInput input = LargeMoe("8xH200");
  input.run = RunWith("train/code_flip_rate", 1e-8);
  EXPECT_NE(Find(input, "use_qat").answer.find("dead zone"), std::string::npos);
  input.run = RunWith("train/train_rollout_logprob_abs_diff", 0.004);
  EXPECT_NE(Find(input, "use_qat").answer.find("samples from"), std::string::npos);
  input.run = RunWith("train/train_rollout_logprob_abs_diff", 0.0);
  EXPECT_NE(Find(input, "use_qat").answer.find("one policy"), std::string::npos);
  input.run = RunWith("rollout/truncated_ratio", 0.5);
  EXPECT_EQ(Find(input, "run").figures["warnings"][0], "Many responses are cut off");
}

TEST(Advice, TextHasEveryQuestionInLinesThatFit) {
  const AdviceInput input = LargeMoe("8xH100");
  const std::vector<Advice> advice = MakeAdvice(input);
  const std::string text = AdviceText(input, advice);
  for (const Advice& each : advice) EXPECT_NE(text.find(each.question), std::string::npos);
  for (size_t at = 0, end; (end = text.find('\n', at)) != std::string::npos; at = end + 1)
    EXPECT_LE(end - at, 100u);
  EXPECT_EQ(AdviceJson(input, advice)["advice"].size(), advice.size());
}

}  // namespace
}  // namespace quatrain
