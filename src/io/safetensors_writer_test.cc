#include "io/safetensors_writer.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/json.h"
#include "io/tensor_set.h"
#include "io/test_support.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

// `count` bytes that depend on the seed.
std::vector<std::byte> Pattern(uint64_t count, size_t seed) {
  std::vector<std::byte> bytes(count);
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>((i * 31 + seed * 7 + 1) & 0xFF);
  return bytes;
}

bool Equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::vector<fs::path> FilesIn(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path().filename());
  std::sort(files.begin(), files.end());
  return files;
}

class SafetensorsWriterTest : public FolderTest {};

TEST_F(SafetensorsWriterTest, EveryDTypeComesBackAsItWasWritten) {
  std::vector<TensorPlan> plan;
  for (int i = 0; i <= static_cast<int>(DType::kU64); ++i) {
    const auto dtype = static_cast<DType>(i);
    plan.push_back({.name = std::string(DTypeName(dtype)), .dtype = dtype, .shape = {3, 4}});
  }
  plan.push_back({.name = "scalar", .dtype = DType::kF32});
  plan.push_back({.name = "empty", .dtype = DType::kI64, .shape = {0, 5}});
  plan.push_back({.name = "odd \"name\"\n\xC3\xA9", .dtype = DType::kU8, .shape = {1}});
  SafetensorsWriter writer(folder_, plan);
  for (size_t i = 0; i < plan.size(); ++i) {
    writer.Write(plan[i].name, Pattern(*BytesOf(plan[i].dtype, plan[i].shape), i));
  }
  writer.Finish();
  EXPECT_EQ(FilesIn(folder_), std::vector<fs::path>{"model.safetensors"});
  const SafetensorsFile file(folder_ / "model.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.tensors().size(), plan.size());
  for (size_t i = 0; i < plan.size(); ++i) {
    const TensorView* const tensor = file.Find(plan[i].name);
    ASSERT_NE(tensor, nullptr) << plan[i].name;
    EXPECT_EQ(tensor->dtype, plan[i].dtype);
    EXPECT_EQ(tensor->shape, plan[i].shape);
    EXPECT_TRUE(Equal(tensor->bytes, Pattern(tensor->bytes.size(), i))) << plan[i].name;
    const auto width = static_cast<uintptr_t>(std::max(1, BitsOf(tensor->dtype) / 8));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->bytes.data()) % width, 0u)
        << plan[i].name << " is not aligned";
  }
}

TEST_F(SafetensorsWriterTest, AModelOfTheReferenceImplementationIsRewrittenByteForByte) {
  for (const char* model : {"tiny-llama", "tiny-qwen3-moe"}) {
    const fs::path source =
        fs::path(QT_SOURCE_DIR) / "examples" / "models" / model / "model.safetensors";
    const SafetensorsFile file(source);
    std::vector<TensorPlan> plan;
    for (const TensorView& tensor : file.tensors())
      plan.push_back({tensor.name, tensor.dtype, tensor.shape});
    std::reverse(plan.begin(), plan.end());
    SafetensorsWriter writer(folder_, plan);
    for (const TensorView& tensor : file.tensors()) writer.Write(tensor.name, tensor.bytes);
    writer.Finish();
    EXPECT_TRUE(ReadFile(folder_ / "model.safetensors") == ReadFile(source)) << model;
  }
}

