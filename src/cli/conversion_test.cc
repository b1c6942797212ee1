#include "cli/conversion.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "cli/conversion_report.h"
#include "cli/conversion_test_support.h"
#include "io/safetensors_writer.h"
#include "quant/metadata.h"

namespace quatrain {
namespace {

TEST_F(ConversionTest, RoundToNearestOfATrainedExportGivesTheIdenticalCodes) {
  ConversionConfig config = Config("tiny-qwen3-moe", CalibrateMethod::kRtn);
  config.scope = QuantScope::kExperts;
  Run(config);
  ConversionConfig again = config;
  again.input_dir = Dequantised(config.output_dir);
  again.output_dir = root_ / "again";
  Run(again);
  ExpectSameTensors(config.output_dir, again.output_dir);
}

TEST_F(ConversionTest, ANarrowGridIsAnOrdinaryInt4DirectoryWhoseMetadataSaysSo) {
  ConversionConfig config = Config("tiny-qwen3-moe", CalibrateMethod::kRtn);
  config.scheme.frozen_grid = NarrowGrid(4, 3, "test");
  const ConversionSummary summary = Run(config);
  ASSERT_EQ(summary.code_counts.size(), 16u);
  for (int code = -8; code <= 7; ++code) {
    EXPECT_EQ(summary.code_counts[static_cast<size_t>(code + 8)] > 0, code >= -3 && code <= 3)
        << code;
  }
  const fs::path path = config.output_dir / kMetadataFile;
  const QuantMetadata metadata = ParseMetadata(ParseJson(ReadFile(path), "m"), "m");
  EXPECT_EQ(metadata.scale_rule, ScaleRule::kAbsmax7);
  EXPECT_EQ(metadata.grid.lo, -3);
  EXPECT_EQ(metadata.grid.hi, 3);
  EXPECT_EQ(Checkpoint(config.output_dir).scheme()->num_bits, 4);
  ConversionConfig again = config;
  again.input_dir = Dequantised(config.output_dir);
  again.output_dir = root_ / "again";
  Run(again);
  ExpectSameTensors(config.output_dir, again.output_dir);
}

TEST_F(ConversionTest, GptqWritesAnInt4DirectoryWithItsMetadata) {
  ConversionConfig config = Config("tiny-qwen3-moe", CalibrateMethod::kGptq);
  config.scope = QuantScope::kExperts;
  config.seed = 5;
  const ConversionSummary summary = Run(config);
  EXPECT_EQ(summary.num_quantized, 4 * 8 * 3);
  EXPECT_TRUE(summary.Fallbacks().empty());
  const Checkpoint written(config.output_dir);
  ASSERT_TRUE(written.scheme().has_value());
  EXPECT_EQ(written.scheme()->group_size, 32);
  const fs::path metadata_path = config.output_dir / kMetadataFile;
  const QuantMetadata metadata =
      ParseMetadata(ParseJson(ReadFile(metadata_path), "quatrain.json"), "quatrain.json");
  EXPECT_EQ(metadata.scale_rule, ScaleRule::kSearched);
  EXPECT_EQ(metadata.grid.lo, -8);
  EXPECT_EQ(metadata.seed, 5u);
  EXPECT_EQ(metadata.report["modules"].size(), 96u);
  EXPECT_EQ(metadata.report["data"]["samples"], 8);
  EXPECT_TRUE(fs::exists(config.output_dir / "tokenizer.json"));
}

TEST_F(ConversionTest, EveryKindOfOutputIsConsistent) {
  // Convert itself reads the directory back and compares every weight and config.json.
  for (const int num_bits : {4, 8}) {
    for (const int64_t group_size : {0, 32, 64, 128}) {
      ConversionConfig config = Config("tiny-llama", CalibrateMethod::kGptq);
      config.scheme.num_bits = num_bits;
      config.scheme.group_size = group_size;
      config.existing_output = ExistingOutput::kOverwrite;
      EXPECT_EQ(Run(config).num_quantized, 35);
      EXPECT_EQ(Checkpoint(config.output_dir).scheme()->num_bits, num_bits);
    }
  }
}

TEST_F(ConversionTest, SecondRunGivesTheSameFiles) {
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kGptq);
  Run(config);
  ConversionConfig again = config;
  again.output_dir = root_ / "again";
  Run(again);
  for (const char* file : {"model.safetensors", "config.json", "quatrain.json"}) {
    EXPECT_EQ(ReadFile(config.output_dir / file), ReadFile(again.output_dir / file)) << file;
  }
}

TEST_F(ConversionTest, UnknownTensorsAreCopiedByteForByteAndListed) {
  const fs::path source = root_ / "source";
  fs::copy(kExamples / "models/tiny-llama", source, fs::copy_options::recursive);
  fs::permissions(source / "model.safetensors", fs::perms::owner_write, fs::perm_options::add);
  const TensorSet original(kExamples / "models/tiny-llama");
  std::vector<TensorPlan> plan;
  for (const TensorView& tensor : original.tensors()) {
    plan.push_back({tensor.name, tensor.dtype, tensor.shape});
  }
  plan.push_back({"model.mtp.0.fc.weight", DType::kF32, {2, 3}});
  const std::vector<float> extra = {1, 2, 3, 4, 5, 6};
  {
    SafetensorsWriter writer(source, plan);
    for (const TensorView& tensor : original.tensors()) writer.Write(tensor.name, tensor.bytes);
    writer.Write("model.mtp.0.fc.weight", std::as_bytes(std::span(extra)));
    writer.Finish();
  }
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kRtn);
  config.input_dir = source;
  EXPECT_EQ(Run(config).copied, std::vector<std::string>{"model.mtp.0.fc.weight"});
  const TensorSet written(config.output_dir);
  const TensorView& copy = written.Get("model.mtp.0.fc.weight");
  EXPECT_EQ(copy.dtype, DType::kF32);
  EXPECT_EQ(std::memcmp(copy.bytes.data(), extra.data(), sizeof(float) * extra.size()), 0);
}

