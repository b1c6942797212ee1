#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file_sync.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr size_t kReadChunkBytes = size_t{1} << 16;
constexpr size_t kWriteChunkBytes = size_t{1} << 26;  // one write call takes at most 2 GB

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0666)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// Size of the opened file at `path`. Error kIo if it could not be opened or is a folder.
size_t CheckReadable(const Descriptor& file, const fs::path& path) {
  if (file.get() < 0) ThrowErrno(path, "cannot open the file");
  struct stat status = {};
  if (fstat(file.get(), &status) != 0) ThrowErrno(path, "cannot read the file");
  if (S_ISDIR(status.st_mode)) {
    throw Error(ErrorCode::kIo,
                {.where = path.string(), .expected = "a file", .found = "a folder"});
  }
  return static_cast<size_t>(status.st_size);
}

// Calls `write_some(bytes)`, which writes a part and returns its size as write(2) does, until all
// is written.
template <class WriteSome>
void WriteAll(std::span<const std::byte> bytes, const fs::path& path, const WriteSome& write_some) {
  while (!bytes.empty()) {
    const ssize_t written = write_some(bytes.first(std::min(bytes.size(), kWriteChunkBytes)));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) ThrowErrno(path, "cannot write the file");
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

}  // namespace

void ThrowErrno(const fs::path& path, const std::string& what) {
  const int number = errno;
  if (number == ENOSPC || number == EDQUOT) {
    throw Error(ErrorCode::kIo, {.where = path.string(),
                                 .what = what + ": the disk is full",
                                 .todo = "Free some space, or choose another place."});
  }
  throw Error(ErrorCode::kIo,
              {.where = path.string(),
               .what = fmt::format("{} ({})", what, std::generic_category().message(number))});
}

void SyncFd(int fd, const fs::path& path) {
  if (fsync(fd) == 0) return;
  if (errno == EINVAL || errno == EROFS || errno == ENOTSUP)
    return;  // a pipe or device has nothing to sync
  ThrowErrno(path, "cannot write to disk");
}

void SyncPath(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  if (file.get() < 0) ThrowErrno(path, "cannot open");
  SyncFd(file.get(), path);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  const Descriptor file(path, O_RDONLY);
  size_ = CheckReadable(file, path);
  if (size_ == 0) return;  // mmap refuses a length of 0
  void* const address = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) ThrowErrno(path, "cannot map the file");
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::string ReadFile(const fs::path& path) {
  const Descriptor file(path, O_RDONLY);
  std::string content;
  content.reserve(CheckReadable(file, path));
  std::array<char, kReadChunkBytes> chunk;
  for (;;) {
    const ssize_t count = read(file.get(), chunk.data(), chunk.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) ThrowErrno(path, "cannot read the file");
    if (count == 0) return content;
    content.append(chunk.data(), static_cast<size_t>(count));
  }
}

void WriteFileAtomic(const fs::path& path, std::string_view content) {
  const fs::path temporary = fmt::format("{}.tmp-{}", path.string(), getpid());
  try {
    FileWriter writer(temporary);
    writer.Write(std::as_bytes(std::span(content)));
    writer.Close();
    if (rename(temporary.c_str(), path.c_str()) != 0) ThrowErrno(path, "cannot replace the file");
  } catch (...) {
    unlink(temporary.c_str());
    throw;
  }
  SyncPath(ParentFolder(path));
}

void CheckCanWrite(const fs::path& path) {
  const fs::path folder = ParentFolder(path);
  std::error_code ignored;
  ErrorParts problem{.where = path.string(), .todo = "Choose another place."};
  if (fs::is_directory(path, ignored)) {
    problem.expected = "the name of a file";
    problem.found = "a folder";
  } else if (!fs::is_directory(folder, ignored)) {
    problem.what = "its folder does not exist";
    problem.expected = "a folder " + folder.string();
    problem.todo = "Create it, or choose another place.";
  } else if (access(folder.c_str(), W_OK | X_OK) != 0) {
    problem.what = "its folder cannot be written";
  } else {
    return;
  }
  throw Error(ErrorCode::kIo, problem);
}

void ReleasePages(std::span<const std::byte> bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(bytes.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(bytes.data() + bytes.size()) / page * page;
  // A hint: where it fails nothing is lost but memory that the system can take back by itself.
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

FileWriter::FileWriter(const fs::path& path, ExistingFile existing)
    : path_(path),
      fd_(open(path.c_str(),
               O_WRONLY | O_CREAT | O_CLOEXEC | (existing == ExistingFile::kTruncate ? O_TRUNC : 0),
               0666)) {
  if (fd_ < 0) ThrowErrno(path, "cannot create the file");
}

FileReader::FileReader(const fs::path& path)
    : path_(path), fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) ThrowErrno(path, "cannot open the file");
}

FileReader::~FileReader() { close(fd_); }

void FileReader::ReadAt(uint64_t offset, std::span<std::byte> bytes) const {
  while (!bytes.empty()) {
    const ssize_t count = pread(fd_, bytes.data(), std::min(bytes.size(), kWriteChunkBytes),
                                static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) ThrowErrno(path_, "cannot read the file");
    if (count == 0) {
      throw Error(ErrorCode::kIo, {.where = path_.string(), .what = "the file ends too early"});
    }
    offset += static_cast<uint64_t>(count);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void FileWriter::Resize(uint64_t size) {
  QT_CHECK(fd_ >= 0, "{} is closed", path_.string());
  if (ftruncate(fd_, static_cast<off_t>(size)) != 0) ThrowErrno(path_, "cannot size the file");
}

void FileWriter::Sync() {
  QT_CHECK(fd_ >= 0, "{} is closed", path_.string());
  SyncFd(fd_, path_);
}

FileWriter::~FileWriter() {
  if (fd_ >= 0) close(fd_);
}

void FileWriter::Write(std::span<const std::byte> bytes) {
  QT_CHECK(fd_ >= 0, "{} is closed", path_.string());
  WriteAll(bytes, path_,
           [&](std::span<const std::byte> part) { return write(fd_, part.data(), part.size()); });
}

void FileWriter::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  QT_CHECK(fd_ >= 0, "{} is closed", path_.string());
  WriteAll(bytes, path_, [&](std::span<const std::byte> part) {
    const ssize_t written = pwrite(fd_, part.data(), part.size(), static_cast<off_t>(offset));
    if (written > 0) offset += static_cast<uint64_t>(written);
    return written;
  });
}

void FileWriter::Close() {
  QT_CHECK(fd_ >= 0, "{} is closed", path_.string());
  SyncFd(fd_, path_);
  // Network file systems report a failed write only here.
  if (close(std::exchange(fd_, -1)) != 0) ThrowErrno(path_, "cannot write the file");
}

uint64_t FreeDiskBytes(const fs::path& path) {
  fs::path existing = fs::absolute(path);
  std::error_code ignored;
  while (!fs::exists(existing, ignored) && existing.has_relative_path())
    existing = existing.parent_path();
  struct statvfs status = {};
  if (statvfs(existing.c_str(), &status) != 0)
    ThrowErrno(path, "cannot ask for the free disk space");
  return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
}

}  // namespace quatrain
