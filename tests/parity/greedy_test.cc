// Greedy generation against Hugging Face transformers in FP32 (tests/goldens/greedy): ids and text.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "engine/engine.h"
#include "tests/parity/oracle_models.h"
#include "text/generation_config.h"
#include "text/tokenizer.h"

namespace quatrain {
namespace {

class Greedy : public testing::TestWithParam<std::string> {};

TEST_P(Greedy, TextsInFloat32AreTheReferences) {
  const OracleModel model(GetParam(), at::kFloat);
  const Tokenizer tokenizer = Tokenizer::Load(ModelPath(GetParam()));
  ThreadPool pool(2);
  Engine engine({pool}, model.decoder, {});
  std::vector<Json> cases;
  std::ifstream file(SourcePath("tests/goldens/greedy/" + GetParam() + ".jsonl"));
  for (std::string line; std::getline(file, line);) cases.push_back(ParseJson(line, GetParam()));
  ASSERT_EQ(cases.size(), 8u);
  for (size_t i = 0; i < cases.size(); ++i) {
    Request request;
    request.id = static_cast<int64_t>(i);
    request.prompt_ids = cases[i]["prompt_ids"].get<std::vector<int32_t>>();
    request.sampling = {
        .temperature = 0.0f,
        .max_new_tokens = 96,
        .stop_token_ids = LoadGenerationConfig(ModelPath(GetParam()), tokenizer).stop_token_ids};
    engine.Add(std::move(request));
  }
  size_t num_finished = 0;
  while (engine.HasUnfinished()) {
    for (const RequestOutput& output : engine.Step()) {
      const Json& expected = cases[static_cast<size_t>(output.id)];
      EXPECT_EQ(output.token_ids, expected["output_ids"].get<std::vector<int32_t>>());
      EXPECT_EQ(tokenizer.Decode(output.token_ids, SpecialTokens::kShow),
                expected["text"].get<std::string>());
      ++num_finished;
    }
  }
  EXPECT_EQ(num_finished, cases.size());
}

INSTANTIATE_TEST_SUITE_P(Models, Greedy,
                         testing::Values("tiny-qwen3-moe", "tiny-llama", "small-qwen3-moe"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace quatrain
