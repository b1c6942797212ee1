#include "io/rows.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "io/parquet.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

enum class Kind { kParquet, kJsonLines, kText };

// A source taken apart: "path@[begin:end]".
struct Source {
  fs::path path = {};
  std::optional<int64_t> begin = {}, end = {};
};

std::optional<Kind> KindOf(const fs::path& path) {
  const std::string extension = path.extension().string();
  if (extension == ".parquet") return Kind::kParquet;
  if (extension == ".jsonl" || extension == ".json") return Kind::kJsonLines;
  if (extension == ".txt") return Kind::kText;
  return std::nullopt;
}

// Reads one end of a slice, which may be left out; false if it is no whole number.
bool ParseSliceEnd(std::string_view text, std::optional<int64_t>& value) {
  if (text.empty()) return true;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value.emplace());
  return error == std::errc() && end == text.data() + text.size();
}

Source ParseSource(const fs::path& given) {
  const std::string text = given.string();
  const size_t at = text.rfind("@[");
  if (at == std::string::npos || !text.ends_with(']')) return {.path = given};
  const std::string_view slice = std::string_view(text).substr(at + 2, text.size() - at - 3);
  const size_t colon = std::min(slice.find(':'), slice.size());
  Source source = {.path = text.substr(0, at)};
  if (colon < slice.size() && ParseSliceEnd(slice.substr(0, colon), source.begin) &&
      ParseSliceEnd(slice.substr(colon + 1), source.end)) {
    return source;
  }
  throw Error(ErrorCode::kUsage,
              {.where = text,
               .what = "bad slice",
               .expected = "path@[a:b] with whole numbers a and b, or one left out",
               .found = text.substr(at)});
}

// The data files of a folder; see the header.
std::vector<fs::path> FilesIn(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.is_regular_file() && KindOf(entry.path())) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  const auto is_train = [](const fs::path& file) {
    return file.filename().string().starts_with("train");
  };
  if (std::any_of(files.begin(), files.end(), is_train))
    std::erase_if(files, std::not_fn(is_train));
  if (files.empty()) {
    throw Error(ErrorCode::kData, {.where = folder.string(),
                                   .what = "the folder holds no data",
                                   .expected = ".parquet, .jsonl, .json or .txt files"});
  }
  const auto other = std::find_if(files.begin(), files.end(), [&](const fs::path& file) {
    return KindOf(file) != KindOf(files.front());
  });
  if (other == files.end()) return files;
  throw Error(ErrorCode::kData,
              {.where = folder.string(),
               .what = "the folder holds data of different kinds",
               .found = fmt::format("{} and {}", files.front().filename().string(),
                                    other->filename().string()),
               .todo = "Name the file that you mean."});
}

std::vector<fs::path> FilesOf(const fs::path& path) {
  if (!fs::exists(path))
    throw Error(ErrorCode::kIo, {.where = path.string(), .what = "no such file or folder"});
  if (fs::is_directory(path)) return FilesIn(path);
  if (KindOf(path)) return {path};
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "unknown kind of data",
                                 .expected = "a .parquet, .jsonl, .json or .txt file",
                                 .found = path.filename().string(),
                                 .todo = "Unpack or rename it."});
}

// Keeps the rows of the slice. Error kData if none is left.
template <class Row>
std::vector<Row> Slice(std::vector<Row> rows, const Source& source) {
  const auto count = static_cast<int64_t>(rows.size());
  if (count == 0)
    throw Error(ErrorCode::kData, {.where = source.path.string(), .what = "the data set is empty"});
  const auto place = [&](std::optional<int64_t> value, int64_t otherwise) {
    if (!value) return otherwise;
    return std::clamp<int64_t>(*value < 0 ? std::max(*value, -count) + count : *value, 0, count);
  };
  const int64_t begin = place(source.begin, 0), end = place(source.end, count);
  if (begin >= end) {
    throw Error(ErrorCode::kData,
                {.where = source.path.string(),
                 .what = fmt::format("the slice holds none of the {} rows", count)});
  }
  rows.erase(rows.begin() + end, rows.end());
  rows.erase(rows.begin(), rows.begin() + begin);
  return rows;
}

// Calls `body(line, number)` for each line that is not blank; numbers count from 1.
template <class Body>
void ForEachLine(std::string_view text, const Body& body) {
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) body(line, number);
  }
}

