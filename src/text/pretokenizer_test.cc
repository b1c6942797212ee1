#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/normalizer.h"
#include "text/split_pattern.h"

namespace quatrain {
namespace {

using Texts = std::vector<std::string>;

Texts PieceTexts(const Json& config, const std::string& text) {
  const Pieces pieces = Pretokenizer::FromJson(config, "test").Apply(text);
  Texts texts;
  for (const TextRange& range : pieces.ranges) {
    texts.push_back(pieces.text.substr(range.begin, range.end - range.begin));
  }
  return texts;
}

Json SplitConfig(const std::string& regex, const std::string& behavior, bool invert = false) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", behavior},
          {"invert", invert}};
}

Texts FindTexts(const std::string& regex, const std::string& text) {
  Texts texts;
  for (const TextRange& match : SplitPattern::FromRegex(regex, "test").FindAll(text)) {
    texts.push_back(text.substr(match.begin, match.end - match.begin));
  }
  return texts;
}

void ExpectConfigError(const Json& config, const std::string& part) {
  try {
    Pretokenizer::FromJson(config, "file.json");
    FAIL() << config;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("file.json"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Pretokenizer, CutsEveryReferenceTextAsTheSplitRegexDoes) {
  const std::string root = QT_SOURCE_DIR;
  const Json tokenizer =
      ParseJson(ReadFile(root + "/examples/models/tiny-llama/tokenizer.json"), "tokenizer.json");
  const Json& split = tokenizer["pre_tokenizer"]["pretokenizers"][0];
  ASSERT_EQ(split["type"], "Split");
  const Normalizer nfc = Normalizer::FromJson(tokenizer["normalizer"], "test");
  std::ifstream file(root + "/tests/goldens/tokenizer/split.jsonl");
  int num_cases = 0;
  for (std::string line; std::getline(file, line); ++num_cases) {
    const Json row = ParseJson(line, "split.jsonl");
    EXPECT_EQ(PieceTexts(split, nfc.Apply(row["text"].get<std::string>())),
              row["pieces"].get<Texts>())
        << line;
  }
  EXPECT_EQ(num_cases, 225);
}

// The behaviors as the documentation of Hugging Face tokenizers shows them, on
// "the-final--countdown".
TEST(Pretokenizer, JoinsMatchesAsTheBehaviorSays) {
  const std::string text = "the-final--countdown";
  EXPECT_EQ(PieceTexts(SplitConfig("-", "Removed"), text), (Texts{"the", "final", "countdown"}));
  EXPECT_EQ(PieceTexts(SplitConfig("-", "Isolated"), text),
            (Texts{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(PieceTexts(SplitConfig("-", "MergedWithPrevious"), text),
            (Texts{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(PieceTexts(SplitConfig("-", "MergedWithNext"), text),
            (Texts{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(PieceTexts(SplitConfig("-", "Contiguous"), text),
            (Texts{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(PieceTexts(SplitConfig("-", "Removed", true), text), (Texts{"-", "-", "-"}));
}

TEST(Pretokenizer, LiteralPatternsMatchTheirOwnCharacters) {
  const Json config = {
      {"type", "Split"}, {"pattern", {{"String", ".*+"}}}, {"behavior", "Removed"}};
  EXPECT_EQ(PieceTexts(config, "a.*+b.c"), (Texts{"a", "b.c"}));
}

TEST(Pretokenizer, ByteLevelCutsLikeGpt2AndPutsSpacesInFront) {
  const Json plain = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  EXPECT_EQ(PieceTexts(plain, "I've 12  cats!"), (Texts{"I", "'ve", " 12", " ", " cats", "!"}));
  const Json spaced = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", false}};
  EXPECT_EQ(PieceTexts(spaced, "a b"), (Texts{" a b"}));
  EXPECT_EQ(PieceTexts(spaced, " a b"), (Texts{" a b"}));
  const Json sequence = {{"type", "Sequence"},
                         {"pretokenizers", {SplitConfig(" ", "MergedWithNext"), spaced}}};
  EXPECT_EQ(PieceTexts(sequence, "a b"), (Texts{" a", " b"}));
}

TEST(Pretokenizer, WithoutAConfigTheTextIsOnePiece) {
  EXPECT_EQ(PieceTexts(nullptr, "a b"), (Texts{"a b"}));
  EXPECT_EQ(PieceTexts(nullptr, ""), Texts{});
}

TEST(Pretokenizer, NamesWhatItDoesNotSupport) {
  ExpectConfigError({{"type", "Whitespace"}}, "found Whitespace");
  ExpectConfigError({{"type", "Sequence"}}, "Sequence");
  ExpectConfigError("ByteLevel", "ByteLevel");
  ExpectConfigError(SplitConfig("a", "Sideways"), "found Sideways");
  ExpectConfigError(SplitConfig("a(", "Isolated"), "does not compile");
  ExpectConfigError(SplitConfig("[a[b]]", "Isolated"), "class within a class");
  ExpectConfigError(SplitConfig("[a&&b]", "Isolated"), "intersection");
  ExpectConfigError(SplitConfig("[a\\S]", "Isolated"), "\\S within a class");
}

TEST(SplitPattern, ReadsEscapesAsOnigurumaDoes) {
  EXPECT_EQ(FindTexts("\\s", "a\xE1\xA0\x8E\xC2\x85z"), Texts{"\xC2\x85"});  // U+180E, U+0085
  EXPECT_EQ(FindTexts("[\\s]", "\xE1\xA0\x8E\xE2\x80\xA8"), Texts{"\xE2\x80\xA8"});
  EXPECT_EQ(FindTexts("\\w+", "e\xCC\x81-_"), (Texts{"e\xCC\x81", "_"}));  // a mark is a word's
  EXPECT_EQ(FindTexts("\\h+", "xfF9 g"), Texts{"fF9"});
  // U+30FC has the script Common; only its extensions hold Katakana.
  EXPECT_EQ(FindTexts("\\p{Katakana}", "\xE3\x83\xBC\xE3\x82\xA2"), Texts{"\xE3\x82\xA2"});
  EXPECT_EQ(FindTexts("[^\\p{L}]", "a1"), Texts{"1"});
  EXPECT_EQ(FindTexts("[]a]", "]"), Texts{"]"});
  EXPECT_EQ(FindTexts("[[:alpha:]]+", "ab1"), Texts{"ab"});
  EXPECT_EQ(FindTexts("a$", "a\na"), (Texts{"a", "a"}));  // $ looks at lines
}

TEST(SplitPattern, FindsEmptyMatchesOnceEach) {
  const std::vector<TextRange> matches = SplitPattern::FromRegex("(?=b)|c", "test")
                                             .FindAll(
                                                 "abc\xC3\xA9"
                                                 "b");
  EXPECT_EQ(matches, (std::vector<TextRange>{{1, 1}, {2, 3}, {5, 5}}));
}

TEST(SplitPattern, AnEndlessSearchIsAnErrorAndNotAHang) {
  const SplitPattern pattern = SplitPattern::FromRegex("(a+)+$", "test");
  EXPECT_THROW(pattern.FindAll(std::string(40, 'a') + "b"), Error);
}

TEST(Normalizer, AppliesTheFormsInOrder) {
  const std::string ligature_e_acute =
      "\xEF\xAC\x81"
      "e\xCC\x81";
  const auto apply = [&](const Json& config) {
    return Normalizer::FromJson(config, "test").Apply(ligature_e_acute);
  };
  EXPECT_EQ(apply(nullptr), ligature_e_acute);
  EXPECT_EQ(apply({{"type", "NFC"}}), "\xEF\xAC\x81\xC3\xA9");
  EXPECT_EQ(apply({{"type", "NFKC"}}), "fi\xC3\xA9");
  EXPECT_EQ(apply({{"type", "NFKD"}}), "fie\xCC\x81");
  const Json both = {{"type", "Sequence"},
                     {"normalizers", {{{"type", "NFKC"}}, {{"type", "NFD"}}}}};
  EXPECT_EQ(apply(both), "fie\xCC\x81");
  EXPECT_THROW(apply({{"type", "BertNormalizer"}}), Error);
}

}  // namespace
}  // namespace quatrain
