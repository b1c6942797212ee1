#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "base/random.h"
#include "io/test_support.h"

namespace quatrain {
namespace {

class SafetensorsFileTest : public FolderTest {
 protected:
  // The message of opening a file of this header and `data_bytes` bytes of data.
  std::string MessageOfHeader(const std::string& header, size_t data_bytes) const {
    return MessageOfContent(SafetensorsText(header, std::string(data_bytes, 'd')));
  }
  std::string MessageOfContent(const std::string& content) const {
    const auto path = Put("hostile.safetensors", content);
    const std::string message = MessageOf([&] { SafetensorsFile file(path); });
    EXPECT_TRUE(Contains(message, path.string()));
    return message;
  }
};

TEST_F(SafetensorsFileTest, GivesNamesDTypesShapesAndBytesInTheOrderOfTheData) {
  const auto path =
      Put("a.safetensors",
          SafetensorsText(R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},)"
                          R"("__metadata__":{"format":"pt"},)"
                          R"("a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]},)"
                          R"("z":{"dtype":"F32","shape":[0,9],"data_offsets":[4,4]}}  )",
                          "wxyzabc"));
  SafetensorsFile opened(path);
  const SafetensorsFile file = std::move(opened);
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.tensors()[0].name, "a");
  EXPECT_EQ(file.tensors()[1].name, "z");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const TensorView* const a = file.Find("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->dtype, DType::kBF16);
  EXPECT_EQ(a->shape, (std::vector<int64_t>{1, 2}));
  const TensorView* const b = file.Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(b->bytes.data()), b->bytes.size()), "abc");
  EXPECT_EQ(b->where(), path.string() + ": tensor 'b'");
  EXPECT_EQ(file.Find("c"), nullptr);
}

TEST_F(SafetensorsFileTest, AFileWithoutTensorsIsFine) {
  EXPECT_TRUE(
      SafetensorsFile(Put("empty.safetensors", SafetensorsText("{}", ""))).tensors().empty());
}

TEST_F(SafetensorsFileTest, RefusesATruncatedOrHostileHeader) {
  EXPECT_TRUE(Contains(MessageOfContent(""), "found 0 bytes in all"));
  EXPECT_TRUE(Contains(MessageOfContent("1234567"), "found 7 bytes in all"));
  EXPECT_TRUE(
      Contains(MessageOfContent(std::string(8, '\xFF')), "a length of 18446744073709551615"));
  EXPECT_TRUE(Contains(MessageOfContent(std::string("\x01\xE1\xF5\x05\0\0\0\0{", 9)),
                       "a length of 100000001"));
  EXPECT_TRUE(Contains(MessageOfContent(std::string("\x40\0\0\0\0\0\0\0{}", 10)),
                       "found 2 bytes behind its length"));
  EXPECT_TRUE(Contains(MessageOfHeader("", 4), "a header that begins with {"));
  EXPECT_TRUE(Contains(MessageOfHeader("[]", 0), "a header that begins with {"));
  EXPECT_TRUE(Contains(MessageOfHeader(" {}", 0), "a header that begins with {"));
  EXPECT_TRUE(Contains(MessageOfHeader("{\"a\": ", 0), "header: line 1, column 7: not JSON"));
  EXPECT_TRUE(Contains(MessageOfHeader("{}{}", 0), "not JSON"));
  EXPECT_TRUE(Contains(MessageOfHeader("{\"\xFF\":1}", 0), "UTF-8"));
  EXPECT_TRUE(
      Contains(MessageOfHeader("{\"a\":" + std::string(100000, '['), 0), "nested too deeply"));
}

TEST_F(SafetensorsFileTest, RefusesADescriptionThatLacksSomething) {
  const std::string tensor = "tensor 'x.w'";
  for (const char* description :
       {"7", "[]", "{}", R"({"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":"U8","data_offsets":[0,1]})", R"({"dtype":"U8","shape":[1]})"}) {
    const std::string message = MessageOfHeader(fmt::format("{{\"x.w\":{}}}", description), 1);
    EXPECT_TRUE(Contains(message, tensor));
    EXPECT_TRUE(Contains(message, "the header gives no "));
  }
}

TEST_F(SafetensorsFileTest, RefusesUnknownDTypesBadShapesAndBadOffsets) {
  const auto message_of = [&](const char* dtype, const char* shape, const char* offsets) {
    const std::string message =
        MessageOfHeader(fmt::format(R"({{"x.w":{{"dtype":{},"shape":{},"data_offsets":{}}}}})",
                                    dtype, shape, offsets),
                        8);
    EXPECT_TRUE(Contains(message, "tensor 'x.w'"));
    return message;
  };
  EXPECT_TRUE(Contains(message_of("\"Q4\"", "[8]", "[0,8]"), "unknown dtype"));
  EXPECT_TRUE(Contains(message_of("8", "[8]", "[0,8]"), "unknown dtype"));
  for (const char* shape :
       {"[-1]", "[-2,-4]", "8", "[8.0]", "[\"8\"]", "[null]", "[9223372036854775808]", "{}"}) {
    EXPECT_TRUE(Contains(message_of("\"U8\"", shape, "[0,8]"), "bad shape"));
  }
  for (const char* offsets :
       {"[8,0]", "[0]", "[0,8,8]", "8", "[-8,0]", "[0.0,8.0]", "[0,18446744073709551616]"}) {
    EXPECT_TRUE(Contains(message_of("\"U8\"", "[8]", offsets), "bad data_offsets"));
  }
  EXPECT_TRUE(Contains(message_of("\"F4\"", "[3]", "[0,1]"), "impossible shape"));
  EXPECT_TRUE(
      Contains(message_of("\"U8\"", "[4294967296,4294967296]", "[0,0]"), "impossible shape"));
  EXPECT_TRUE(
      Contains(message_of("\"F64\"", "[2305843009213693953]", "[0,8]"), "impossible shape"));
  EXPECT_TRUE(Contains(message_of("\"F32\"", "[1]", "[0,8]"),
                       "shape and size disagree; expected 4 bytes for F32 [1]"));
}

