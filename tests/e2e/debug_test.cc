// Replayed routing and the debugging flags of training.
#include <cstring>

#include "tests/e2e/program.h"

namespace quatrain {
namespace {

class DebugProgram : public Program {
 protected:
  Json LastRow(const std::string& save) const { return Rows(Path(save + "/metrics.jsonl")).back(); }
  std::string State(const std::string& save) const {
    return Path(save + "/iter_0000002/state/model.safetensors");
  }
};

TEST_F(DebugProgram, ReplayedRoutingIsExactOnPolicyAndShowsOffPolicy) {
  ASSERT_EQ(Run(TrainArguments("replayed", 2), kQat).status, 0);
  ASSERT_EQ(Run(TrainArguments("free", 2) + "--no-use-rollout-routing-replay", kQat).status, 0);
  ExpectSameFile(State("replayed"), State("free"));
  const Json row = LastRow("replayed");
  EXPECT_EQ(row.at("train/routing_overlap").get<double>(), 1.0);
  EXPECT_EQ(row.at("train/routing_disjoint").get<double>(), 0.0);
  EXPECT_GT(row.at("rollout/routing_bytes").get<int64_t>(), 0);
  EXPECT_FALSE(LastRow("free").contains("rollout/routing_bytes"));
  // Two steps a rollout: the second runs under weights that route some tokens elsewhere.
  const std::string off_policy = "--num-steps-per-rollout 2 --lr 1e-3 ";
  const auto arguments = [&](const std::string& save) {
    return Replace(TrainArguments(save, 2), "--lr 1e-4 ", off_policy);
  };
  ASSERT_EQ(Run(arguments("replayed2"), kQat).status, 0);
  ASSERT_EQ(Run(arguments("free2") + "--no-use-rollout-routing-replay", kQat).status, 0);
  EXPECT_LT(LastRow("replayed2").at("train/routing_overlap").get<double>(), 1.0);
  EXPECT_GT(LastRow("replayed2").at("train/routing_overlap").get<double>(), 0.5);
  EXPECT_TRUE(ReadFile(State("replayed2")) != ReadFile(State("free2")));
  const std::string dense = kSource + "/examples/models/tiny-llama";
  const Outcome refused =
      Run(Replace(Replace(TrainArguments("dense", 1), Int4(), dense), kBase, dense) +
          "--use-rollout-routing-replay");
  EXPECT_EQ(refused.status, 2) << refused.text;
  EXPECT_NE(refused.text.find("a dense model"), std::string::npos) << refused.text;
}

TEST_F(DebugProgram, ADumpedRolloutTrainsToTheSameBits) {
  const std::string dump = Path("dumps/rollout-{rollout_id}.cbor");
  ASSERT_EQ(Run(TrainArguments("whole", 2) +
                    "--check-weight-update-equal "
                    "--save-debug-rollout-data " +
                    dump,
                kQat)
                .status,
            0);
  const Outcome replayed =
      Run(TrainArguments("replayed", 2) + "--load-debug-rollout-data " + dump, kQat);
  ASSERT_EQ(replayed.status, 0) << replayed.text;
  ExpectSameFile(State("whole"), State("replayed"));
  const Outcome generated =
      Run(TrainArguments("generated", 1) + "--debug-rollout-only --save-debug-rollout-data " +
              Path("generated.cbor"),
          kQat);
  ASSERT_EQ(generated.status, 0) << generated.text;
  ExpectSameFile(Path("generated.cbor"), Path("dumps/rollout-1.cbor"));
  EXPECT_FALSE(fs::exists(Path("generated/latest_checkpointed_iteration.txt")));
  EXPECT_FALSE(LastRow("generated").contains("train/loss"));
  EXPECT_EQ(Run(TrainArguments("wrong", 1) + "--debug-train-only", kQat).status, 2);
  WriteFileAtomic(Path("broken.cbor"), "{}");
  const Outcome broken =
      Run(TrainArguments("broken", 1) + "--load-debug-rollout-data " + Path("broken.cbor"), kQat);
  EXPECT_EQ(broken.status, 2);
  EXPECT_NE(broken.text.find("not a dump of a rollout"), std::string::npos) << broken.text;
}

TEST_F(DebugProgram, ANumberThatIsNotFiniteStopsTheRunByNameAndKeepsItsSamples) {
  const std::string arguments = Replace(TrainArguments("run", 2), "--lr 1e-4", "--lr 1e38");
  const Outcome outcome = Run(arguments, kQat);
  EXPECT_EQ(outcome.status, 2) << outcome.text;
  const std::string dump = Path("run/failed_rollout_0000001.cbor");
  for (const std::string& part : {std::string("rollout 1: model."), std::string(", row "),
                                  "--debug-train-only --load-debug-rollout-data " + dump}) {
    EXPECT_NE(outcome.text.find(part), std::string::npos) << part << "\n" << outcome.text;
  }
  EXPECT_FALSE(fs::exists(Path("run/latest_checkpointed_iteration.txt")));
  // The same step again, from the dump.
  const Outcome again = Run(Replace(arguments, Path("run"), Path("again")) +
                                "--debug-train-only --load-debug-rollout-data " + dump,
                            kQat);
  EXPECT_EQ(again.status, 2);
  EXPECT_NE(again.text.find("rollout 1: model."), std::string::npos) << again.text;
}

TEST_F(DebugProgram, ANumberThatIsNotFiniteInGenerationNamesItsSampleAndKeepsAll) {
  // The weights are finite, what the norm makes of them is not.
  fs::copy(kBase, Path("huge"));
  const std::string file = Path("huge/model.safetensors");
  std::string bytes = ReadFile(file);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof(header));
  const Json offsets = ParseJson(bytes.substr(8, header), file)
                           .at("model.layers.1.post_attention_layernorm.weight")
                           .at("data_offsets");
  for (size_t at = offsets.at(0).get<size_t>(); at < offsets.at(1).get<size_t>(); at += 2) {
    bytes[8 + header + at] = 0x60;  // BF16 0x7F60, 2.98e38
    bytes[8 + header + at + 1] = 0x7F;
  }
  WriteFileAtomic(file, bytes);
  const std::string arguments =
      Replace(Replace(TrainArguments("run", 2), Int4(), Path("huge")), "--ref-load " + kBase, "");
  const Outcome outcome = Run(arguments);
  EXPECT_EQ(outcome.status, 2) << outcome.text;
  const std::string dump = Path("run/failed_rollout_0000001.cbor");
  for (const std::string& part :
       {std::string("rollout 1: row "), std::string("sample 0, token 0 of the response: "),
        std::string("model.layers.1.mlp.gate.weight: router"), std::string("not finite"),
        "is kept in " + dump}) {
    EXPECT_NE(outcome.text.find(part), std::string::npos) << part << "\n" << outcome.text;
  }
  EXPECT_TRUE(fs::exists(dump));
  // The same in an evaluation.
  const Outcome evaluated =
      Run(Replace(arguments, Path("run"), Path("evaluated")) + "--eval-interval 1 " +
          "--eval-prompt-data held-out " + kSource + "/examples/data/arithmetic/eval.jsonl");
  EXPECT_EQ(evaluated.status, 2) << evaluated.text;
  const std::string kept = Path("evaluated/failed_eval_held-out_0000000.cbor");
  for (const std::string& part :
       {std::string("evaluation of held-out after 0 optimizer steps: row 1 of the prompts, "),
        std::string("model.layers.1.mlp.gate.weight: router"), "is kept in " + kept}) {
    EXPECT_NE(evaluated.text.find(part), std::string::npos) << part << "\n" << evaluated.text;
  }
  EXPECT_GT(fs::file_size(kept), 0u);
}

}  // namespace
}  // namespace quatrain
