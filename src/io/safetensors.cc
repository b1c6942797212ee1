#include "io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/json.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little,
              "tensor bytes are used as they lie in the file");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::string_view kLfsMark = "version https://git-lfs.github.com/spec/";

std::string TensorWhere(const fs::path& path, const std::string& name) {
  return fmt::format("{}: tensor '{}'", path.string(), name);
}

std::string_view AsText(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// One tensor as the header states it.
struct Entry {
  TensorView view;
  uint64_t begin = 0, end = 0;  // from the end of the header
};

// The member `key` of a tensor's description. Error kData if there is none.
const Json& MemberOf(const Json& description, const char* key, const std::string& where) {
  const auto found = description.is_object() ? description.find(key) : description.end();
  if (found != description.end()) return *found;
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = fmt::format("the header gives no {}", key),
                                 .expected = "an object with dtype, shape and data_offsets",
                                 .found = DumpJson(description).substr(0, 200)});
}

DType ParseDType(const Json& value, const std::string& where) {
  const auto dtype =
      value.is_string() ? FindDType(value.get_ref<const std::string&>()) : std::nullopt;
  if (dtype) return *dtype;
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = "unknown dtype",
                                 .expected = "a type of the format, such as BF16, F32 or I32",
                                 .found = DumpJson(value).substr(0, 200)});
}

std::vector<int64_t> ParseShape(const Json& value, const std::string& where) {
  std::vector<int64_t> shape;
  bool is_good = value.is_array();
  for (size_t i = 0; is_good && i < value.size(); ++i) {
    is_good = value[i].is_number_unsigned() && std::in_range<int64_t>(value[i].get<uint64_t>());
    if (is_good) shape.push_back(value[i].get<int64_t>());
  }
  if (is_good) return shape;
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = "bad shape",
                                 .expected = "a list of sizes from 0 up",
                                 .found = DumpJson(value).substr(0, 200)});
}

std::pair<uint64_t, uint64_t> ParseOffsets(const Json& value, const std::string& where) {
  if (value.is_array() && value.size() == 2 && value[0].is_number_unsigned() &&
      value[1].is_number_unsigned()) {
    const auto begin = value[0].get<uint64_t>(), end = value[1].get<uint64_t>();
    if (begin <= end) return {begin, end};
  }
  throw Error(ErrorCode::kData, {.where = where,
                                 .what = "bad data_offsets",
                                 .expected = "[begin, end] with begin not above end",
                                 .found = DumpJson(value).substr(0, 200)});
}

Entry ParseEntry(const std::string& name, const Json& description, const fs::path& path) {
  const std::string where = TensorWhere(path, name);
  Entry entry;
  entry.view.name = name;
  entry.view.dtype = ParseDType(MemberOf(description, "dtype", where), where);
  entry.view.shape = ParseShape(MemberOf(description, "shape", where), where);
  std::tie(entry.begin, entry.end) =
      ParseOffsets(MemberOf(description, "data_offsets", where), where);
  const auto bytes = BytesOf(entry.view.dtype, entry.view.shape);
  const std::string kind =
      fmt::format("{} {}", DTypeName(entry.view.dtype), DumpJson(Json(entry.view.shape)));
  if (!bytes) {
    throw Error(ErrorCode::kData,
                {.where = where,
                 .what = "impossible shape: its size overflows or is no whole number of bytes",
                 .found = kind});
  }
  if (*bytes != entry.end - entry.begin) {
    throw Error(ErrorCode::kData, {.where = where,
                                   .what = "shape and size disagree",
                                   .expected = fmt::format("{} bytes for {}", *bytes, kind),
                                   .found = fmt::format("{} bytes", entry.end - entry.begin),
                                   .todo = "The file is damaged: fetch or export it again."});
  }
  return entry;
}

std::map<std::string, std::string> ParseMetadata(const Json& value, const fs::path& path) {
  std::map<std::string, std::string> metadata;
  bool is_good = value.is_object();
  if (is_good) {
    for (const auto& [key, text] : value.items()) {
      if (text.is_string()) metadata[key] = text.get<std::string>();
      is_good = is_good && text.is_string();
    }
  }
  if (is_good) return metadata;
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .what = "bad __metadata__ in the header",
                                 .expected = "an object of strings",
                                 .found = DumpJson(value).substr(0, 200)});
}

