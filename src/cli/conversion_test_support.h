// What the tests of the converter share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "cli/conversion.h"
#include "models/exporter.h"
#include "models/loader.h"

namespace quatrain {

namespace fs = std::filesystem;

inline const fs::path kExamples = fs::path(QT_SOURCE_DIR) / "examples";

// A conversion of an example model into a folder of the test's own.
class ConversionTest : public testing::Test {
 protected:
  ConversionTest()
      : root_(fs::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~ConversionTest() override { fs::remove_all(root_); }

  ConversionConfig Config(const std::string& model, CalibrateMethod method) const {
    ConversionConfig config{.input_dir = kExamples / "models" / model,
                            .output_dir = root_ / "int4",
                            .data = {.source = kExamples / "data/calibration",
                                     .num_samples = 8,
                                     .max_sequence_length = 64},
                            .calibrate = {.method = method}};
    config.data.num_heldout_samples = 2;
    if (method == CalibrateMethod::kGptq) config.scheme.scale_rule = ScaleRule::kSearched;
    return config;
  }

  ConversionSummary Run(const ConversionConfig& config) {
    ThreadPool pool(2);
    return Convert(pool, config, [](int64_t, int64_t, const std::string&) {});
  }

  // The message of the refusal, after which nothing may be left behind.
  std::string Refusal(const ConversionConfig& config, ErrorCode code) {
    const auto entries = [&] {
      return std::distance(fs::directory_iterator(root_), fs::directory_iterator());
    };
    const auto before = entries();
    try {
      Run(config);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      EXPECT_EQ(ExitStatus(error.code()), 2);
      EXPECT_EQ(entries(), before);
      return error.what();
    }
    ADD_FAILURE() << "no error";
    return {};
  }

  // Every weight of a converted directory, dequantised, as a BF16 directory.
  fs::path Dequantised(const fs::path& directory) {
    const Checkpoint checkpoint(directory);
    ModelWeights weights = LoadWeights(checkpoint, at::kBFloat16);
    for (size_t i = 0; i < weights.size(); ++i) {
      if (!weights[i].is_quantized()) continue;
      weights[i].dense = weights[i].ToFloat32().to(at::kBFloat16);
      weights[i].codes = {};
    }
    const fs::path folder = root_ / "bf16";
    fs::create_directories(folder);
    ExportModel(checkpoint, weights, {}, folder);
    return folder;
  }

  fs::path root_;
};

inline void ExpectSameTensors(const fs::path& a, const fs::path& b) {
  const TensorSet first(a), second(b);
  ASSERT_EQ(first.tensors().size(), second.tensors().size());
  for (const TensorView& tensor : first.tensors()) {
    const TensorView& other = second.Get(tensor.name);
    EXPECT_TRUE(std::equal(tensor.bytes.begin(), tensor.bytes.end(), other.bytes.begin(),
                           other.bytes.end()))
        << tensor.name;
  }
}

}  // namespace quatrain
