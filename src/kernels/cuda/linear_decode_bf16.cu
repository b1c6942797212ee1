#include "kernels/cuda/linear_decode_kernel.cuh"

namespace quatrain::cuda {

void LaunchBFloat16Decode(const DenseLaunch& launch) { LaunchDecodeFormat<BFloat16Format>(launch); }

}  // namespace quatrain::cuda
