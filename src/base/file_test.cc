#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <vector>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

// An empty folder of its own for each test.
class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::path(testing::TempDir()) / fmt::format("file_test_{}_{}", info->name(), getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Names in the folder, sorted and joined.
  std::string Listing() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return fmt::format("{}", fmt::join(names, " "));
  }

  fs::path folder_;
};

class MappedFileTest : public FileTest {};
class WriteFileAtomicTest : public FileTest {};
class FileWriterTest : public FileTest {};
class AtomicFolderTest : public FileTest {};

void Put(const fs::path& path, const std::string& text) { std::ofstream(path) << text; }

std::string_view TextOf(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

template <class Function>
std::string MessageOf(const Function& function) {
  try {
    function();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    return error.what();
  }
  return "no error";
}

bool Contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A file size limit stands for a full disk: writing beyond it fails with EFBIG.
class ScopedFileSizeLimit {
 public:
  explicit ScopedFileSizeLimit(rlim_t bytes) {
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~ScopedFileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, SIG_DFL);
  }

 private:
  rlimit before_ = {};
};

TEST_F(MappedFileTest, ShowsTheBytesAndCanBeMoved) {
  Put(folder_ / "a", "hello");
  Put(folder_ / "b", "other");
  MappedFile first(folder_ / "a");
  EXPECT_EQ(TextOf(first), "hello");
  MappedFile second = std::move(first);
  EXPECT_EQ(TextOf(second), "hello");
  EXPECT_EQ(second.path(), folder_ / "a");
  second = MappedFile(folder_ / "b");
  EXPECT_EQ(TextOf(second), "other");
}

TEST_F(MappedFileTest, AnEmptyFileIsAnEmptySpan) {
  Put(folder_ / "empty", "");
  EXPECT_TRUE(MappedFile(folder_ / "empty").bytes().empty());
}

TEST_F(MappedFileTest, AMissingFileOrAFolderIsAnErrorThatNamesIt) {
  EXPECT_TRUE(Contains(MessageOf([&] { MappedFile file(folder_ / "none"); }),
                       "none: cannot open the file"));
  EXPECT_TRUE(Contains(MessageOf([&] { MappedFile file(folder_); }), folder_.string()));
  EXPECT_TRUE(Contains(MessageOf([&] { MappedFile file(folder_); }), "found a folder"));
}

TEST_F(MappedFileTest, ReadFileReadsWholeTextsAndRefusesFolders) {
  const std::string text(200000, 'x');
  Put(folder_ / "long", text);
  EXPECT_EQ(ReadFile(folder_ / "long"), text);
  EXPECT_EQ(ReadFile("/dev/null"), "");
  EXPECT_TRUE(Contains(MessageOf([&] { ReadFile(folder_); }), "found a folder"));
  EXPECT_TRUE(Contains(MessageOf([&] { ReadFile(folder_ / "none"); }), "No such file"));
}

TEST_F(WriteFileAtomicTest, ReplacesTheWholeContentAndLeavesNothingElse) {
  WriteFileAtomic(folder_ / "f", "the first, longer content");
  WriteFileAtomic(folder_ / "f", "second");
  EXPECT_EQ(ReadFile(folder_ / "f"), "second");
  EXPECT_EQ(Listing(), "f");
}

TEST_F(WriteFileAtomicTest, AWriteThatFailsHalfWayLeavesTheOldFile) {
  WriteFileAtomic(folder_ / "f", "old");
  {
    const ScopedFileSizeLimit limit(100);
    EXPECT_TRUE(Contains(MessageOf([&] { WriteFileAtomic(folder_ / "f", std::string(1000, 'x')); }),
                         "cannot write the file"));
  }
  EXPECT_EQ(ReadFile(folder_ / "f"), "old");
  EXPECT_EQ(Listing(), "f");
}

TEST_F(WriteFileAtomicTest, AMissingFolderIsAnError) {
  EXPECT_TRUE(Contains(MessageOf([&] { WriteFileAtomic(folder_ / "no" / "f", "x"); }),
                       "cannot create the file"));
}

TEST_F(FileWriterTest, WritesInSequence) {
  FileWriter writer(folder_ / "f");
  writer.Write(std::as_bytes(std::span("ab", 2)));
  writer.Write({});
  writer.Write(std::as_bytes(std::span("c", 1)));
  writer.Close();
  EXPECT_EQ(ReadFile(folder_ / "f"), "abc");
}