// Forgives lines that are no rows, within a share of all.
class Leniency {
 public:
  explicit Leniency(double max_fraction) : max_fraction_(max_fraction) {}

  // Calls `read`; its Error is passed on at once if none is forgiven.
  template <class Read>
  void Try(const Read& read) {
    ++num_lines_;
    if (max_fraction_ == 0.0) return read();
    try {
      read();
    } catch (const Error& error) {
      if (malformed_.count++ == 0) malformed_.first = error.what();
    }
  }

  MalformedRows Finish(const std::string& where) const {
    if (static_cast<double>(malformed_.count) <= max_fraction_ * static_cast<double>(num_lines_))
      return malformed_;
    throw Error(ErrorCode::kData,
                {.where = where,
                 .what = fmt::format("{} of {} lines are no rows; the first: {}", malformed_.count,
                                     num_lines_, malformed_.first),
                 .expected = fmt::format("at most {:g} of them", max_fraction_)});
  }

 private:
  double max_fraction_;
  int64_t num_lines_ = 0;
  MalformedRows malformed_;
};

// Calls `body(row, where)` for each object of JSON Lines, or of one array of objects.
template <class Body>
void ForEachJsonRow(const fs::path& path, Leniency& leniency, const Body& body) {
  const std::string text = ReadFile(path);
  const auto visit = [&](Json row, const std::string& where) {
    if (row.is_object()) return body(std::move(row), where);
    throw Error(ErrorCode::kData,
                {.where = where, .expected = "a JSON object", .found = row.type_name()});
  };
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (path.extension() == ".json" && first != std::string::npos && text[first] == '[') {
    Json rows = ParseJson(text, path.string());
    for (size_t i = 0; i < rows.size(); ++i) {
      visit(std::move(rows[i]), fmt::format("{}: row {}", path.string(), i + 1));
    }
    return;
  }
  ForEachLine(text, [&](std::string_view line, size_t number) {
    leniency.Try([&] {
      visit(ParseJson(line, path.string(), number),
            fmt::format("{}: line {}", path.string(), number));
    });
  });
}

const Json& ValueOf(const Json& row, const std::string& column, const std::string& where) {
  const auto value = row.find(column);
  if (value != row.end()) return *value;
  std::string keys;
  for (const auto& item : row.items()) keys += (keys.empty() ? "" : ", ") + item.key();
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = fmt::format("no column '{}'", column),
                                 .expected = "one of: " + keys});
}

}  // namespace

std::vector<Json> ReadColumn(const fs::path& given, const std::string& column) {
  const Source source = ParseSource(given);
  Leniency leniency(0.0);
  std::vector<Json> rows;
  for (const fs::path& file : FilesOf(source.path)) {
    switch (*KindOf(file)) {
      case Kind::kParquet:
        AppendParquetColumn(file, column, rows);
        break;
      case Kind::kJsonLines:
        ForEachJsonRow(file, leniency, [&](const Json& row, const std::string& where) {
          rows.push_back(ValueOf(row, column, where));
        });
        break;
      case Kind::kText:
        ForEachLine(ReadFile(file),
                    [&](std::string_view line, size_t) { rows.emplace_back(line); });
        break;
    }
  }
  return Slice(std::move(rows), source);
}

std::vector<Json> ReadJsonRows(const fs::path& given, double max_malformed_fraction,
                               MalformedRows* malformed) {
  const Source source = ParseSource(given);
  std::vector<Json> rows;
  Leniency leniency(max_malformed_fraction);
  for (const fs::path& file : FilesOf(source.path)) {
    switch (*KindOf(file)) {
      case Kind::kParquet:
        AppendParquetRows(file, rows);
        break;
      case Kind::kJsonLines:
        ForEachJsonRow(file, leniency,
                       [&](Json row, const std::string&) { rows.push_back(std::move(row)); });
        break;
      case Kind::kText:
        ForEachLine(ReadFile(file), [&](std::string_view line, size_t) {
          rows.push_back({{"text", line}});
        });
        break;
    }
  }
  const MalformedRows found = leniency.Finish(source.path.string());
  if (malformed != nullptr) *malformed = found;
  return Slice(std::move(rows), source);
}

}  // namespace quatrain
