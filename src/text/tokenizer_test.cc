#include "text/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/byte_level.h"
#include "text/utf8.h"

namespace quatrain {
namespace {

using Ids = std::vector<int32_t>;

const std::string kRoot = QT_SOURCE_DIR;

std::vector<Json> ReadCases(const std::string& name) {
  std::ifstream file(kRoot + "/tests/goldens/tokenizer/" + name);
  std::vector<Json> cases;
  for (std::string line; std::getline(file, line);) cases.push_back(ParseJson(line, name));
  return cases;
}

Tokenizer TinyTokenizer() { return Tokenizer::Load(kRoot + "/examples/models/tiny-llama"); }

// A tokenizer.json whose ids 0-255 are the bytes, and then `tokens`; `changes` is merged over it.
std::string SmallTokenizerJson(const std::vector<std::string>& tokens, const Json& merges,
                               const Json& changes = Json::object()) {
  Json vocab;
  for (int byte = 0; byte < 256; ++byte) {
    vocab[TokenTextOfBytes(std::string(1, static_cast<char>(byte)))] = byte;
  }
  for (const std::string& token : tokens) vocab[token] = vocab.size();
  Json root;
  root["pre_tokenizer"] = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  root["decoder"] = {{"type", "ByteLevel"}};
  root["model"] = {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}};
  root.merge_patch(changes);
  return root.dump();
}

Tokenizer SmallTokenizer(const std::vector<std::string>& tokens, const Json& merges,
                         const Json& changes = Json::object()) {
  return Tokenizer::FromJson(SmallTokenizerJson(tokens, merges, changes), "small.json");
}

Json AddedTokens(std::initializer_list<Json> tokens) {
  return Json{{"added_tokens", Json(tokens)}};
}

// What FromJson says about a broken file.
std::string LoadError(const std::string& json_text) {
  try {
    Tokenizer::FromJson(json_text, "small.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_NE(std::string(error.what()).find("small.json"), std::string::npos) << error.what();
    return error.what();
  }
  return "";
}

void ExpectLoadError(const std::string& json_text, const std::string& part) {
  const std::string message = LoadError(json_text);
  EXPECT_NE(message.find(part), std::string::npos) << "message: " << message;
}

TEST(Tokenizer, EncodesAndDecodesEveryReferenceText) {
  const Tokenizer tokenizer = TinyTokenizer();
  const std::vector<Json> cases = ReadCases("encode.jsonl");
  ASSERT_EQ(cases.size(), 338u);
  for (const Json& row : cases) {
    const Ids ids = tokenizer.Encode(row["text"].get<std::string>());
    EXPECT_EQ(ids, row["ids"].get<Ids>()) << row.dump();
    EXPECT_EQ(tokenizer.Decode(ids), row["decoded"].get<std::string>()) << row.dump();
    EXPECT_EQ(tokenizer.Decode(ids, SpecialTokens::kSkip), row["decoded_skip"].get<std::string>())
        << row.dump();
  }
}

TEST(Tokenizer, DecodesEveryReferenceIdList) {
  const Tokenizer tokenizer = TinyTokenizer();
  const std::vector<Json> cases = ReadCases("decode.jsonl");
  ASSERT_EQ(cases.size(), 90u);
  for (const Json& row : cases) {
    const Ids ids = row["ids"].get<Ids>();
    EXPECT_EQ(tokenizer.Decode(ids), row["decoded"].get<std::string>()) << row.dump();
    EXPECT_EQ(tokenizer.Decode(ids, SpecialTokens::kSkip), row["decoded_skip"].get<std::string>())
        << row.dump();
  }
}

TEST(Tokenizer, KnowsItsTokens) {
  const Tokenizer tokenizer = TinyTokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 2048);
  EXPECT_EQ(tokenizer.TokenId("<|im_end|>"), 2);
  EXPECT_EQ(tokenizer.TokenId("no such token"), std::nullopt);
  EXPECT_TRUE(tokenizer.IsSpecial(2));
  EXPECT_FALSE(tokenizer.IsSpecial(5));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
  EXPECT_EQ(tokenizer.TokenBytes(5), "!");
  EXPECT_EQ(tokenizer.TokenBytes(2048), "");
}

TEST(Tokenizer, IdsWithoutATokenDecodeToNothing) {
  EXPECT_EQ(TinyTokenizer().Decode(Ids{-1, 5, 2048, 1 << 30, 6}), "!\"");
}

// Random NFC text survives the round trip: 0x4E00-0x9FFF, Latin-1 and white space neither compose
// nor decompose.
TEST(Tokenizer, DecodeOfEncodeIsTheTextForNfcText) {
  const Tokenizer tokenizer = TinyTokenizer();
  std::mt19937 random(7);
  const std::pair<int, int> ranges[] = {{0x00, 0x7F},     {0x20, 0x7E},       {0xA0, 0xFF},
                                        {0x4E00, 0x9FFF}, {0x1F300, 0x1F5FF}, {0x2000, 0x2010}};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (int i = 0; i < 40; ++i) {
      const auto [low, high] = ranges[random() % std::size(ranges)];
      const int code_point =
          low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
      // U+2000 and U+2001 have canonical equivalents.
      AppendUtf8(code_point == 0x2000 || code_point == 0x2001 ? 'x' : code_point, &text);
    }
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
  }
}