TEST_F(SafetensorsWriterTest, ShardsAreCutInTheOrderOfThePlanAndTheIndexIsByteAccurate) {
  std::vector<TensorPlan> plan;
  for (const int64_t size : {60, 40, 1, 250, 99, 1}) {
    plan.push_back(
        {.name = fmt::format("t{}", 9 - plan.size()), .dtype = DType::kU8, .shape = {size}});
  }
  SafetensorsWriter writer(folder_, plan, {.max_shard_bytes = 100});
  for (size_t i = 0; i < plan.size(); ++i) {
    writer.Write(plan[i].name, Pattern(static_cast<uint64_t>(plan[i].shape[0]), i));
  }
  writer.Finish();
  EXPECT_EQ(writer.total_bytes(), 451u);
  const auto shard = [](int i) { return fmt::format("model-{:05}-of-00004.safetensors", i); };
  EXPECT_EQ(writer.file_names(),
            (std::vector<std::string>{shard(1), shard(2), shard(3), shard(4)}));
  EXPECT_EQ(ReadFile(folder_ / "model.safetensors.index.json"),
            "{\n  \"metadata\": {\n    \"total_size\": 451\n  },\n  \"weight_map\": {\n"
            "    \"t4\": \"model-00004-of-00004.safetensors\",\n"
            "    \"t5\": \"model-00004-of-00004.safetensors\",\n"
            "    \"t6\": \"model-00003-of-00004.safetensors\",\n"
            "    \"t7\": \"model-00002-of-00004.safetensors\",\n"
            "    \"t8\": \"model-00001-of-00004.safetensors\",\n"
            "    \"t9\": \"model-00001-of-00004.safetensors\"\n  }\n}\n");
  const TensorSet tensors(folder_);
  EXPECT_EQ(tensors.total_bytes(), 451u);
  for (size_t i = 0; i < plan.size(); ++i) {
    const TensorView& tensor = tensors.Get(plan[i].name);
    EXPECT_TRUE(Equal(tensor.bytes, Pattern(tensor.bytes.size(), i))) << plan[i].name;
  }
}

TEST_F(SafetensorsWriterTest, TheBytesDoNotDependOnTheOrderOfWriting) {
  const std::vector<TensorPlan> plan = {{.name = "a", .dtype = DType::kU8, .shape = {3}},
                                        {.name = "b", .dtype = DType::kI32, .shape = {2}},
                                        {.name = "c", .dtype = DType::kBF16, .shape = {1}}};
  std::vector<size_t> order = {0, 1, 2};
  std::string first;
  do {
    SafetensorsWriter writer(folder_, plan);
    for (const size_t i : order)
      writer.Write(plan[i].name, Pattern(*BytesOf(plan[i].dtype, plan[i].shape), i));
    writer.Finish();
    const std::string content = ReadFile(folder_ / "model.safetensors");
    if (first.empty()) first = content;
    EXPECT_EQ(content, first);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_F(SafetensorsWriterTest, AnIndexCanBeAskedForWithOneFileToo) {
  SafetensorsWriter writer(folder_, {{.name = "a", .dtype = DType::kU8, .shape = {1}}},
                           {.index_rule = IndexRule::kAlways});
  writer.Write("a", Pattern(1, 0));
  writer.Finish();
  EXPECT_EQ(FilesIn(folder_), (std::vector<fs::path>{"model-00001-of-00001.safetensors",
                                                     "model.safetensors.index.json"}));
  EXPECT_EQ(TensorSet(folder_).Get("a").bytes.size(), 1u);
}

TEST_F(SafetensorsWriterTest, APlanThatCannotBeWrittenCreatesNothing) {
  const auto message_of = [&](const std::vector<TensorPlan>& plan) {
    return MessageOf([&] { SafetensorsWriter writer(folder_, plan); });
  };
  EXPECT_TRUE(Contains(message_of({{.name = "a", .shape = {1}}, {.name = "a", .shape = {2}}}),
                       "tensor 'a': two tensors of one name"));
  EXPECT_TRUE(
      Contains(message_of({{.name = "__metadata__", .shape = {1}}}), "the name cannot be written"));
  EXPECT_TRUE(Contains(message_of({{.name = "", .shape = {1}}}), "the name cannot be written"));
  EXPECT_TRUE(Contains(message_of({{.name = "a", .shape = {-1}}}),
                       "tensor 'a': impossible shape; found BF16 [-1]"));
  try {
    SafetensorsWriter writer(folder_, {{.name = "a", .shape = {int64_t{1} << 58}}});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kResource);
    EXPECT_TRUE(Contains(error.what(), "the disk lacks "));
    EXPECT_TRUE(Contains(error.what(), folder_.string()));
  }
  EXPECT_TRUE(FilesIn(folder_).empty());
}

TEST_F(SafetensorsWriterTest, BreakingThePlanIsACaughtBug) {
  SafetensorsWriter writer(folder_, {{.name = "a", .dtype = DType::kU8, .shape = {2}},
                                     {.name = "b", .dtype = DType::kU8, .shape = {2}}});
  EXPECT_THROW(writer.Write("c", Pattern(2, 0)), Error);
  EXPECT_THROW(writer.Write("a", Pattern(3, 0)), Error);
  writer.Write("a", Pattern(2, 0));
  EXPECT_THROW(writer.Write("a", Pattern(2, 0)), Error);
  EXPECT_THROW(writer.Finish(), Error);
}

TEST_F(SafetensorsWriterTest, AWriteThatFailsHalfWayLeavesTheOlderModelAndNothingElse) {
  const fs::path target = folder_ / "out";
  const std::vector<TensorPlan> plan = {{.name = "a", .dtype = DType::kU8, .shape = {100000}}};
  {
    AtomicFolder folder(target);
    SafetensorsWriter writer(folder.path(), plan);
    writer.Write("a", Pattern(100000, 1));
    writer.Finish();
    folder.Commit();
  }
  signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit = {50000, before.rlim_max};  // stands for a full disk
  setrlimit(RLIMIT_FSIZE, &limit);
  const std::string message = MessageOf([&] {
    AtomicFolder folder(target);
    SafetensorsWriter writer(folder.path(), plan);
    writer.Write("a", Pattern(100000, 2));
    writer.Finish();
    folder.Commit();
  });
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_DFL);
  EXPECT_TRUE(Contains(message, "model.safetensors: cannot write the file"));
  EXPECT_EQ(FilesIn(folder_), std::vector<fs::path>{"out"});
  EXPECT_TRUE(Equal(TensorSet(target).Get("a").bytes, Pattern(100000, 1)));
}

