// A conversion that is stopped anywhere goes on with the same bytes, and only with the same
// request.
#include <gtest/gtest.h>

#include <map>

#include "cli/conversion_report.h"
#include "cli/conversion_test_support.h"

namespace quatrain {
namespace {

using Files = std::map<std::string, std::string>;

// Everything that must not depend on how the conversion went.
Files FilesOf(const fs::path& directory) {
  Files files;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name != kConversionReportJson && name != kConversionReportHtml) {
      files[name] = ReadFile(entry.path());
    }
  }
  return files;
}

class ConversionResumeTest : public ConversionTest {
 protected:
  // Runs until `num_steps` steps are done; false if it ended before.
  bool RunAndStop(const ConversionConfig& config, int64_t num_steps, int num_threads) {
    ThreadPool pool(num_threads);
    int64_t steps = 0;
    try {
      Convert(pool, config, [&](int64_t, int64_t, const std::string&) {
        if (++steps > num_steps) throw Error(ErrorCode::kInterrupted, "stopped.");
      });
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kInterrupted) << error.what();
      message_ = error.what();
      return true;
    }
    return false;
  }

  std::string message_;  // of the last stop
};

TEST_F(ConversionResumeTest, AnyNumberOfStopsGivesTheBytesOfAnUninterruptedRun) {
  for (const char* model : {"tiny-qwen3-moe", "tiny-llama"}) {
    for (const CalibrateMethod method : {CalibrateMethod::kGptq, CalibrateMethod::kRtn}) {
      ConversionConfig config = Config(model, method);
      config.scope = QuantScope::kAllLinear;
      config.max_shard_bytes = 400'000;
      config.output_dir = root_ / fmt::format("{}-{}", model, static_cast<int>(method));
      Run(config);
      ConversionConfig again = config;
      again.output_dir += "-again";
      int num_stops = 0;
      // Enough for a layer, not for two.
      const bool is_gptq = method == CalibrateMethod::kGptq;
      const int64_t num_steps = model == std::string("tiny-llama") ? (is_gptq ? 14 : 10) : 35;
      while (RunAndStop(again, num_steps, 1 + num_stops % 2)) ASSERT_LT(++num_stops, 20);
      EXPECT_GE(num_stops, 3);
      EXPECT_GT(FilesOf(config.output_dir).size(), 6u);
      EXPECT_EQ(FilesOf(config.output_dir), FilesOf(again.output_dir)) << model;
      EXPECT_FALSE(fs::exists(WorkFolder::PathFor(again.output_dir)));
    }
  }
}

TEST_F(ConversionResumeTest, StopSaysWhatIsKept) {
  const ConversionConfig config = Config("tiny-qwen3-moe", CalibrateMethod::kGptq);
  ASSERT_TRUE(RunAndStop(config, 0, 2));
  EXPECT_NE(message_.find("1 of 6 stages are done"), std::string::npos) << message_;
  EXPECT_NE(message_.find("int4.partial"), std::string::npos) << message_;
  EXPECT_FALSE(fs::exists(config.output_dir));
  const ConversionSummary summary = Run(config);
  EXPECT_EQ(summary.num_resumed_stages, 1);
  EXPECT_EQ(summary.modules.size(), 96u);
}

TEST_F(ConversionResumeTest, AnotherRequestIsRefusedByTheFlagThatChanged) {
  const ConversionConfig begun = Config("tiny-qwen3-moe", CalibrateMethod::kGptq);
  ASSERT_TRUE(RunAndStop(begun, 60, 2));
  struct Change {
    const char* flag;
    std::function<void(ConversionConfig&)> make;
  };
  const std::vector<Change> changes = {
      {"--quant-group-size", [](ConversionConfig& c) { c.scheme.group_size = 64; }},
      {"--quant-type", [](ConversionConfig& c) { c.scheme.num_bits = 8; }},
      {"--scale-rule", [](ConversionConfig& c) { c.scheme.scale_rule = ScaleRule::kAbsmax7; }},
      {"--scope", [](ConversionConfig& c) { c.scope = QuantScope::kAllLinear; }},
      {"--seed", [](ConversionConfig& c) { c.seed = 9; }},
      {"--dampening-frac", [](ConversionConfig& c) { c.calibrate.dampening_frac = 0.1; }},
      {"--actorder", [](ConversionConfig& c) { c.calibrate.actorder = ActOrder::kNone; }},
      {"--num-calibration-samples", [](ConversionConfig& c) { c.data.num_samples = 9; }},
      {"--data-dir", [](ConversionConfig& c) { c.data.seed = 4; }},
      {"--method", [](ConversionConfig& c) { c.calibrate.method = CalibrateMethod::kRtn; }},
  };
  for (const Change& change : changes) {
    ConversionConfig config = begun;
    change.make(config);
    const std::string message = Refusal(config, ErrorCode::kUsage);
    EXPECT_EQ(message.find(change.flag), 0u) << message;
    EXPECT_NE(message.find("--restart"), std::string::npos) << message;
  }
  ConversionConfig restarted = begun;
  restarted.scheme.group_size = 64;
  restarted.earlier_work = EarlierWork::kRestart;
  EXPECT_EQ(Run(restarted).num_resumed_stages, 0);
}

TEST_F(ConversionResumeTest, ChangedSourceIsNoticed) {
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kGptq);
  const fs::path source = root_ / "source";
  fs::copy(config.input_dir, source, fs::copy_options::recursive);
  config.input_dir = source;
  ASSERT_TRUE(RunAndStop(config, 20, 2));
  const fs::path weights = source / "model.safetensors";
  fs::permissions(weights, fs::perms::owner_write, fs::perm_options::add);
  std::string content = ReadFile(weights);
  content.back() = static_cast<char>(content.back() ^ 1);
  WriteFileAtomic(weights, content);
  const std::string message = Refusal(config, ErrorCode::kUsage);
  EXPECT_NE(message.find("--input-dir, file model.safetensors"), std::string::npos) << message;
}

TEST_F(ConversionResumeTest, DamagedOutputOfAnEarlierRunIsNoticed) {
  const ConversionConfig config = Config("tiny-llama", CalibrateMethod::kGptq);
  ASSERT_TRUE(RunAndStop(config, 20, 2));
  const fs::path shard = WorkFolder::PathFor(config.output_dir) / "output/model.safetensors";
  {
    FileWriter writer(shard, ExistingFile::kKeep);
    const std::vector<std::byte> damage(4096, std::byte{0x11});
    // The embedding, a BF16 tensor of the first stage, lies behind the header and the codes.
    for (uint64_t offset = 20'000; offset < fs::file_size(shard); offset += 100'000) {
      writer.WriteAt(offset, std::span(damage).first(64));
    }
  }
  const std::string message = [&] {
    try {
      Run(config);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  }();
  EXPECT_NE(message.find("does not read back"), std::string::npos) << message;
}

}  // namespace
}  // namespace quatrain
