#include "rl/math_expression.h"

#include <algorithm>
#include <cmath>
#include <complex>
#include <limits>
#include <set>

#include "base/random.h"

namespace quatrain {
namespace {

using Kind = MathNode::Kind;
using Real = long double;
using Complex = std::complex<Real>;

constexpr Real kEpsilon = std::numeric_limits<Real>::epsilon();
constexpr Real kErrorMargin = 64;          // the bounds are of first order
constexpr Real kMaxRelativeError = 1e-9L;  // a value known worse proves nothing
constexpr size_t kMaxExactBits = 100000;
constexpr long kMaxFactorial = 2000;
constexpr const char* kLogBase = "\\log";  // the variable that stands for an unwritten base

// ---- exact

std::optional<mpq_class> ExactPower(const mpq_class& base, const mpq_class& exponent) {
  if (exponent.get_den() != 1) {  // a root: exact where it comes out even
    if (base < 0 || !exponent.get_den().fits_ulong_p()) return std::nullopt;
    const unsigned long degree = exponent.get_den().get_ui();
    mpz_class above, below;
    if (mpz_root(above.get_mpz_t(), base.get_num_mpz_t(), degree) == 0) return std::nullopt;
    if (mpz_root(below.get_mpz_t(), base.get_den_mpz_t(), degree) == 0) return std::nullopt;
    return ExactPower(mpq_class(above, below), mpq_class(exponent.get_num()));
  }
  const mpz_class power = exponent.get_num();
  if (base == 0) return power > 0 ? std::optional(mpq_class(0)) : std::nullopt;
  const size_t bits =
      mpz_sizeinbase(base.get_num_mpz_t(), 2) + mpz_sizeinbase(base.get_den_mpz_t(), 2);
  const mpz_class magnitude = abs(power);
  if (magnitude > kMaxExactBits / bits) return std::nullopt;
  mpz_class above, below;
  mpz_pow_ui(above.get_mpz_t(), base.get_num_mpz_t(), magnitude.get_ui());
  mpz_pow_ui(below.get_mpz_t(), base.get_den_mpz_t(), magnitude.get_ui());
  mpq_class result = power < 0 ? mpq_class(below, above) : mpq_class(above, below);
  result.canonicalize();
  return result;
}

// Of a whole number between 0 and kMaxFactorial.
std::optional<unsigned long> SmallCount(const mpq_class& value) {
  if (value.get_den() != 1 || value < 0 || value > kMaxFactorial) return std::nullopt;
  return value.get_num().get_ui();
}

std::optional<mpq_class> ExactCall(const std::string& name, const std::vector<mpq_class>& values) {
  const mpq_class& x = values[0];
  mpz_class whole;
  if (name == "abs") return mpq_class(abs(x));
  if (name == "sqrt") return ExactPower(x, mpq_class(1, 2));
  if (name == "root" && values[1] != 0) {
    const bool is_odd = values[1].get_den() == 1 && mpz_odd_p(values[1].get_num_mpz_t());
    const bool is_mirrored = is_odd && x < 0;
    const mpq_class radicand = is_mirrored ? mpq_class(-x) : x;
    std::optional<mpq_class> root = ExactPower(radicand, mpq_class(1 / values[1]));
    if (root && is_mirrored) *root = -*root;
    return root;
  }
  if (name == "floor") {
    mpz_fdiv_q(whole.get_mpz_t(), x.get_num_mpz_t(), x.get_den_mpz_t());
    return mpq_class(whole);
  }
  if (name == "ceil") {
    mpz_cdiv_q(whole.get_mpz_t(), x.get_num_mpz_t(), x.get_den_mpz_t());
    return mpq_class(whole);
  }
  const std::optional<unsigned long> n = SmallCount(x);
  if (name == "factorial" && n) {
    mpz_fac_ui(whole.get_mpz_t(), *n);
    return mpq_class(whole);
  }
  const std::optional<unsigned long> k = values.size() > 1 ? SmallCount(values[1]) : std::nullopt;
  if (name == "binom" && n && k) {
    mpz_bin_uiui(whole.get_mpz_t(), *n, *k);
    return mpq_class(whole);
  }
  return std::nullopt;
}

bool IsShort(const mpq_class& value) {
  return mpz_sizeinbase(value.get_num_mpz_t(), 2) < kMaxExactBits &&
         mpz_sizeinbase(value.get_den_mpz_t(), 2) < kMaxExactBits;
}

std::optional<mpq_class> ExactOf(const MathNode& node, const std::vector<mpq_class>& values) {
  switch (node.kind) {
    case Kind::kNumber:
      return node.number;
    case Kind::kSum: {
      mpq_class sum = 0;
      for (const mpq_class& value : values) sum += value;
      return sum;
    }
    case Kind::kNegate:
      return mpq_class(-values[0]);
    case Kind::kProduct:
      return mpq_class(values[0] * values[1]);
    case Kind::kQuotient:
      if (values[1] == 0) return std::nullopt;
      return mpq_class(values[0] / values[1]);
    case Kind::kPower:
      return ExactPower(values[0], values[1]);
    case Kind::kFunction:
      return ExactCall(node.name, values);
    case Kind::kConstant:
    case Kind::kVariable:
      break;
  }
  return std::nullopt;
}

// ---- numeric

// A value, and how far it may be from the true one.
struct Approximate {
  Complex value;
  Real error = 0;

