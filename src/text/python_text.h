// Strings and numbers as Python treats and prints them, which chat templates take for granted: what
// str's methods, repr and json.dumps do in CPython 3. Text is UTF-8; counts and positions are in
// code points.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quatrain {

// repr(float): the shortest digits that read back as the same number, with an exponent below 1e-4
// and from 1e16 on, and always a point or an exponent: 2.0, 1e+22. Also inf, -inf and nan.
std::string PythonFloatRepr(double value);

// repr(str): in single quotes, or in double ones if it holds only single ones; what cannot be
// printed is escaped.
std::string PythonStringRepr(std::string_view text);

std::u32string CodePointsOf(std::string_view text);
std::string TextOfCodePoints(std::u32string_view code_points);
int64_t NumCodePoints(std::string_view text);

// str.isspace of one character: Unicode white space and U+001C to U+001F.
bool IsPythonSpace(int32_t code_point);

enum class StripSide { kLeft, kRight, kBoth };

// str.strip, lstrip and rstrip; without `characters`, white space.
std::string PythonStrip(std::string_view text, StripSide side,
                        std::optional<std::string_view> characters = std::nullopt);

// str.split and rsplit. Without a separator: runs of white space, none at the ends. A negative
// `max_splits` is no limit. A separator must not be empty.
std::vector<std::string> PythonSplit(std::string_view text,
                                     std::optional<std::string_view> separator, int64_t max_splits);
std::vector<std::string> PythonSplitFromRight(std::string_view text,
                                              std::optional<std::string_view> separator,
                                              int64_t max_splits);

enum class LineEnds { kDrop, kKeep };
std::vector<std::string> PythonSplitLines(std::string_view text, LineEnds line_ends);

// str.replace; a negative `max_count` is no limit. An empty `from` stands between all characters.
std::string PythonReplace(std::string_view text, std::string_view from, std::string_view to,
                          int64_t max_count);

// str.upper, lower, capitalize and title, one code point to one (only U+00DF becomes two letters).
std::string PythonUpper(std::string_view text);
std::string PythonLower(std::string_view text);
std::string PythonCapitalize(std::string_view text);
std::string PythonTitle(std::string_view text);

// str.isalpha, isdigit, isalnum, isspace, islower and isupper.
enum class TextClass { kAlpha, kDigit, kAlnum, kSpace, kLower, kUpper };
bool IsPythonClass(std::string_view text, TextClass text_class);

// int(str) and float(str); nothing if Python raises ValueError. The integer comes back as digits
// without leading zeros, since Python's has no size.
std::optional<std::string> PythonParseInt(std::string_view text);
std::optional<double> PythonParseFloat(std::string_view text);

}  // namespace quatrain
