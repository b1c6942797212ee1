#include "io/rows.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "io/test_support.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

const fs::path kGoldens = fs::path(QT_SOURCE_DIR) / "tests" / "goldens" / "parquet";
const fs::path kCalibration = fs::path(QT_SOURCE_DIR) / "examples" / "data" / "calibration";

Json Golden(const char* name) { return ParseJson(ReadFile(kGoldens / name), name); }

class RowsTest : public FolderTest {
 protected:
  std::string RowsMessage(const fs::path& source) const {
    return MessageOf([&] { ReadJsonRows(source); });
  }
  std::string ColumnMessage(const fs::path& source, const std::string& column) const {
    return MessageOf([&] { ReadColumn(source, column); });
  }
};

TEST_F(RowsTest, AnOddParquetColumnReadsAsTheReferenceReadsIt) {
  const Json expected = Golden("odd.json")["text"];
  const std::vector<Json> texts = ReadColumn(kGoldens / "odd.parquet", "text");
  ASSERT_EQ(texts.size(), expected.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_EQ(texts[i], expected[i]) << "row " << i + 1;
  }
  const std::vector<Json> rows = ReadJsonRows(kGoldens / "odd.parquet");
  ASSERT_EQ(rows.size(), expected.size());
  for (size_t i = 0; i < rows.size(); ++i)
    EXPECT_EQ(rows[i]["text"], expected[i]) << "row " << i + 1;
}

TEST_F(RowsTest, NestedParquetColumnsBecomeJson) {
  const Json expected = Golden("nested.json");
  const std::vector<Json> rows = ReadJsonRows(kGoldens / "nested.parquet");
  ASSERT_EQ(rows.size(), expected.size());
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], expected[i]) << "row " << i + 1;
}

TEST_F(RowsTest, ColumnOfAnyTypeIsTheSameInEveryRow) {
  const Json expected = Golden("nested.json");
  for (const auto& item : expected[0].items()) {
    const std::vector<Json> values = ReadColumn(kGoldens / "nested.parquet", item.key());
    ASSERT_EQ(values.size(), expected.size());
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_EQ(values[i], expected[i][item.key()]) << item.key() << ", row " << i + 1;
    }
  }
  EXPECT_TRUE(Contains(MessageOf([&] { ReadColumn(kGoldens / "nested.parquet", "absent"); }),
                       "no column 'absent'"));
  const fs::path lines =
      Put("chat.jsonl", "{\"messages\": [{\"role\": \"user\"}]}\n{\"messages\": null}\n");
  const std::vector<Json> values = ReadColumn(lines, "messages");
  ASSERT_EQ(values.size(), 2u);
  EXPECT_EQ(values[0][0]["role"], "user");
  EXPECT_TRUE(values[1].is_null());
}

TEST_F(RowsTest, StringsOfEveryEncodingAreText) {
  const fs::path path = kGoldens / "nested.parquet";
  EXPECT_EQ(ReadColumn(path, "source"), (std::vector<Json>{"math", nullptr, "code"}));
  EXPECT_EQ(ReadColumn(path, "long_text"), (std::vector<Json>{"caf\xC3\xA9", nullptr, ""}));
}

TEST_F(RowsTest, TheCalibrationSetIsReadByItsFolder) {
  const std::vector<Json> texts = ReadColumn(kCalibration, "text");
  EXPECT_EQ(texts.size(), 2000u);
  EXPECT_TRUE(std::all_of(texts.begin(), texts.end(),
                          [](const Json& text) { return text.is_string() && !text.empty(); }));
  EXPECT_EQ(ReadColumn(kCalibration / "train-00000-of-00001.parquet", "text"), texts);
}

TEST_F(RowsTest, AMissingParquetColumnListsThoseThatExist) {
  const std::string message = ColumnMessage(kGoldens / "odd.parquet", "content");
  EXPECT_TRUE(Contains(message, "odd.parquet: no column 'content'; expected one of: id, text"));
}

