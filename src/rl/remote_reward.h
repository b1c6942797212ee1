// Rewards by a server of the user's: --rm-type remote_rm --rm-url URL.
#pragma once

#include "rl/reward.h"

namespace quatrain {

// Posts {"prompt", "response", "label", "metadata"} as JSON and reads the reward from the answer: a
// number, true or false, or an object whose entry under reward_key is one. Calls run side by side.
//
// Time-outs, refused connections, and the statuses 408, 429 and 5xx are tried again, up to
// rm_max_attempts in all, after rm_backoff * 2^k seconds (at most 30) and up to a second more,
// drawn by the sample's key. Score throws kIo with the URL and the last failure when they are used
// up, kData where the answer is no reward, kInterrupted on Ctrl-C between two attempts. Error
// kUsage: no or no http(s) URL.
std::unique_ptr<Reward> MakeRemoteReward(const RewardOptions& options);

}  // namespace quatrain