TEST_F(ConversionTest, ExistingOutputIsReplacedOnlyOnRequestAndOnlyIfItIsAConversion) {
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kRtn);
  Run(config);
  EXPECT_NE(Refusal(config, ErrorCode::kUsage).find("--overwrite"), std::string::npos);
  config.existing_output = ExistingOutput::kOverwrite;
  Run(config);
  const fs::path foreign = root_ / "photos";
  fs::create_directories(foreign);
  WriteFileAtomic(foreign / "holiday.txt", "sun");
  config.output_dir = foreign;
  EXPECT_NE(Refusal(config, ErrorCode::kUsage).find("not empty"), std::string::npos);
  config.output_dir = config.input_dir;
  EXPECT_NE(Refusal(config, ErrorCode::kUsage).find("input directory"), std::string::npos);
}

TEST_F(ConversionTest, QuantisedSourceIsRefused) {
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kRtn);
  Run(config);
  config.input_dir = config.output_dir;
  config.output_dir = root_ / "twice";
  EXPECT_NE(Refusal(config, ErrorCode::kUsage).find("quantised already"), std::string::npos);
}

TEST_F(ConversionTest, DenseModelHasNoExpertsToQuantise) {
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kRtn);
  config.scope = QuantScope::kExperts;
  EXPECT_NE(Refusal(config, ErrorCode::kUsage).find("nothing to quantise"), std::string::npos);
}

TEST_F(ConversionTest, MegatronDirectoryIsRecognised) {
  const fs::path megatron = root_ / "megatron";
  fs::create_directories(megatron / "iter_0000100");
  WriteFileAtomic(megatron / "latest_checkpointed_iteration.txt", "100");
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kRtn);
  config.input_dir = megatron;
  EXPECT_NE(Refusal(config, ErrorCode::kData).find("Megatron"), std::string::npos);
}

TEST_F(ConversionTest, CalibrationTextThatCannotBeReadIsRefused) {
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kGptq);
  config.data.text_column = "content";
  EXPECT_NE(Refusal(config, ErrorCode::kData).find("content"), std::string::npos);
  config.data.text_column = "text";
  config.data.source = root_ / "empty.jsonl";
  WriteFileAtomic(config.data.source, "{\"text\": \"\"}\n");
  EXPECT_NE(Refusal(config, ErrorCode::kData).find("no row has any text"), std::string::npos);
}

TEST_F(ConversionTest, ScopesThatAreListsOfModulesReadBack) {
  ConversionConfig config = Config("tiny-qwen3-moe", CalibrateMethod::kGptq);
  config.scope = ParseQuantScope({"re:.*self_attn", "re:.*layers.1.mlp.experts"});
  EXPECT_EQ(Run(config).num_quantized, 4 * 4 + 8 * 3);
}

TEST_F(ConversionTest, ReportTellsWhatTheConversionDid) {
  ConversionConfig config = Config("tiny-qwen3-moe", CalibrateMethod::kGptq);
  config.data.num_samples = 1;
  config.data.max_sequence_length = 16;
  const ConversionSummary summary = Run(config);
  const Json report = ParseJson(ReadFile(config.output_dir / kConversionReportJson), "report");
  EXPECT_EQ(report["method"], "gptq");
  EXPECT_EQ(report["modules"].size(), 96u);
  EXPECT_LT(report["errors"]["mean_relative_error"].get<double>(),
            report["errors"]["mean_rtn_relative_error"].get<double>());
  int64_t codes = 0;
  for (const Json& count : report["codes"]["counts"]) codes += count.get<int64_t>();
  EXPECT_EQ(codes, 96 * 128 * 128);
  EXPECT_EQ(report["expert_tokens"].size(), 4u);
  EXPECT_EQ(report["expert_tokens"][0]["tokens"].size(), 8u);
  EXPECT_FALSE(report["cold_modules"].empty());
  EXPECT_EQ(report["cold_modules"].size(), summary.ColdModules().size());
  EXPECT_GT(report["heldout"]["mean_kl"].get<double>(), 0.0);
  EXPECT_GT(report["heldout"]["perplexity"].get<double>(), 1.0);
  EXPECT_LT(report["bytes_after"].get<int64_t>(), report["bytes_before"].get<int64_t>());
  EXPECT_FALSE(report["tensor_parallel"].empty());
  EXPECT_GT(report["peak_memory_bytes"].get<int64_t>(), 0);
}

}  // namespace
}  // namespace quatrain
