#include "models/exporter.h"

#include <gtest/gtest.h>

#include "models/test_support.h"
#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

class Exporter : public ModelFolderTest {};

TEST_F(Exporter, WhatIsWrittenReadsBackTheSame) {
  RawTensors tensors = Bf16Tensors(SmallMoe());
  tensors["model.mtp.weight"] = {DType::kF16, {2, 3}, "abcdefghijkl"};
  const Checkpoint source(PutModel("source", SmallMoeConfig(), tensors));
  Put("source/tokenizer.json", "{\"a\": 1}");
  Put("source/modeling_x.py", "pass\n");
  const ModelWeights weights = LoadWeights(source, at::kBFloat16);
  std::filesystem::create_directories(folder_ / "copy");
  ExportModel(source, weights, {}, folder_ / "copy");

  const Checkpoint copy(folder_ / "copy");
  EXPECT_FALSE(copy.scheme().has_value());
  EXPECT_EQ(copy.repo().config().at("torch_dtype"), "bfloat16");
  EXPECT_EQ(copy.repo().config().at("architectures"), SmallMoeConfig().at("architectures"));
  const ModelWeights again = LoadWeights(copy, at::kBFloat16);
  for (size_t i = 0; i < weights.size(); ++i)
    EXPECT_TRUE(at::equal(weights[i].dense, again[i].dense)) << weights[i].spec.name;
  // Unknown tensors keep their type and bytes; files of the model travel along.
  const TensorView& unknown = copy.repo().tensors().Get("model.mtp.weight");
  EXPECT_EQ(unknown.dtype, DType::kF16);
  EXPECT_EQ(unknown.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(unknown.bytes.data()), 12), "abcdefghijkl");
  EXPECT_EQ(ReadFile(folder_ / "copy/tokenizer.json"), "{\"a\": 1}");
  EXPECT_EQ(ReadFile(folder_ / "copy/modeling_x.py"), "pass\n");
  EXPECT_FALSE(std::filesystem::exists(folder_ / "copy/quatrain.json"));
}

TEST_F(Exporter, QuantisedWeightsKeepTheirCodes) {
  const Checkpoint source(PutSmallMoe("source"));
  const ModelWeights dense = LoadWeights(source, at::kBFloat16);
  ThreadPool pool(1);
  std::vector<Weight> mixed;
  for (size_t i = 0; i < dense.size(); ++i) {
    Weight weight = dense[i];
    if (weight.spec.role == WeightRole::kExpert) {
      const auto* data = static_cast<const BFloat16*>(weight.dense.const_data_ptr());
      const int64_t rows = weight.spec.shape[0], columns = weight.spec.shape[1];
      weight.codes = Quantize(
          pool, {weight.spec.name, {data, static_cast<size_t>(rows * columns)}, rows, columns},
          QuantScheme{});
      weight.dense = at::Tensor();
    }
    mixed.push_back(std::move(weight));
  }
  const ModelWeights weights(std::move(mixed));
  std::filesystem::create_directories(folder_ / "int4");
  ExportModel(source, weights, {QuantScheme{}, {{"format_version", 1}}}, folder_ / "int4");
  const Checkpoint copy(folder_ / "int4");
  ASSERT_TRUE(copy.scheme().has_value());
  EXPECT_EQ(copy.scheme()->group_size, 32);
  const ModelWeights again = LoadWeights(copy, at::kBFloat16);
  int num_codes = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    ASSERT_EQ(weights[i].is_quantized(), again[i].is_quantized()) << weights[i].spec.name;
    EXPECT_TRUE(at::equal(weights[i].ToFloat32(), again[i].ToFloat32()));
    if (!weights[i].is_quantized()) continue;
    ++num_codes;
    EXPECT_EQ(weights[i].codes.packed, again[i].codes.packed);
  }
  EXPECT_EQ(num_codes, 2 * 4 * 3);
  EXPECT_TRUE(std::filesystem::exists(folder_ / "int4/quatrain.json"));
}

}  // namespace
}  // namespace quatrain
