#include "rl/answer_structure.h"

#include <algorithm>

namespace quatrain {
namespace {

using Kind = AnswerStructure::Kind;

constexpr size_t kMaxParts = 64;
constexpr int kMaxDepth = 8;

std::string_view Trim(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  return text;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// A comma of "1,234": behind one to three digits, before exactly three.
bool IsThousandsComma(std::string_view text, size_t at) {
  size_t before = 0, after = 0;
  while (before < at && IsDigit(text[at - 1 - before])) ++before;
  while (at + 1 + after < text.size() && IsDigit(text[at + 1 + after])) ++after;
  return before >= 1 && before <= 3 && after == 3;
}

// Where the brackets open before `at` have all closed; \{ counts like {.
class Depth {
 public:
  void Pass(char c) {
    if (c == '(' || c == '[' || c == '{') ++depth_;
    if (c == ')' || c == ']' || c == '}') --depth_;
  }
  bool IsOutside() const { return depth_ == 0; }

 private:
  int depth_ = 0;
};

// Cuts at `separator` outside of brackets. With "," thousands separators do not cut unless the text
// stands in brackets.
std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    bool has_thousands) {
  std::vector<std::string_view> parts;
  Depth depth;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    depth.Pass(text[i]);
    if (!depth.IsOutside() || text.substr(i, separator.size()) != separator) continue;
    if (has_thousands && IsThousandsComma(text, i)) continue;
    parts.push_back(Trim(text.substr(begin, i - begin)));
    begin = i + separator.size();
    i = begin - 1;
  }
  parts.push_back(Trim(text.substr(begin)));
  return parts;
}

// Whether the bracket that opens the text closes at its end.
bool IsWrapped(std::string_view text) {
  Depth depth;
  for (size_t i = 0; i < text.size(); ++i) {
    depth.Pass(text[i]);
    if (depth.IsOutside() && i > 0 && i + 1 < text.size()) return false;
  }
  return depth.IsOutside();
}

AnswerStructure Read(std::string_view text, int depth);

AnswerStructure Join(Kind kind, std::string_view text, const std::vector<std::string_view>& parts,
                     int depth) {
  AnswerStructure structure{.kind = kind, .text = std::string(text)};
  if (parts.size() > kMaxParts) {
    structure.kind = Kind::kText;
    return structure;
  }
  for (const std::string_view part : parts) structure.parts.push_back(Read(part, depth + 1));
  return structure;
}

// "\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"; kText if it is no whole matrix.
AnswerStructure ReadMatrix(std::string_view text, int depth) {
  AnswerStructure matrix{.kind = Kind::kText, .text = std::string(text)};
  constexpr std::string_view kBegin = "\\begin{";
  const size_t close = text.find('}');
  if (!text.starts_with(kBegin) || close == std::string_view::npos) return matrix;
  const std::string_view name = text.substr(kBegin.size(), close - kBegin.size());
  const std::string end = "\\end{" + std::string(name) + "}";
  if (!name.ends_with("matrix") || !text.ends_with(end)) return matrix;
  std::string_view body = Trim(text.substr(close + 1, text.size() - close - 1 - end.size()));
  if (body.find("\\begin") != std::string_view::npos) return matrix;
  if (body.ends_with("\\\\")) body.remove_suffix(2);
  size_t num_columns = 0;
  std::vector<AnswerStructure> cells;
  for (const std::string_view row : Split(body, "\\\\", false)) {
    const std::vector<std::string_view> columns = Split(row, "&", false);
    if (num_columns != 0 && columns.size() != num_columns) return matrix;
    num_columns = columns.size();
    for (const std::string_view cell : columns) cells.push_back(Read(cell, depth + 1));
  }
  if (cells.size() > kMaxParts) return matrix;
  matrix.kind = Kind::kMatrix;
  matrix.brackets = name == "bmatrix" ? "pmatrix" : std::string(name);
  matrix.num_columns = num_columns;
  matrix.parts = std::move(cells);
  return matrix;
}

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool IsInequality(std::string_view text) {
  constexpr std::string_view kSigns[] = {"<",        ">",     "\\le ",   "\\ge ",  "\\ne ",
                                         "\\le-",    "\\ge-", "\\lt",    "\\gt",   "\\equiv",
                                         "\\approx", "\\sim", "\\ldots", "\\dots", "..."};
  for (const std::string_view sign : kSigns) {
    if (Has(text, sign)) return true;
  }
  for (const std::string_view sign : {"\\le", "\\ge", "\\ne"}) {  // before a digit
    const size_t at = text.find(sign);
    if (at != std::string_view::npos && at + 3 < text.size() && IsDigit(text[at + 3])) return true;
  }
  return false;
}

std::string Replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string result(text);
  for (size_t at = result.find(from); at != std::string::npos; at = result.find(from, at + 1))
    result.replace(at, from.size(), to);
  return result;
}

