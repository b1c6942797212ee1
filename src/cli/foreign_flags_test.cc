#include "cli/foreign_flags.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

std::string Treat(const std::string& name, const std::vector<std::string>& values) {
  const ForeignFlag* flag = FindForeignFlag(name);
  EXPECT_NE(flag, nullptr) << name;
  return flag == nullptr ? "" : TreatForeignFlag(*flag, name, values);
}

TEST(ForeignFlags, AreUniqueAndSayWhatHappens) {
  std::set<std::string_view> names;
  for (const ForeignFlag& flag : ForeignFlags()) {
    EXPECT_TRUE(names.insert(flag.name).second) << flag.name;
    EXPECT_TRUE(flag.name.starts_with("--")) << flag.name;
    EXPECT_FALSE(flag.note.empty()) << flag.name;
  }
}

TEST(ForeignFlags, AreInTheDocumentation) {
  const std::string docs = ReadFile(std::string(QT_SOURCE_DIR) + "/docs/flags.md");
  for (const ForeignFlag& flag : ForeignFlags())
    EXPECT_NE(docs.find("`" + std::string(flag.name) + "`"), std::string::npos) << flag.name;
}

TEST(ForeignFlags, AnAcceptedOneGivesANote) {
  EXPECT_NE(Treat("--colocate", {}).find("--colocate: no effect here; "), std::string::npos);
  EXPECT_NE(Treat("--sglang-cuda-graph-bs", {"1", "2", "4"}).find("engine"), std::string::npos);
  EXPECT_NE(Treat("--hidden-dropout", {"0.0"}), "");
}

TEST(ForeignFlags, AValueThatCannotBeHonouredIsRefused) {
  EXPECT_THROW(Treat("--hidden-dropout", {"0.1"}), Error);
  EXPECT_THROW(Treat("--update-weights-interval", {"2"}), Error);
  EXPECT_THROW(Treat("--colocate", {"yes"}), Error);
  EXPECT_THROW(Treat("--num-layers", {}), Error);
  EXPECT_THROW(Treat("--num-layers", {"1", "2"}), Error);
}

TEST(ForeignFlags, ARefusedOneNamesTheReplacement) {
  try {
    Treat("--custom-rm-path", {"my.reward"});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    EXPECT_NE(std::string(error.what()).find("--rm-url"), std::string::npos) << error.what();
  }
}

TEST(ForeignFlags, PatternsStandBehindExactNames) {
  EXPECT_EQ(FindForeignFlag("--sglang-anything")->name, "--sglang-*");
  EXPECT_EQ(FindForeignFlag("--no-such-flag"), nullptr);
}

}  // namespace
}  // namespace quatrain