TEST(Tokenizer, TextThatIsNotUtf8GetsReplacementCharacters) {
  const Tokenizer tokenizer = TinyTokenizer();
  const std::string broken = "a\xFF\xE2\x82z\xED\xA0\x80\xC0\x80\xF0\x9F";
  const std::string r = "\xEF\xBF\xBD";
  const std::string mended = "a" + r + r + "z" + r + r + r + r + r + r;
  EXPECT_EQ(tokenizer.Encode(broken), tokenizer.Encode(mended));
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(broken)), mended);
}

TEST(Tokenizer, EmptyTextHasNoTokens) {
  EXPECT_TRUE(TinyTokenizer().Encode("").empty());
  EXPECT_EQ(TinyTokenizer().Decode(Ids{}), "");
}

TEST(Tokenizer, LongTextsTakeNoMoreThanLinearithmicTime) {
  const Tokenizer tokenizer = TinyTokenizer();
  for (const std::string& unit :
       {std::string("x"), std::string(" "), std::string("="), std::string("\n"),
        std::string("he the"), std::string("\xE6\x9D\xB1")}) {
    std::string text;
    while (text.size() < 300000) text += unit;
    EXPECT_EQ(tokenizer.Decode(tokenizer.Encode(text)), text);
  }
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const Tokenizer tokenizer = TinyTokenizer();
  const std::string text = ReadFile(kRoot + "/tests/goldens/tokenizer/README.md");
  const Ids expected = tokenizer.Encode(text);
  std::vector<Ids> results(8);
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] { result = tokenizer.Encode(text); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST(Tokenizer, MergesInBothSpellingsAreTheSame) {
  const std::vector<std::string> tokens = {"ab", "bc", "abc"};
  const Json strings = {"b c", "a b", "a bc"};
  const Json pairs = Json::parse(R"([["b", "c"], ["a", "b"], ["a", "bc"]])");
  for (const Json& merges : {strings, pairs}) {
    const Tokenizer tokenizer = SmallTokenizer(tokens, merges);
    EXPECT_EQ(tokenizer.Encode("abc"), (Ids{258}));
    EXPECT_EQ(tokenizer.Encode("abab"), (Ids{256, 256}));
    EXPECT_EQ(tokenizer.Encode("bbcc"), (Ids{'b', 257, 'c'}));
  }
}

TEST(Tokenizer, TheEarliestMergeWinsAndThenTheLeftmost) {
  const Tokenizer tokenizer = SmallTokenizer({"aa", "ab"}, {"a b", "a a"});
  const int32_t a = *tokenizer.TokenId("a");
  EXPECT_EQ(tokenizer.Encode("aab"), (Ids{a, 257}));
  EXPECT_EQ(tokenizer.Encode("aaa"), (Ids{256, a}));
}

TEST(Tokenizer, IgnoreMergesTakesAPieceThatIsAToken) {
  const Json changes = {{"model", {{"ignore_merges", true}}}};
  EXPECT_EQ(SmallTokenizer({"xyz"}, Json::array()).Encode("xyz").size(), 3u);
  EXPECT_EQ(SmallTokenizer({"xyz"}, Json::array(), changes).Encode("xyz"), (Ids{256}));
  EXPECT_EQ(SmallTokenizer({"xyz"}, Json::array(), changes).Encode("xyzx").size(), 4u);
}

TEST(Tokenizer, AddedTokensTakeWhiteSpaceAlongAndMindWords) {
  const Tokenizer tokenizer = SmallTokenizer(
      {}, Json::array(),
      AddedTokens({{{"id", 300}, {"content", "<l>"}, {"lstrip", true}, {"special", true}},
                   {{"id", 301}, {"content", "<r>"}, {"rstrip", true}},
                   {{"id", 302}, {"content", "one"}, {"single_word", true}, {"normalized", false}},
                   {{"id", 303}, {"content", "<l><l>"}}}));
  const int32_t a = *tokenizer.TokenId("a");
  EXPECT_EQ(tokenizer.Encode("a \n\xE3\x80\x80<l>a"), (Ids{a, 300, a}));
  EXPECT_EQ(tokenizer.Encode("a<r> \xC2\x85 a"), (Ids{a, 301, a}));
  EXPECT_EQ(tokenizer.Encode("one"), (Ids{302}));
  EXPECT_EQ(tokenizer.Encode("a one").back(), 302);
  EXPECT_EQ(tokenizer.Encode("\xC3\xA9one").size(), 5u);
  EXPECT_EQ(tokenizer.Encode("ones").size(), 4u);
  EXPECT_EQ(tokenizer.Encode("<r> <l>"), (Ids{301, 300}));
  EXPECT_EQ(tokenizer.vocab_size(), 304);
  EXPECT_EQ(tokenizer.Decode(Ids{300, a, 301}, SpecialTokens::kSkip), "a<r>");
}

TEST(Tokenizer, TheLongestAddedTokenAtAPlaceWins) {
  const Tokenizer tokenizer =
      SmallTokenizer({}, Json::array(),
                     AddedTokens({{{"id", 300}, {"content", "<a>"}, {"special", true}},
                                  {{"id", 301}, {"content", "<a><a>"}, {"special", true}}}));
  EXPECT_EQ(tokenizer.Encode("<a><a><a>"), (Ids{301, 300}));
}

TEST(Tokenizer, NormalizedAddedTokensAreFoundBehindTheNormalizer) {
  const std::string composed = "\xC3\xA9", decomposed = "e\xCC\x81";
  Json changes = AddedTokens({{{"id", 300}, {"content", decomposed}, {"normalized", true}}});
  changes["normalizer"] = {{"type", "NFC"}};
  EXPECT_EQ(SmallTokenizer({}, Json::array(), changes).Encode(composed), (Ids{300}));
  changes["added_tokens"][0]["normalized"] = false;
  EXPECT_EQ(SmallTokenizer({}, Json::array(), changes).Encode(composed).size(), 2u);
  EXPECT_EQ(SmallTokenizer({}, Json::array(), changes).Encode(decomposed), (Ids{300}));
}

TEST(Tokenizer, AnAddedTokenWithASpaceStandsForItself) {
  const Tokenizer tokenizer =
      SmallTokenizer({}, Json::array(), AddedTokens({{{"id", 256}, {"content", "<a \xC3\xA9>"}}}));
  EXPECT_EQ(tokenizer.Decode(Ids{256}), "<a \xC3\xA9>");
}

TEST(TokenizerFile, EveryTruncationIsAnErrorThatNamesTheFile) {
  const std::string whole = SmallTokenizerJson({"ab"}, {"a b"});
  for (size_t size = 0; size < whole.size(); size += 41) {
    EXPECT_NE(LoadError(whole.substr(0, size)), "") << size;
  }
}

TEST(TokenizerFile, MissingPartsAreNamed) {
  ExpectLoadError("{}", "expected model");
  ExpectLoadError("[]", "small.json");
  ExpectLoadError("null", "small.json");
  for (const char* field : {"vocab", "merges"}) {
    Json changes;
    changes["model"][field] = nullptr;  // a merge patch removes it
    ExpectLoadError(SmallTokenizerJson({}, Json::array(), changes),
                    std::string("expected ") + field);
  }
  ExpectLoadError(SmallTokenizerJson({}, Json::array(), {{"decoder", nullptr}}),
                  "expected decoder");
}

TEST(TokenizerFile, ComponentsThatWeDoNotHaveAreNamed) {
  const auto with = [](const char* key, const Json& value) {
    Json root = Json::parse(SmallTokenizerJson({}, Json::array()));
    root[key] = value;
    return root.dump();
  };
  ExpectLoadError(with("normalizer", {{"type", "Lowercase"}}), "found Lowercase");
  ExpectLoadError(with("pre_tokenizer", {{"type", "Metaspace"}}), "found Metaspace");
  ExpectLoadError(with("pre_tokenizer", nullptr), "no ByteLevel");
  ExpectLoadError(with("decoder", {{"type", "WordPiece"}}), "found WordPiece");
  const auto with_model = [](const char* key, const Json& value) {
    return SmallTokenizerJson({}, Json::array(), {{"model", {{key, value}}}});
  };
  ExpectLoadError(with_model("type", "Unigram"), "found Unigram");
  ExpectLoadError(with_model("byte_fallback", true), "byte_fallback");
  ExpectLoadError(with_model("end_of_word_suffix", "</w>"), "end_of_word_suffix");
  ExpectLoadError(with_model("dropout", 0.1), "dropout");
}

TEST(TokenizerFile, MergesMustNameKnownTokens) {
  ExpectLoadError(SmallTokenizerJson({}, {"a b"}), "merge 'a b' names a token");
  ExpectLoadError(SmallTokenizerJson({"ab"}, {"a b", "ab zz"}), "no 'zz'");
  ExpectLoadError(SmallTokenizerJson({}, {"ab"}), "merge 0 is damaged");
  ExpectLoadError(SmallTokenizerJson({}, {"a b c"}), "merge 0 is damaged");
  ExpectLoadError(SmallTokenizerJson({}, {7}), "merge 0 is damaged");
  ExpectLoadError(SmallTokenizerJson({}, Json::parse(R"([["a"]])")), "merge 0 is damaged");
}

TEST(TokenizerFile, BadIdsAndWrongTypesAreErrors) {
  const auto with_vocab = [](const Json& tokens) {
    return SmallTokenizerJson({}, Json::array(), {{"model", {{"vocab", tokens}}}});
  };
  ExpectLoadError(with_vocab({{"zz", -1}}), "out of range");
  ExpectLoadError(with_vocab({{"zz", 4000000000}}), "out of range");
  ExpectLoadError(with_vocab({{"zz", 7}}), "id 7 has two tokens");
  for (const Json& id : {Json("seven"), Json(256.5), Json(2.5e45), Json(true)}) {
    ExpectLoadError(with_vocab({{"zz", id}}), "the id of token 'zz' is no integer");
  }
  const auto with_added = [](const Json& token) {
    return SmallTokenizerJson({}, Json::array(), AddedTokens({token}));
  };
  ExpectLoadError(with_added({{"id", int64_t{1} << 40}, {"content", "<x>"}}), "out of range");
  ExpectLoadError(with_added({{"id", 256.0}, {"content", "<x>"}}), "is no integer");
  ExpectLoadError(with_added({{"id", 1}, {"content", "a"}}), "two ids");
  ExpectLoadError(with_added({{"content", "a"}}), "expected id");
  ExpectLoadError(with_added({{"id", 300}, {"content", "<x>"}, {"lstrip", "yes"}}), "wrong type");
}

TEST(TokenizerFile, AMissingFileIsAnIoError) {
  try {
    Tokenizer::Load(kRoot + "/tests");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
  }
}

}  // namespace
}  // namespace quatrain