// a \pm b: both values. With \mp the signs go together.
AnswerStructure ReadBothSigns(std::string_view text, int depth) {
  AnswerStructure both{.kind = Kind::kUnordered, .text = std::string(text)};
  const std::string above = Replaced(Replaced(text, "\\pm", "+"), "\\mp", "-");
  const std::string below = Replaced(Replaced(text, "\\pm", "-"), "\\mp", "+");
  both.parts = {Read(above, depth + 1), Read(below, depth + 1)};
  return both;
}

AnswerStructure Read(std::string_view text, int depth) {
  text = Trim(text);
  AnswerStructure plain{.kind = Kind::kText, .text = std::string(text)};
  if (depth > kMaxDepth || text.empty()) return plain;
  if (Has(text, "\\begin{")) return ReadMatrix(text, depth);
  if (IsInequality(text)) return plain;
  const std::vector<std::string_view> sets = Split(text, "\\cup", false);
  if (sets.size() > 1) return Join(Kind::kUnion, text, sets, depth);
  const std::vector<std::string_view> items = Split(text, ",", true);
  if (items.size() > 1) {
    AnswerStructure list = Join(Kind::kUnordered, text, items, depth);
    // "x = 1, x = 2" and "1, 2" are one list.
    for (AnswerStructure& part : list.parts) {
      const size_t sign = part.text.find('=');
      const bool is_named =
          part.kind == Kind::kEquation && Trim(part.text.substr(0, sign)).size() <= 2;
      if (is_named) part = Read(std::string(part.text.substr(sign + 1)), depth + 1);
    }
    return list;
  }
  if (text.starts_with("\\{") && text.ends_with("\\}") && IsWrapped(text.substr(1))) {
    const std::string_view inside = text.substr(2, text.size() - 4);
    return Join(Kind::kUnordered, text, Split(inside, ",", false), depth);
  }
  const bool is_bracketed = (text[0] == '(' || text[0] == '[') &&
                            (text.back() == ')' || text.back() == ']') && IsWrapped(text);
  if (is_bracketed) {
    const std::vector<std::string_view> parts = Split(text.substr(1, text.size() - 2), ",", false);
    if (parts.size() > 1) {
      AnswerStructure tuple = Join(Kind::kOrdered, text, parts, depth);
      tuple.brackets = {text[0], text.back()};
      return tuple;
    }
  }
  if (Has(text, "\\pm") || Has(text, "\\mp")) return ReadBothSigns(text, depth);
  const bool is_equation = std::count(text.begin(), text.end(), '=') == 1;
  plain.kind = is_equation ? Kind::kEquation : Kind::kValue;
  return plain;
}

AnswerComparison CompareTexts(const std::string& a, const std::string& b) {
  return SpellingKey(a) == SpellingKey(b) ? AnswerComparison::kSame
                                          : AnswerComparison::kNotComparable;
}

// left - right of an equation.
std::unique_ptr<MathNode> DifferenceOf(const std::string& equation) {
  const size_t sign = equation.find('=');
  return ParseMath("(" + equation.substr(0, sign) + ")-(" + equation.substr(sign + 1) + ")");
}

AnswerComparison CompareEquations(const std::string& a, const std::string& b) {
  const auto left = DifferenceOf(a), right = DifferenceOf(b);
  return CompareProportional(left.get(), right.get());
}

