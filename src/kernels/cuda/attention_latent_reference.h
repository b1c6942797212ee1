// Attention over a latent in its plainest form: one warp takes 16 rows and 64 columns of the
// outputs and follows rules 5 and 6 of docs/numerics.md ("GPU order") a key at a time. The oracle
// of attention_latent.h, bit for bit. Slow.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/attention_latent.h"

namespace quatrain::cuda {

void AttentionLatentReference(const DeviceLatentAttentionArgs& args, cudaStream_t stream);

}  // namespace quatrain::cuda
