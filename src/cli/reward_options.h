// --rm-type and what belongs to it, for training and evaluation alike.
#pragma once

#include "rl/reward.h"

namespace CLI {
class App;
}

namespace quatrain {

void AddRewardOptions(CLI::App& command, RewardOptions* options);

}  // namespace quatrain