TEST_F(RowsTest, ADamagedParquetFileIsAnErrorThatNamesIt) {
  EXPECT_TRUE(
      Contains(RowsMessage(Put("a.parquet", "")), "a.parquet: not a readable Parquet file"));
  EXPECT_TRUE(Contains(RowsMessage(Put("b.parquet", "PAR1 no PAR1")),
                       "b.parquet: not a readable Parquet file"));
  const std::string good = ReadFile(kGoldens / "odd.parquet");
  EXPECT_TRUE(Contains(RowsMessage(Put("c.parquet", good.substr(0, good.size() - 9))),
                       "c.parquet: not a readable"));
}

TEST_F(RowsTest, EveryMutantOfAParquetFileIsReadOrRefused) {
  const std::string good = ReadFile(kGoldens / "nested.parquet");
  int num_refused = 0;
  for (uint64_t mutant = 0; mutant < 300; ++mutant) {
    std::string content = good;
    content[HashBits(2, mutant, 0) % content.size()] ^=
        static_cast<char>(1 << HashBits(2, mutant, 1) % 8);
    const fs::path path = Put("mutant.parquet", content);
    try {
      ReadJsonRows(path);
    } catch (const Error& error) {
      EXPECT_TRUE(Contains(error.what(), path.string()));
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 10);
}

TEST_F(RowsTest, JsonLinesAreReadInOrderAndBlankLinesPassedOver) {
  const fs::path path = Put("a.jsonl", "{\"z\":1,\"a\":\"x\"}\r\n\n  \n{\"a\":null}");
  const std::vector<Json> rows = ReadJsonRows(path);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(DumpJson(rows[0]), "{\"z\":1,\"a\":\"x\"}");
  EXPECT_EQ(ReadColumn(path, "a"), (std::vector<Json>{"x", nullptr}));
}

TEST_F(RowsTest, ABadLineIsAnErrorWithItsNumberAndIsNeverSkipped) {
  EXPECT_TRUE(Contains(RowsMessage(Put("a.jsonl", "{\"a\":1}\n\n{\"a\":\n")),
                       "a.jsonl: line 3, column 6: not JSON"));
  EXPECT_TRUE(Contains(RowsMessage(Put("b.jsonl", "{\"a\":1}\n[1]\n")),
                       "b.jsonl: line 2: expected a JSON object"));
  EXPECT_TRUE(Contains(RowsMessage(Put("c.jsonl", "{\"a\":1,\"a\":2}\n")),
                       "c.jsonl: line 1, column 10: the key"));
}

TEST_F(RowsTest, AJsonColumnThatIsMissingNamesItsLine) {
  const fs::path path =
      Put("a.jsonl", "{\"text\":\"x\",\"id\":1}\n{\"id\":2,\"source\":\"web\"}\n");
  EXPECT_TRUE(Contains(ColumnMessage(path, "text"),
                       "a.jsonl: line 2: no column 'text'; expected one of: id, source"));
}

TEST_F(RowsTest, AJsonFileMayBeOneArray) {
  EXPECT_EQ(ReadJsonRows(Put("a.json", " [{\"a\":1},\n {\"a\":2}]\n")).size(), 2u);
  EXPECT_EQ(ReadJsonRows(Put("b.json", "{\"a\":1}\n{\"a\":2}\n")).size(), 2u);
  EXPECT_TRUE(Contains(RowsMessage(Put("c.json", "[{\"a\":1}, 7]")),
                       "c.json: row 2: expected a JSON object"));
}

TEST_F(RowsTest, PlainTextIsARowForEachLineThatIsNotBlank) {
  const fs::path path = Put("a.txt", "first\n \n second \nlast");
  EXPECT_EQ(ReadColumn(path, "text"), (std::vector<Json>{"first", " second ", "last"}));
  EXPECT_EQ(ReadJsonRows(path)[2], (Json{{"text", "last"}}));
}

TEST_F(RowsTest, AFolderIsReadInTheOrderOfItsNames) {
  Put("data/b.jsonl", "{\"a\":\"2\"}\n");
  Put("data/a.jsonl", "{\"a\":\"1\"}\n");
  Put("data/README.md", "# not data");
  EXPECT_EQ(ReadColumn(folder_ / "data", "a"), (std::vector<Json>{"1", "2"}));
  Put("data/train-1.jsonl", "{\"a\":\"t\"}\n");
  EXPECT_EQ(ReadColumn(folder_ / "data", "a"), (std::vector<Json>{"t"}))
      << "the training split alone";
  Put("data/train-2.txt", "text\n");
  EXPECT_TRUE(Contains(RowsMessage(folder_ / "data"),
                       "data of different kinds; found train-1.jsonl and train-2.txt"));
}

TEST_F(RowsTest, ASliceTakesRowsAsPythonDoes) {
  const std::string path = Put("a.txt", "0\n1\n2\n3\n4\n").string();
  const auto slice = [&](const std::string& ends) {
    std::string joined;
    for (const auto& text : ReadColumn(path + "@[" + ends + "]", ""))
      joined += text.get<std::string>();
    return joined;
  };
  EXPECT_EQ(slice("1:3"), "12");
  EXPECT_EQ(slice(":2"), "01");
  EXPECT_EQ(slice("3:"), "34");
  EXPECT_EQ(slice(":"), "01234");
  EXPECT_EQ(slice("-2:"), "34");
  EXPECT_EQ(slice(":-4"), "0");
  EXPECT_EQ(slice("2:100"), "234");
  EXPECT_EQ(slice("-100:1"), "0");
  EXPECT_EQ(slice("-9223372036854775808:9223372036854775807"), "01234");
  EXPECT_TRUE(Contains(RowsMessage(path + "@[3:3]"), "a.txt: the slice holds none of the 5 rows"));
  EXPECT_TRUE(Contains(RowsMessage(path + "@[7:]"), "the slice holds none of the 5 rows"));
  for (const char* bad : {"@[3]", "@[a:b]", "@[1:2:3]", "@[1.5:]", "@[]"}) {
    EXPECT_TRUE(Contains(RowsMessage(path + bad), "bad slice"));
  }
}

TEST_F(RowsTest, MalformedLinesAreForgivenWithinAShare) {
  const fs::path path = Put("a.jsonl", "{\"a\":1}\n{\"a\":\n7\n{\"a\":2}\n");
  EXPECT_TRUE(Contains(RowsMessage(path), "a.jsonl"));
  MalformedRows malformed;
  const std::vector<Json> rows = ReadJsonRows(path, 0.5, &malformed);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[1]["a"], 2);
  EXPECT_EQ(malformed.count, 2);
  EXPECT_TRUE(Contains(malformed.first, "line 2")) << malformed.first;
  EXPECT_EQ(ReadJsonRows(path.string() + "@[1:]", 0.5)[0]["a"], 2) << "a slice of what is left";
  try {
    ReadJsonRows(path, 0.49);
    FAIL();
  } catch (const Error& error) {
    EXPECT_TRUE(Contains(error.what(), "2 of 4 lines are no rows; the first: "));
  }
}

TEST_F(RowsTest, NothingToReadIsAnError) {
  EXPECT_TRUE(Contains(RowsMessage(Put("a.jsonl", "\n\n")), "a.jsonl: the data set is empty"));
  EXPECT_TRUE(Contains(ColumnMessage(Put("a.txt", ""), "text"), "a.txt: the data set is empty"));
  EXPECT_TRUE(Contains(RowsMessage(folder_ / "none.jsonl"), "none.jsonl: no such file or folder"));
  fs::create_directories(folder_ / "empty");
  EXPECT_TRUE(Contains(RowsMessage(folder_ / "empty"), "the folder holds no data"));
  EXPECT_TRUE(Contains(RowsMessage(Put("a.jsonl.gz", "x")),
                       "unknown kind of data; expected a .parquet, .jsonl"));
}

}  // namespace
}  // namespace quatrain