// Ranges, sorted, must cover the data exactly: the same bytes never mean two things, and none mean
// nothing.
void CheckCoverage(const std::vector<Entry>& entries, uint64_t data_bytes, const fs::path& path) {
  uint64_t covered = 0;
  const std::string* previous = nullptr;
  for (const Entry& entry : entries) {
    const std::string where = TensorWhere(path, entry.view.name);
    const std::string range = fmt::format("{} to {}", entry.begin, entry.end);
    if (entry.end > data_bytes) {
      throw Error(ErrorCode::kData,
                  {.where = where,
                   .what = "its data end beyond the file",
                   .expected = fmt::format("offsets up to {}", data_bytes),
                   .found = range,
                   .todo = "The file is truncated or damaged: fetch or export it again."});
    }
    if (entry.begin < covered) {
      throw Error(ErrorCode::kData,
                  {.where = where,
                   .what = fmt::format("its data overlap with those of '{}'", *previous),
                   .expected = fmt::format("a begin of {}", covered),
                   .found = range});
    }
    if (entry.begin > covered) {
      throw Error(ErrorCode::kData,
                  {.where = where,
                   .what = fmt::format("{} bytes before its data belong to no tensor",
                                       entry.begin - covered),
                   .expected = fmt::format("a begin of {}", covered),
                   .found = range});
    }
    covered = entry.end;
    previous = &entry.view.name;
  }
  if (covered == data_bytes) return;
  throw Error(ErrorCode::kData,
              {.where = path.string(),
               .what = fmt::format("{} bytes behind the last tensor{} belong to no tensor",
                                   data_bytes - covered,
                                   previous == nullptr ? "" : " '" + *previous + "'")});
}

// The text of the header, whose length is the file's first 8 bytes.
std::string_view HeaderText(std::span<const std::byte> bytes, const fs::path& path) {
  const auto fail = [&](const std::string& expected, const std::string& found) {
    throw Error(ErrorCode::kData, {.where = path.string(),
                                   .what = "not a safetensors file, or a truncated one",
                                   .expected = expected,
                                   .found = found,
                                   .todo = "Fetch or export it again."});
  };
  if (bytes.size() < kLengthBytes) {
    fail("at least 8 bytes of header length", fmt::format("{} bytes in all", bytes.size()));
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMaxHeaderBytes) {
    fail(fmt::format("a header of at most {} bytes", kMaxHeaderBytes),
         fmt::format("a length of {}", length));
  }
  if (length > bytes.size() - kLengthBytes) {
    fail(fmt::format("a header of {} bytes", length),
         fmt::format("{} bytes behind its length", bytes.size() - 8));
  }
  const std::string_view text = AsText(bytes.subspan(kLengthBytes, length));
  if (!text.starts_with('{'))
    fail("a header that begins with {", fmt::format("\"{}\"", text.substr(0, 20)));
  return text;
}

}  // namespace

std::string TensorView::where() const {
  return TensorWhere(file == nullptr ? fs::path("(memory)") : *file, name);
}

void CheckNotLfsPointer(std::span<const std::byte> bytes, const fs::path& path) {
  if (!AsText(bytes).starts_with(kLfsMark)) return;
  throw Error(ErrorCode::kData, {.where = path.string(),
                                 .expected = "the file itself",
                                 .found = "a Git LFS pointer to it",
                                 .todo = "Run git lfs pull in its repository."});
}

SafetensorsContent ParseSafetensors(std::span<const std::byte> bytes, const fs::path& path) {
  CheckNotLfsPointer(bytes, path);
  const std::string_view text = HeaderText(bytes, path);
  const Json header = ParseJson(text, path.string() + ": header");
  SafetensorsContent content;
  std::vector<Entry> entries;
  for (const auto& [name, description] : header.items()) {
    if (name == kMetadataKey) {
      content.metadata = ParseMetadata(description, path);
    } else {
      entries.push_back(ParseEntry(name, description, path));
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  const auto data = bytes.subspan(kLengthBytes + text.size());
  CheckCoverage(entries, data.size(), path);
  content.tensors.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.view.bytes = data.subspan(entry.begin, entry.end - entry.begin);
    entry.view.file = &path;
    content.tensors.push_back(std::move(entry.view));
  }
  return content;
}

SafetensorsFile::SafetensorsFile(const fs::path& path)
    : file_(std::make_unique<MappedFile>(path)),
      content_(ParseSafetensors(file_->bytes(), file_->path())) {
  for (size_t i = 0; i < tensors().size(); ++i) index_.emplace(tensors()[i].name, i);
}

const TensorView* SafetensorsFile::Find(std::string_view name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors()[found->second];
}

}  // namespace quatrain
