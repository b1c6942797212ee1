// Bytes on disk: mapped reads, and writes that leave the old or the new, never half.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace quatrain {

// A read-only mapping of a whole file. Movable; the bytes live as long as the object. An empty file
// has an empty span.
class MappedFile {
 public:
  // Error kIo naming the path if it is missing, a folder or unreadable.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The whole file as text. Error kIo as above.
std::string ReadFile(const std::filesystem::path& path);

// Writes beside `path`, fsyncs, renames over it and fsyncs the folder. Error kIo (disk full named
// as such); the old file then stands untouched.
void WriteFileAtomic(const std::filesystem::path& path, std::string_view content);

// Error kIo if `path` cannot be written: it is a folder, or its folder is missing or closed to us.
// Asked before long work whose result goes there.
void CheckCanWrite(const std::filesystem::path& path);

// Gives back the memory that reading part of a MappedFile took; it is read from disk again if need
// be. Without it a program that reads a large file once seems as large as the file.
void ReleasePages(std::span<const std::byte> bytes);

// Reads at places of the caller's choice, for what is larger than memory and is read once.
class FileReader {
 public:
  explicit FileReader(const std::filesystem::path& path);  // Error kIo
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;
  // Fills `bytes`; Error kIo if the file ends before.
  void ReadAt(uint64_t offset, std::span<std::byte> bytes) const;

 private:
  std::filesystem::path path_;
  int fd_;
};

enum class ExistingFile { kTruncate, kKeep };

// A writer with errors checked on every call; nothing is visible under the final name
// before the folder that holds it is published.
class FileWriter {
 public:
  // Creates the file; one that exists is emptied, or kept as it is for WriteAt to go on with.
  explicit FileWriter(const std::filesystem::path& path,
                      ExistingFile existing = ExistingFile::kTruncate);
  ~FileWriter();  // closes without fsync if Close was not called
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void Write(std::span<const std::byte> bytes);  // behind what Write wrote before
  // At a place of the caller's choice; does not move where Write goes on. What is never written
  // reads as zeros.
  void WriteAt(uint64_t offset, std::span<const std::byte> bytes);
  void Resize(uint64_t size);  // cuts the file, or appends zeros
  void Sync();                 // fsync; Error kIo
  void Close();                // fsync + close; Error kIo. Nothing may be written after

 private:
  std::filesystem::path path_;
  int fd_;
};

// A folder that appears under its final name all at once: `path()` is a temporary sibling
// ("<target>.tmp-<pid>"); Commit fsyncs everything and renames it to the target, replacing an older
// folder of that name: the two are exchanged in one step and the older one removed after (a file
// system that cannot exchange moves it aside as
// "<target>.old-<pid>" first). Without Commit the destructor removes it. At construction left-overs
// of dead processes are removed, and an older folder that a dead one had moved aside is put back. A
// lock on the temporary folder tells the living from the dead. Error kIo naming the folder, also if
// the target is a file.
class AtomicFolder {
 public:
  explicit AtomicFolder(const std::filesystem::path& target);
  ~AtomicFolder();
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  const std::filesystem::path& path() const { return temporary_; }
  void Commit();

 private:
  std::filesystem::path target_, temporary_;
  int lock_fd_ = -1;  // of temporary_, locked as long as this object lives
};

// A folder "<target>.partial" for work that a later process goes on with when this one is killed:
// state beside output(), the folder that Publish gives the name `target`, replacing an older one as
// AtomicFolder does. A lock keeps a second process out. The destructor removes the folder unless
// Keep was called: something in it is worth going on with.
class WorkFolder {
 public:
  // The path that a work folder of this target has.
  static std::filesystem::path PathFor(const std::filesystem::path& target);
  // Creates the folder or takes up the one that is there. Error kIo if another process is at work
  // in it, or the target is a file.
  explicit WorkFolder(const std::filesystem::path& target);
  ~WorkFolder();
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path output() const { return path_ / "output"; }
  void Keep() { is_kept_ = true; }
  // Empties the folder, output too.
  void Clear();
  // Syncs output(), renames it to the target and removes the work folder.
  void Publish();

 private:
  std::filesystem::path target_, path_;
  int lock_fd_ = -1;
  bool is_kept_ = false;
};

// Free bytes on the file system that holds `path` (its nearest existing parent).
uint64_t FreeDiskBytes(const std::filesystem::path& path);

// Memory this process may still take: MemAvailable, cut by a cgroup limit if one is set.
uint64_t AvailableMemoryBytes();

}  // namespace quatrain