  bool IsFinite() const {
    return std::isfinite(value.real()) && std::isfinite(value.imag()) && std::isfinite(error);
  }
  bool IsKnownWell() const {
    return IsFinite() && error <= kMaxRelativeError * std::max<Real>(1, std::abs(value));
  }
};

const Approximate kUndefined = {Complex(std::numeric_limits<Real>::quiet_NaN(), 0), 0};

// Adds the rounding of the operation itself.
Approximate Rounded(Complex value, Real error) {
  return {value, error + kEpsilon * std::abs(value)};
}

Real ToReal(const mpz_class& value) { return std::strtold(value.get_str().c_str(), nullptr); }

Approximate Product(const Approximate& a, const Approximate& b) {
  return Rounded(a.value * b.value,
                 std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error);
}

Approximate Quotient(const Approximate& a, const Approximate& b) {
  const Real size = std::abs(b.value);
  if (size <= kErrorMargin * b.error) return kUndefined;  // perhaps a division by zero
  const Complex value = a.value / b.value;
  return Rounded(value, (a.error + std::abs(value) * b.error) / (size - b.error));
}

Approximate Logarithm(const Approximate& x) {
  const Real size = std::abs(x.value);
  if (size <= kErrorMargin * x.error) return kUndefined;
  return Rounded(std::log(x.value), x.error / (size - x.error));
}

Approximate Exponential(const Approximate& x) {
  const Complex value = std::exp(x.value);
  return Rounded(value, std::abs(value) * (x.error + kEpsilon * std::abs(x.value)));
}

Approximate Power(const Approximate& base, const Approximate& exponent) {
  if (std::abs(base.value) <= kErrorMargin * base.error) {
    // 0 to a positive power; its error is that power of the base's.
    if (exponent.value.real() <= 0 || exponent.error != 0) return kUndefined;
    return {0, std::pow(2 * kErrorMargin * base.error, exponent.value.real())};
  }
  return Exponential(Product(exponent, Logarithm(base)));
}

// f(x) with the derivative's size there.
Approximate Apply(const Approximate& x, Complex value, Complex derivative) {
  return Rounded(value, std::abs(derivative) * x.error);
}

Approximate Trigonometric(const std::string& name, const Approximate& x) {
  const Complex sine = std::sin(x.value), cosine = std::cos(x.value);
  const Approximate s = Apply(x, sine, cosine), c = Apply(x, cosine, sine);
  const Approximate one = {1, 0};
  if (name == "sin") return s;
  if (name == "cos") return c;
  if (name == "tan") return Quotient(s, c);
  if (name == "cot") return Quotient(c, s);
  if (name == "sec") return Quotient(one, c);
  if (name == "csc") return Quotient(one, s);
  return kUndefined;
}

Approximate InverseTrigonometric(const std::string& name, const Approximate& x) {
  const Complex square = x.value * x.value;
  const Complex root = std::sqrt(Real{1} - square);
  // At the ends of arcsin the derivative is infinite; the error there is a root of the argument's.
  const Real steepness = std::min(1 / std::abs(root), 1 / std::sqrt(x.error + kEpsilon));
  if (name == "arcsin") return Apply(x, std::asin(x.value), steepness);
  if (name == "arccos") return Apply(x, std::acos(x.value), steepness);
  if (name == "arctan") return Apply(x, std::atan(x.value), Real{1} / (Real{1} + square));
  if (name == "arccot") return Apply(x, std::atan(Real{1} / x.value), Real{1} / (Real{1} + square));
  return kUndefined;
}

Approximate Hyperbolic(const std::string& name, const Approximate& x) {
  const Complex sine = std::sinh(x.value), cosine = std::cosh(x.value);
  if (name == "sinh") return Apply(x, sine, cosine);
  if (name == "cosh") return Apply(x, cosine, sine);
  if (name == "tanh") return Apply(x, sine / cosine, Real{1} / (cosine * cosine));
  return kUndefined;
}

// floor and ceil of what is not next to a whole number, where a rounding error would decide.
Approximate Step(const std::string& name, const Approximate& x) {
  const Real value = x.value.real();
  const bool is_close = std::abs(value - std::round(value)) <= kErrorMargin * (x.error + kEpsilon);
  if (x.value.imag() != 0 || is_close) return kUndefined;
  return {name == "floor" ? std::floor(value) : std::ceil(value), 0};
}

// Values of the variables by name, one of kMathPoints.
class Point {
 public:
  explicit Point(int index) : index_(index) {}

