#include "kernels/cuda/linear_decode_kernel.cuh"

namespace quatrain::cuda {

void LaunchInt8Decode(const DenseLaunch& launch) {
  switch (ScalesPerChunk(launch.args.shape)) {
    case 1:
      return LaunchDecodeFormat<CodeFormat<8, 1>>(launch);
    case 2:
      return LaunchDecodeFormat<CodeFormat<8, 2>>(launch);
    default:
      return LaunchDecodeFormat<CodeFormat<8, 4>>(launch);
  }
}

}  // namespace quatrain::cuda
