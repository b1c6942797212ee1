#include "base/resources.h"

#include <fmt/format.h>

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

}  // namespace quatrain
