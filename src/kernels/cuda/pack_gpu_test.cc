#ifdef QT_WITH_CUDA
#include "kernels/cuda/device_weight_test.h"
#include "kernels/cuda/pack.h"

namespace quatrain::cuda {
namespace {

TEST(PackGpu, LayoutGivesTheWeightsOfItsCodes) {
  QT_NEEDS_DEVICE();
  for (const PackedShape& shape :
       {PackedShape{8, 128, 128, 4}, PackedShape{40, 320, 32, 4}, PackedShape{19, 192, 64, 4},
        PackedShape{24, 200, 200, 4}, PackedShape{256, 1024, 256, 4}}) {
    const HostCodes host = RandomCodes(shape, 3);
    DeviceWeight weight(shape, host);
    DeviceVector<BFloat16> plain(shape.out_features * shape.in_features);
    DequantizePacked(shape, weight.packed.data(), plain.data(), nullptr);
    EXPECT_EQ(CountDifferences(plain.Download(), Dequantize(shape, host)), 0)
        << shape.out_features << " x " << shape.in_features;
  }
}

TEST(PackGpu, OnlyInt4IsDequantisedFromTheLayout) {
  EXPECT_THROW(DequantizePacked({8, 128, 128, 8}, nullptr, nullptr, nullptr), Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif
