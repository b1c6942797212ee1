#include "base/interrupt.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

namespace quatrain {
namespace {

// Each test signals a child process, so that the flag of this one stays unset.

TEST(Interrupt, TheFirstSignalOnlySetsTheFlag) {
  EXPECT_FALSE(InterruptRequested());
  for (const int signal_number : {SIGINT, SIGTERM}) {
    EXPECT_EXIT(
        {
          InstallInterruptHandler();
          const bool before = InterruptRequested();
          raise(signal_number);
          _exit(!before && InterruptRequested() ? 42 : 1);
        },
        testing::ExitedWithCode(42), "");
  }
}

TEST(Interrupt, TheSecondSignalEndsTheProcessWhicheverOfTheTwoItIs) {
  for (const int second : {SIGINT, SIGTERM}) {
    EXPECT_EXIT(
        {
          InstallInterruptHandler();
          raise(SIGINT);
          raise(second);
          _exit(0);
        },
        testing::KilledBySignal(second), "");
  }
}

}  // namespace
}  // namespace quatrain