AnswerComparison CompareOrdered(const AnswerStructure& a, const AnswerStructure& b) {
  if (a.parts.size() != b.parts.size() || a.brackets != b.brackets ||
      a.num_columns != b.num_columns) {
    return AnswerComparison::kDifferent;
  }
  AnswerComparison result = AnswerComparison::kSame;
  for (size_t i = 0; i < a.parts.size(); ++i) {
    const AnswerComparison part = CompareStructures(a.parts[i], b.parts[i]);
    if (part == AnswerComparison::kDifferent) return part;
    if (part == AnswerComparison::kNotComparable) result = part;
  }
  return result;
}

AnswerComparison CompareUnordered(const AnswerStructure& a, const AnswerStructure& b) {
  if (a.parts.size() != b.parts.size()) return AnswerComparison::kDifferent;
  std::vector<bool> is_taken(b.parts.size(), false);
  bool has_doubt = false, is_same = true;
  for (const AnswerStructure& part : a.parts) {
    bool is_found = false;
    for (size_t j = 0; j < b.parts.size() && !is_found; ++j) {
      if (is_taken[j]) continue;
      const AnswerComparison comparison = CompareStructures(part, b.parts[j]);
      is_found = comparison == AnswerComparison::kSame;
      has_doubt |= comparison == AnswerComparison::kNotComparable;
      if (is_found) is_taken[j] = true;
    }
    is_same &= is_found;
  }
  if (is_same) return AnswerComparison::kSame;
  return has_doubt ? AnswerComparison::kNotComparable : AnswerComparison::kDifferent;
}

// Whether every value in it can be read.
bool IsUnderstood(const AnswerStructure& answer) {
  if (answer.kind == Kind::kValue) return ParseMath(answer.text) != nullptr;
  return !answer.parts.empty() &&
         std::all_of(answer.parts.begin(), answer.parts.end(), IsUnderstood);
}

// "speed = 5" or "f(x) = x^2" against a bare value: the right side is the answer. Not of "2x+3 =
// 7".
bool IsNamed(const AnswerStructure& answer) {
  const std::string left = answer.text.substr(0, answer.text.find('='));
  return !left.empty() && !IsDigit(left[0]) && left.find_first_of("+-*/^") == std::string::npos &&
         !Has(left, "\\frac") && !Has(left, "\\cdot");
}

AnswerComparison CompareWithEquation(const AnswerStructure& value,
                                     const AnswerStructure& equation) {
  if (!IsNamed(equation)) return AnswerComparison::kNotComparable;
  return CompareExpressions(value.text, equation.text.substr(equation.text.find('=') + 1));
}

}  // namespace

std::string SpellingKey(std::string_view text) {
  std::string key;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool is_script = (text[i] == '^' || text[i] == '_') && i + 3 < text.size() &&
                           text[i + 1] == '{' && text[i + 3] == '}';
    if (is_script) {
      key += {text[i], text[i + 2]};
      i += 3;
    } else if (text[i] != ' ') {
      key += text[i];
    } else if (i > 0 && i + 1 < text.size() && IsDigit(text[i - 1]) && IsDigit(text[i + 1])) {
      key += ' ';  // "3 1/2" is not "31/2"
    }
  }
  return key;
}

AnswerStructure ReadStructure(std::string_view text) { return Read(text, 0); }

AnswerComparison CompareStructures(const AnswerStructure& a, const AnswerStructure& b) {
  if (SpellingKey(a.text) == SpellingKey(b.text)) return AnswerComparison::kSame;
  if (a.kind == Kind::kValue && b.kind == Kind::kValue) return CompareExpressions(a.text, b.text);
  if (a.kind == Kind::kValue && b.kind == Kind::kEquation) return CompareWithEquation(a, b);
  if (a.kind == Kind::kEquation && b.kind == Kind::kValue) return CompareWithEquation(b, a);
  if (a.kind == Kind::kEquation && b.kind == Kind::kEquation)
    return CompareEquations(a.text, b.text);
  if (a.kind == Kind::kText || b.kind == Kind::kText) return CompareTexts(a.text, b.text);
  if (a.kind != b.kind) {
    const bool is_clear = IsUnderstood(a) && IsUnderstood(b);
    return is_clear ? AnswerComparison::kDifferent : AnswerComparison::kNotComparable;
  }
  const bool is_ordered = a.kind == Kind::kOrdered || a.kind == Kind::kMatrix;
  return is_ordered ? CompareOrdered(a, b) : CompareUnordered(a, b);
}

}  // namespace quatrain
