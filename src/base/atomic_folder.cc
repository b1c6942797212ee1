#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/file_sync.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporaryMark = ".tmp-";
constexpr std::string_view kAsideMark = ".old-";
constexpr std::string_view kPartialMark = ".partial";

fs::path WithMark(const fs::path& target, std::string_view mark) {
  return fmt::format("{}{}{}", target.string(), mark, getpid());
}

// The place that is written in the end: links followed, no trailing slash.
fs::path Resolve(const fs::path& target) {
  std::error_code error;
  fs::path resolved = fs::weakly_canonical(fs::absolute(target), error);
  if (error) {
    throw Error(ErrorCode::kIo, {.where = target.string(),
                                 .what = "not a usable folder name (" + error.message() + ")"});
  }
  if (!resolved.has_filename()) resolved = resolved.parent_path();
  return resolved;
}

// The process number of a name "<base><mark><digits>".
std::optional<pid_t> OwnerOf(std::string_view name, std::string_view base, std::string_view mark) {
  if (!name.starts_with(base) || !name.substr(base.size()).starts_with(mark)) return std::nullopt;
  name.remove_prefix(base.size() + mark.size());
  pid_t owner = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), owner);
  if (error != std::errc() || end != name.data() + name.size()) return std::nullopt;
  return owner;
}

// Opens a folder and takes its lock; -1 if its owner lives, or if the folder is gone.
int TryLock(const fs::path& folder, pid_t owner) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  bool is_free = flock(fd, LOCK_EX | LOCK_NB) == 0;
  if (!is_free && errno != EWOULDBLOCK) {
    // Network file systems lock no folders: there the process number decides.
    is_free = owner == getpid() || (kill(owner, 0) != 0 && errno == ESRCH);
  }
  // The name must still mean the folder that was locked: another process may have removed it
  // meanwhile.
  struct stat opened = {}, named = {};
  if (is_free && fstat(fd, &opened) == 0 && stat(folder.c_str(), &named) == 0 &&
      opened.st_ino == named.st_ino && opened.st_dev == named.st_dev) {
    return fd;
  }
  close(fd);
  return -1;
}

// Removes what dead processes left beside `target`, and undoes an exchange that was cut in the
// middle.
void ClearLeftOvers(const fs::path& target) {
  const std::string base = target.filename().string();
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(ParentFolder(target), ignored)) {
    const std::string name = entry.path().filename().string();
    const auto aside_owner = OwnerOf(name, base, kAsideMark);
    const auto owner = aside_owner ? aside_owner : OwnerOf(name, base, kTemporaryMark);
    const int lock = owner ? TryLock(entry.path(), *owner) : -1;
    if (lock < 0) continue;
    if (aside_owner && !fs::exists(target, ignored)) {
      fs::rename(entry.path(), target, ignored);
    } else {
      fs::remove_all(entry.path(), ignored);
    }
    close(lock);
  }
}

void SyncTree(const fs::path& folder) try {
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_symlink()) continue;
    if (entry.is_regular_file() || entry.is_directory()) SyncPath(entry.path());
  }
  SyncPath(folder);
} catch (const fs::filesystem_error& error) {
  throw Error(ErrorCode::kIo, {.where = folder.string(), .what = error.code().message()});
}

// Puts `temporary` in the place of `target`. Returns where the older folder now is; empty if there
// was none.
fs::path Replace(const fs::path& temporary, const fs::path& target) {
  if (renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_NOREPLACE) == 0)
    return {};
  if (renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    return temporary;
  }
  // Some file systems know neither form.
  fs::path aside;
  std::error_code ignored;
  if (fs::exists(target, ignored)) {
    aside = WithMark(target, kAsideMark);
    fs::remove_all(aside, ignored);
    if (rename(target.c_str(), aside.c_str()) != 0)
      ThrowErrno(target, "cannot move the older folder aside");
  }
  if (rename(temporary.c_str(), target.c_str()) == 0) return aside;
  const int number = errno;
  if (!aside.empty()) rename(aside.c_str(), target.c_str());
  errno = number;
  ThrowErrno(target, "cannot give the folder its name");
}

// Creates the parent of a folder to be, whose name must not be that of a file.
void PrepareTarget(const fs::path& resolved, const fs::path& target) {
  std::error_code error;
  fs::create_directories(ParentFolder(resolved), error);
  if (error) {
    throw Error(ErrorCode::kIo, {.where = target.string(),
                                 .what = "cannot create the folder (" + error.message() + ")"});
  }
  if (fs::exists(resolved, error) && !fs::is_directory(resolved, error)) {
    throw Error(ErrorCode::kIo, {.where = target.string(),
                                 .expected = "the name of a folder",
                                 .found = "a file",
                                 .todo = "Choose another name."});
  }
}

[[noreturn]] void ThrowBusy(const fs::path& target) {
  throw Error(ErrorCode::kIo, {.where = target.string(),
                               .what = "another program is writing this folder",
                               .todo = "Wait until it ends, or choose another name."});
}

}  // namespace

AtomicFolder::AtomicFolder(const fs::path& target)
    : target_(Resolve(target)), temporary_(WithMark(target_, kTemporaryMark)) {
  PrepareTarget(target_, target);
  ClearLeftOvers(target_);
  if (mkdir(temporary_.c_str(), 0777) != 0) {
    if (errno != EEXIST) ThrowErrno(target, "cannot create a folder beside it");
    ThrowBusy(target);
  }
  lock_fd_ = TryLock(temporary_, getpid());
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
  if (lock_fd_ >= 0) close(lock_fd_);
}

void AtomicFolder::Commit() {
  QT_CHECK(!temporary_.empty(), "{} was committed already", target_.string());
  SyncTree(temporary_);
  const fs::path older = Replace(temporary_, target_);
  temporary_.clear();
  SyncPath(ParentFolder(target_));
  std::error_code ignored;  // what cannot be removed is a left-over, not a failure of this folder
  if (!older.empty()) fs::remove_all(older, ignored);
}

fs::path WorkFolder::PathFor(const fs::path& target) {
  return Resolve(target).string() + std::string(kPartialMark);
}

WorkFolder::WorkFolder(const fs::path& target) : target_(Resolve(target)), path_(PathFor(target)) {
  PrepareTarget(target_, target);
  if (mkdir(path_.c_str(), 0777) != 0 && errno != EEXIST) {
    ThrowErrno(path_, "cannot create the work folder");
  }
  lock_fd_ = TryLock(path_, getpid());
  if (lock_fd_ < 0) ThrowBusy(target);
  std::error_code ignored;
  fs::create_directory(output(), ignored);
}

WorkFolder::~WorkFolder() {
  std::error_code ignored;
  if (!is_kept_ && lock_fd_ >= 0) fs::remove_all(path_, ignored);
  if (lock_fd_ >= 0) close(lock_fd_);
}

void WorkFolder::Clear() {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_)) {
    fs::remove_all(entry.path(), error);
    if (error) {
      throw Error(ErrorCode::kIo, {.where = entry.path().string(), .what = error.message()});
    }
  }
  fs::create_directory(output());
  is_kept_ = false;
}

void WorkFolder::Publish() {
  SyncTree(output());
  const fs::path older = Replace(output(), target_);
  SyncPath(ParentFolder(target_));
  is_kept_ = false;  // the rest of it, and an older folder that was exchanged, go with this object
  std::error_code ignored;
  if (!older.empty()) fs::remove_all(older, ignored);
}

}  // namespace quatrain
