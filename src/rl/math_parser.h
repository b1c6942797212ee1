// Mathematical expressions as people write them in answers, LaTeX or plain, as trees.
//
// Read are: integers with thousands separators ("1,234", "1 234"), decimals, repeating decimals
// ("0.\overline{3}"), mixed numbers ("3 1/2", "3\frac{1}{2}"), \frac with or without braces,
// \sqrt[n]{}, \binom, powers, factorials, |x|, floor and ceiling, implicit products ("2xy"), the
// constants \pi, e and i, variables of one letter or Greek name with an optional subscript, and the
// usual functions ("\sin^2 x", "\log_{2} 8", "sqrt(2)", "\sin^{-1}").
//
// What is ambiguous is not read: runs of four or more letters that are no function, words that
// stand alone, numbers behind an operand without a sign ("x2"), a bare argument of a function
// before a slash ("\sin x/2").
#pragma once

#include <gmpxx.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

struct MathNode {
  enum class Kind {
    kNumber,    // number
    kConstant,  // name: pi, e, i
    kVariable,  // name
    kSum,       // any number of children
    kNegate,
    kProduct,
    kQuotient,
    kPower,
    kFunction,  // name; "log" has the base as its second child if one is written
  };
  Kind kind;
  mpq_class number = 0;
  std::string name = {};
  std::vector<std::unique_ptr<MathNode>> children = {};
};

inline constexpr size_t kMaxMathText = 2000;    // characters
inline constexpr size_t kMaxMathDigits = 1000;  // of one number

// Nothing if the text is not wholly understood, too long, or nested too deeply.
std::unique_ptr<MathNode> ParseMath(std::string_view text);

}  // namespace quatrain
