#include "cli/inspection.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

#include "cli/inspect.h"
#include "io/safetensors_writer.h"
#include "io/test_support.h"
#include "quant/compressed_tensors.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

const std::string kRoot = QT_SOURCE_DIR;
const std::string kExperts =
    kRoot + "/tests/goldens/compressed-tensors/tiny-qwen3-moe-rtn-w4-g32-experts";
const std::string kMoe = kRoot + "/examples/models/tiny-qwen3-moe";

TEST(InspectModel, SaysWhatAnInt4DirectoryHolds) {
  ThreadPool pool(2);
  const Inspection inspection = InspectModel(pool, kExperts, std::nullopt);
  EXPECT_TRUE(inspection.problems.empty()) << inspection.problems.front();
  ASSERT_TRUE(inspection.scheme.has_value());
  EXPECT_EQ(inspection.scheme->Name(), "W4A16 g32");
  ASSERT_TRUE(inspection.used_codes.has_value());
  EXPECT_EQ(inspection.used_codes->lo, -8);
  EXPECT_EQ(inspection.used_codes->hi, 7);
  int64_t num_quantized = 0;
  for (const ModuleRow& row : inspection.modules) {
    if (row.is_quantized) num_quantized += row.count;
  }
  EXPECT_EQ(num_quantized, 96);
  EXPECT_EQ(inspection.sizes.at(0).num_tensors, 3 * 96);
  EXPECT_EQ(inspection.sizes.at(0).bytes, 96 * FileBytes(128, 128, 4, 32));
  EXPECT_EQ(inspection.sizes.at(0).num_parameters, 96 * 128 * 128);
  EXPECT_EQ(inspection.parallel.size(), 3u);
  const std::string text = InspectionText(inspection);
  EXPECT_TRUE(Contains(text, "model.layers.*.mlp.experts.*.down_proj"));
  EXPECT_TRUE(Contains(text, "TP8 breaks"));
  EXPECT_TRUE(Contains(text, "\nconsistent\n"));
}

TEST(InspectModel, MeasuresEveryQuantisedWeightAgainstItsOrigin) {
  ThreadPool pool(2);
  const Inspection inspection = InspectModel(pool, kExperts, kMoe);
  EXPECT_TRUE(inspection.problems.empty()) << inspection.problems.front();
  ASSERT_EQ(inspection.errors.size(), 96u) << "weights in BF16 are the reference's own";
  for (const ErrorRow& row : inspection.errors) {
    EXPECT_GT(row.relative, 0.02) << row.tensor;
    EXPECT_LT(row.relative, 0.2) << row.tensor;
    EXPECT_GT(row.largest, 0.0) << row.tensor;
  }
  ThreadPool one(1);
  EXPECT_EQ(InspectionJson(InspectModel(one, kExperts, kMoe)), InspectionJson(inspection));
}

TEST(InspectModel, AModelIn16BitsIsConsistentAndEqualToItself) {
  ThreadPool pool(1);
  const Inspection inspection = InspectModel(pool, kMoe, kMoe);
  EXPECT_TRUE(inspection.problems.empty());
  EXPECT_FALSE(inspection.scheme.has_value());
  EXPECT_TRUE(inspection.errors.empty());
  EXPECT_TRUE(Contains(InspectionText(inspection), "not quantised"));
  EXPECT_EQ(inspection.total_bytes(), 2 * inspection.total_parameters());
}

TEST(InspectModel, RefusesAQuantisedReference) {
  ThreadPool pool(1);
  EXPECT_TRUE(Contains(MessageOf([&] { InspectModel(pool, kExperts, kExperts); }),
                       "the reference is itself quantised"));
}

