#include "cli/train_arguments.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "cli/train.h"

namespace quatrain {
namespace {

const std::set<std::string> kOwn = {"--lr", "--save", "--use-tis", "--eval-prompt-data", "--help"};

std::vector<std::string> Own(const std::vector<std::string>& arguments) {
  return PrepareTrainArguments(arguments, kOwn).own;
}

std::string Message(const std::vector<std::string>& arguments) {
  try {
    PrepareTrainArguments(arguments, kOwn);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class ConfigFile {
 public:
  explicit ConfigFile(const std::string& text)
      : path_(std::filesystem::temp_directory_path() /
              ("quatrain_config_" + std::to_string(getpid()) + ".toml")) {
    WriteFileAtomic(path_, text);
  }
  ~ConfigFile() { std::filesystem::remove(path_); }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

using Arguments = std::vector<std::string>;

TEST(PrepareTrainArguments, LeavesOursAndTakesOutTheFields) {
  const TrainArguments prepared = PrepareTrainArguments(
      {"--lr", "1e-6", "--tensor-model-parallel-size", "4", "--sglang-cuda-graph-bs", "1", "2",
       "--use-tis", "--eval-prompt-data", "aime", "a.jsonl", "--colocate"},
      kOwn);
  EXPECT_EQ(prepared.own,
            (Arguments{"--lr", "1e-6", "--use-tis", "--eval-prompt-data", "aime", "a.jsonl"}));
  EXPECT_EQ(prepared.notes.size(), 3u);
}

TEST(PrepareTrainArguments, OfTwoEqualFlagsTheLastWins) {
  EXPECT_EQ(Own({"--lr", "1", "--save", "s", "--lr=2"}), (Arguments{"--save", "s", "--lr", "2"}));
}

TEST(PrepareTrainArguments, AnUnknownFlagIsAnErrorWithTheNearestName) {
  EXPECT_NE(Message({"--use-tiss"}).find("Did you mean --use-tis?"), std::string::npos);
  EXPECT_NE(Message({"--evalpromptdata", "x"}).find("--eval-prompt-data"), std::string::npos);
  EXPECT_NE(Message({"--tensor-model-paralel-size", "4"}).find("--tensor-model-parallel-size"),
            std::string::npos);
  EXPECT_NE(Message({"--quux"}).find("docs/flags.md"), std::string::npos);
}

TEST(PrepareTrainArguments, AConfigFileTakesTheSameNamesAndYieldsToTheCommandLine) {
  const ConfigFile file(
      "# a run\nlr = 1e-6\nuse-tis = true\neval_prompt_data = [\"aime\", \"a.jsonl\"]\n"
      "colocate = true\nsequence-parallel = false\n");
  EXPECT_EQ(Own({"--config", file.path()}),
            (Arguments{"--lr", "1e-6", "--use-tis", "--eval-prompt-data", "aime", "a.jsonl"}));
  EXPECT_EQ(Own({"--config", file.path(), "--lr", "2"}),
            (Arguments{"--use-tis", "--eval-prompt-data", "aime", "a.jsonl", "--lr", "2"}));
  EXPECT_EQ(PrepareTrainArguments({"--config", file.path()}, kOwn).notes.size(), 1u);
}

TEST(PrepareTrainArguments, AConfigFileMayHaveASectionOfThisCommand) {
  EXPECT_EQ(Own({"--config", ConfigFile("[train]\nlr = 3\n").path()}).size(), 2u);
}

TEST(PrepareTrainArguments, WhatIsWrongWithAConfigFileIsSaid) {
  EXPECT_NE(Message({"--config", "/nonexistent.toml"}).find("/nonexistent.toml"),
            std::string::npos);
  EXPECT_NE(Message({"--config"}).find("--config FILE"), std::string::npos);
  const ConfigFile unknown("lrr = 1\n");
  EXPECT_NE(Message({"--config", unknown.path()}).find("Did you mean --lr?"), std::string::npos);
  const ConfigFile section("[eval]\nlr = 1\n");
  EXPECT_NE(Message({"--config", section.path()}).find("[train]"), std::string::npos);
}

// Every flag of Miles' examples/infra_features/low_precision/run-qwen3-30B-A3B-int4.sh and of the
// model script that it sources (scripts/models/qwen3-30B-A3B.sh).
TEST(PrepareTrainCommand, TheCanonicalRecipePasses) {
  CLI::App app;
  AddTrainCommand(app);
  const std::string recipe =
      "train --swiglu --num-layers 48 --hidden-size 2048 --ffn-hidden-size 6144 "
      "--num-attention-heads 32 --group-query-attention --num-query-groups 4 "
      "--use-rotary-position-embeddings --disable-bias-linear --normalization RMSNorm "
      "--norm-epsilon 1e-6 --rotary-base 1000000 --vocab-size 151936 --kv-channels 128 "
      "--qk-layernorm --moe-ffn-hidden-size 768 --moe-router-score-function softmax "
      "--moe-token-dispatcher-type alltoall --moe-router-topk 8 --moe-layer-freq [1]*48 "
      "--num-experts 128 --moe-grouped-gemm --moe-token-drop-policy probs --moe-router-dtype fp32 "
      "--moe-permute-fusion --moe-aux-loss-coeff 0 --untie-embeddings-and-output-weights "
      "--actor-num-nodes 1 --actor-num-gpus-per-node 8 --colocate "
      "--hf-checkpoint INT4 --ref-load BF16 --load RUN --save RUN --save-interval 20 "
      "--prompt-data dapo-math-17k.jsonl --input-key prompt --label-key label "
      "--apply-chat-template --rollout-shuffle --rm-type deepscaler --num-rollout 100 "
      "--rollout-batch-size 32 --n-samples-per-prompt 8 --rollout-max-response-len 8192 "
      "--rollout-temperature 0.8 --global-batch-size 256 --balance-data --optimizer adam --lr 1e-6 "
      "--lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 "
      "--optimizer-cpu-offload --overlap-cpu-optimizer-d2h-h2d --use-precision-aware-optimizer "
      "--advantage-estimator grpo --use-kl-loss --kl-loss-coef 0.00 --kl-loss-type low_var_kl "
      "--entropy-coef 0.00 --eps-clip 0.2 --eps-clip-high 0.28 --use-tis "
      "--tensor-model-parallel-size 4 --sequence-parallel --pipeline-model-parallel-size 1 "
      "--context-parallel-size 1 --expert-model-parallel-size 8 --expert-tensor-parallel-size 1 "
      "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "
      "--use-dynamic-batch-size --max-tokens-per-gpu 8192 "
      "--eval-interval 10 --eval-prompt-data aime-2024.jsonl --n-samples-per-eval-prompt 8 "
      "--eval-max-response-len 16384 --eval-top-p 0.7 "
      "--rollout-num-gpus-per-engine 1 --sglang-mem-fraction-static 0.7 "
      "--sglang-cuda-graph-bs 1 2 4 8 16 24 32 256 "
      "--attention-dropout 0.0 --hidden-dropout 0.0 --accumulate-allreduce-grads-in-fp32 "
      "--attention-softmax-in-fp32 --attention-backend flash";
  std::vector<std::string> arguments;
  for (size_t begin = 0; begin < recipe.size();) {
    const size_t end = std::min(recipe.find(' ', begin), recipe.size());
    arguments.push_back(recipe.substr(begin, end - begin));
    begin = end + 1;
  }
  std::vector<std::string> own = PrepareTrainCommand(app, arguments);
  // CLI11 takes what is left; what then fails is that no such model exists.
  std::reverse(own.begin(), own.end());
  try {
    app.parse(own);
    ADD_FAILURE() << "there is no model";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("INT4"), std::string::npos) << error.what();
  }
  EXPECT_EQ(app.get_subcommand("train")->get_option("--eval-prompt-data")->count(), 1u);
}

TEST(TrainCommand, EveryFlagOfOursHasARowInTheDocs) {
  CLI::App app;
  AddTrainCommand(app);
  const std::string docs = ReadFile(std::string(QT_SOURCE_DIR) + "/docs/flags.md");
  size_t num_flags = 0;
  for (const CLI::Option* option : app.get_subcommand("train")->get_options()) {
    for (const std::string& name : option->get_lnames()) {
      if (name == "help") continue;
      ++num_flags;
      EXPECT_NE(docs.find("`--" + name), std::string::npos) << name;
    }
  }
  EXPECT_GT(num_flags, 80u);
}

}  // namespace
}  // namespace quatrain
