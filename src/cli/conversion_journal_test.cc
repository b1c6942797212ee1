#include "cli/conversion_journal.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class ConversionJournalTest : public testing::Test {
 protected:
  ConversionJournalTest()
      : folder_(fs::path(testing::TempDir()) / fmt::format("conversion_journal_{}", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~ConversionJournalTest() override { fs::remove_all(folder_); }

  std::string Refusal(const Json& request) const {
    try {
      const ConversionJournal journal(folder_, request);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUsage);
      return error.what();
    }
    return "no error";
  }

  fs::path folder_;
};

TEST_F(ConversionJournalTest, StagesComeBackInOrderToTheSameRequest) {
  const Json request = {{"--seed", 1}, {"--method", "gptq"}};
  EXPECT_FALSE(ConversionJournal::HasStages(folder_));
  {
    ConversionJournal journal(folder_, request);
    journal.Add({{"stage", "embedding"}, {"seconds", 0.1}});
    journal.Add({{"stage", "layer 0"}, {"error", 1.0 / 3.0}});
  }
  EXPECT_TRUE(ConversionJournal::HasStages(folder_));
  const ConversionJournal again(folder_, request);
  ASSERT_EQ(again.stages().size(), 2u);
  EXPECT_EQ(again.stages()[0]["stage"], "embedding");
  EXPECT_EQ(again.stages()[1]["error"].get<double>(), 1.0 / 3.0);
}

TEST_F(ConversionJournalTest, AnotherRequestIsRefusedByItsFirstDifference) {
  ConversionJournal(folder_, {{"--seed", 1}, {"--method", "gptq"}}).Add({{"stage", "embedding"}});
  EXPECT_EQ(Refusal({{"--seed", 2}, {"--method", "rtn"}}).find("--seed"), 0u);
  EXPECT_EQ(Refusal({{"--seed", 1}}).find("--method"), 0u);
  const std::string added = Refusal({{"--seed", 1}, {"--method", "gptq"}, {"--actorder", "none"}});
  EXPECT_EQ(added.find("--actorder"), 0u) << added;
  EXPECT_NE(added.find("1 stages are done"), std::string::npos) << added;
}

}  // namespace
}  // namespace quatrain
