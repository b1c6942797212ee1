#include "text/pretokenizer.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace quatrain {
namespace {

// The cut of ByteLevel with use_regex (openai/gpt-2:src/encoder.py).
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What becomes of the matches of a Split
// (huggingface/tokenizers:tokenizers/src/tokenizer/normalizer.rs).
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

SplitBehavior ParseBehavior(const std::string& name, const std::string& where) {
  static constexpr std::pair<const char*, SplitBehavior> kNames[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  throw Error(ErrorCode::kData,
              {.where = where,
               .what = "unknown behavior of a Split",
               .expected = "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous",
               .found = name.empty() ? "none" : name,
               .todo = "Check pre_tokenizer in this file."});
}

struct Segment {
  TextRange range;
  bool is_match;
};

// Covers all of `text` with matches and what lies between them.
std::vector<Segment> CoverWithMatches(std::string_view text, const SplitPattern& pattern) {
  std::vector<Segment> segments;
  size_t at = 0;
  for (const TextRange& match : pattern.FindAll(text)) {
    if (at != match.begin) segments.push_back({{at, match.begin}, false});
    segments.push_back({match, true});
    at = match.end;
  }
  if (at != text.size()) segments.push_back({{at, text.size()}, false});
  return segments;
}

// Joins each match with its neighbour as the behavior says; kRemoved drops the matches.
std::vector<TextRange> JoinSegments(std::vector<Segment> segments, SplitBehavior behavior) {
  std::vector<TextRange> ranges;
  const bool backwards = behavior == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(segments.begin(), segments.end());
  bool previous_is_match = false;
  for (const auto& [range, is_match] : segments) {
    if (behavior == SplitBehavior::kRemoved && is_match) continue;
    const bool merges = behavior == SplitBehavior::kContiguous ? is_match == previous_is_match
                        : behavior == SplitBehavior::kMergedWithPrevious || backwards
                            ? is_match && !previous_is_match
                            : false;
    previous_is_match = is_match;
    if (!merges || ranges.empty()) {
      ranges.push_back(range);
    } else if (backwards) {
      ranges.back().begin = range.begin;
    } else {
      ranges.back().end = range.end;
    }
  }
  if (backwards) std::reverse(ranges.begin(), ranges.end());
  std::erase_if(ranges, [](const TextRange& range) { return range.begin == range.end; });
  return ranges;
}

}  // namespace

struct Pretokenizer::Step {
  bool add_prefix_space = false;
  std::optional<SplitPattern> pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;

  // Puts a space before every piece that does not begin with one.
  void AddPrefixSpaces(Pieces* pieces) const {
    Pieces spaced;
    for (const TextRange& range : pieces->ranges) {
      const size_t begin = spaced.text.size();
      if (pieces->text[range.begin] != ' ') spaced.text.push_back(' ');
      spaced.text.append(pieces->text, range.begin, range.end - range.begin);
      spaced.ranges.push_back({begin, spaced.text.size()});
    }
    *pieces = std::move(spaced);
  }

  void Cut(Pieces* pieces) const {
    std::vector<TextRange> ranges;
    for (const TextRange& piece : pieces->ranges) {
      const std::string_view text(pieces->text.data() + piece.begin, piece.end - piece.begin);
      std::vector<Segment> segments = CoverWithMatches(text, *pattern);
      for (Segment& segment : segments) segment.is_match ^= invert;
      for (const TextRange& range : JoinSegments(std::move(segments), behavior)) {
        ranges.push_back({piece.begin + range.begin, piece.begin + range.end});
      }
    }
    pieces->ranges = std::move(ranges);
  }
};

Pretokenizer::Pretokenizer() = default;
Pretokenizer::~Pretokenizer() = default;
Pretokenizer::Pretokenizer(Pretokenizer&&) noexcept = default;
Pretokenizer& Pretokenizer::operator=(Pretokenizer&&) noexcept = default;

Pretokenizer Pretokenizer::FromJson(const Json& config, const std::string& where) {
  Pretokenizer pretokenizer;
  if (!config.is_null()) pretokenizer.Append(config, where);
  return pretokenizer;
}

void Pretokenizer::Append(const Json& config, const std::string& where) {
  const std::string type = config.is_object() ? config.value("type", "") : "";
  auto step = std::make_unique<Step>();
  if (type == "Sequence" && config.contains("pretokenizers") &&
      config["pretokenizers"].is_array()) {
    for (const Json& part : config["pretokenizers"]) Append(part, where);
    return;
  }
  if (type == "ByteLevel") {
    has_byte_level_ = true;
    step->add_prefix_space = config.value("add_prefix_space", true);
    if (config.value("use_regex", true))
      step->pattern = SplitPattern::FromRegex(kGpt2Pattern, where);
  } else if (type == "Split" && config.contains("pattern") && config["pattern"].is_object()) {
    const Json& pattern = config["pattern"];
    step->pattern = pattern.contains("String")
                        ? SplitPattern::FromLiteral(pattern.value("String", ""), where)
                        : SplitPattern::FromRegex(pattern.value("Regex", ""), where);
    step->behavior = ParseBehavior(config.value("behavior", ""), where);
    step->invert = config.value("invert", false);
  } else {
    throw Error(
        ErrorCode::kData,
        {.where = where,
         .what = "this pre_tokenizer is not supported",
         .expected = "Split, ByteLevel or a Sequence of them",
         .found = type.empty() || type == "Split" || type == "Sequence" ? DumpJson(config) : type,
         .todo = "Use a model with a byte-level BPE tokenizer."});
  }
  steps_.push_back(std::move(step));
}

Pieces Pretokenizer::Apply(std::string text) const {
  Pieces pieces{std::move(text), {}};
  if (!pieces.text.empty()) pieces.ranges.push_back({0, pieces.text.size()});
  for (const auto& step : steps_) {
    if (step->add_prefix_space) step->AddPrefixSpaces(&pieces);
    if (step->pattern) step->Cut(&pieces);
  }
  return pieces;
}

}  // namespace quatrain
