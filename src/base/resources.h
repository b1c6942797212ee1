// Is there room for a job? Asked before it starts, so that nothing is half done.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace quatrain {

// "1.25 GB" or "31.0 MB".
std::string SizeText(uint64_t bytes);

// Error kResource if the job needs more memory than this process may still take (base/file.h):
// both numbers, and what to do.
void RequireMemory(const std::string& job, uint64_t bytes, const std::string& todo);

// Error kResource if the file system that holds `folder` (which need not exist) has less free.
void RequireDisk(const std::filesystem::path& folder, uint64_t bytes, const std::string& todo);

// Of this process, as the kernel counts them (VmRSS and VmHWM of /proc/self/status); 0 where it
// does not say.
struct ProcessMemory {
  uint64_t resident_bytes = 0;
  uint64_t peak_bytes = 0;
};
ProcessMemory ReadProcessMemory();

}  // namespace quatrain
