// The part of AttentionPrefill (attention.h) that has a file of its own: head_dim 256.
#pragma once

#include "kernels/cuda/attention.h"

namespace quatrain::cuda {

// The arguments have passed AttentionPrefill's checks.
void AttentionPrefill256(const DeviceAttentionArgs& args, cudaStream_t stream, LaunchOrder order);

}  // namespace quatrain::cuda
