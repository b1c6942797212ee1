#include "kernels/cuda/linear_decode_kernel.cuh"

namespace quatrain::cuda {

void LaunchInt4Decode(const DenseLaunch& launch) {
  switch (ScalesPerChunk(launch.args.shape)) {
    case 1:
      return LaunchDecodeFormat<CodeFormat<4, 1>>(launch);
    case 2:
      return LaunchDecodeFormat<CodeFormat<4, 2>>(launch);
    default:
      return LaunchDecodeFormat<CodeFormat<4, 4>>(launch);
  }
}

}  // namespace quatrain::cuda
