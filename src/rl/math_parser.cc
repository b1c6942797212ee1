#include "rl/math_parser.h"

#include <algorithm>
#include <utility>

namespace quatrain {
namespace {

using Kind = MathNode::Kind;
using Node = std::unique_ptr<MathNode>;

constexpr int kMaxDepth = 60;

constexpr std::string_view kFunctions[] = {"sin",    "cos",    "tan",    "cot",    "sec",   "csc",
                                           "arcsin", "arccos", "arctan", "arccot", "sinh",  "cosh",
                                           "tanh",   "ln",     "log",    "lg",     "exp",   "sqrt",
                                           "abs",    "asin",   "acos",   "atan",   "floor", "ceil"};

constexpr std::string_view kGreek[] = {
    "alpha", "beta",     "gamma", "delta",   "epsilon", "varepsilon", "zeta", "eta",
    "theta", "vartheta", "iota",  "kappa",   "lambda",  "mu",         "nu",   "xi",
    "rho",   "sigma",    "tau",   "upsilon", "phi",     "varphi",     "chi",  "psi",
    "omega", "Gamma",    "Delta", "Omega",   "infty",   "ell"};

template <class Names>
bool IsIn(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

Node Leaf(Kind kind, std::string name) {
  return std::make_unique<MathNode>(MathNode{.kind = kind, .name = std::move(name)});
}

Node Number(mpq_class value) {
  return std::make_unique<MathNode>(MathNode{.kind = Kind::kNumber, .number = std::move(value)});
}

// Null if a child is.
template <class... Children>
Node Join(Kind kind, Children... children) {
  Node node = Leaf(kind, "");
  (node->children.push_back(std::move(children)), ...);
  for (const Node& child : node->children) {
    if (child == nullptr) return nullptr;
  }
  return node;
}

template <class... Children>
Node Call(std::string_view name, Children... children) {
  Node node = Join(Kind::kFunction, std::move(children)...);
  if (node != nullptr) node->name = name;
  return node;
}

// "asin" and "arcsin" are one function.
std::string_view CanonicalName(std::string_view name) {
  if (name == "asin") return "arcsin";
  if (name == "acos") return "arccos";
  if (name == "atan") return "arctan";
  return name;
}

std::optional<std::string_view> InverseOf(std::string_view name) {
  if (name == "sin") return "arcsin";
  if (name == "cos") return "arccos";
  if (name == "tan") return "arctan";
  return std::nullopt;
}

mpq_class PowerOfTen(size_t exponent) {
  mpz_class power;
  mpz_ui_pow_ui(power.get_mpz_t(), 10, exponent);
  return power;
}

// Recursive descent; every Read returns null where the text is not understood, and then nothing
// more is read.
class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Node ReadAll() {
    Node node = ReadSum();
    SkipSpaces();
    return position_ == text_.size() ? std::move(node) : nullptr;
  }

 private:
  char Peek(size_t ahead = 0) const {
    return position_ + ahead < text_.size() ? text_[position_ + ahead] : '\0';
  }
  void SkipSpaces() {
    while (Peek() == ' ') ++position_;
  }
  // Behind spaces. A command ends where its letters end: "\pi" is not taken from "\pim".
  bool Take(std::string_view token) {
    const size_t start = position_;
    SkipSpaces();
    const bool is_there =
        text_.substr(position_, token.size()) == token &&
        !(token[0] == '\\' && IsLetter(token.back()) && IsLetter(Peek(token.size())));
    position_ = is_there ? position_ + token.size() : start;
    return is_there;
  }
  std::string_view LettersAt(size_t at) const {
    size_t end = at;
    while (end < text_.size() && IsLetter(text_[end])) ++end;
    return text_.substr(at, end - at);
  }
  std::string ReadDigits() {
    const size_t start = position_;
    while (IsDigit(Peek())) ++position_;
    return std::string(text_.substr(start, position_ - start));
  }

  Node ReadSum();
  Node ReadProduct();
  Node ReadSigned();
  Node ReadPower();
  Node ReadExponent();
  Node ReadPrimary();
  Node ReadNumber();
  Node ReadWord();
  Node ReadCommand();
  Node ReadVariable(std::string name);
  Node ReadFunction(std::string_view name);
  Node ReadFunctionArgument();
  Node ReadRoot();
  Node ReadArgument();
  Node ReadGroup(std::string_view close);
  std::string ReadGroupedDigits();
  std::optional<mpq_class> ReadPlainFraction();
  bool StartsOperand();
  bool StartsFunction();

  std::string_view text_;
  size_t position_ = 0;
  int depth_ = 0;
  int num_open_bars_ = 0;  // a bar then closes
};

Node Parser::ReadSum() {
  if (++depth_ > kMaxDepth) return nullptr;
  Node sum = Leaf(Kind::kSum, "");
  bool is_first = true;
  while (true) {
    const bool is_minus = Take("-");
    if (!is_minus && !Take("+") && !is_first) break;
    Node term = ReadProduct();
    if (is_minus) term = Join(Kind::kNegate, std::move(term));
    if (term == nullptr) return nullptr;
    sum->children.push_back(std::move(term));
    is_first = false;
  }
  --depth_;
  return sum->children.size() == 1 ? std::move(sum->children[0]) : std::move(sum);
}

Node Parser::ReadProduct() {
  Node left = ReadPower();
  while (left != nullptr) {
    if (Take("\\cdot") || Take("\\times") || Take("\xC3\x97") || Take("\xC2\xB7") || Take("*")) {
      left = Join(Kind::kProduct, std::move(left), ReadSigned());
    } else if (Take("/") || Take("\\div") || Take("\xC3\xB7")) {
      left = Join(Kind::kQuotient, std::move(left), ReadSigned());
    } else if (StartsOperand()) {
      left = Join(Kind::kProduct, std::move(left), ReadPower());
    } else {
      break;
    }
  }
  return left;
}

Node Parser::ReadSigned() {
  if (Take("-")) return Join(Kind::kNegate, ReadPower());
  return ReadPower();
}

Node Parser::ReadPower() {
  Node base = ReadPrimary();
  while (base != nullptr && Take("!")) base = Call("factorial", std::move(base));
  if (base == nullptr || (!Take("^") && !Take("**"))) return base;
  return Join(Kind::kPower, std::move(base), ReadExponent());
}

// "^{...}", "^2", "^-1", "^x"; powers associate to the right.
Node Parser::ReadExponent() {
  if (++depth_ > kMaxDepth) return nullptr;
  Node exponent = ReadSigned();
  --depth_;
  return exponent;
}

// Whether an operand follows that may stand behind another one without a sign.
bool Parser::StartsOperand() {
  SkipSpaces();
  const char c = Peek();
  if (IsLetter(c) || c == '(' || c == '{' || (c == '|' && num_open_bars_ == 0)) return true;
  if (text_.substr(position_).starts_with("\xCF\x80")) return true;
  if (c != '\\') return false;
  const std::string_view name = LettersAt(position_ + 1);
  constexpr std::string_view kStarters[] = {"frac",  "sqrt",  "pi",           "binom", "lfloor",
                                            "lceil", "lvert", "operatorname", "mathrm"};
  return IsIn(kStarters, name) || IsIn(kFunctions, name) || IsIn(kGreek, name);
}

bool Parser::StartsFunction() {
  SkipSpaces();
  return IsIn(kFunctions, LettersAt(Peek() == '\\' ? position_ + 1 : position_));
}

Node Parser::ReadGroup(std::string_view close) {
  Node inside = ReadSum();
  return Take(close) ? std::move(inside) : nullptr;
}

Node Parser::ReadPrimary() {
  SkipSpaces();
  const char c = Peek();
  if (IsDigit(c) || (c == '.' && IsDigit(Peek(1)))) return ReadNumber();
  if (IsLetter(c)) return ReadWord();
  if (Take("\xCF\x80")) return Leaf(Kind::kConstant, "pi");
  if (Take("(")) return ReadGroup(")");
  if (Take("[")) return ReadGroup("]");
  if (Take("{")) return ReadGroup("}");
  if (Take("|")) {
    ++num_open_bars_;
    Node inside = ReadGroup("|");
    --num_open_bars_;
    return Call("abs", std::move(inside));
  }
  return c == '\\' ? ReadCommand() : nullptr;
}

std::string Parser::ReadGroupedDigits() {
  std::string digits = ReadDigits();
  const char separator = Peek();
  if (digits.empty() || digits.size() > 3 || (separator != ',' && separator != ' ')) return digits;
  const auto group_follows = [&] {
    size_t length = 1;
    while (IsDigit(Peek(length))) ++length;
    return Peek() == separator && length == 4 && Peek(4) != '/';
  };
  while (group_follows()) {
    ++position_;
    digits += ReadDigits();
  }
  return digits;
}

// "1/2" or "\frac{1}{2}" of digits alone, behind an integer: the rest of a mixed number.
std::optional<mpq_class> Parser::ReadPlainFraction() {
  const size_t start = position_;
  const bool is_latex = Take("\\frac");
  const bool is_spaced = Peek() == ' ';
  const auto part = [&]() -> std::string {
    SkipSpaces();
    if (!is_latex) return ReadDigits();
    if (IsDigit(Peek())) return std::string(1, text_[position_++]);
    if (!Take("{")) return "";
    SkipSpaces();
    std::string digits = ReadDigits();
    return Take("}") ? digits : "";
  };
  if (is_latex || is_spaced) {
    const std::string above = part();
    const bool has_bar = is_latex || Take("/");
    const std::string below = has_bar ? part() : "";
    const bool is_zero = below.find_first_not_of('0') == std::string::npos;
    if (!above.empty() && !is_zero && above.size() + below.size() < kMaxMathDigits) {
      mpq_class value(above + "/" + below, 10);
      value.canonicalize();
      return value;
    }
  }
  position_ = start;
  return std::nullopt;
}

Node Parser::ReadNumber() {
  const std::string whole = ReadGroupedDigits();
  std::string fraction, repeating;
  const bool has_point = Peek() == '.' && (IsDigit(Peek(1)) || Peek(1) == '\\' || !whole.empty());
  if (has_point) {
    ++position_;
    fraction = ReadDigits();
    if (Take("\\overline{")) {
      repeating = ReadDigits();
      if (repeating.empty() || !Take("}")) return nullptr;
    }
  }
  if (whole.size() + fraction.size() + repeating.size() > kMaxMathDigits) return nullptr;
  const std::string digits = whole + fraction;
  mpq_class value = digits.empty() ? mpq_class(0) : mpq_class(mpz_class(digits, 10));
  value /= PowerOfTen(fraction.size());
  if (!repeating.empty()) {
    mpq_class tail(mpz_class(repeating, 10));
    tail /= PowerOfTen(repeating.size()) - 1;
    value += tail / PowerOfTen(fraction.size());
  }
  if (!has_point) {
    if (const std::optional<mpq_class> rest = ReadPlainFraction()) return Number(value + *rest);
  }
  if ((Peek() == 'e' || Peek() == 'E') && IsDigit(Peek(1))) {
    ++position_;
    const std::string exponent = ReadDigits();
    if (exponent.size() > 3) return nullptr;
    value *= PowerOfTen(std::stoul(exponent));
  }
  return Number(std::move(value));
}

Node Parser::ReadVariable(std::string name) {
  if (Peek() != '_') return Leaf(Kind::kVariable, std::move(name));
  ++position_;
  const bool is_braced = Take("{");
  name += '_';
  const size_t start = position_;
  while (IsDigit(Peek()) || (is_braced && IsLetter(Peek()))) ++position_;
  if (position_ == start && IsLetter(Peek())) ++position_;
  name += text_.substr(start, position_ - start);
  if (position_ == start || (is_braced && !Take("}"))) return nullptr;
  return Leaf(Kind::kVariable, std::move(name));
}

// Letters without a backslash: a function, pi, or a product of at most three letters.
Node Parser::ReadWord() {
  const std::string_view word = LettersAt(position_);
  if (IsIn(kFunctions, word)) {
    position_ += word.size();
    return ReadFunction(word);
  }
  if (word == "pi") {
    position_ += word.size();
    return Leaf(Kind::kConstant, "pi");
  }
  size_t start = position_;
  while (start > 0 && IsLetter(text_[start - 1])) --start;
  const bool follows_command = start > 0 && text_[start - 1] == '\\';
  if (!follows_command && LettersAt(start).size() > 3) return nullptr;
  const char letter = text_[position_++];
  if (Peek() != '_' && (letter == 'e' || letter == 'i'))
    return Leaf(Kind::kConstant, std::string(1, letter));
  return ReadVariable(std::string(1, letter));
}

// What \frac takes: a group, a digit, a letter or a command.
Node Parser::ReadArgument() {
  if (Take("{")) return ReadGroup("}");
  SkipSpaces();
  if (IsDigit(Peek())) return Number(mpq_class(text_[position_++] - '0'));
  if (IsLetter(Peek())) {
    const char letter = text_[position_++];
    const bool is_constant = letter == 'e' || letter == 'i';
    return Leaf(is_constant ? Kind::kConstant : Kind::kVariable, std::string(1, letter));
  }
  return Peek() == '\\' ? ReadCommand() : nullptr;
}

Node Parser::ReadRoot() {
  if (!Take("[")) return Call("sqrt", Peek() == '(' ? ReadPrimary() : ReadArgument());
  Node degree = ReadGroup("]");
  Node radicand = ReadArgument();
  return Call("root", std::move(radicand), std::move(degree));
}

Node Parser::ReadCommand() {
  if (++depth_ > kMaxDepth) return nullptr;
  ++position_;  // the backslash
  const std::string_view name = LettersAt(position_);
  position_ += name.size();
  Node node;
  if (name == "frac") {
    Node above = ReadArgument();
    node = Join(Kind::kQuotient, std::move(above), ReadArgument());
  } else if (name == "binom") {
    Node above = ReadArgument();
    node = Call("binom", std::move(above), ReadArgument());
  } else if (name == "sqrt") {
    node = ReadRoot();
  } else if (name == "pi") {
    node = Leaf(Kind::kConstant, "pi");
  } else if (IsIn(kFunctions, name)) {
    node = ReadFunction(name);
  } else if (IsIn(kGreek, name)) {
    node = ReadVariable(std::string(name));
  } else if (name == "lfloor") {
    node = Call("floor", ReadGroup("\\rfloor"));
  } else if (name == "lceil") {
    node = Call("ceil", ReadGroup("\\rceil"));
  } else if (name == "lvert") {
    node = Call("abs", ReadGroup("\\rvert"));
  } else if (name == "operatorname" || name == "mathrm") {
    node = Take("{") ? ReadWord() : nullptr;
    if (!Take("}")) node = nullptr;
  }
  --depth_;
  return node;
}

Node Parser::ReadFunctionArgument() {
  SkipSpaces();
  if (Peek() == '(' || Peek() == '{' || Peek() == '[') {
    Node argument = ReadPrimary();
    return Take("^") ? nullptr : std::move(argument);  // sin(x)^2: of which?
  }
  const bool is_negative = Take("-");
  Node argument = ReadPower();
  while (argument != nullptr && StartsOperand() && !StartsFunction() && Peek() != '(') {
    argument = Join(Kind::kProduct, std::move(argument), ReadPower());
  }
  SkipSpaces();
  if (Peek() == '/' || Peek() == '(') return nullptr;  // sin x/2, sin x(y): who knows
  return is_negative ? Join(Kind::kNegate, std::move(argument)) : std::move(argument);
}

Node Parser::ReadFunction(std::string_view written) {
  std::string_view name = CanonicalName(written);
  if (name == "sqrt") return ReadRoot();
  Node base, exponent;
  if (name == "log" && Take("_")) {
    base = ReadArgument();
    if (base == nullptr) return nullptr;
  }
  if (Take("^")) {
    exponent = ReadExponent();
    if (exponent == nullptr) return nullptr;
    const bool is_minus_one = exponent->kind == Kind::kNegate &&
                              exponent->children[0]->kind == Kind::kNumber &&
                              exponent->children[0]->number == 1;
    if (is_minus_one) {
      const std::optional<std::string_view> inverse = InverseOf(name);
      if (!inverse) return nullptr;
      name = *inverse;
      exponent = nullptr;
    }
  }
  Node argument = ReadFunctionArgument();
  Node call = base != nullptr ? Call(name, std::move(argument), std::move(base))
                              : Call(name, std::move(argument));
  return exponent != nullptr ? Join(Kind::kPower, std::move(call), std::move(exponent))
                             : std::move(call);
}

// "no", "yes": words, not products. Single letters and known names are mathematics.
bool IsLoneWord(std::string_view text) {
  return text.size() > 1 && std::all_of(text.begin(), text.end(), IsLetter) && text != "pi";
}

}  // namespace

std::unique_ptr<MathNode> ParseMath(std::string_view text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  while (text.ends_with(' ')) text.remove_suffix(1);
  if (text.empty() || text.size() > kMaxMathText || IsLoneWord(text)) return nullptr;
  return Parser(text).ReadAll();
}

}  // namespace quatrain
