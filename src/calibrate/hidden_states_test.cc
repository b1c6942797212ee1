#include "calibrate/hidden_states.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/error.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

class HiddenStatesTest : public testing::Test {
 protected:
  HiddenStatesTest()
      : folder_(fs::path(testing::TempDir()) / fmt::format("hidden_states_{}", getpid())) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  ~HiddenStatesTest() override { fs::remove_all(folder_); }

  fs::path folder_;
};

at::Tensor States(int64_t tokens, double value) {
  return at::full({tokens, 4}, value, at::TensorOptions().dtype(at::kBFloat16));
}

TEST_F(HiddenStatesTest, MemoryAndFilesGiveTheSame) {
  for (const bool is_in_files : {false, true}) {
    HiddenStates states({2, 3}, 4, is_in_files ? std::optional(folder_) : std::nullopt);
    EXPECT_EQ(states.size_bytes(), 40u);
    for (int layer = 0; layer < 3; ++layer) {
      states.Write(1, States(3, 10 * layer + 1));
      states.Write(0, States(2, 7));
      EXPECT_TRUE(at::equal(states.ReadWritten(0), States(2, 7)));
      states.Write(0, States(2, 10 * layer));
      EXPECT_TRUE(at::equal(states.ReadWritten(0), States(2, 10 * layer)));
      if (layer > 0) {
        EXPECT_TRUE(at::equal(states.Read(1), States(3, 10 * (layer - 1) + 1)));
      }
      states.Advance();
      states.DropOlder();
      EXPECT_EQ(states.layer(), layer);
      EXPECT_TRUE(at::equal(states.Read(0), States(2, 10 * layer)));
      EXPECT_TRUE(at::equal(states.Read(1), States(3, 10 * layer + 1)));
    }
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(HiddenStatesTest, ALaterProcessGoesOnWithWhatIsOnDisk) {
  {
    HiddenStates states({2}, 4, folder_);
    states.Write(0, States(2, 1));
    states.Advance();
    states.Write(0, States(2, 2));
    states.Advance();
    states.Write(0, States(2, 3));  // and here it was killed
  }
  HiddenStates states({2}, 4, folder_);
  states.Resume(1);
  EXPECT_TRUE(at::equal(states.Read(0), States(2, 2)));
  HiddenStates other({3}, 4, folder_);
  EXPECT_THROW(other.Resume(1), Error);
  EXPECT_THROW(states.Resume(7), Error);
}

}  // namespace
}  // namespace quatrain
