#include "text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cctype>
#include <optional>
#include <utility>

#include "base/error.h"
#include "text/utf8.h"

namespace quatrain {
namespace {

// Unicode White_Space and Oniguruma's word characters, as the inside of a class.
constexpr std::string_view kSpaceMembers = "\\p{Z}\\t-\\r\\x{85}";
constexpr std::string_view kWordMembers = "\\p{L}\\p{M}\\p{N}\\p{Pc}";
constexpr std::string_view kHexDigitMembers = "0-9A-Fa-f";

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDataDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct CompileContextDeleter {
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};
using CodePtr = std::unique_ptr<pcre2_code, CodeDeleter>;
using MatchDataPtr = std::unique_ptr<pcre2_match_data, MatchDataDeleter>;
using CompileContextPtr = std::unique_ptr<pcre2_compile_context, CompileContextDeleter>;

std::string PcreMessage(int error) {
  char buffer[256] = "";
  pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(buffer), sizeof(buffer));
  return buffer;
}

struct CompileFailure {
  std::string message;
  size_t offset = 0;
};

CodePtr Compile(const std::string& pattern, CompileFailure* failure) {
  // Ruby: ^ and $ look at lines, and a line ends with \n.
  constexpr uint32_t kOptions =
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_UTF_CHECK;
  const CompileContextPtr context(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  CodePtr code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions,
                             &error, &offset, context.get()));
  if (code == nullptr) *failure = {PcreMessage(error), offset};
  return code;
}

[[noreturn]] void ThrowUnsupported(const std::string& where, std::string_view regex,
                                   const std::string& what) {
  throw Error(ErrorCode::kData,
              {.where = where,
               .what = what,
               .found = "the pattern " + std::string(regex),
               .todo = "Use a tokenizer.json with a pattern that PCRE2 can run."});
}

// Walks over the pattern once, copying it except for the escapes that mean something else in PCRE2.
class Translator {
 public:
  Translator(std::string_view regex, const std::string& where) : regex_(regex), where_(where) {}

  std::string Run() {
    while (at_ < regex_.size()) {
      if (regex_[at_] == '\\') {
        TranslateEscape();
      } else if (in_class_) {
        CopyInClass();
      } else {
        if (regex_[at_] == '[') EnterClass();
        if (!in_class_) out_.push_back(regex_[at_++]);
      }
    }
    return std::move(out_);
  }

 private:
  // Copies "[", "[^" and a "]" that stands first, where it is a member.
  void EnterClass() {
    in_class_ = true;
    out_.push_back(regex_[at_++]);
    if (at_ < regex_.size() && regex_[at_] == '^') out_.push_back(regex_[at_++]);
    if (at_ < regex_.size() && regex_[at_] == ']') {
      out_.append("\\]");
      ++at_;
    }
  }

  void CopyInClass() {
    const char c = regex_[at_];
    if (c == '[') {
      const size_t close = regex_.find(":]", at_);
      if (regex_.substr(at_, 2) != "[:" || close == std::string_view::npos) {
        ThrowUnsupported(where_, regex_, "a class within a class is not supported");
      }
      out_.append(regex_.substr(at_, close + 2 - at_));
      at_ = close + 2;
      return;
    }
    if (regex_.substr(at_, 2) == "&&") {
      ThrowUnsupported(where_, regex_, "an intersection of classes (&&) is not supported");
    }
    if (c == ']') in_class_ = false;
    out_.push_back(c);
    ++at_;
  }

  void TranslateEscape() {
    const char kind = at_ + 1 < regex_.size() ? regex_[at_ + 1] : '\0';
    if (kind == 'p' || kind == 'P') return TranslateProperty();
    if (const auto members = ClassEscape(kind)) {
      const bool negated = kind >= 'A' && kind <= 'Z';
      if (negated && in_class_) {
        ThrowUnsupported(where_, regex_,
                         std::string("\\") + kind + " within a class is not supported");
      }
      out_.append(in_class_ ? "" : negated ? "[^" : "[").append(*members);
      if (!in_class_) out_.push_back(']');
    } else {
      out_.append(regex_.substr(at_, 2));
    }
    at_ += 2;
  }