// Directories of one quantised linear and an lm_head, each wrong in one way.
class InspectDirectory : public FolderTest {
 protected:
  void Write(const std::vector<BFloat16>& scale, const std::vector<std::string>& ignore,
             const std::string& leave_out) const {
    const std::vector<int8_t> codes(4 * 64, -8);
    const QuantizedWeight weight = PackWeight(codes, scale, 4, 64, 4);
    const std::vector<int64_t> shape = {4, 64};
    const std::vector<BFloat16> head(4 * 64);
    struct Tensor {
      TensorPlan plan;
      std::span<const std::byte> bytes;
    };
    const Tensor tensors[] = {
        {{"m.o_proj.weight_packed", DType::kI32, {4, 8}}, std::as_bytes(std::span(weight.packed))},
        {{"m.o_proj.weight_scale", DType::kBF16, {4, 2}}, std::as_bytes(std::span(weight.scale))},
        {{"m.o_proj.weight_shape", DType::kI64, {2}}, std::as_bytes(std::span(shape))},
        {{"lm_head.weight", DType::kBF16, {4, 64}}, std::as_bytes(std::span(head))}};
    std::vector<TensorPlan> plan;
    for (const Tensor& tensor : tensors) {
      if (tensor.plan.name != leave_out) plan.push_back(tensor.plan);
    }
    SafetensorsWriter writer(folder_, plan);
    for (const Tensor& tensor : tensors) {
      if (tensor.plan.name != leave_out) writer.Write(tensor.plan.name, tensor.bytes);
    }
    writer.Finish();
    const Json config = {{"model_type", "any"},
                         {"quantization_config", MakeQuantizationConfig({.ignore = ignore})}};
    Put("config.json", DumpJson(config));
  }

  // All problems in one text.
  std::string Problems() const {
    ThreadPool pool(1);
    std::string all;
    for (const std::string& problem : InspectModel(pool, folder_, std::nullopt).problems) {
      all += problem + "\n";
    }
    return all;
  }

  const std::vector<BFloat16> good_ = std::vector<BFloat16>(8, ToBFloat16(0.01f));
};

TEST_F(InspectDirectory, AcceptsAGoodOneOfAnyModelType) {
  Write(good_, {"lm_head"}, "");
  EXPECT_EQ(Problems(), "");
}

TEST_F(InspectDirectory, ReportsScalesThatCannotBeUsed) {
  for (uint16_t bad : {0x7FC0, 0x0000, 0x0001, 0xBC00}) {
    std::vector<BFloat16> scale = good_;
    scale[5] = BFloat16{bad};
    Write(scale, {"lm_head"}, "");
    EXPECT_TRUE(Contains(Problems(), "m.o_proj.weight_scale, row 2, group 1")) << bad;
  }
}

TEST_F(InspectDirectory, ReportsAMissingCompanion) {
  Write(good_, {"lm_head"}, "m.o_proj.weight_scale");
  EXPECT_TRUE(Contains(Problems(), "m.o_proj.weight_scale is missing"));
}

TEST_F(InspectDirectory, ReportsAWeightThatShouldBeQuantised) {
  Write(good_, {}, "");
  EXPECT_TRUE(Contains(Problems(), "lm_head is not quantised, but config.json says so"));
}

TEST_F(InspectDirectory, ReportsCodesOutsideTheBoundsOfTheMetadata) {
  Write(good_, {"lm_head"}, "");
  Put("quatrain.json", DumpJson(MakeMetadata({.grid = {4, -7, 7}})));
  EXPECT_TRUE(Contains(Problems(), "codes -8..-8 are in use, but quatrain.json says -7..7"));
  Put("quatrain.json", DumpJson(MakeMetadata({.grid = {4, -8, 7}})));
  EXPECT_EQ(Problems(), "");
}

TEST_F(InspectDirectory, TheCommandFailsOnAnInconsistentOneOnly) {
  const auto run = [&] {
    CLI::App app;
    AddInspectCommand(app);
    app.parse("inspect " + folder_.string() + " --json --threads 1");
  };
  Write(good_, {"lm_head"}, "");
  EXPECT_NO_THROW(run());
  Write(good_, {}, "");
  EXPECT_TRUE(Contains(MessageOf(run), "tensors and config.json disagree: lm_head"));
}

}  // namespace
}  // namespace quatrain