TEST_F(FileWriterTest, WritesAtAnyPlaceInAnyOrder) {
  FileWriter writer(folder_ / "f");
  writer.WriteAt(4, std::as_bytes(std::span("ef", 2)));
  writer.Write(std::as_bytes(std::span("ab", 2)));
  writer.WriteAt(3, std::as_bytes(std::span("d", 1)));
  writer.Close();
  EXPECT_EQ(ReadFile(folder_ / "f"), std::string("ab\0def", 6));
}

TEST_F(FileWriterTest, AFullDiskIsNamedAsSuch) {
  FileWriter writer("/dev/full");
  const std::string message = MessageOf([&] { writer.Write(std::as_bytes(std::span("abc", 3))); });
  EXPECT_TRUE(Contains(message, "/dev/full: cannot write the file: the disk is full")) << message;
}

TEST_F(FileWriterTest, WritingAfterCloseIsACaughtBug) {
  FileWriter writer(folder_ / "f");
  writer.Close();
  EXPECT_THROW(writer.Write({}), Error);
}

TEST_F(AtomicFolderTest, AppearsOnlyAtCommit) {
  AtomicFolder output(folder_ / "new" / "out");
  Put(output.path() / "a", "1");
  fs::create_directory(output.path() / "sub");
  Put(output.path() / "sub" / "b", "2");
  EXPECT_FALSE(fs::exists(folder_ / "new" / "out"));
  output.Commit();
  EXPECT_EQ(ReadFile(folder_ / "new" / "out" / "a"), "1");
  EXPECT_EQ(ReadFile(folder_ / "new" / "out" / "sub" / "b"), "2");
}

TEST_F(AtomicFolderTest, ReplacesAnOlderFolderAsAWhole) {
  fs::create_directories(folder_ / "out");
  Put(folder_ / "out" / "old", "1");
  {
    AtomicFolder output(folder_ / "out/");  // a trailing slash changes nothing
    Put(output.path() / "new", "2");
    EXPECT_TRUE(fs::exists(folder_ / "out" / "old"));
    output.Commit();
  }
  EXPECT_EQ(Listing(), "out");
  EXPECT_TRUE(fs::exists(folder_ / "out" / "new"));
  EXPECT_FALSE(fs::exists(folder_ / "out" / "old"));
}

TEST_F(AtomicFolderTest, WithoutCommitNothingStaysAndTheOlderFolderStands) {
  fs::create_directories(folder_ / "out");
  Put(folder_ / "out" / "old", "1");
  {
    AtomicFolder output(folder_ / "out");
    Put(output.path() / "new", "2");
  }
  EXPECT_EQ(Listing(), "out");
  EXPECT_EQ(ReadFile(folder_ / "out" / "old"), "1");
}

TEST_F(AtomicFolderTest, AKilledWriterLeavesTheOlderFolderAndItsRemainsAreClearedByTheNext) {
  fs::create_directories(folder_ / "out");
  Put(folder_ / "out" / "old", "1");
  const pid_t child = fork();
  if (child == 0) {
    AtomicFolder output(folder_ / "out");
    Put(output.path() / "half", "2");
    raise(SIGKILL);
  }
  waitpid(child, nullptr, 0);
  EXPECT_EQ(Listing(), fmt::format("out out.tmp-{}", child));
  EXPECT_EQ(ReadFile(folder_ / "out" / "old"), "1");
  fs::create_directories(folder_ / "out.tmp-notes");  // someone else's
  { AtomicFolder output(folder_ / "out"); }
  EXPECT_EQ(Listing(), "out out.tmp-notes");
}

TEST_F(AtomicFolderTest, RemainsOfADeadProcessOfOurOwnNumberAreClearedToo) {
  const fs::path left_over =
      folder_ /
      fmt::format("out.tmp-{}", getpid());  // the first process of a container is always 1
  fs::create_directories(left_over);
  Put(left_over / "half", "1");
  AtomicFolder output(folder_ / "out");
  EXPECT_FALSE(fs::exists(output.path() / "half"));
  output.Commit();
  EXPECT_EQ(Listing(), "out");
}

TEST_F(AtomicFolderTest, AnExchangeCutInTheMiddleIsUndone) {
  fs::create_directories(folder_ / "out.old-12345");
  Put(folder_ / "out.old-12345" / "old", "1");
  { AtomicFolder output(folder_ / "out"); }
  EXPECT_EQ(Listing(), "out");
  EXPECT_EQ(ReadFile(folder_ / "out" / "old"), "1");
}

