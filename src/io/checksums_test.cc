#include "io/checksums.h"

#include <gtest/gtest.h>

#include "base/file.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class Checksums : public testing::Test {
 protected:
  Checksums() : folder_(fs::path(testing::TempDir()) / "quatrain_checksums") {
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "state");
    fs::create_directories(folder_ / "bf16");
    WriteFileAtomic(folder_ / "state/a.json", "{\"step\": 12}");
    WriteFileAtomic(folder_ / "state/empty", "");
    WriteFileAtomic(folder_ / "bf16/b", "weights");
    WriteChecksums(folder_);
  }
  ~Checksums() override { fs::remove_all(folder_); }

  fs::path folder_;
};

TEST_F(Checksums, AFolderAsItWasWrittenIsWhole) {
  EXPECT_FALSE(FindDamage(folder_, {""}).has_value());
}

TEST_F(Checksums, AChangedMissingOrShorterFileIsNamed) {
  WriteFileAtomic(folder_ / "state/a.json", "{\"step\": 13}");
  const auto changed = FindDamage(folder_, {"state/"});
  ASSERT_TRUE(changed.has_value());
  EXPECT_EQ(changed->file, folder_ / "state/a.json");
  EXPECT_TRUE(changed->expected.starts_with("XXH3 ")) << changed->expected;
  EXPECT_FALSE(FindDamage(folder_, {"bf16/"}).has_value()) << "another part was asked about";
  WriteFileAtomic(folder_ / "state/a.json", "{");
  EXPECT_EQ(FindDamage(folder_, {"state/"})->found, "1");
  fs::remove(folder_ / "state/a.json");
  EXPECT_EQ(FindDamage(folder_, {"state/"})->found, "none");
}

TEST_F(Checksums, AListThatCannotBeReadIsDamageAndNoListIsNot) {
  WriteFileAtomic(folder_ / kChecksumsFile, "{\"files\": {\"state/a.json\": 3}}");
  EXPECT_EQ(FindDamage(folder_, {"state/"})->file, folder_ / kChecksumsFile);
  WriteFileAtomic(folder_ / kChecksumsFile, "{\"fil");
  EXPECT_TRUE(FindDamage(folder_, {"state/"}).has_value());
  fs::remove(folder_ / kChecksumsFile);
  EXPECT_FALSE(FindDamage(folder_, {"state/"}).has_value());
  EXPECT_TRUE(FindDamage(folder_ / "none", {"state/"}).has_value());
}

}  // namespace
}  // namespace quatrain
