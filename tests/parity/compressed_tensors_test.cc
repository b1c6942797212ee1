// INT4 directories of llm-compressor, read by ours: every tensor consistent, the same weights bit
// for bit.
#include "quant/compressed_tensors.h"

#include <gtest/gtest.h>

#include <cstring>

#include "base/threads.h"
#include "io/hf_repo.h"
#include "quant/consistency.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

template <class T>
std::vector<T> Elements(const TensorView& tensor) {
  std::vector<T> elements(tensor.bytes.size() / sizeof(T));
  std::memcpy(elements.data(), tensor.bytes.data(), tensor.bytes.size());
  return elements;
}

TensorTable TableOf(const TensorSet& tensors) {
  TensorTable table;
  for (const TensorView& tensor : tensors.tensors()) {
    TensorMeta meta{std::string(DTypeName(tensor.dtype)), tensor.shape};
    if (tensor.name.ends_with(kShapeSuffix)) meta.values = Elements<int64_t>(tensor);
    table[tensor.name] = std::move(meta);
  }
  return table;
}

QuantizedWeight ReadWeight(const TensorSet& tensors, const std::string& module,
                           const QuantScheme& scheme) {
  const auto shape = Elements<int64_t>(tensors.Get(module + std::string(kShapeSuffix)));
  QuantizedWeight weight;
  weight.num_bits = scheme.num_bits;
  weight.out_features = shape.at(0);
  weight.in_features = shape.at(1);
  weight.group_size = scheme.GroupSizeFor(shape.at(1));
  weight.packed = Elements<int32_t>(tensors.Get(module + std::string(kPackedSuffix)));
  weight.scale = Elements<BFloat16>(tensors.Get(module + std::string(kScaleSuffix)));
  return weight;
}

class LlmCompressorDirectory : public testing::TestWithParam<const char*> {
 protected:
  std::string folder() const {
    return std::string(QT_SOURCE_DIR) + "/tests/goldens/compressed-tensors/" + GetParam();
  }
};

TEST_P(LlmCompressorDirectory, IsConsistent) {
  const HfRepo repo(folder());
  const std::optional<QuantScheme> scheme = FindQuantScheme(repo.config(), folder());
  ASSERT_TRUE(scheme.has_value());
  const TensorTable table = TableOf(repo.tensors());
  const std::vector<std::string> problems = FindInconsistencies(*scheme, table, folder());
  EXPECT_TRUE(problems.empty()) << problems.size() << ": " << problems.front();
  for (const LinearModule& module : LinearModulesOf(table)) {
    if (!module.is_quantized) continue;
    const QuantizedWeight weight = ReadWeight(repo.tensors(), module.module, *scheme);
    EXPECT_NO_THROW(CheckScales(module.module, weight.scale, weight.num_groups(),
                                GridOf(ScaleRule::kFrozen, scheme->num_bits)));
  }
}

TEST_P(LlmCompressorDirectory, DequantisesAsCompressedTensorsDoes) {
  const HfRepo repo(folder());
  const std::optional<QuantScheme> scheme = FindQuantScheme(repo.config(), folder());
  ASSERT_TRUE(scheme.has_value());
  ThreadPool pool(2);
  const TensorSet expected(folder() + "/dequantised.safetensors");
  EXPECT_EQ(expected.tensors().size(), 3u);
  for (const TensorView& tensor : expected.tensors()) {
    const std::string module = tensor.name.substr(0, tensor.name.size() - kWeightSuffix.size());
    const QuantizedWeight weight = ReadWeight(repo.tensors(), module, *scheme);
    const std::vector<BFloat16> ours = Dequantize(pool, weight);
    const std::vector<BFloat16> theirs = Elements<BFloat16>(tensor);
    ASSERT_EQ(ours.size(), theirs.size()) << module;
    EXPECT_EQ(std::memcmp(ours.data(), theirs.data(), ours.size() * sizeof(BFloat16)), 0) << module;
    // The slow reader of foreign files and a second packing agree.
    const std::vector<BFloat16> slow = DequantizeForeign({.module = module,
                                                          .num_bits = weight.num_bits,
                                                          .out_features = weight.out_features,
                                                          .in_features = weight.in_features,
                                                          .group_size = weight.group_size,
                                                          .packed = weight.packed,
                                                          .scale = weight.scale});
    EXPECT_EQ(std::memcmp(slow.data(), theirs.data(), slow.size() * sizeof(BFloat16)), 0) << module;
    EXPECT_EQ(PackWeight(UnpackWeight(weight), weight.scale, weight.out_features,
                         weight.in_features, weight.num_bits)
                  .packed,
              weight.packed)
        << module;
  }
}

INSTANTIATE_TEST_SUITE_P(All, LlmCompressorDirectory,
                         testing::Values("tiny-llama-gptq-w4-g128-all",
                                         "tiny-qwen3-moe-gptq-w4-g32-all",
                                         "tiny-qwen3-moe-rtn-w4-g32-experts"));

}  // namespace
}  // namespace quatrain
