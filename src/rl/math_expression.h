// Whether two mathematical expressions have the same value.
//
//   CompareExpressions("\\frac{\\sqrt{8}}{2}", "\\sqrt 2")   // kSame
//   CompareExpressions("x(x+1)", "x^2 + x")                 // kSame
//   CompareExpressions("2x", "x + 1")                       // kDifferent
//   CompareExpressions("seven", "7")                        // kNotComparable
#pragma once

#include <string_view>

#include "rl/math_parser.h"

namespace quatrain {

enum class AnswerComparison { kSame, kDifferent, kNotComparable };

// Expressions that are rational numbers compare exactly, of any length. Others compare numerically
// at kMathPoints keyed points of their variables (all real, some negative), each value with a bound
// on its rounding error, principal branches of complex functions: they are the same if they agree
// within the bounds wherever both are defined. A \log without a base may mean any: it is never the
// reason to call two expressions different. kNotComparable if either is null (not read), undefined,
// or known too badly.
inline constexpr int kMathPoints = 8;
AnswerComparison CompareExpressions(const MathNode* a, const MathNode* b);
AnswerComparison CompareExpressions(std::string_view a, std::string_view b);

// Whether one is the other times a number other than 0, the same at every point: two spellings of
// one equation "expression = 0".
AnswerComparison CompareProportional(const MathNode* a, const MathNode* b);

// The exact value; nothing if it is no rational number, or not one of sensible length.
std::optional<mpq_class> ExactValue(const MathNode& node);

}  // namespace quatrain
