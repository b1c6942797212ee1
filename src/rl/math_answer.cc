#include "rl/math_answer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "rl/answer_structure.h"

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

// Position behind the brace that closes the one at `open`; npos if none does.
size_t BehindClosingBrace(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i + 1;
  }
  return std::string_view::npos;
}

constexpr std::array<std::string_view, 4> kTextCommands = {"\\text{", "\\mathrm{", "\\mbox{",
                                                           "\\textrm{"};

// "^2", "^{3}" or nothing: what may stand behind a unit.
bool IsUnitPower(std::string_view text) {
  if (text.empty()) return true;
  if (text[0] != '^') return false;
  text.remove_prefix(1);
  if (text.starts_with('{') && text.ends_with('}')) text = text.substr(1, text.size() - 2);
  return text.size() == 1 && text[0] >= '0' && text[0] <= '9';
}

// "5\text{ cm}^2" -> "5": the first text command behind a value that ends the answer.
std::string WithoutUnit(const std::string& text) {
  for (const std::string_view command : kTextCommands) {
    for (size_t at = text.find(command, 1); at != std::string::npos;
         at = text.find(command, at + 1)) {
      const size_t end = BehindClosingBrace(text, at + command.size() - 1);
      if (end == std::string::npos || !IsUnitPower(Squeeze(text.substr(end)))) continue;
      const std::string before = Squeeze(text.substr(0, at));
      const size_t inside = at + command.size();
      const bool is_constant = end - inside == 2 && (text[inside] == 'e' || text[inside] == 'i');
      if (!is_constant && before.find_first_of("0123456789}") != std::string::npos) return before;
    }
  }
  return text;
}

// "5 cm" -> "5", for the units that the field's graders know.
std::string WithoutUnitWord(const std::string& text) {
  static constexpr std::array<std::string_view, 24> kUnits = {
      "degree", "degrees", "cm",     "centimeters", "meter", "meters", "mile",    "miles",
      "second", "seconds", "minute", "minutes",     "hour",  "hours",  "day",     "days",
      "week",   "weeks",   "feet",   "foot",        "inch",  "inches", "dollars", "units"};
  const size_t space = text.rfind(' ');
  if (space == std::string::npos || space == 0) return text;
  const char before = text[space - 1];
  const bool is_value = (before >= '0' && before <= '9') || before == '}' || before == ')';
  const std::string_view last = std::string_view(text).substr(space + 1);
  const bool is_unit = std::find(kUnits.begin(), kUnits.end(), last) != kUnits.end();
  return is_value && is_unit ? text.substr(0, space) : text;
}

// "\text{five}" -> "five".
std::string OpenTextCommand(const std::string& text) {
  for (const std::string_view command : kTextCommands) {
    if (text.starts_with(command) && BehindClosingBrace(text, command.size() - 1) == text.size()) {
      return Squeeze(text.substr(command.size(), text.size() - command.size() - 1));
    }
  }
  return text;
}

// "2 \text{ and } 3", "2 or 3" -> "2 , 3".
void JoinWithCommas(std::string& text) {
  for (const char* word : {"and", "or"}) {
    for (const std::string_view command : kTextCommands) {
      for (const char* form : {"{}", "{} ", " {}", " {} "}) {
        std::string inside(form);
        inside.replace(inside.find("{}"), 2, word);
        ReplaceAll(text, std::string(command) + inside + "}", " , ");
      }
    }
    ReplaceAll(text, std::string(" ") + word + " ", " , ");
  }
  ReplaceAll(text, ", ,", ",");
  ReplaceAll(text, ",  ,", ",");
}

// "x = 5" -> "5" when at most two characters name the variable; "x \in A" -> "A".
std::string WithoutVariable(const std::string& text) {
  for (const std::string_view sign : {std::string_view("="), std::string_view("\\in ")}) {
    const size_t at = text.find(sign);
    if (at == std::string::npos || text.find(sign, at + 1) != std::string::npos) continue;
    const std::string name = Squeeze(text.substr(0, at));
    const bool is_name = !name.empty() && name.size() <= 2 && (name[0] < '0' || name[0] > '9');
    if (is_name) return Squeeze(text.substr(at + sign.size()));
  }
  return text;
}

void BraceRoots(std::string& text) {
  constexpr std::string_view kRoot = "\\sqrt";
  for (size_t at = text.find(kRoot); at != std::string::npos; at = text.find(kRoot, at + 1)) {
    const size_t argument = at + kRoot.size();
    const char c = argument < text.size() ? text[argument] : '{';
    if (c != '{' && c != '[' && c != ' ') text.replace(argument, 1, {'{', c, '}'});
  }
}

// Spelling alone; "x =" stays.
std::string Respell(std::string_view answer) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 36> kReplacements = {{
      {"\xE2\x88\x92", "-"},  // U+2212, the minus sign
      {"\xE2\x89\xA4", "\\le "},
      {"\xE2\x89\xA5", "\\ge "},
      {"\xE2\x88\x9E", "\\infty "},
      {"\xC2\xB1", "\\pm "},
      {"\xC2\xB0", ""},
      {"\\!", ""},
      {"{,}", ","},
      {"\\,", " "},
      {"\\;", " "},
      {"\\:", " "},
      {"\\ ", " "},
      {"\\quad", " "},
      {"~", " "},
      {"\\tfrac", "\\frac"},
      {"\\dfrac", "\\frac"},
      {"\\cfrac", "\\frac"},
      {"\\dbinom", "\\binom"},
      {"\\tbinom", "\\binom"},
      {"\\leq", "\\le"},
      {"\\geq", "\\ge"},
      {"\\neq", "\\ne"},
      {"\\lbrace", "\\{"},
      {"\\rbrace", "\\}"},
      {"\\left", ""},
      {"\\right", ""},
      {"^{\\circ}", ""},
      {"^\\circ", ""},
      {"\\displaystyle", ""},
      {"\\$", ""},
      {"$", ""},
      {"\\%", ""},
      {"%", ""},
      {"<=", "\\le "},
      {">=", "\\ge "},
      {"\\infinity", "\\infty"},
  }};
  std::string text(answer);
  const bool has_rows = text.find("\\begin{") != std::string::npos;
  ReplaceAll(text, "\\\\", has_rows ? "\x01" : "\\");  // rows must outlive "\\ "
  for (const auto& [from, to] : kReplacements) ReplaceAll(text, from, to);
  ReplaceAll(text, "\x01", "\\\\");
  text = Squeeze(text);
  if (text.size() > 1 && text.ends_with('.')) text.pop_back();
  JoinWithCommas(text);
  text = WithoutUnitWord(WithoutUnit(OpenTextCommand(Squeeze(text))));
  BraceRoots(text);
  return text;
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
  return WithoutVariable(Respell(answer));
}

AnswerComparison CompareMathAnswers(std::string_view answer, std::string_view label) {
  const std::string a = NormalizeMathAnswer(answer), b = NormalizeMathAnswer(label);
  if (a.empty() || b.empty()) return AnswerComparison::kNotComparable;
  if (SpellingKey(a) == SpellingKey(b)) return AnswerComparison::kSame;
  return CompareStructures(ReadStructure(a), ReadStructure(b));
}

}  // namespace quatrain
