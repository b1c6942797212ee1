// Rows of a data set, from Parquet (.parquet), JSON Lines (.jsonl, .json) or plain text (.txt).
//
// A source is a file, or a folder: then its files of one of these kinds in the order of their
// names, or only those whose name begins with "train" if there are any. "<path>@[a:b]" takes rows a
// to b - 1 of all, as a Python slice does: either end may be left out or be negative. No rows at
// all is an error; so is every row that cannot be read, with its file and its line (JSON Lines) or
// row (Parquet), both from 1.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace quatrain {

// One column, a value a row: a string, null, a list of messages. Of a plain text file each line
// that is not blank is a row, whatever `column` is. Error kData: no such column (lists those that
// exist); kIo.
std::vector<Json> ReadColumn(const std::filesystem::path& source, const std::string& column);

// Whole rows as JSON objects, keys in the order of the file. Parquet: lists become arrays, structs
// and maps objects, dates, times and decimals their text, nulls null. A row of plain text is
// {"text": line}. Error kData, kIo.
//
// Up to `max_malformed_fraction` of the lines of JSON Lines may be no JSON object: they are left
// out, before the slice is taken, and told in `malformed`. More are an Error kData with the first.
struct MalformedRows {
  int64_t count = 0;
  std::string first;  // message of the first
};
std::vector<Json> ReadJsonRows(const std::filesystem::path& source,
                               double max_malformed_fraction = 0.0,
                               MalformedRows* malformed = nullptr);

}  // namespace quatrain
