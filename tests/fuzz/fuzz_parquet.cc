// A Parquet file: rows and single columns agree.
#include <unistd.h>

#include <fstream>

#include "io/rows.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace quatrain;
  static const std::filesystem::path path =
      std::filesystem::temp_directory_path() / fmt::format("fuzz-{}.parquet", getpid());
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(data), static_cast<std::streamsize>(size));
  std::vector<Json> rows;
  if (!fuzz::Accepts([&] { rows = ReadJsonRows(path); })) return 0;
  for (const auto& item : rows.front().items()) {
    std::vector<Json> column;
    if (!fuzz::Accepts([&] { column = ReadColumn(path, item.key()); })) continue;
    fuzz::Require(column.size() == rows.size(), "a column of another length");
  }
  return 0;
}
