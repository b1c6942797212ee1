// The outer form of an answer: a value, or values in brackets, lists, unions and matrices.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "rl/math_expression.h"

namespace quatrain {

struct AnswerStructure {
  enum class Kind {
    kValue,      // text is one expression
    kEquation,   // text has one equals sign
    kText,       // inequalities and what else is compared by spelling
    kOrdered,    // parts between `brackets`
    kUnordered,  // a set, or values with commas between them
    kUnion,      // parts joined by \cup
    kMatrix,     // parts row by row, `num_columns` wide; `brackets` is the environment's name
  };
  Kind kind = Kind::kValue;
  std::string text;
  std::string brackets = {};
  size_t num_columns = 0;
  std::vector<AnswerStructure> parts = {};
};

// Spelling that does not depend on braces around single characters, nor on spaces but those between
// digits.
std::string SpellingKey(std::string_view text);

// `text` is normalised (math_answer.h). Never fails: what has no structure is a value or text.
AnswerStructure ReadStructure(std::string_view text);

AnswerComparison CompareStructures(const AnswerStructure& a, const AnswerStructure& b);

}  // namespace quatrain