TEST_F(AtomicFolderTest, TheTemporaryFolderOfALivingWriterIsLeftAlone) {
  AtomicFolder first(folder_ / "out");
  Put(first.path() / "a", "1");
  EXPECT_TRUE(Contains(MessageOf([&] { AtomicFolder second(folder_ / "out"); }),
                       "another program is writing"));
  const pid_t child = fork();
  if (child == 0) {
    { AtomicFolder other(folder_ / "out"); }
    _exit(0);
  }
  waitpid(child, nullptr, 0);
  EXPECT_EQ(ReadFile(first.path() / "a"), "1");
}

TEST_F(AtomicFolderTest, AFileOfThatNameIsRefusedAndStays) {
  Put(folder_ / "out", "precious");
  EXPECT_TRUE(Contains(MessageOf([&] { AtomicFolder output(folder_ / "out"); }), "found a file"));
  EXPECT_EQ(ReadFile(folder_ / "out"), "precious");
}

TEST_F(AtomicFolderTest, ALinkToAFolderIsFollowed) {
  fs::create_directories(folder_ / "real");
  fs::create_directory_symlink(folder_ / "real", folder_ / "link");
  AtomicFolder output(folder_ / "link");
  Put(output.path() / "a", "1");
  output.Commit();
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(ReadFile(folder_ / "real" / "a"), "1");
}

TEST_F(FileTest, WhatCannotBeWrittenIsFoundBeforehand) {
  EXPECT_NO_THROW(CheckCanWrite(folder_ / "new"));
  EXPECT_NO_THROW(CheckCanWrite("bare_name")) << "the folder is the current one";
  EXPECT_THROW(CheckCanWrite(folder_), Error);
  try {
    CheckCanWrite(folder_ / "missing" / "file");
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find((folder_ / "missing").string()), std::string::npos);
  }
  EXPECT_EQ(Listing(), "") << "nothing was written";
}

TEST_F(AtomicFolderTest, AWorkFolderIsTakenUpWhereItWasLeftAndPublishedAtOnce) {
  const fs::path target = folder_ / "out";
  {
    WorkFolder work(target);
    EXPECT_EQ(work.path(), WorkFolder::PathFor(target));
    Put(work.path() / "state", "1");
    Put(work.output() / "a", "1");
    work.Keep();
    EXPECT_TRUE(Contains(MessageOf([&] { WorkFolder second(target); }), "another program"));
  }
  EXPECT_EQ(Listing(), "out.partial");
  {
    WorkFolder work(target);
    EXPECT_EQ(ReadFile(work.path() / "state"), "1");
    work.Keep();
    work.Publish();
  }
  EXPECT_EQ(Listing(), "out");
  EXPECT_EQ(ReadFile(target / "a"), "1");
  {
    WorkFolder work(target);
    Put(work.output() / "b", "2");
    work.Publish();
  }
  EXPECT_EQ(Listing(), "out");
  EXPECT_FALSE(fs::exists(target / "a"));
  EXPECT_EQ(ReadFile(target / "b"), "2");
}

TEST_F(AtomicFolderTest, AWorkFolderWithNothingToKeepLeavesNothing) {
  {
    WorkFolder work(folder_ / "out");
    Put(work.path() / "state", "1");
  }
  EXPECT_EQ(Listing(), "");
  {
    WorkFolder work(folder_ / "out");
    Put(work.path() / "state", "1");
    work.Keep();
    work.Clear();
    EXPECT_FALSE(fs::exists(work.path() / "state"));
  }
  EXPECT_EQ(Listing(), "");
}

TEST(Resources, FreeSpaceIsAskedOfTheNearestParentThatExists) {
  EXPECT_GT(FreeDiskBytes("."), 0u);
  EXPECT_GT(FreeDiskBytes(fs::path(testing::TempDir()) / "no" / "such" / "folder"), 0u);
}

TEST(Resources, AvailableMemoryIsWithinTheMachine) {
  const uint64_t total = static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) *
                         static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
  EXPECT_GT(AvailableMemoryBytes(), 0u);
  EXPECT_LE(AvailableMemoryBytes(), total);
}

}  // namespace
}  // namespace quatrain
