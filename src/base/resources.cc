#include "base/resources.h"

#include <fmt/format.h>

#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {

std::string SizeText(uint64_t bytes) {
  const double value = static_cast<double>(bytes);
  return value >= 1e9 ? fmt::format("{:.2f} GB", value / 1e9)
                      : fmt::format("{:.1f} MB", value / 1e6);
}

void RequireMemory(const std::string& job, uint64_t bytes, const std::string& todo) {
  const uint64_t available = AvailableMemoryBytes();
  if (bytes <= available) return;
  throw Error(ErrorCode::kResource, {.what = "not enough memory to " + job,
                                     .expected = SizeText(bytes),
                                     .found = SizeText(available) + " available",
                                     .todo = todo});
}

void RequireDisk(const std::filesystem::path& folder, uint64_t bytes, const std::string& todo) {
  const uint64_t free = FreeDiskBytes(folder);
  if (bytes <= free) return;
  throw Error(ErrorCode::kResource,
              {.where = folder.string(),
               .what = "the disk lacks " + SizeText(bytes - free) + " for what is to be written",
               .expected = SizeText(bytes) + " free",
               .found = SizeText(free),
               .todo = todo});
}

ProcessMemory ReadProcessMemory() {
  ProcessMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const bool is_resident = line.starts_with("VmRSS:");
    if (!is_resident && !line.starts_with("VmHWM:")) continue;
    (is_resident ? memory.resident_bytes : memory.peak_bytes) =
        std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
  }
  return memory;
}

}  // namespace quatrain
