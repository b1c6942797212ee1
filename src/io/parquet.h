// Reads Parquet files through Arrow, which only parquet.cc knows.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"

namespace quatrain {

// Appends a column's values: a string, a list of structs, null; see io/rows.h for the conversion.
// Error kData naming the file: not Parquet or damaged, no such column (lists those that exist).
void AppendParquetColumn(const std::filesystem::path& path, const std::string& column,
                         std::vector<Json>& rows);

// Appends one object a row; see io/rows.h for the conversion. Error kData as above, also for a type
// that JSON cannot hold (names column and type).
void AppendParquetRows(const std::filesystem::path& path, std::vector<Json>& rows);

}  // namespace quatrain
