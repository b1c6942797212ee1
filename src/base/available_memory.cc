#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

#include "base/file.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// The number after `key` in a file of "key number" lines; with an empty key the file is one number.
std::optional<uint64_t> ReadNumber(const fs::path& path, const std::string& key) {
  std::ifstream stream(path);
  std::string line;
  while (std::getline(stream, line)) {
    if (!line.starts_with(key)) continue;
    const char* begin = line.data() + key.size();
    const char* const end = line.data() + line.size();
    begin = std::find_if(begin, end, [](char c) { return c != ' ' && c != '\t'; });
    uint64_t number = 0;
    if (std::from_chars(begin, end, number).ec == std::errc()) return number;
  }
  return std::nullopt;
}

// What one control group leaves: its limit less its use; file pages it could drop count as free.
uint64_t LeftIn(const fs::path& group, const char* limit_name, const char* use_name) {
  const auto limit = ReadNumber(group / limit_name, "");  // "max" is no number
  const auto use = ReadNumber(group / use_name, "");
  if (!limit || !use) return kNoLimit;
  const uint64_t droppable = ReadNumber(group / "memory.stat", "inactive_file ").value_or(0);
  const uint64_t held = *use - std::min(*use, droppable);
  return *limit - std::min(*limit, held);
}

// The path of this process's group in a line "<id>:<controllers>:<path>" of /proc/self/cgroup.
std::optional<fs::path> GroupOf(const std::string& controllers) {
  std::ifstream stream("/proc/self/cgroup");
  std::string line;
  while (std::getline(stream, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || line.substr(first + 1, second - first - 1) != controllers)
      continue;
    return fs::path(line.substr(second + 1)).relative_path();
  }
  return std::nullopt;
}

// The least that any group from this process's up to the root leaves.
uint64_t LeftInGroups(const fs::path& root, const std::string& controllers, const char* limit_name,
                      const char* use_name) {
  std::optional<fs::path> group = GroupOf(controllers);
  if (!group) return kNoLimit;
  uint64_t left =
      LeftIn(root, limit_name, use_name);  // inside a container the root is the container's
  for (; !group->empty(); group = group->parent_path()) {
    left = std::min(left, LeftIn(root / *group, limit_name, use_name));
  }
  return left;
}

}  // namespace

uint64_t AvailableMemoryBytes() {
  const uint64_t available_kib =
      ReadNumber("/proc/meminfo", "MemAvailable:").value_or(kNoLimit >> 10);
  const uint64_t version2 = LeftInGroups("/sys/fs/cgroup", "", "memory.max", "memory.current");
  const uint64_t version1 = LeftInGroups("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes",
                                         "memory.usage_in_bytes");
  return std::min({available_kib << 10, version2, version1});
}

}  // namespace quatrain
