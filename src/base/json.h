// JSON for everything: nlohmann's ordered flavour, since chat templates and our files keep key
// order.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace quatrain {

using Json = nlohmann::ordered_json;

// Parses a whole text. Error kData naming `where` with line and column; duplicate object keys are
// an error too. `first_line` is the number of the text's first line, for one line of a longer file.
Json ParseJson(std::string_view text, const std::string& where, size_t first_line = 1);

// Compact text, ASCII only (\uXXXX), invalid UTF-8 replaced by U+FFFD; doubles round-trip.
std::string DumpJson(const Json& json);

}  // namespace quatrain
