#include "cli/json_lines.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/log.h"

namespace quatrain {

namespace {

std::string ReadStandardInput() {
  if (fcntl(STDIN_FILENO, F_GETFD) < 0) {
    throw Error(ErrorCode::kIo, {.where = "standard input",
                                 .what = "it is closed",
                                 .todo = "Pipe JSON lines into it, or name a file with --input"});
  }
  return std::string(std::istreambuf_iterator<char>(std::cin), {});
}

}  // namespace

std::string InputName(const std::string& input) { return input == "-" ? "standard input" : input; }

std::vector<JsonLine> ReadJsonLines(const std::string& input) {
  const std::string text = input == "-" ? ReadStandardInput() : ReadFile(input);
  std::vector<JsonLine> lines;
  size_t begin = 0;
  for (int64_t number = 1; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    JsonLine parsed;
    parsed.number = number;
    try {
      parsed.value = ParseJson(line, InputName(input), static_cast<size_t>(number));
    } catch (const Error& error) {
      parsed.error = std::string(error.what()).substr(InputName(input).size() + 2);
    }
    lines.push_back(std::move(parsed));
  }
  if (lines.empty()) Log().warn("{}: there is no line to answer", InputName(input));
  return lines;
}

void CheckOutput(const std::string& output) {
  if (output != "-") CheckCanWrite(output);
}

void WriteJsonLines(const std::string& output, const std::vector<Json>& records) {
  std::string text;
  for (const Json& record : records) text += DumpJson(record) + "\n";
  if (output != "-") {
    WriteFileAtomic(output, text);
    return;
  }
  std::cout << text << std::flush;
  if (!std::cout) throw Error(ErrorCode::kIo, "standard output: the lines could not be written");
}

void AnswerJsonLines(const JsonLinesFiles& files, const std::function<Json(const Json&)>& handle) {
  CheckOutput(files.output);
  std::vector<Json> records;
  int64_t num_bad = 0;
  for (const JsonLine& line : ReadJsonLines(files.input)) {
    if (InterruptRequested())
      throw Error(ErrorCode::kInterrupted, "interrupted; nothing was written");
    std::string problem = line.error;
    if (problem.empty()) {
      try {
        records.push_back(handle(line.value));
        continue;
      } catch (const Error& error) {
        if (error.code() == ErrorCode::kInternal || error.code() == ErrorCode::kInterrupted) throw;
        problem = fmt::format("line {}: {}", line.number, error.what());
      }
    }
    Log().warn("{}", problem);
    records.push_back({{"error", problem}});
    ++num_bad;
  }
  WriteJsonLines(files.output, records);
  if (num_bad > 0) {
    throw Error(ErrorCode::kData, {.where = InputName(files.input),
                                   .what = fmt::format("{} of {} lines could not be answered",
                                                       num_bad, records.size()),
                                   .todo = "Their records say why"});
  }
}

}  // namespace quatrain
