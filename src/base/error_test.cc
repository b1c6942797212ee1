#include "base/error.h"

#include <gtest/gtest.h>

namespace quatrain {
namespace {

std::string Message(const ErrorParts& parts) { return Error(ErrorCode::kData, parts).what(); }

TEST(Error, JoinsItsPartsToOneParagraphAndLeavesOutEmptyOnes) {
  EXPECT_EQ(
      Message({.where = "f", .what = "bad", .expected = "a", .found = "b", .todo = "Mend it."}),
      "f: bad; expected a, found b. Mend it.");
  EXPECT_EQ(Message({.where = "f", .expected = "a", .found = "b"}), "f: expected a, found b.");
  EXPECT_EQ(Message({.where = "f", .what = "bad", .found = "b"}), "f: bad; found b.");
  EXPECT_EQ(Message({.where = "f", .found = "b"}), "f: found b.");
  EXPECT_EQ(Message({.what = "bad"}), "bad.");
  EXPECT_EQ(Message({.expected = "a"}), "expected a.");
  EXPECT_EQ(Message({}), "");
}

TEST(Error, ExitStatusTellsWhoCanMendIt) {
  EXPECT_EQ(ExitStatus(ErrorCode::kInternal), 1);
  EXPECT_EQ(ExitStatus(ErrorCode::kInterrupted), 130);
  EXPECT_EQ(ExitStatus(ErrorCode::kQuality), 3);
  for (const auto code : {ErrorCode::kUsage, ErrorCode::kData, ErrorCode::kShape, ErrorCode::kIo,
                          ErrorCode::kResource}) {
    EXPECT_EQ(ExitStatus(code), 2);
  }
}

TEST(Check, ThrowsAnInternalErrorWithPlaceConditionAndMessage) {
  try {
    QT_CHECK(1 + 1 == 3, "n is {}", 7);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kInternal);
    const std::string message = error.what();
    EXPECT_NE(message.find("error_test.cc:"), std::string::npos) << message;
    EXPECT_NE(message.find("1 + 1 == 3: n is 7"), std::string::npos) << message;
  }
  EXPECT_NO_THROW(QT_CHECK(true));
}

}  // namespace
}  // namespace quatrain
