// JSON for everything: nlohmann's ordered flavour, since chat templates and our files keep key order.
#pragma once

#include <nlohmann/json.hpp>

#include <string>
#include <string_view>

namespace quatrain {

using Json = nlohmann::ordered_json;

// Parses a whole text. Error kData naming `where` with line and column; duplicate object keys are an error too.
Json ParseJson(std::string_view text, const std::string& where);

// Compact text, ASCII only (\uXXXX), invalid UTF-8 replaced by U+FFFD; doubles round-trip.
std::string DumpJson(const Json& json);

}  // namespace quatrain
