// The environment variables of the field, read once, here.
#pragma once

#include <string>
#include <vector>

#include "rl/rl_config.h"

namespace quatrain {

// Sets fake_qat_flag and group_size from OPEN_TRAINING_INT4_FAKE_QAT_FLAG ("0" or "1") and
// OPEN_TRAINING_INT4_GROUP_SIZE (a positive integer). Error kUsage for other values, and for a
// variable that begins like them but is none of them.
void ReadQatEnvironment(QatArgs* args);

// The same over given "NAME=value" entries.
void ReadQatEnvironment(const std::vector<std::string>& entries, QatArgs* args);

}  // namespace quatrain