  static std::optional<std::string_view> ClassEscape(char kind) {
    switch (kind) {
      case 's':
      case 'S':
        return kSpaceMembers;
      case 'w':
      case 'W':
        return kWordMembers;
      case 'h':
      case 'H':
        return kHexDigitMembers;
      default:
        return std::nullopt;
    }
  }

  // \p{Han} is the script there, script extensions in PCRE2; \p{L} and the like are the same.
  void TranslateProperty() {
    const size_t close = regex_.find('}', at_);
    const size_t name_at = at_ + 3;
    if (name_at >= regex_.size() || regex_[at_ + 2] != '{' || close == std::string_view::npos) {
      out_.append(regex_.substr(at_, 2));
      at_ += 2;
      return;
    }
    const bool negated = regex_[name_at] == '^';
    const std::string name(regex_.substr(name_at + negated, close - name_at - negated));
    CompileFailure ignored;
    const bool is_script = name.size() > 2 && name.find_first_of(":=") == std::string::npos &&
                           Compile("\\p{sc:" + name + "}", &ignored) != nullptr;
    out_.append(regex_.substr(at_, 3)).append(negated ? "^" : "").append(is_script ? "sc:" : "");
    out_.append(name).push_back('}');
    at_ = close + 1;
  }

  std::string_view regex_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

struct SplitPattern::Compiled {
  CodePtr code;
  std::string source;  // as the file has it, for messages
};

SplitPattern::SplitPattern(std::unique_ptr<const Compiled> compiled)
    : compiled_(std::move(compiled)) {}
SplitPattern::~SplitPattern() = default;
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) noexcept = default;

std::string TranslateOniguruma(std::string_view regex, const std::string& where) {
  return Translator(regex, where).Run();
}

SplitPattern SplitPattern::FromRegex(std::string_view regex, const std::string& where) {
  if (!IsValidUtf8(regex)) ThrowUnsupported(where, "(not UTF-8)", "the pattern is not UTF-8");
  CompileFailure failure;
  CodePtr code = Compile(TranslateOniguruma(regex, where), &failure);
  if (code == nullptr) {
    ThrowUnsupported(where, regex,
                     fmt::format("the Split pattern does not compile ({} at byte {})",
                                 failure.message, failure.offset));
  }
  // Without JIT support in the library the interpreter runs; the matches are the same.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return SplitPattern(
      std::make_unique<const Compiled>(Compiled{std::move(code), std::string(regex)}));
}

SplitPattern SplitPattern::FromLiteral(std::string_view literal, const std::string& where) {
  if (literal.empty()) ThrowUnsupported(where, literal, "the Split pattern is empty");
  std::string regex;
  for (const char c : literal) {
    if (std::ispunct(static_cast<unsigned char>(c))) regex.push_back('\\');
    regex.push_back(c);
  }
  return FromRegex(regex, where);
}

std::vector<TextRange> SplitPattern::FindAll(std::string_view text) const {
  const MatchDataPtr data(pcre2_match_data_create(1, nullptr));
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  std::vector<TextRange> matches;
  std::optional<size_t> last_end;
  for (size_t start = 0; start <= text.size();) {
    int status = pcre2_match(compiled_->code.get(), subject, text.size(), start, PCRE2_NO_UTF_CHECK,
                             data.get(), nullptr);
    if (status == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its stack on the heap
      status = pcre2_match(compiled_->code.get(), subject, text.size(), start,
                           PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(), nullptr);
    }
    if (status == PCRE2_ERROR_NOMATCH) break;
    if (status < 0) {
      throw Error(ErrorCode::kResource,
                  {.where = "the Split pattern " + compiled_->source,
                   .what = fmt::format("cannot cut a text of {} bytes", text.size()),
                   .found = PcreMessage(status),
                   .todo = "Cut the text into shorter pieces."});
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    const TextRange match{bounds[0], bounds[1]};
    if (match.begin == match.end && last_end == match.end) {  // no endless loop on empty matches
      start += start < text.size() ? DecodeUtf8At(text, start).num_bytes : 1;
      continue;
    }
    matches.push_back(match);
    start = match.end;
    last_end = match.end;
  }
  return matches;
}

}  // namespace quatrain
