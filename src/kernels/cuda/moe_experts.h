// The kernels for a single token's experts (moe_token.cu), which moe_decode.cu starts where they
// serve. Same results.
#pragma once

#include "kernels/cuda/moe.h"

namespace quatrain::cuda {

// For shapes that moe_decode.cu has checked, and one token. False, and nothing started, where the
// slots or the weights of a CTA are too many: more than eight slots, say.
bool GateUpOfOneToken(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order);
// y, and with combine.out the combined outputs.
bool DownOfOneToken(const MoeExpertsArgs& args, const MoeCombineArgs& combine, cudaStream_t stream,
                    LaunchOrder order);

}  // namespace quatrain::cuda
