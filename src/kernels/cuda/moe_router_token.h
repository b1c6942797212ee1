// The router of a single token (moe_router_token.cu), which moe_router.cu starts where it serves.
#pragma once

#include "kernels/cuda/moe.h"

namespace quatrain::cuda {

// For sizes that moe_router.cu has checked, and one token. False, and nothing started, for more
// than 128 experts. Needs no counters.
bool RouteOneToken(const MoeRouterArgs& args, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
