#include "report/run_data.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

// Calls body(object, where) for each complete line that is not blank.
template <class Body>
void ForEachJsonLine(const std::filesystem::path& path, std::string_view view, Body body) {
  size_t begin = 0;
  for (int64_t line = 1; begin < view.size(); ++line) {
    const size_t end = view.find('\n', begin);
    if (end == std::string_view::npos) return;  // still being written
    const std::string_view content = view.substr(begin, end - begin);
    begin = end + 1;
    if (content.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}, line {}", path.string(), line);
    Json row = ParseJson(content, where);
    if (!row.is_object()) {
      throw Error(ErrorCode::kData, {.where = where,
                                     .what = "not a row of named values",
                                     .expected = "a JSON object",
                                     .found = row.type_name()});
    }
    body(std::move(row), where);
  }
}

template <class Body>
void ForEachJsonLine(const std::filesystem::path& path, Body body) {
  const std::string text = ReadFile(path);
  ForEachJsonLine(path, text, body);
}

// The last `max_bytes` of a file, from the beginning of a line.
std::string ReadEnd(const std::filesystem::path& path, uint64_t max_bytes) {
  const uint64_t size = std::filesystem::file_size(path);
  if (size <= max_bytes) return ReadFile(path);
  std::string text(max_bytes, '\0');
  FileReader(path).ReadAt(size - max_bytes, std::as_writable_bytes(std::span(text)));
  return text.substr(std::min(text.find('\n'), text.size() - 1) + 1);
}

int64_t RolloutOf(const Json& row, const std::string& where) {
  const auto rollout = row.find("rollout");
  if (rollout != row.end() && rollout->is_number_integer()) return rollout->get<int64_t>();
  throw Error(ErrorCode::kData,
              {.where = where,
               .what = "the row does not say which rollout it is of",
               .expected = "a whole number under 'rollout'",
               .found = rollout == row.end() ? "no such key" : DumpJson(*rollout)});
}

using MetricRow = std::map<std::string, double>;

void ReadMetrics(const std::filesystem::path& path, EmptyRun empty, RunData& run) {
  std::map<int64_t, MetricRow> rows;
  ForEachJsonLine(path, [&](const Json& row, const std::string& where) {
    MetricRow& merged = rows[RolloutOf(row, where)];
    for (const auto& item : row.items()) {
      if (item.key() == "rollout" || !item.value().is_number()) continue;
      merged[item.key()] = item.value().get<double>();
    }
  });
  if (rows.empty() && empty == EmptyRun::kRefuse) {
    throw Error(ErrorCode::kData,
                {.where = path.string(),
                 .what = "no complete rollout in it yet",
                 .todo = "Wait for the first rollout to end, then run the report again"});
  }
  for (const auto& [rollout, row] : rows) {
    const size_t index = run.rollouts.size();
    run.rollouts.push_back(rollout);
    for (const auto& [name, value] : row) {
      MetricSeries& series = run.metrics[name];
      series.resize(rows.size());
      if (std::isfinite(value)) series[index] = value;
    }
  }
}

// Nested objects become dotted names.
void FlattenConfig(const Json& value, const std::string& name, RunData& run) {
  if (value.is_object()) {
    for (const auto& item : value.items()) {
      FlattenConfig(item.value(), name.empty() ? item.key() : name + "." + item.key(), run);
    }
  } else {
    run.config.emplace_back(name, value.is_string() ? value.get<std::string>() : DumpJson(value));
  }
}

// The last component of a path that may end in a slash.
std::string FolderName(const std::filesystem::path& folder) {
  const std::filesystem::path full = std::filesystem::absolute(folder).lexically_normal();
  const std::string name = full.filename().string();
  return name.empty() ? full.parent_path().filename().string() : name;
}

}  // namespace

std::vector<Json> ReadEvaluations(const std::filesystem::path& path) {
  std::vector<Json> rows;
  if (path.extension() == ".jsonl") {
    ForEachJsonLine(path, [&](Json row, const std::string&) { rows.push_back(std::move(row)); });
    return rows;
  }
  const Json table = ParseJson(ReadFile(path), path.string());
  if (!table.is_array()) {
    throw Error(ErrorCode::kData, {.where = path.string(),
                                   .what = "not an accuracy table",
                                   .expected = "an array of objects, as quatrain eval writes it",
                                   .found = table.type_name()});
  }
  for (const Json& row : table) {
    if (!row.is_object()) {
      throw Error(ErrorCode::kData,
                  {.where = fmt::format("{}, row {}", path.string(), rows.size() + 1),
                   .what = "not a row of named values",
                   .expected = "an object",
                   .found = row.type_name()});
    }
    rows.push_back(row);
  }
  return rows;
}

RunData ReadRun(const std::filesystem::path& folder, const ReadRunOptions& options) {
  const std::filesystem::path metrics = folder / "metrics.jsonl";
  const bool has_metrics = std::filesystem::is_regular_file(metrics);
  if (!has_metrics && options.empty == EmptyRun::kRefuse) {
    throw Error(ErrorCode::kData, {.where = folder.string(),
                                   .what = "not a run directory: it has no metrics.jsonl",
                                   .expected = "the folder that quatrain train was given as --save",
                                   .found = std::filesystem::is_directory(folder) ? "another folder"
                                            : std::filesystem::exists(folder)     ? "a file"
                                                                                  : "nothing"});
  }
  RunData run;
  run.name = FolderName(folder);
  if (has_metrics) ReadMetrics(metrics, options.empty, run);
  if (std::filesystem::exists(folder / "eval.json")) {
    run.evaluations = ReadEvaluations(folder / "eval.json");
  }
  if (std::filesystem::exists(folder / "samples.jsonl")) {
    const std::string text = ReadEnd(folder / "samples.jsonl", options.max_sample_bytes);
    ForEachJsonLine(folder / "samples.jsonl", text,
                    [&](Json row, const std::string&) { run.samples.push_back(std::move(row)); });
  }
  if (std::filesystem::exists(folder / "config.json")) {
    const std::filesystem::path path = folder / "config.json";
    FlattenConfig(ParseJson(ReadFile(path), path.string()), "", run);
  }
  return run;
}

}  // namespace quatrain
