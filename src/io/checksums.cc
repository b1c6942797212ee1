#include "io/checksums.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "io/content_hash.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

std::string HashOf(const MappedFile& file) {
  const uint64_t hash = ContentHash(file.bytes());
  ReleasePages(file.bytes());
  return fmt::format("{:016x}", hash);
}

std::optional<FolderDamage> DamageOf(const fs::path& file, const Json& facts) {
  const auto bytes = facts.at("bytes").get<uint64_t>();
  const auto hash = facts.at("xxh3").get<std::string>();
  if (!fs::is_regular_file(file)) return FolderDamage{file, "a file", "none"};
  const uint64_t size = fs::file_size(file);
  if (size != bytes)
    return FolderDamage{file, fmt::format("{} bytes", bytes), fmt::format("{}", size)};
  const std::string found = HashOf(MappedFile(file));
  if (found != hash) return FolderDamage{file, "XXH3 " + hash, found};
  return std::nullopt;
}

}  // namespace

void WriteChecksums(const fs::path& folder) {
  std::map<std::string, Json> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const std::string name = fs::relative(entry.path(), folder).generic_string();
    if (name == kChecksumsFile) continue;
    files[name] = {{"bytes", entry.file_size()}, {"xxh3", HashOf(MappedFile(entry.path()))}};
  }
  WriteFileAtomic(folder / kChecksumsFile, Json{{"files", files}}.dump(1) + "\n");
}

std::optional<FolderDamage> FindDamage(const fs::path& folder,
                                       const std::vector<std::string>& prefixes) {
  const fs::path list = folder / kChecksumsFile;
  if (!fs::exists(folder)) return FolderDamage{folder, "a folder", "none"};
  if (!fs::exists(list)) return std::nullopt;
  try {
    const Json json = ParseJson(ReadFile(list), list.string());
    for (const auto& [name, facts] : json.at("files").items()) {
      const bool is_wanted =
          std::any_of(prefixes.begin(), prefixes.end(),
                      [&](const std::string& prefix) { return name.starts_with(prefix); });
      if (!is_wanted) continue;
      if (auto damage = DamageOf(folder / name, facts)) return damage;
    }
  } catch (const nlohmann::json::exception& error) {
    return FolderDamage{list, "sizes and hashes of files", error.what()};
  } catch (const Error& error) {
    return FolderDamage{list, "readable files", error.what()};
  }
  return std::nullopt;
}

}  // namespace quatrain
