// checksums.json of a folder: the size and the XXH3 of every file in it, so that damage shows
// before anything is read into a run.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace quatrain {

inline constexpr const char* kChecksumsFile = "checksums.json";

// Lists every file under `folder` but checksums.json itself, by its path from there. Error kIo.
void WriteChecksums(const std::filesystem::path& folder);

// The first difference between a folder and its checksums.json.
struct FolderDamage {
  std::filesystem::path file;
  std::string expected, found;
};

// Checks the listed files whose path begins with one of `prefixes` ("state/"). nullopt if all are
// as they were written, or if the folder has no checksums.json. A list that cannot be read is
// damage.
std::optional<FolderDamage> FindDamage(const std::filesystem::path& folder,
                                       const std::vector<std::string>& prefixes);

}  // namespace quatrain