  Real ValueOf(std::string_view name) const {
    uint64_t key = 0;
    for (const char c : name) key = HashBits(key, 1, static_cast<unsigned char>(c));
    const auto draw =
        static_cast<Real>(UniformDouble(20260101, key, static_cast<uint64_t>(index_)));
    if (name == kLogBase) return 1.5L + 20 * draw;
    return index_ < kMathPoints / 2 ? 0.2L + 3 * draw : 6 * draw - 3;
  }

 private:
  int index_;
};

Approximate Call(const MathNode& node, const std::vector<Approximate>& values, const Point& point) {
  const std::string& name = node.name;
  const Approximate& x = values[0];
  if (name == "sqrt") return Power(x, {0.5L, 0});
  if (name == "root") {
    const bool is_real_cube = values[1].value == Complex(3) && x.value.real() < 0;
    if (!is_real_cube) return Power(x, Quotient({1, 0}, values[1]));
    const Approximate root = Power({-x.value, x.error}, Quotient({1, 0}, values[1]));
    return {-root.value, root.error};
  }
  if (name == "abs") return Rounded(std::abs(x.value), x.error);
  if (name == "exp") return Exponential(x);
  if (name == "ln") return Logarithm(x);
  if (name == "lg") return Quotient(Logarithm(x), Logarithm({10, 0}));
  if (name == "log") {
    const Approximate base =
        values.size() > 1 ? values[1] : Approximate{point.ValueOf(kLogBase), 0};
    return Quotient(Logarithm(x), Logarithm(base));
  }
  if (name == "floor" || name == "ceil") return Step(name, x);
  if (name.starts_with("arc")) return InverseTrigonometric(name, x);
  return name.ends_with('h') ? Hyperbolic(name, x) : Trigonometric(name, x);
}

Approximate ValueAt(const MathNode& node, const Point& point) {
  std::vector<Approximate> values;
  for (const auto& child : node.children) {
    values.push_back(ValueAt(*child, point));
    if (!values.back().IsFinite()) return kUndefined;
  }
  switch (node.kind) {
    case Kind::kNumber: {
      const Real above = ToReal(node.number.get_num()), below = ToReal(node.number.get_den());
      return {above / below, below == 1 ? 0 : 3 * kEpsilon * std::abs(above / below)};
    }
    case Kind::kConstant:
      if (node.name == "i") return {Complex(0, 1), 0};
      return Rounded(node.name == "pi" ? std::acos(Real{-1}) : std::exp(Real{1}), 0);
    case Kind::kVariable:
      return {point.ValueOf(node.name), 0};
    case Kind::kSum: {
      Approximate sum = {0, 0};
      for (const Approximate& value : values)
        sum = Rounded(sum.value + value.value, sum.error + value.error);
      return sum;
    }
    case Kind::kNegate:
      // Not -value: a zero imaginary part must stay +0, the side of the branch cut that counts.
      return {Complex(0) - values[0].value, values[0].error};
    case Kind::kProduct:
      return Product(values[0], values[1]);
    case Kind::kQuotient:
      return Quotient(values[0], values[1]);
    case Kind::kPower:
      return Power(values[0], values[1]);
    case Kind::kFunction:
      return Call(node, values, point);
  }
  return kUndefined;
}

void CollectVariables(const MathNode& node, std::set<std::string>& names) {
  if (node.kind == Kind::kVariable) names.insert(node.name);
  if (node.kind == Kind::kFunction && node.name == "log" && node.children.size() == 1)
    names.insert(kLogBase);
  for (const auto& child : node.children) CollectVariables(*child, names);
}

struct Variables {
  bool has_any = false;
  bool has_log_base = false;
};

Variables VariablesOf(const MathNode& a, const MathNode& b) {
  std::set<std::string> names;
  CollectVariables(a, names);
  CollectVariables(b, names);
  return {!names.empty(), names.contains(kLogBase)};
}

bool AreEqual(const Approximate& a, const Approximate& b) {
  return std::abs(a.value - b.value) <= kErrorMargin * (a.error + b.error);
}

// The pairs of values at the points where both are defined and known well.
std::vector<std::pair<Approximate, Approximate>> ValuesOf(const MathNode& a, const MathNode& b,
                                                          bool has_variables) {
  std::vector<std::pair<Approximate, Approximate>> values;
  for (int index = 0; index < (has_variables ? kMathPoints : 1); ++index) {
    const Point point(index);
    const Approximate x = ValueAt(a, point), y = ValueAt(b, point);
    if (x.IsKnownWell() && y.IsKnownWell()) values.emplace_back(x, y);
  }
  if (has_variables && values.size() < kMathPoints / 2) values.clear();
  return values;
}

}  // namespace

std::optional<mpq_class> ExactValue(const MathNode& node) {
  std::vector<mpq_class> values;
  for (const auto& child : node.children) {
    std::optional<mpq_class> value = ExactValue(*child);
    if (!value) return std::nullopt;
    values.push_back(std::move(*value));
  }
  std::optional<mpq_class> value = ExactOf(node, values);
  return value && IsShort(*value) ? value : std::nullopt;
}

AnswerComparison CompareExpressions(const MathNode* a, const MathNode* b) {
  if (a == nullptr || b == nullptr) return AnswerComparison::kNotComparable;
  const std::optional<mpq_class> exact_a = ExactValue(*a), exact_b = ExactValue(*b);
  if (exact_a && exact_b) {
    return *exact_a == *exact_b ? AnswerComparison::kSame : AnswerComparison::kDifferent;
  }
  const Variables variables = VariablesOf(*a, *b);
  const auto values = ValuesOf(*a, *b, variables.has_any);
  if (values.empty()) return AnswerComparison::kNotComparable;
  for (const auto& [x, y] : values) {
    if (AreEqual(x, y)) continue;
    return variables.has_log_base ? AnswerComparison::kNotComparable : AnswerComparison::kDifferent;
  }
  return AnswerComparison::kSame;
}

AnswerComparison CompareExpressions(std::string_view a, std::string_view b) {
  return CompareExpressions(ParseMath(a).get(), ParseMath(b).get());
}

AnswerComparison CompareProportional(const MathNode* a, const MathNode* b) {
  if (a == nullptr || b == nullptr) return AnswerComparison::kNotComparable;
  const Variables variables = VariablesOf(*a, *b);
  if (!variables.has_any || variables.has_log_base) return AnswerComparison::kNotComparable;
  std::optional<Approximate> ratio;
  for (const auto& [x, y] : ValuesOf(*a, *b, true)) {
    const Approximate here = Quotient(x, y);
    if (!here.IsKnownWell()) return AnswerComparison::kNotComparable;
    if (ratio && !AreEqual(*ratio, here)) return AnswerComparison::kDifferent;
    ratio = here;
  }
  if (!ratio || std::abs(ratio->value) <= kErrorMargin * ratio->error)
    return AnswerComparison::kNotComparable;
  return AnswerComparison::kSame;
}

}  // namespace quatrain
