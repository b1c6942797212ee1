#include "cli/json_lines.h"

#include "io/test_support.h"

namespace quatrain {
namespace {

class JsonLines : public FolderTest {
 protected:
  // Answers the lines by doubling {"n": number}; returns the output file, and the error if one ends
  // the call.
  std::string Answer(const std::string& input, std::string* error) const {
    const std::string out = (folder_ / "out").string();
    *error = MessageOf([&] {
      AnswerJsonLines({Put("in", input).string(), out}, [](const Json& row) -> Json {
        if (!row.contains("n")) throw Error(ErrorCode::kData, "no n");
        return {{"m", row["n"].get<int>() * 2}};
      });
    });
    return std::filesystem::exists(out) ? ReadFile(out) : "nothing";
  }
};

TEST_F(JsonLines, EveryLineIsAnsweredInOrder) {
  std::string error;
  EXPECT_EQ(Answer("{\"n\":1}\n\n  \r\n{\"n\":5}", &error), "{\"m\":2}\n{\"m\":10}\n");
  EXPECT_EQ(error, "no error");
}

TEST_F(JsonLines, ABadLineIsAnsweredByItsNumberAndTheOthersStay) {
  std::string error;
  const std::string text = Answer("{\"n\":1}\n\n{\"n\":\n{}\n{\"n\":2}\n", &error);
  EXPECT_TRUE(Contains(error, "2 of 4 lines"));
  std::vector<std::string> records;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    records.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  ASSERT_EQ(records.size(), 4u);
  EXPECT_EQ(records[0], "{\"m\":2}");
  EXPECT_TRUE(Contains(Json::parse(records[1]).at("error"), "line 3, column"));
  EXPECT_TRUE(Contains(Json::parse(records[2]).at("error"), "line 4: no n"));
  EXPECT_EQ(records[3], "{\"m\":4}");
}

TEST_F(JsonLines, AnOutputThatCannotBeWrittenIsFoundBeforeTheWork) {
  const std::string in = Put("in", "{}\n").string();
  const auto handle = [](const Json&) -> Json {
    ADD_FAILURE() << "work was done";
    return {};
  };
  const std::string missing = (folder_ / "no" / "out").string();
  EXPECT_TRUE(Contains(MessageOf([&] { AnswerJsonLines({in, missing}, handle); }), missing));
  EXPECT_TRUE(Contains(MessageOf([&] {
                         AnswerJsonLines({in, folder_.string()}, handle);
                       }),
                       "found a folder"));
}

TEST_F(JsonLines, OurOwnBugsAreNoAnswers) {
  const JsonLinesFiles files = {Put("in", "{}\n").string(), (folder_ / "out").string()};
  EXPECT_THROW(AnswerJsonLines(files,
                               [](const Json&) -> Json {
                                 QT_CHECK(false);
                                 return {};
                               }),
               Error);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out"));
}

}  // namespace
}  // namespace quatrain
