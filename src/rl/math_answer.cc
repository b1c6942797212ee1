#include "rl/math_answer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "rl/rational.h"

namespace quatrain {
namespace {

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

// Runs of white space become one space; none at the ends.
std::string Squeeze(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const bool is_space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!is_space) {
      result += c;
    } else if (!result.empty() && result.back() != ' ') {
      result += ' ';
    }
  }
  if (!result.empty() && result.back() == ' ') result.pop_back();
  return result;
}

std::string WithoutSpaces(std::string text) {
  std::erase(text, ' ');
  return text;
}

// Position behind the brace that closes the one at `open`; npos if none does.
size_t BehindClosingBrace(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i + 1;
  }
  return std::string_view::npos;
}

// "\text{five}" -> "five"; "5\text{ cm}" -> "5".
std::string OpenTextCommand(const std::string& text) {
  constexpr std::string_view kText = "\\text{";
  if (text.starts_with(kText) && BehindClosingBrace(text, kText.size() - 1) == text.size()) {
    return Squeeze(text.substr(kText.size(), text.size() - kText.size() - 1));
  }
  const size_t unit = text.find("\\text{ ");
  return unit == std::string::npos || unit == 0 ? text : Squeeze(text.substr(0, unit));
}

// "x = 5" -> "5" when at most two characters name the variable.
std::string WithoutVariable(const std::string& text) {
  const size_t sign = text.find('=');
  if (sign == std::string::npos || text.find('=', sign + 1) != std::string::npos) return text;
  const std::string name = Squeeze(text.substr(0, sign));
  return name.empty() || name.size() > 2 ? text : Squeeze(text.substr(sign + 1));
}

void BraceRoots(std::string& text) {
  constexpr std::string_view kRoot = "\\sqrt";
  for (size_t at = text.find(kRoot); at != std::string::npos; at = text.find(kRoot, at + 1)) {
    const size_t argument = at + kRoot.size();
    const char c = argument < text.size() ? text[argument] : '{';
    if (c != '{' && c != '[' && c != ' ') text.replace(argument, 1, {'{', c, '}'});
  }
}

}  // namespace

std::optional<std::string> LastBoxed(std::string_view text) {
  constexpr std::string_view kBoxed = "\\boxed";
  const size_t at = text.rfind(kBoxed);
  if (at == std::string_view::npos) return std::nullopt;
  const size_t open = at + kBoxed.size();
  if (open >= text.size() || text[open] != '{') return std::nullopt;
  const size_t end = BehindClosingBrace(text, open);
  if (end == std::string_view::npos) return std::nullopt;
  return std::string(text.substr(open + 1, end - open - 2));
}

std::string NormalizeMathAnswer(std::string_view answer) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 20> kReplacements = {{
      {"\xE2\x88\x92", "-"},  // U+2212, the minus sign
      {"\\!", ""},
      {"\\\\", "\\"},
      {"{,}", ","},
      {"\\,", " "},
      {"\\;", " "},
      {"\\:", " "},
      {"\\ ", " "},
      {"~", " "},
      {"\\tfrac", "\\frac"},
      {"\\dfrac", "\\frac"},
      {"\\cfrac", "\\frac"},
      {"\\left", ""},
      {"\\right", ""},
      {"^{\\circ}", ""},
      {"^\\circ", ""},
      {"\\$", ""},
      {"$", ""},
      {"\\%", ""},
      {"%", ""},
  }};
  std::string text(answer);
  for (const auto& [from, to] : kReplacements) ReplaceAll(text, from, to);
  text = WithoutVariable(OpenTextCommand(Squeeze(text)));
  BraceRoots(text);
  return text;
}

AnswerComparison CompareMathAnswers(std::string_view answer, std::string_view label) {
  const std::string a = NormalizeMathAnswer(answer);
  const std::string b = NormalizeMathAnswer(label);
  const std::optional<Rational> a_value = ParseRational(a);
  const std::optional<Rational> b_value = ParseRational(b);
  if (a_value && b_value) {
    return SameValue(*a_value, *b_value) ? AnswerComparison::kSame : AnswerComparison::kDifferent;
  }
  if (a.empty() || b.empty()) return AnswerComparison::kNotComparable;
  return WithoutSpaces(a) == WithoutSpaces(b) ? AnswerComparison::kSame
                                              : AnswerComparison::kNotComparable;
}

}  // namespace quatrain
