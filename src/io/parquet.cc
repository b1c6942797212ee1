#include "io/parquet.h"

// Arrow's and Parquet's C++ API, from the pyarrow wheel.
#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/util/float16.h>
#include <parquet/arrow/reader.h>
#include <parquet/properties.h>

#include <exception>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void ThrowDamaged(const fs::path& path, const std::string& reason) {
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "not a readable Parquet file (" + reason + ")",
                                 .todo = "Fetch or write it again."});
}

void CheckStatus(const arrow::Status& status, const fs::path& path) {
  if (!status.ok()) ThrowDamaged(path, status.message());
}

template <class T>
T Take(arrow::Result<T> result, const fs::path& path) {
  CheckStatus(result.status(), path);
  return std::move(result).ValueUnsafe();
}

// An open file. Row groups are read one at a time, so that a large file is never in memory twice.
class Reader {
 public:
  explicit Reader(const fs::path& path) : path_(path) {
    auto properties = parquet::default_reader_properties();
    properties.set_page_checksum_verification(true);  // where the writer stored them
    parquet::arrow::FileReaderBuilder builder;
    CheckStatus(builder.Open(Take(arrow::io::ReadableFile::Open(path.string()), path), properties),
                path);
    file_ = Take(builder.Build(), path);
    file_->set_use_threads(false);
    CheckStatus(file_->GetSchema(&schema_), path);
  }

  const arrow::Schema& schema() const { return *schema_; }

  // Calls `body(table)` for the columns of each row group.
  template <class Body>
  void ForEachBatch(const std::vector<int>& leaf_columns, const Body& body) {
    for (int group = 0; group < file_->num_row_groups(); ++group) {
      const auto table = Take(file_->ReadRowGroup(group, leaf_columns), path_);
      CheckStatus(table->ValidateFull(), path_);
      body(*table);
    }
  }

  // Indices of the leaf columns under top-level column `name`.
  std::vector<int> LeavesOf(const std::string& name) const {
    std::vector<int> leaves;
    const auto* const columns = file_->parquet_reader()->metadata()->schema();
    for (int i = 0; i < columns->num_columns(); ++i) {
      if (columns->GetColumnRoot(i)->name() == name) leaves.push_back(i);
    }
    return leaves;
  }

  std::vector<int> AllLeaves() const {
    std::vector<int> leaves(
        static_cast<size_t>(file_->parquet_reader()->metadata()->num_columns()));
    for (size_t i = 0; i < leaves.size(); ++i) leaves[i] = static_cast<int>(i);
    return leaves;
  }

 private:
  fs::path path_;
  std::unique_ptr<parquet::arrow::FileReader> file_;
  std::shared_ptr<arrow::Schema> schema_;
};

// Arrow reports some damage by exceptions of its own, or by asking for more memory than there is.
template <class Function>
void WithArrowErrors(const fs::path& path, const Function& function) try {
  function();
} catch (const Error&) {
  throw;
} catch (const std::exception& error) {
  ThrowDamaged(path, error.what());
}

// The bytes of row `i` of an array of strings; nullopt if the array holds something else.
std::optional<std::string_view> StringAt(const arrow::Array& array, int64_t i) {
  switch (array.type_id()) {
    case arrow::Type::STRING:
      return static_cast<const arrow::StringArray&>(array).GetView(i);
    case arrow::Type::LARGE_STRING:
      return static_cast<const arrow::LargeStringArray&>(array).GetView(i);
    case arrow::Type::STRING_VIEW:
      return static_cast<const arrow::StringViewArray&>(array).GetView(i);
    case arrow::Type::DICTIONARY: {
      const auto& coded = static_cast<const arrow::DictionaryArray&>(array);
      return StringAt(*coded.dictionary(), coded.GetValueIndex(i));
    }
    default:
      return std::nullopt;
  }
}

Json ValueAt(const arrow::Array& array, int64_t i, const std::string& where);

template <class Array>
Json NumberAt(const arrow::Array& array, int64_t i) {
  return Json(static_cast<const Array&>(array).Value(i));
}

template <class ListArray>
Json ListAt(const arrow::Array& array, int64_t i, const std::string& where) {
  const auto& list = static_cast<const ListArray&>(array);
  Json values = Json::array();
  for (int64_t j = 0; j < list.value_length(i); ++j) {
    values.push_back(ValueAt(*list.values(), list.value_offset(i) + j, where));
  }
  return values;
}

// Keys that are not strings become their text, as JSON has no others.
Json MapAt(const arrow::Array& array, int64_t i, const std::string& where) {
  const auto& map = static_cast<const arrow::MapArray&>(array);
  Json members = Json::object();
  for (int64_t j = map.value_offset(i); j < map.value_offset(i) + map.value_length(i); ++j) {
    const Json key = ValueAt(*map.keys(), j, where);
    members[key.is_string() ? key.get<std::string>() : DumpJson(key)] =
        ValueAt(*map.items(), j, where);
  }
  return members;
}

Json StructAt(const arrow::Array& array, int64_t i, const std::string& where) {
  const auto& fields = static_cast<const arrow::StructArray&>(array);
  Json members = Json::object();
  for (int f = 0; f < fields.num_fields(); ++f) {
    members[fields.struct_type()->field(f)->name()] = ValueAt(*fields.field(f), i, where);
  }
  return members;
}

