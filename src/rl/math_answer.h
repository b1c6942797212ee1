// Final answers of mathematics problems: where they stand in a text, and when two are the same.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace quatrain {

// Content of the last \boxed{...}, braces balanced. Nothing if there is none or the last one does
// not close (a response cut off inside it has no answer, even if an earlier box closed).
std::optional<std::string> LastBoxed(std::string_view text);

// A canonical spelling, by the rules of the MATH benchmark's answer normalisation
// (arXiv:2103.03874, the field's "mathd"), written anew: \left and \right, inverse and thin spaces,
// dollar, percent and degree signs go; \dfrac and \tfrac are \frac; a trailing unit "\text{ ...}"
// goes and a \text{...} around everything is opened; "x = 5" is "5" if at most two characters stand
// before the sign; \sqrt3 is \sqrt{3}. So 50\% is 50, as in the field. Runs of spaces become one
// space: "3 1/2" stays a mixed number, where the field's spelling makes it 31/2.
std::string NormalizeMathAnswer(std::string_view answer);

enum class AnswerComparison { kSame, kDifferent, kNotComparable };

// Both read as rationals: exact comparison of values. Otherwise kSame if the normalised spellings
// without spaces are equal, else kNotComparable: no claim is made about expressions.
AnswerComparison CompareMathAnswers(std::string_view answer, std::string_view label);

}  // namespace quatrain
