#include "rl/rational.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace quatrain {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

std::string WithoutLeadingZeros(std::string digits) {
  const size_t first = digits.find_first_not_of('0');
  return first == std::string::npos ? "0" : digits.substr(first);
}

// Schoolbook, decimal digit by digit: operands are at most a few thousand digits long.
std::string Multiply(std::string_view a, std::string_view b) {
  std::vector<uint32_t> sums(a.size() + b.size(), 0);  // least significant first
  for (size_t i = 0; i < a.size(); ++i) {
    const auto digit = static_cast<uint32_t>(a[a.size() - 1 - i] - '0');
    for (size_t j = 0; j < b.size(); ++j) {
      sums[i + j] += digit * static_cast<uint32_t>(b[b.size() - 1 - j] - '0');
    }
  }
  std::string digits(sums.size(), '0');
  uint32_t carry = 0;
  for (size_t i = 0; i < sums.size(); ++i) {
    carry += sums[i];
    digits[digits.size() - 1 - i] = static_cast<char>('0' + carry % 10);
    carry /= 10;
  }
  return WithoutLeadingZeros(std::move(digits));
}

std::string Sum(std::string_view a, std::string_view b) {
  std::string digits(std::max(a.size(), b.size()) + 1, '0');
  int carry = 0;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i < a.size()) carry += a[a.size() - 1 - i] - '0';
    if (i < b.size()) carry += b[b.size() - 1 - i] - '0';
    digits[digits.size() - 1 - i] = static_cast<char>('0' + carry % 10);
    carry /= 10;
  }
  return WithoutLeadingZeros(std::move(digits));
}

// A reader over the text; each Read leaves the position alone when it finds nothing.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  bool AtEnd() const { return position_ == text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[position_]; }

  bool Take(std::string_view token) {
    if (text_.substr(position_, token.size()) != token) return false;
    position_ += token.size();
    return true;
  }

  void SkipSpaces() {
    while (Peek() == ' ') ++position_;
  }

  // "+", "-" or nothing; true for minus.
  bool ReadSign() {
    const bool is_minus = Take("-");
    if (!is_minus) Take("+");
    SkipSpaces();
    return is_minus;
  }

  // Digits, perhaps grouped in threes, perhaps with a decimal point.
  std::optional<Rational> ReadDecimal() {
    const size_t start = position_;
    std::string whole = ReadGroupedDigits();
    std::string fraction;
    if (Take(".")) fraction = ReadDigits();
    if (whole.empty() && fraction.empty()) {
      position_ = start;
      return std::nullopt;
    }
    return Rational{.numerator = WithoutLeadingZeros(whole + fraction),
                    .denominator = "1" + std::string(fraction.size(), '0')};
  }

  // "\frac{a}{b}" or "\frac ab" with one digit for a part without braces.
  std::optional<Rational> ReadLatexFraction() {
    const size_t start = position_;
    if (Take("\\frac")) {
      SkipSpaces();
      const std::optional<Rational> a = ReadLatexArgument();
      SkipSpaces();
      const std::optional<Rational> b = a ? ReadLatexArgument() : std::nullopt;
      if (b && b->numerator != "0") return Quotient(*a, *b);
    }
    position_ = start;
    return std::nullopt;
  }

  static Rational Quotient(const Rational& a, const Rational& b) {
    Rational result{.is_negative = a.is_negative != b.is_negative,
                    .numerator = Multiply(a.numerator, b.denominator),
                    .denominator = Multiply(a.denominator, b.numerator)};
    if (result.numerator == "0") result.is_negative = false;
    return result;
  }

 private:
  std::string ReadDigits() {
    const size_t start = position_;
    while (IsDigit(Peek())) ++position_;
    return std::string(text_.substr(start, position_ - start));
  }

  std::string ReadGroupedDigits() {
    std::string digits = ReadDigits();
    if (digits.empty() || digits.size() > 3) return digits;
    const char separator = Peek();
    if (separator != ',' && separator != ' ') return digits;
    while (Peek() == separator && GroupFollows()) {
      ++position_;
      digits += ReadDigits();
    }
    return digits;
  }

  // Exactly three digits after the separator at the current position, and no fraction bar behind
  // them ("1 234/5" is a mixed number).
  bool GroupFollows() const {
    size_t end = position_ + 1;
    while (end < text_.size() && IsDigit(text_[end])) ++end;
    return end == position_ + 4 && (end == text_.size() || text_[end] != '/');
  }

  std::optional<Rational> ReadLatexArgument() {
    if (IsDigit(Peek())) {
      return Rational{.numerator = std::string(1, text_[position_++])};
    }
    if (!Take("{")) return std::nullopt;
    SkipSpaces();
    const bool is_negative = ReadSign();
    std::optional<Rational> value = ReadDecimal();
    SkipSpaces();
    if (!value || !Take("}")) return std::nullopt;
    value->is_negative = is_negative && value->numerator != "0";
    return value;
  }

  std::string_view text_;
  size_t position_ = 0;
};

// The unsigned number, up to the end of the text.
std::optional<Rational> ReadUnsigned(Reader& reader) {
  std::optional<Rational> fraction = reader.ReadLatexFraction();
  if (fraction) return reader.AtEnd() ? fraction : std::nullopt;
  const std::optional<Rational> first = reader.ReadDecimal();
  if (!first || reader.AtEnd()) return first;
  reader.SkipSpaces();
  if (reader.Take("/")) {
    reader.SkipSpaces();
    const std::optional<Rational> second = reader.ReadDecimal();
    if (!second || !reader.AtEnd() || second->numerator == "0") return std::nullopt;
    return Reader::Quotient(*first, *second);
  }
  if (first->denominator != "1") return std::nullopt;
  fraction = reader.ReadLatexFraction();  // a mixed number
  if (!fraction) {
    const std::optional<Rational> above = reader.ReadDecimal();
    if (!above || !reader.Take("/")) return std::nullopt;
    const std::optional<Rational> below = reader.ReadDecimal();
    if (!below || below->numerator == "0") return std::nullopt;
    fraction = Reader::Quotient(*above, *below);
  }
  if (!reader.AtEnd() || fraction->is_negative) return std::nullopt;
  fraction->numerator = Sum(fraction->numerator, Multiply(first->numerator, fraction->denominator));
  return fraction;
}

}  // namespace

bool SameValue(const Rational& a, const Rational& b) {
  return a.is_negative == b.is_negative &&
         Multiply(a.numerator, b.denominator) == Multiply(b.numerator, a.denominator);
}

std::optional<Rational> ParseRational(std::string_view text) {
  if (std::count_if(text.begin(), text.end(), IsDigit) >
      static_cast<std::ptrdiff_t>(kMaxRationalDigits)) {
    return std::nullopt;
  }
  Reader reader(text);
  const bool is_negative = reader.ReadSign();
  std::optional<Rational> value = ReadUnsigned(reader);
  if (!value) return std::nullopt;
  value->is_negative = (is_negative != value->is_negative) && value->numerator != "0";
  return value;
}

}  // namespace quatrain