TEST_F(SafetensorsFileTest, RefusesANameThatAppearsTwice) {
  const std::string message =
      MessageOfHeader(R"({"x.w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                      R"("x.w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                      2);
  EXPECT_TRUE(Contains(message, "\"x.w\" appears twice"));
}

TEST_F(SafetensorsFileTest, RefusesRangesThatDoNotCoverTheDataExactly) {
  const auto message_of = [&](const char* first, const char* second, size_t data_bytes) {
    return MessageOfHeader(fmt::format(R"({{"p":{{"dtype":"U8","shape":[4],"data_offsets":{}}},)"
                                       R"("q":{{"dtype":"U8","shape":[4],"data_offsets":{}}}}})",
                                       first, second),
                           data_bytes);
  };
  EXPECT_TRUE(
      Contains(message_of("[0,4]", "[2,6]", 6), "tensor 'q': its data overlap with those of 'p'"));
  EXPECT_TRUE(
      Contains(message_of("[0,4]", "[0,4]", 4), "tensor 'q': its data overlap with those of 'p'"));
  EXPECT_TRUE(Contains(message_of("[0,4]", "[6,10]", 10),
                       "tensor 'q': 2 bytes before its data belong to no tensor"));
  EXPECT_TRUE(Contains(message_of("[1,5]", "[5,9]", 9),
                       "tensor 'p': 1 bytes before its data belong to no tensor"));
  EXPECT_TRUE(
      Contains(message_of("[0,4]", "[4,8]", 7), "tensor 'q': its data end beyond the file"));
  EXPECT_TRUE(Contains(message_of("[0,4]", "[18446744073709551611,18446744073709551615]", 8),
                       "tensor 'q': its data end beyond the file"));
  EXPECT_TRUE(Contains(message_of("[0,4]", "[4,8]", 9),
                       "1 bytes behind the last tensor 'q' belong to no tensor"));
  EXPECT_TRUE(
      Contains(MessageOfHeader("{}", 3), "3 bytes behind the last tensor belong to no tensor"));
}

TEST_F(SafetensorsFileTest, RefusesMetadataThatAreNotStrings) {
  EXPECT_TRUE(Contains(MessageOfHeader(R"({"__metadata__":{"format":1}})", 0), "bad __metadata__"));
  EXPECT_TRUE(Contains(MessageOfHeader(R"({"__metadata__":[]})", 0), "bad __metadata__"));
}

TEST_F(SafetensorsFileTest, SaysWhatToDoAboutAGitLfsPointer) {
  EXPECT_TRUE(Contains(
      MessageOfContent("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
      "found a Git LFS pointer to it. Run git lfs pull"));
}

TEST(ParseSafetensors, EveryMutantIsReadOrRefusedAndNeverReadsOutsideTheFile) {
  const std::string good = SafetensorsText(
      R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("a.bias":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}} )",
      "0123456789abcdefghijkl");
  const std::filesystem::path path = "mutant.safetensors";
  int num_read = 0, num_refused = 0;
  for (uint64_t mutant = 0; mutant < 20000; ++mutant) {
    const auto draw = [&](uint64_t counter, uint64_t below) {
      return HashBits(1, mutant, counter) % below;
    };
    const uint64_t num_flips = mutant % 4;
    std::vector<char> content(good.begin(),
                              good.end());  // of exactly this size, for the address sanitizer
    if (num_flips == 0) content.resize(draw(0, content.size()));
    for (uint64_t i = 0; i < num_flips; ++i) {
      content[draw(2 * i, content.size())] ^= static_cast<char>(1 << draw(2 * i + 1, 8));
    }
    try {
      uint64_t num_bytes = 0, sum = 0;
      for (const TensorView& tensor :
           ParseSafetensors(std::as_bytes(std::span(content)), path).tensors) {
        num_bytes += tensor.bytes.size();
        for (const std::byte value : tensor.bytes) sum += static_cast<uint64_t>(value);
      }
      EXPECT_EQ(num_bytes, 22u) << "what is accepted covers all data";
      EXPECT_GT(sum, 0u);
      ++num_read;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kData) << error.what();
      EXPECT_TRUE(Contains(error.what(), "mutant.safetensors"));
      ++num_refused;
    }
  }
  EXPECT_GT(num_read, 500) << "flips in names and data leave a good file";
  EXPECT_GT(num_refused, 10000);
}

}  // namespace
}  // namespace quatrain
