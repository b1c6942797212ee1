// What the files of experts share on the host: the check of their weights, and the kernels for a
// single token (moe_token.cu), which moe_decode.cu starts where they serve, with the same results.
#pragma once

#include "kernels/cuda/moe.h"

namespace quatrain::cuda {

// Error(kShape) for weights that have no kernel layout (pack.h), or no kernel of experts.
void CheckExpertShape(const PackedShape& shape, const char* where);

// For shapes that moe_decode.cu has checked, and one token. False, and nothing started, where the
// slots or the weights of a CTA are too many: more than eight slots, say.
bool GateUpOfOneToken(const MoeExpertsArgs& args, cudaStream_t stream, LaunchOrder order);
// y, and with combine.out the combined outputs.
bool DownOfOneToken(const MoeExpertsArgs& args, const MoeCombineArgs& combine, cudaStream_t stream,
                    LaunchOrder order);

}  // namespace quatrain::cuda
