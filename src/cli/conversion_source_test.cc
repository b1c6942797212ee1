// Sources of other types, layouts and architectures than a BF16 directory of a known family.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "cli/conversion_test_support.h"
#include "io/safetensors_writer.h"
#include "models/block_fp8.h"
#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

struct SourceTensor {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;
};

template <class T>
std::vector<std::byte> BytesOfValues(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

std::vector<BFloat16> ValuesOf(const SourceTensor& tensor) {
  std::vector<BFloat16> values(tensor.bytes.size() / 2);
  std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

class ConversionSourceTest : public ConversionTest {
 protected:
  using Change = std::function<std::vector<SourceTensor>(SourceTensor)>;

  // A copy of an example model whose tensors went through `change`, and its config.json through
  // `change_config`.
  fs::path Derive(
      const std::string& model, const std::string& name, const Change& change,
      const std::function<void(Json&)>& change_config = [](Json&) {}) const {
    const fs::path original = kExamples / "models" / model, folder = root_ / name;
    fs::create_directories(folder);
    const HfRepo repo(original);
    repo.CopyAuxiliaryFiles(folder);
    Json config = repo.config();
    change_config(config);
    WriteFileAtomic(folder / "config.json", config.dump());
    std::vector<SourceTensor> tensors;
    for (const TensorView& view : repo.tensors().tensors()) {
      for (SourceTensor& tensor :
           change({view.name, view.dtype, view.shape, {view.bytes.begin(), view.bytes.end()}})) {
        tensors.push_back(std::move(tensor));
      }
    }
    std::vector<TensorPlan> plan;
    for (const SourceTensor& tensor : tensors) {
      plan.push_back({tensor.name, tensor.dtype, tensor.shape});
    }
    SafetensorsWriter writer(folder, plan);
    for (const SourceTensor& tensor : tensors) writer.Write(tensor.name, tensor.bytes);
    writer.Finish();
    return folder;
  }

  ConversionSummary ConvertSource(const fs::path& source, const std::string& output,
                                  CalibrateMethod method = CalibrateMethod::kRtn) {
    ConversionConfig config = Config("tiny-llama", method);
    config.input_dir = source;
    config.output_dir = root_ / output;
    return Run(config);
  }
};

TEST_F(ConversionSourceTest, Fp32OfBf16ValuesGivesTheSameFilesAndIsListed) {
  const fs::path source = Derive("tiny-llama", "fp32", [](SourceTensor tensor) {
    std::vector<float> values;
    for (const BFloat16 value : ValuesOf(tensor)) values.push_back(ToFloat(value));
    tensor.dtype = DType::kF32;
    tensor.bytes = BytesOfValues(values);
    return std::vector<SourceTensor>{tensor};
  });
  ConvertSource(kExamples / "models/tiny-llama", "from_bf16", CalibrateMethod::kGptq);
  const ConversionSummary summary = ConvertSource(source, "from_fp32", CalibrateMethod::kGptq);
  EXPECT_EQ(summary.cast.size(), TensorSet(source).tensors().size());
  ExpectSameTensors(root_ / "from_bf16", root_ / "from_fp32");
}

TEST_F(ConversionSourceTest, Fp16IsRoundedToBf16First) {
  const auto to_fp16 = [](SourceTensor tensor) {
    std::vector<at::Half> values;
    for (const BFloat16 value : ValuesOf(tensor)) values.push_back(at::Half(ToFloat(value)));
    tensor.dtype = DType::kF16;
    tensor.bytes = BytesOfValues(values);
    return std::vector<SourceTensor>{tensor};
  };
  const auto rounded = [&](SourceTensor tensor) {
    std::vector<BFloat16> values;
    for (const BFloat16 value : ValuesOf(tensor)) {
      values.push_back(ToBFloat16(static_cast<float>(at::Half(ToFloat(value)))));
    }
    tensor.bytes = BytesOfValues(values);
    return std::vector<SourceTensor>{tensor};
  };
  ConvertSource(Derive("tiny-llama", "fp16", to_fp16), "from_fp16");
  ConvertSource(Derive("tiny-llama", "rounded", rounded), "from_rounded");
  ExpectSameTensors(root_ / "from_fp16", root_ / "from_rounded");
}

// Every 2-D projection as E4M3 codes with a factor for each block of [16, 32].
std::vector<SourceTensor> ToBlockFp8(SourceTensor tensor) {
  const bool is_projection = tensor.name.find("_proj.weight") != std::string::npos;
  if (!is_projection) return {tensor};
  const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
  SourceTensor scale{
      tensor.name + "_scale_inv", DType::kF32, {(rows + 15) / 16, (columns + 31) / 32}, {}};
  std::vector<float> factors;
  for (int64_t i = 0; i < scale.shape[0] * scale.shape[1]; ++i) {
    factors.push_back(0.0003f + 0.00001f * static_cast<float>(i % 13));
  }
  std::vector<uint8_t> codes;
  for (const BFloat16 value : ValuesOf(tensor)) {
    // Any code will do but NaN's: the test is about reading them.
    codes.push_back(static_cast<uint8_t>((value.bits >> 4) & 0xFF));
    if ((codes.back() & 0x7F) == 0x7F) codes.back() = 0;
  }
  scale.bytes = BytesOfValues(factors);
  tensor.dtype = DType::kF8E4M3;
  tensor.bytes = BytesOfValues(codes);
  return {tensor, scale};
}

TEST_F(ConversionSourceTest, BlockFp8IsReadWithItsFactors) {
  const BlockFp8 format{16, 32};
  const fs::path fp8 = Derive("tiny-llama", "fp8", ToBlockFp8, [](Json& config) {
    config["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {16, 32}}};
  });
  const fs::path bf16 = Derive("tiny-llama", "bf16", [&](SourceTensor tensor) {
    const std::vector<SourceTensor> parts = ToBlockFp8(tensor);
    if (parts.size() == 1) return parts;
    std::vector<float> factors(parts[1].bytes.size() / sizeof(float));
    std::memcpy(factors.data(), parts[1].bytes.data(), parts[1].bytes.size());
    tensor.bytes =
        BytesOfValues(DequantizeBlockFp8(parts[0].bytes, tensor.shape[1], factors, format));
    return std::vector<SourceTensor>{tensor};
  });
  const ConversionSummary summary = ConvertSource(fp8, "from_fp8");
  EXPECT_EQ(summary.cast.size(), 35u);
  EXPECT_TRUE(summary.copied.empty());
  ConvertSource(bf16, "from_bf16");
  ExpectSameTensors(root_ / "from_fp8", root_ / "from_bf16");
}

TEST_F(ConversionSourceTest, UnknownArchitectureIsConvertedByNamesAloneAndNotCalibrated) {
  const fs::path source = Derive(
      "tiny-qwen3-moe", "novel",
      [](SourceTensor tensor) {
        std::vector<SourceTensor> tensors = {tensor};
        if (tensor.name == "model.norm.weight") {
          tensor.name = "model.strange.weight";
          tensor.shape = {2, tensor.shape[0] / 2};
          tensors.push_back(tensor);
        }
        return tensors;
      },
      [](Json& config) { config["model_type"] = "novel"; });
  const ConversionSummary summary = ConvertSource(source, "from_novel");
  EXPECT_EQ(summary.num_quantized, 4 * 8 * 3);
  EXPECT_EQ(summary.copied, std::vector<std::string>{"model.strange.weight"});
  ConvertSource(kExamples / "models/tiny-qwen3-moe", "from_known");
  const TensorSet known(root_ / "from_known"), novel(root_ / "from_novel");
  ASSERT_EQ(novel.tensors().size(), known.tensors().size() + 1);
  for (const TensorView& tensor : known.tensors()) {
    const TensorView& other = novel.Get(tensor.name);
    EXPECT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(), other.bytes.begin(),
                           other.bytes.end()))
        << tensor.name;
  }
  ConversionConfig config = Config("tiny-llama", CalibrateMethod::kGptq);
  config.input_dir = source;
  EXPECT_NE(Refusal(config, ErrorCode::kUsage).find("--method rtn"), std::string::npos);
}

TEST_F(ConversionSourceTest, FusedExpertsOfKnownAndUnknownModelsAreCutApart) {
  // Experts arrive in the order of their names: gather a layer's, then put the fused pair out.
  std::map<std::string, SourceTensor> fused;
  const auto fuse = [&](SourceTensor tensor) {
    const size_t at = tensor.name.find(".experts.");
    if (at == std::string::npos) return std::vector<SourceTensor>{tensor};
    fused[tensor.name] = tensor;
    const std::string experts = tensor.name.substr(0, at + 9);
    std::vector<std::byte> gate_up, down;
    for (int expert = 0; expert < 8; ++expert) {
      for (const char* projection : {"gate_proj", "up_proj", "down_proj"}) {
        const auto found = fused.find(fmt::format("{}{}.{}.weight", experts, expert, projection));
        if (found == fused.end()) return std::vector<SourceTensor>{};
        std::vector<std::byte>& target = projection == std::string("down_proj") ? down : gate_up;
        target.insert(target.end(), found->second.bytes.begin(), found->second.bytes.end());
      }
    }
    const int64_t hidden = fused[experts + "0.up_proj.weight"].shape[1];
    const int64_t size = fused[experts + "0.up_proj.weight"].shape[0];
    return std::vector<SourceTensor>{
        {experts + "gate_up_proj", DType::kBF16, {8, 2 * size, hidden}, gate_up},
        {experts + "down_proj", DType::kBF16, {8, hidden, size}, down}};
  };
  ConvertSource(kExamples / "models/tiny-qwen3-moe", "separate");
  const fs::path known = Derive("tiny-qwen3-moe", "known", fuse);
  EXPECT_EQ(TensorSet(known).Find("model.layers.0.mlp.experts.0.up_proj.weight"), nullptr);
  ConvertSource(known, "from_known");
  ExpectSameTensors(root_ / "separate", root_ / "from_known");
  fused.clear();
  const fs::path novel =
      Derive("tiny-qwen3-moe", "novel", fuse, [](Json& config) { config["model_type"] = "novel"; });
  EXPECT_TRUE(ConvertSource(novel, "from_novel").copied.empty());
  ExpectSameTensors(root_ / "separate", root_ / "from_novel");
}

}  // namespace
}  // namespace quatrain
