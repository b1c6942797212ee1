// The program as a user runs it: convert, train with INT4 rollout, resume, and the ways to use it
// wrongly.
#include <fmt/format.h>

#include "tests/e2e/program.h"

namespace quatrain {
namespace {

TEST_F(Program, TrainingAndRolloutAgreeExactlyInEveryStep) {
  const Outcome outcome = Run(TrainArguments("run", 4), kQat);
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  const std::vector<Json> rows = Rows(Path("run/metrics.jsonl"));
  ASSERT_EQ(rows.size(), 4u);
  double reward = 0.0, flips = 0.0;
  for (const Json& row : rows) {
    EXPECT_EQ(row.at("train/train_rollout_logprob_abs_diff").get<double>(), 0.0);
    EXPECT_EQ(row.at("train/ppo_kl").get<double>(), 0.0);
    EXPECT_EQ(row.at("train/pg_clipfrac").get<double>(), 0.0);
    reward += row.at("rollout/raw_reward").get<double>();
    flips += row.at("train/code_flip_rate").get<double>();
  }
  EXPECT_GT(reward, 0.0);  // the base model solves most of them
  EXPECT_GT(flips, 0.0);   // the weights do move
}

// Metrics of a run, without times and memory.
std::vector<Json> Results(std::vector<Json> rows) {
  for (Json& row : rows) {
    for (auto at = row.begin(); at != row.end();) {
      at = at.key().starts_with("perf/") ? row.erase(at) : std::next(at);
    }
  }
  return rows;
}

TEST_F(Program, TheOnlyStepOfARolloutFindsItsOldLogprobsInItsOwnForward) {
  const std::string flags = "--use-kl-loss --kl-loss-coef 0.01 --use-opsm --lr 1e-3 ";
  const auto run = [&](const std::string& name, const std::string& more) {
    const std::string arguments = Replace(TrainArguments(name, 3), "--lr 1e-4", flags);
    const Outcome outcome = Run(arguments + more, kQat);
    EXPECT_EQ(outcome.status, 0) << outcome.text;
    return Rows(Path(name + "/metrics.jsonl"));
  };
  const std::vector<Json> own = run("own", "");
  const std::vector<Json> scored = run("scored", "--no-skip-actor-forward-only");
  EXPECT_EQ(Results(own), Results(scored));
  ExpectSameFile(Path("own/samples.jsonl"), Path("scored/samples.jsonl"));
  ExpectSameFile(Path("own/iter_0000003/state/model.safetensors"),
                 Path("scored/iter_0000003/state/model.safetensors"));
  EXPECT_FALSE(own.back().contains("perf/log_probs_time"));
  EXPECT_TRUE(scored.back().contains("perf/log_probs_time"));
  const Json two = run("two", "--num-steps-per-rollout 2").back();
  EXPECT_TRUE(two.contains("perf/log_probs_time"));
  EXPECT_NE(two.at("train/ppo_kl").get<double>(), 0.0);
}

TEST_F(Program, ARunThatStopsAndResumesGoesOnBitForBit) {
  ASSERT_EQ(Run(TrainArguments("whole", 4), kQat).status, 0);
  const Outcome stopped = Run(TrainArguments("parts", 4) + "--debug-exit-after-rollout 2", kQat);
  EXPECT_EQ(stopped.status, 130) << stopped.text;
  EXPECT_NE(stopped.text.find("--load"), std::string::npos);
  const Outcome resumed =
      Run(TrainArguments("parts", 4) + "--load " + Path("parts") + " --threads 1", kQat);
  ASSERT_EQ(resumed.status, 0) << resumed.text;
  for (const char* file :
       {"bf16/model.safetensors", "int4/model.safetensors", "state/model.safetensors"}) {
    ExpectSameFile(Path("whole/iter_0000004/") + file, Path("parts/iter_0000004/") + file);
  }
}

TEST_F(Program, ACalibratedStartIsTheCalibratedCheckpointBitForBit) {
  ASSERT_EQ(Run("convert --method gptq --quant-type W4A16 --quant-group-size 32 --input-dir " +
                kBase + " --output-dir " + Path("gptq") + " --data-dir " + kSource +
                "/examples/data/calibration --num-calibration-samples 4 --max-sequence-length 128")
                .status,
            0);
  const std::string train = Replace(TrainArguments("run", 2), Int4(), Path("gptq"));
  const Outcome outcome =
      Run(Replace(train, "--lr 1e-4", "--lr 0") + "--weight-decay 0 --qat-init calibrated", kQat);
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  // Nothing moved, so this is what the first rollout sampled from.
  ExpectSameFile(Path("gptq/model.safetensors"), Path("run/iter_0000002/int4/model.safetensors"));
  for (const Json& row : Rows(Path("run/metrics.jsonl"))) {
    EXPECT_EQ(row.at("train/train_rollout_logprob_abs_diff").get<double>(), 0.0);
  }
  const std::string moving = Replace(train, Path("run"), Path("moving")) + "--qat-init calibrated";
  ASSERT_EQ(Run(moving, kQat).status, 0);
  const Json row = Rows(Path("moving/metrics.jsonl")).back();
  EXPECT_GT(row.at("train/code_flip_rate").get<double>(), 0.0);
  EXPECT_EQ(row.at("train/scale_change_rate").get<double>(), 0.0);
  EXPECT_EQ(Run("inspect " + Path("moving/iter_0000002/int4")).status, 0);
}

TEST_F(Program, PartialRolloutsAreResumedFromTheCheckpointBitForBit) {
  const std::string flags =
      "--rollout-temperature 1.3 --over-sampling-batch-size 7 --partial-rollout "
      "--mask-offpolicy-in-partial-rollout --use-rollout-routing-replay "
      "--dynamic-sampling-filter-path miles.rollout.filter_hub.check_reward_nonzero_std ";
  ASSERT_EQ(Run(TrainArguments("whole", 4) + flags, kQat).status, 0);
  const std::vector<Json> rows = Rows(Path("whole/metrics.jsonl"));
  ASSERT_EQ(rows.size(), 4u);
  double offpolicy = 0;
  for (const Json& row : rows) {
    offpolicy += row.at("rollout/offpolicy_tokens").get<double>();
    EXPECT_EQ(row.at("rollout/zero_std/count_0").get<int>(), 0);
    EXPECT_EQ(row.at("rollout/zero_std/count_1").get<int>(), 0);
  }
  EXPECT_GT(offpolicy, 0.0);
  ASSERT_TRUE(fs::exists(Path("whole/iter_0000004/state/partial_rollouts.cbor")));
  EXPECT_EQ(Run(TrainArguments("parts", 4) + flags + "--debug-exit-after-rollout 2", kQat).status,
            130);
  const Outcome resumed =
      Run(TrainArguments("parts", 4) + flags + "--threads 1 --load " + Path("parts"), kQat);
  ASSERT_EQ(resumed.status, 0) << resumed.text;
  for (const char* file : {"state/model.safetensors", "state/partial_rollouts.cbor"}) {
    ExpectSameFile(Path("whole/iter_0000004/") + file, Path("parts/iter_0000004/") + file);
  }
}

TEST_F(Program, TheGradientDoesNotDependOnHowAStepIsCut) {
  const std::string whole = TrainArguments("dynamic", 1);
  ASSERT_EQ(Run(whole, kQat).status, 0);
  const auto norm = [&](const std::string& save) {
    return Rows(Path(save + "/metrics.jsonl")).at(0).at("train/grad_norm").get<double>();
  };
  const double expected = norm("dynamic");
  EXPECT_GT(expected, 0.0);
  const std::pair<const char*, const char*> cuts[] = {
      {"small", "--use-dynamic-batch-size --max-tokens-per-gpu 250 "},
      {"single", ""},
      {"triple", "--micro-batch-size 3 "}};
  for (const auto& [save, flags] : cuts) {
    const std::string arguments =
        Replace(TrainArguments(save, 1), "--use-dynamic-batch-size ", flags);
    const Outcome outcome = Run(arguments, kQat);
    ASSERT_EQ(outcome.status, 0) << outcome.text;
    EXPECT_NEAR(norm(save), expected, 1e-5 * expected) << save;
  }
  // Scoring is exact: how it is cut changes no bit.
  const std::string scored =
      TrainArguments("scored", 1) + "--balance-data --log-probs-max-tokens-per-gpu 200 ";
  const Outcome outcome = Run(scored, kQat);
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  EXPECT_NE(outcome.text.find("--balance-data: one rank"), std::string::npos);
  ExpectSameFile(Path("dynamic/iter_0000001/state/model.safetensors"),
                 Path("scored/iter_0000001/state/model.safetensors"));
}

TEST_F(Program, AConfigFileGivesTheSameRunAsItsFlags) {
  ASSERT_EQ(Run(TrainArguments("flags", 1), kQat).status, 0);
  WriteFileAtomic(Path("run.toml"),
                  "lr = 1e-4\nuse-tis = true\nsequence-parallel = true\nnum-rollout = 9\n");
  const std::string arguments =
      Replace(Replace(TrainArguments("file", 1), "--lr 1e-4 ", ""), "--use-tis ", "") + "--config ";
  const Outcome outcome = Run(arguments + Path("run.toml"), kQat + "OMP_NUM_THREADS=1 ");
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  for (const char* part : {"--sequence-parallel: no effect here",
                           "OPEN_TRAINING_INT4_GROUP_SIZE=32", "OMP_NUM_THREADS=1 is not heeded"}) {
    EXPECT_NE(outcome.text.find(part), std::string::npos) << part << outcome.text;
  }
  ExpectSameFile(Path("flags/iter_0000001/state/model.safetensors"),
                 Path("file/iter_0000001/state/model.safetensors"));
  const Json config = ParseJson(ReadFile(Path("file/config.json")), "config.json");
  EXPECT_EQ(config.at("lr"), "1e-4");
  EXPECT_EQ(config.at("num-rollout"), "1") << "the command line wins";
}

TEST_F(Program, TheTinyRecipeRunsAsItStands) {
  const std::string command = "SUBMIT= NUM_ROLLOUT=1 RUN_DIR=" + Path("recipe") +
                              " QUATRAIN=" + QT_CLI + " " + kSource +
                              "/examples/run-tiny-qwen3-moe-int4.sh > " + Path("log") + " 2>&1";
  const int status = std::system(command.c_str());
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << ReadFile(Path("log"));
  EXPECT_NE(ReadFile(Path("log")).find("--sglang-cuda-graph-bs: no effect here"),
            std::string::npos);
  const Json row = Rows(Path("recipe/train/metrics.jsonl")).back();
  EXPECT_EQ(row.at("train/train_rollout_logprob_abs_diff").get<double>(), 0.0);
}

TEST_F(Program, AReferenceThatFollowsThePolicyIsPartOfTheCheckpoint) {
  const std::string flags =
      "--advantage-estimator reinforce_plus_plus --kl-coef 0.05 --kl-loss-type k2 --use-kl-loss "
      "--kl-loss-coef 0.1 --ref-update-interval 2 ";
  ASSERT_EQ(Run(TrainArguments("whole", 4) + flags, kQat).status, 0);
  EXPECT_EQ(Run(TrainArguments("parts", 4) + flags + "--debug-exit-after-rollout 3", kQat).status,
            130);
  ASSERT_EQ(Run(TrainArguments("parts", 4) + flags + "--load " + Path("parts"), kQat).status, 0);
  for (const char* file : {"state/model.safetensors", "reference/model.safetensors"}) {
    ExpectSameFile(Path("whole/iter_0000004/") + file, Path("parts/iter_0000004/") + file);
  }
  const std::vector<Json> rows = Rows(Path("whole/metrics.jsonl"));
  // Against the start it grows; the update makes the anchor the BF16 policy itself.
  EXPECT_GT(rows[0].at("train/kl_loss").get<double>(), 0.0);
  EXPECT_LT(rows[2].at("train/kl_loss").get<double>(), rows[1].at("train/kl_loss").get<double>());
  ExpectSameFile(Path("whole/iter_0000004/bf16/model.safetensors"),
                 Path("whole/iter_0000004/reference/model.safetensors"));
}

TEST_F(Program, ASavedRunConvertsBackToTheSameCodes) {
  ASSERT_EQ(Run(TrainArguments("run", 2), kQat).status, 0);
  const std::string iteration = Path("run/iter_0000002/");
  const Outcome outcome =
      Run("convert --method rtn --quant-type W4A16 --quant-group-size 32 --input-dir " + iteration +
          "bf16 --output-dir " + Path("again"));
  ASSERT_EQ(outcome.status, 0) << outcome.text;
  ExpectSameFile(iteration + "int4/model.safetensors", Path("again/model.safetensors"));
}

TEST_F(Program, TheOtherCasesOfTheTableTrainAndSaveWhatTheySay) {
  struct Case {
    std::string save, arguments, environment;
    bool is_matched;
  };
  const auto from_base = [&](const std::string& save) {
    return Replace(TrainArguments(save, 2), Int4(), kBase);
  };
  const std::vector<Case> cases = {
      {"plain", from_base("plain"), "", true},
      {"int4_rollout", TrainArguments("int4_rollout", 2), "", false},
      {"bf16_rollout", from_base("bf16_rollout") + "--rollout-weights bf16 --quant-group-size 32",
       kQat, false},
  };
  for (const Case& test : cases) {
    const Outcome outcome = Run(test.arguments, test.environment);
    ASSERT_EQ(outcome.status, 0) << outcome.text;
    for (const Json& row : Rows(Path(test.save + "/metrics.jsonl"))) {
      const double diff = row.at("train/train_rollout_logprob_abs_diff").get<double>();
      if (test.is_matched) {
        EXPECT_EQ(diff, 0.0) << test.save;
      } else {
        EXPECT_GT(diff, 0.0) << test.save;
        EXPECT_LT(diff, 0.05) << test.save;  // about .003; garbage is above 1
      }
    }
    const std::string iteration = Path(test.save + "/iter_0000002/");
    EXPECT_EQ(Run("inspect " + iteration + "bf16").status, 0) << test.save;
    EXPECT_EQ(fs::exists(iteration + "int4"), test.save != "plain");
    if (test.save == "plain") continue;
    const Outcome inspected = Run("inspect " + iteration + "int4");
    EXPECT_EQ(inspected.status, 0) << inspected.text;
  }
}

TEST_F(Program, CtrlCSavesWhatWasTrainedAndTheRestGoesOnBitForBit) {
  // The signal comes as soon as the first rollout is in the metrics; where it hits is left open.
  const std::string script =
      "sh -c '" + kQat + QT_CLI + " " + TrainArguments("stopped", 1000) + "& while ! [ -s " +
      Path("stopped/metrics.jsonl") +
      " ]; do kill -0 $! || exit 99; sleep 0.02; done; kill -INT $!; wait $!' > " + Path("log") +
      " 2>&1";
  const int status = std::system(script.c_str());
  ASSERT_TRUE(WIFEXITED(status));
  ASSERT_EQ(WEXITSTATUS(status), 130) << ReadFile(Path("log"));
  EXPECT_NE(ReadFile(Path("log")).find("--load " + Path("stopped")), std::string::npos);
  const int64_t done = std::stoll(ReadFile(Path("stopped/latest_checkpointed_iteration.txt")));
  ASSERT_GE(done, 1);
  const std::string until = "--debug-exit-after-rollout " + std::to_string(done + 1);
  EXPECT_EQ(
      Run(TrainArguments("stopped", 1000) + "--load " + Path("stopped ") + until, kQat).status,
      130);
  EXPECT_EQ(Run(TrainArguments("whole", 1000) + until, kQat).status, 130);
  const std::string last = fmt::format("/iter_{:07}/state/model.safetensors", done + 1);
  ExpectSameFile(Path("stopped" + last), Path("whole" + last));
}

TEST_F(Program, ADamagedCheckpointIsRefusedByName) {
  ASSERT_EQ(Run(TrainArguments("run", 1), kQat).status, 0);
  const std::string resume = TrainArguments("again", 2) + "--load " + Path("run");
  const std::string latest = Path("run/latest_checkpointed_iteration.txt");
  const std::string state = Path("run/iter_0000001/state/state.json");
  const std::string good = ReadFile(state);
  const auto expect_refused = [&](const std::string& file) {
    const Outcome outcome = Run(resume, kQat);
    EXPECT_EQ(outcome.status, 2) << outcome.text;
    EXPECT_NE(outcome.text.find(file), std::string::npos) << outcome.text;
  };
  WriteFileAtomic(state, good.substr(0, good.size() / 2));
  expect_refused("state.json");
  WriteFileAtomic(state, Replace(good, "next_rollout", "next_rollouts"));
  expect_refused("state.json");
  WriteFileAtomic(state, good);
  WriteFileAtomic(latest, "1O\n");
  expect_refused("latest_checkpointed_iteration.txt");
  WriteFileAtomic(latest, "1\n");
  fs::resize_file(Path("run/iter_0000001/state/model.safetensors"), 1000);
  expect_refused("model.safetensors");
}

// A model of 200 GB in a sparse file of no size.
void WriteHugeModel(const std::string& folder) {
  fs::create_directories(folder);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                           "chat_template.jinja"}) {
    fs::copy_file(kBase + "/" + file, folder + "/" + file);
  }
  constexpr int64_t kHidden = 64, kIntermediate = int64_t{1} << 29;
  Json config = ParseJson(ReadFile(kSource + "/examples/models/tiny-llama/config.json"), "config");
  config["hidden_size"] = kHidden;
  config["intermediate_size"] = kIntermediate;
  config["num_hidden_layers"] = 1;
  config["num_attention_heads"] = config["num_key_value_heads"] = 1;
  config["head_dim"] = kHidden;
  const int64_t vocab = config["vocab_size"].get<int64_t>();
  WriteFileAtomic(folder + "/config.json", config.dump());
  Json header;
  int64_t offset = 0;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t bytes = 2;
    for (const int64_t size : shape) bytes *= size;
    header[name] = {
        {"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  };
  add("model.embed_tokens.weight", {vocab, kHidden});
  const std::string layer = "model.layers.0.";
  for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    add(layer + "self_attn." + name + ".weight", {kHidden, kHidden});
  }
  for (const char* name : {"gate_proj", "up_proj"})
    add(layer + "mlp." + name + ".weight", {kIntermediate, kHidden});
  add(layer + "mlp.down_proj.weight", {kHidden, kIntermediate});
  for (const char* name : {"input_layernorm", "post_attention_layernorm"})
    add(layer + name + ".weight", {kHidden});
  add("model.norm.weight", {kHidden});
  add("lm_head.weight", {vocab, kHidden});
  const std::string text = header.dump();
  const auto length = static_cast<uint64_t>(text.size());
  std::ofstream file(folder + "/model.safetensors", std::ios::binary);
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  file.close();
  fs::resize_file(folder + "/model.safetensors",
                  sizeof(length) + text.size() + static_cast<uint64_t>(offset));
}

TEST_F(Program, AModelThatDoesNotFitIsRefusedBeforeAnythingIsLoadedOrWritten) {
  const std::string huge = Path("huge");
  WriteHugeModel(huge);
  WriteFileAtomic(Path("prompts.jsonl"), "{\"prompt\": \"1\", \"ids\": [1, 2]}\n");
  const std::string train = Replace(Replace(TrainArguments("wrong", 1), Int4(), huge), kBase, huge);
  for (const std::string& arguments :
       {train, "score --model " + huge + " --input " + Path("prompts.jsonl"),
        "generate --model " + huge + " --input " + Path("prompts.jsonl"),
        "eval --model " + huge + " --prompt-data " + kSource +
            "/examples/data/arithmetic/eval.jsonl"}) {
    const Outcome outcome = Run(arguments);
    EXPECT_EQ(outcome.status, 2) << arguments << outcome.text;
    EXPECT_NE(outcome.text.find("not enough memory"), std::string::npos) << outcome.text;
    EXPECT_FALSE(fs::exists(Path("wrong")));
  }
}

TEST_F(Program, WrongUseSaysWhatToDoAndWritesNothing) {
  struct Case {
    std::string arguments, environment, expected;
  };
  const std::string train = TrainArguments("wrong", 1);
  const std::string prompts = kSource + "/examples/data/arithmetic/train.jsonl";
  WriteFileAtomic(Path("empty.jsonl"), "");
  WriteFileAtomic(Path("broken.jsonl"), "{\"prompt\": \"1 + 1\", \"label\": 2}\n{\"prompt\": ");
  WriteFileAtomic(Path("long.jsonl"),
                  Json{{"prompt", std::string(100000, 'x')}, {"label", "1"}}.dump());
  fs::create_directories(Path("megatron/iter_0000001"));
  WriteFileAtomic(Path("megatron/latest_checkpointed_iteration.txt"), "1");
  // Every linear is in the ignore list: INT4 by name only.
  fs::copy(Int4(), Path("nothing"));
  fs::copy_file(kBase + "/model.safetensors", Path("nothing/model.safetensors"),
                fs::copy_options::overwrite_existing);
  Json config = ParseJson(ReadFile(Path("nothing/config.json")), "config.json");
  config["quantization_config"]["ignore"] = {"re:.*"};
  WriteFileAtomic(Path("nothing/config.json"), config.dump());
  const std::vector<Case> cases = {
      {"convert --input-dir " + kBase + " --output-dir " + Path("wrong") + " --data-dir " +
           kSource + "/examples/data/calibration --dampening-frac nan",
       "", "--dampening-frac"},
      {Replace(train, prompts, Path("empty.jsonl")), kQat, "empty"},
      {Replace(train, prompts, Path("long.jsonl")), kQat, "longer than the context"},
      {Replace(train, "--ref-load " + kBase, "--ref-load " + Path("megatron")), kQat, "Megatron"},
      {Replace(train, Int4(), Path("nothing")), kQat, "nothing is quantised"},
      {train + "--requantise-group-size 256",
       "OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 OPEN_TRAINING_INT4_GROUP_SIZE=256", "divide"},
      {Replace(train, Int4(), kBase), kQat, "quatrain convert"},
      {train, "OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1 OPEN_TRAINING_INT4_GROUP_SIZE=128",
       "--requantise-group-size"},
      {train, "OPEN_TRAINING_INT4_FAKE_QAT=1", "OPEN_TRAINING_INT4_FAKE_QAT_FLAG"},
      {train, "OPEN_TRAINING_INT4_FAKE_QAT_FLAG=yes", "0 or 1"},
      {train + "--no-such-flag", kQat, "--no-such-flag"},
      {train + "--rollout-temperatur 1", kQat, "Did you mean --rollout-temperature?"},
      {train + "--custom-rm-path my.reward", kQat, "--rm-url"},
      {train + "--rm-type remote_rm", kQat, "--rm-url"},
      {train + "--over-sampling-batch-size 3", kQat, "at least --rollout-batch-size 4"},
      {train + "--dynamic-sampling-filter-path my.filter", kQat, "check_reward_nonzero_std"},
      {Replace(train, prompts, Path("broken.jsonl")), kQat, "broken.jsonl"},
      {Replace(train, prompts, Path("broken.jsonl")) + "--max-malformed-fraction 0.1", kQat,
       "1 of 2 lines"},
      {Replace(train, "--label-key label", "--label-key answer"), kQat, "answer"},
      {train + "--global-batch-size 7", kQat, "divisor"},
      {Replace(train, "arithmetic/train.jsonl", "arithmetic/none.jsonl"), kQat, "none.jsonl"},
  };
  for (const Case& test : cases) {
    const Outcome outcome = Run(test.arguments, test.environment);
    EXPECT_EQ(outcome.status, 2) << test.arguments << "\n" << outcome.text;
    EXPECT_NE(outcome.text.find(test.expected), std::string::npos) << outcome.text;
    EXPECT_FALSE(fs::exists(Path("wrong"))) << test.arguments;
  }
}

}  // namespace
}  // namespace quatrain
