// JSON lines in, JSON lines out: the shape of tokenize, score and generate.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"

namespace quatrain {

struct JsonLinesFiles {
  std::string input = "-";   // "-": standard input
  std::string output = "-";  // "-": standard output; a file appears whole or not at all
};

// One line of the input: its number from 1, and what it holds or why it cannot be read.
struct JsonLine {
  int64_t number = 0;
  Json value;
  std::string error;
};
// How messages call the input: its path, or "standard input".
std::string InputName(const std::string& input);

// All lines that are not blank; warns if there is none. Error kIo, also if standard input is
// closed.
std::vector<JsonLine> ReadJsonLines(const std::string& input);

// Error kIo if `output` is a file that cannot be written. Asked before the work begins.
void CheckOutput(const std::string& output);

// Writes one compact ASCII line per record. Error kIo.
void WriteJsonLines(const std::string& output, const std::vector<Json>& records);

// Answers every line with handle(value), in order. A line that is not JSON, or on which handle
// throws an Error of the user's data, is answered by {"error": "line N: ..."} and a logged warning,
// so that outputs stay aligned with inputs; after all are written Error kData tells how many
// failed. Error kInterrupted between two lines; nothing is written then.
void AnswerJsonLines(const JsonLinesFiles& files, const std::function<Json(const Json&)>& handle);

}  // namespace quatrain