TEST_F(SafetensorsWriterTest, AWriterThatWasKilledIsGoneOnWithAfterAnyTensor) {
  std::vector<TensorPlan> plan;
  for (int i = 0; i < 6; ++i) {
    plan.push_back({.name = fmt::format("t{}", i), .dtype = DType::kF32, .shape = {8 + i}});
  }
  const SafetensorsWriterOptions options = {.max_shard_bytes = 100,
                                            .shard_files = ShardFiles::kResumed};
  const auto write = [&](SafetensorsWriter& writer, size_t i) {
    writer.Write(plan[i].name, Pattern(*BytesOf(plan[i].dtype, plan[i].shape), i));
  };
  const auto content = [](const fs::path& folder) {
    std::map<std::string, std::string> files;
    for (const fs::path& file : FilesIn(folder)) files[file.string()] = ReadFile(folder / file);
    return files;
  };
  std::optional<std::map<std::string, std::string>> whole;
  for (size_t cut = 0; cut <= plan.size(); ++cut) {
    const fs::path folder = folder_ / fmt::format("cut{}", cut);
    fs::create_directories(folder);
    {
      SafetensorsWriter writer(folder, plan, options);
      for (size_t i = 0; i < cut; ++i) write(writer, i);
      // What was in the middle of being written when it was killed.
      if (cut < plan.size()) writer.Write(plan[cut].name, Pattern(32 + 4 * cut, 99));
      writer.Sync();
    }
    SafetensorsWriter writer(folder, plan, options);
    for (size_t i = 0; i < cut; ++i) writer.MarkWritten(plan[i].name);
    for (size_t i = cut; i < plan.size(); ++i) write(writer, i);
    writer.Finish();
    if (!whole) whole = content(folder);
    EXPECT_EQ(content(folder), *whole) << "cut after " << cut;
  }
  EXPECT_EQ(whole->size(), 4u);  // three shards and their index
}

}  // namespace
}  // namespace quatrain
