#include "cli/environment.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace quatrain {
namespace {

QatArgs Read(const std::vector<std::string>& entries) {
  QatArgs args;
  ReadQatEnvironment(entries, &args);
  return args;
}

std::string Refusal(const std::string& entry) {
  try {
    Read({"HOME=/root", entry});
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUsage);
    return error.what();
  }
  return "";
}

TEST(Environment, ReadsBothVariablesAndNothingElse) {
  const QatArgs args =
      Read({"OPEN_TRAINING_INT4_FAKE_QAT_FLAG=1", "PATH=/x", "OPEN_TRAINING_INT4_GROUP_SIZE=128"});
  EXPECT_EQ(args.fake_qat_flag, true);
  EXPECT_EQ(args.group_size, 128);
  EXPECT_EQ(Read({"OPEN_TRAINING_INT4_FAKE_QAT_FLAG=0"}).fake_qat_flag, false);
  const QatArgs none = Read({"A=B", "INT4=1"});
  EXPECT_FALSE(none.fake_qat_flag.has_value());
  EXPECT_FALSE(none.group_size.has_value());
}

TEST(Environment, OtherValuesAreNamed) {
  for (const char* value : {"", "yes", "2", "01", " 1"}) {
    const std::string text = Refusal(std::string("OPEN_TRAINING_INT4_FAKE_QAT_FLAG=") + value);
    EXPECT_NE(text.find("expected 0 or 1"), std::string::npos) << value;
  }
  for (const char* value : {"", "0", "-32", "32x", "3.2", "99999999999999999999"}) {
    const std::string text = Refusal(std::string("OPEN_TRAINING_INT4_GROUP_SIZE=") + value);
    EXPECT_NE(text.find("positive integer"), std::string::npos) << value;
  }
}

TEST(Environment, AMisspeltNameListsTheRightOnes) {
  for (const char* name : {"OPEN_TRAINING_INT4_FAKE_QAT", "OPEN_TRAINING_GROUP_SIZE",
                           "OPEN_TRAINING_INT4_FAKE_QAT_FLAGS"}) {
    const std::string text = Refusal(std::string(name) + "=1");
    EXPECT_NE(text.find(name), std::string::npos);
    EXPECT_NE(text.find("OPEN_TRAINING_INT4_FAKE_QAT_FLAG or OPEN_TRAINING_INT4_GROUP_SIZE"),
              std::string::npos)
        << text;
  }
}

}  // namespace
}  // namespace quatrain
