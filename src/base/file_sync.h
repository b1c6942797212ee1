// What the writers of file.cc and atomic_folder.cc share: errno as an Error, and fsync.
#pragma once

#include <filesystem>
#include <string>

namespace quatrain {

// Throws Error kIo: "<path>: <what> (<errno as text>)"; a full disk or used-up quota is named as
// such.
[[noreturn]] void ThrowErrno(const std::filesystem::path& path, const std::string& what);

// fsync; Error kIo naming `path`. What cannot be synced at all (a pipe, a device) counts as
// written.
void SyncFd(int fd, const std::filesystem::path& path);

// fsync of a file or folder by name.
void SyncPath(const std::filesystem::path& path);

// The folder that holds `path`; "." for a bare name.
inline std::filesystem::path ParentFolder(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace quatrain
