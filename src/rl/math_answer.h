// Final answers of mathematics problems: where they stand in a text, and when two are the same.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "rl/math_expression.h"

namespace quatrain {

// Content of the last \boxed{...}, braces balanced. Nothing if there is none or the last one does
// not close (a response cut off inside it has no answer, even if an earlier box closed).
std::optional<std::string> LastBoxed(std::string_view text);

// A canonical spelling, by the rules of the MATH benchmark's answer normalisation
// (arXiv:2103.03874, the field's "mathd"), written anew: \left and \right, inverse and thin spaces,
// dollar, percent and degree signs go; \dfrac and \tfrac are \frac; a unit behind a value goes
// ("\text{ cm}^2", "\mathrm{kg}", "5 cm") and a \text{...} around everything is opened; "x = 5" is
// "5" if at most two characters stand before the sign, and so is "x \in ..."; \sqrt3 is \sqrt{3};
// \text{and} and \text{or} between values are commas. So 50\% is 50, as in the field. Runs of
// spaces become one space: "3 1/2" stays a mixed number, where the field's spelling makes it 31/2.
std::string NormalizeMathAnswer(std::string_view answer);

// Equal normalised spellings without spaces are kSame. Otherwise values are compared by
// CompareExpressions (math_expression.h), structure by structure:
//   (1, 2), [1, 2)        ordered, with the same brackets: points, tuples and intervals
//   \{1, 2\}   1, 2   \pm 1   unordered: sets, lists of solutions, both signs
//   A \cup B              unordered
//   pmatrix, bmatrix      cell by cell; vmatrix is another thing
//   equations             with a name on the left, by their right sides; others by whether
//                         left - right is proportional; against a bare value, by the right side
//                         if the left one is a name
//   inequalities, words   by spelling only
// kNotComparable unless every part that decides was understood.
AnswerComparison CompareMathAnswers(std::string_view answer, std::string_view label);

}  // namespace quatrain
