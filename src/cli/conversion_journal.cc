#include "cli/conversion_journal.h"

#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "io/content_hash.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr const char* kRequestFile = "request.json";

std::string FileFacts(const fs::path& path, std::span<const std::byte> head) {
  struct stat status = {};
  if (stat(path.c_str(), &status) != 0) return "missing";
  return fmt::format("{} bytes, changed at {}.{:09}, header {:016x}", status.st_size,
                     status.st_mtim.tv_sec, status.st_mtim.tv_nsec, ContentHash(head));
}

fs::path StagePath(const fs::path& folder, size_t index) {
  return folder / fmt::format("stage-{:05}.json", index);
}

}  // namespace

Json SourceFingerprint(const fs::path& directory, const TensorSet& tensors) {
  Json files = Json::object();
  const fs::path config = directory / "config.json";
  const std::string config_text = ReadFile(config);
  // Its content alone: a copy of the same text is the same configuration.
  files["config.json"] =
      fmt::format("content {:016x}", ContentHash(std::as_bytes(std::span(config_text))));
  std::set<fs::path> shards;
  for (const TensorView& tensor : tensors.tensors()) shards.insert(*tensor.file);
  for (const fs::path& shard : shards) {
    const MappedFile file(shard);
    constexpr size_t kHeadBytes = size_t{1} << 16;
    files[shard.filename().string()] =
        FileFacts(shard, file.bytes().first(std::min(kHeadBytes, file.bytes().size())));
  }
  return files;
}

ConversionJournal::ConversionJournal(const fs::path& folder, const Json& request)
    : folder_(folder) {
  const fs::path request_path = folder / kRequestFile;
  if (!fs::exists(request_path)) {
    WriteFileAtomic(request_path, request.dump(2) + "\n");
    return;
  }
  while (fs::exists(StagePath(folder_, stages_.size()))) {
    const fs::path path = StagePath(folder_, stages_.size());
    stages_.push_back(ParseJson(ReadFile(path), path.string()));
  }
  CheckRequest(ParseJson(ReadFile(request_path), request_path.string()), request);
}

void ConversionJournal::CheckRequest(const Json& earlier, const Json& request) const {
  std::vector<std::string> keys;
  for (const Json* json : {&request, &earlier}) {
    for (const auto& item : json->items()) keys.push_back(item.key());
  }
  for (const std::string& key : keys) {
    const Json before = earlier.value(key, Json()), now = request.value(key, Json());
    if (before == now) continue;
    throw Error(
        ErrorCode::kUsage,
        {.where = key,
         .what =
             fmt::format("it is not what the conversion in {} was begun with", folder_.string()),
         .expected = before.is_null() ? "nothing" : DumpJson(before),
         .found = now.is_null() ? "nothing" : DumpJson(now),
         .todo = fmt::format("Run the command as it was to go on where it stopped ({} stages are "
                             "done), or pass --restart to begin anew.",
                             stages_.size())});
  }
}

bool ConversionJournal::HasStages(const fs::path& folder) {
  return fs::exists(StagePath(folder, 0));
}

void ConversionJournal::Add(Json stage) {
  WriteFileAtomic(StagePath(folder_, stages_.size()), stage.dump(1) + "\n");
  stages_.push_back(std::move(stage));
}

}  // namespace quatrain