// Dates, times, decimals: their text.
Json TextOfScalar(const arrow::Array& array, int64_t i, const std::string& where) {
  const auto scalar = array.GetScalar(i);
  if (scalar.ok()) return Json((*scalar)->ToString());
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = "cannot be read as JSON",
                                 .found = "type " + array.type()->ToString()});
}

Json ValueAt(const arrow::Array& array, int64_t i, const std::string& where) {
  if (array.IsNull(i)) return Json(nullptr);
  if (const auto text = StringAt(array, i)) return Json(*text);
  switch (array.type_id()) {
    case arrow::Type::NA:
      return Json(nullptr);
    case arrow::Type::BOOL:
      return NumberAt<arrow::BooleanArray>(array, i);
    case arrow::Type::INT8:
      return NumberAt<arrow::Int8Array>(array, i);
    case arrow::Type::UINT8:
      return NumberAt<arrow::UInt8Array>(array, i);
    case arrow::Type::INT16:
      return NumberAt<arrow::Int16Array>(array, i);
    case arrow::Type::UINT16:
      return NumberAt<arrow::UInt16Array>(array, i);
    case arrow::Type::INT32:
      return NumberAt<arrow::Int32Array>(array, i);
    case arrow::Type::UINT32:
      return NumberAt<arrow::UInt32Array>(array, i);
    case arrow::Type::INT64:
      return NumberAt<arrow::Int64Array>(array, i);
    case arrow::Type::UINT64:
      return NumberAt<arrow::UInt64Array>(array, i);
    case arrow::Type::HALF_FLOAT:
      return Json(
          arrow::util::Float16::FromBits(static_cast<const arrow::HalfFloatArray&>(array).Value(i))
              .ToDouble());
    case arrow::Type::FLOAT:
      return NumberAt<arrow::FloatArray>(array, i);
    case arrow::Type::DOUBLE:
      return NumberAt<arrow::DoubleArray>(array, i);
    case arrow::Type::LIST:
      return ListAt<arrow::ListArray>(array, i, where);
    case arrow::Type::LARGE_LIST:
      return ListAt<arrow::LargeListArray>(array, i, where);
    case arrow::Type::FIXED_SIZE_LIST:
      return ListAt<arrow::FixedSizeListArray>(array, i, where);
    case arrow::Type::MAP:
      return MapAt(array, i, where);
    case arrow::Type::STRUCT:
      return StructAt(array, i, where);
    case arrow::Type::DICTIONARY: {
      const auto& coded = static_cast<const arrow::DictionaryArray&>(array);
      return ValueAt(*coded.dictionary(), coded.GetValueIndex(i), where);
    }
    case arrow::Type::BINARY:
    case arrow::Type::LARGE_BINARY:
    case arrow::Type::FIXED_SIZE_BINARY:
      throw Error(ErrorCode::kData, {.where = where,
                                     .what = "bytes cannot be read as JSON",
                                     .expected = "text or numbers",
                                     .found = "type " + array.type()->ToString(),
                                     .todo = "Drop the column, or write it as text."});
    default:
      return TextOfScalar(array, i, where);
  }
}

// Error kData, listing the columns that exist, if there is none of that name.
void CheckColumn(const Reader& reader, const fs::path& path, const std::string& column) {
  if (reader.schema().GetFieldByName(column) != nullptr) return;
  throw Error(
      ErrorCode::kData,
      {.where = path.string(),
       .what = fmt::format("no column '{}'", column),
       .expected = fmt::format("one of: {}", fmt::join(reader.schema().field_names(), ", "))});
}

}  // namespace

void AppendParquetColumn(const fs::path& path, const std::string& column, std::vector<Json>& rows) {
  WithArrowErrors(path, [&] {
    Reader reader(path);
    CheckColumn(reader, path, column);
    int64_t row = 0;
    reader.ForEachBatch(reader.LeavesOf(column), [&](const arrow::Table& table) {
      for (const auto& chunk : table.column(0)->chunks()) {
        for (int64_t i = 0; i < chunk->length(); ++i) {
          rows.push_back(ValueAt(
              *chunk, i, fmt::format("{}: row {}, column '{}'", path.string(), ++row, column)));
        }
      }
    });
  });
}

void AppendParquetRows(const fs::path& path, std::vector<Json>& rows) {
  WithArrowErrors(path, [&] {
    Reader reader(path);
    const size_t first = rows.size();
    reader.ForEachBatch(reader.AllLeaves(), [&](const arrow::Table& table) {
      const size_t begin = rows.size();
      rows.resize(begin + static_cast<size_t>(table.num_rows()), Json::object());
      for (int c = 0; c < table.num_columns(); ++c) {
        const std::string& name = table.field(c)->name();
        size_t row = begin;
        for (const auto& chunk : table.column(c)->chunks()) {
          for (int64_t i = 0; i < chunk->length(); ++i, ++row) {
            rows[row][name] = ValueAt(
                *chunk, i,
                fmt::format("{}: row {}, column '{}'", path.string(), row - first + 1, name));
          }
        }
      }
    });
  });
}

}  // namespace quatrain
