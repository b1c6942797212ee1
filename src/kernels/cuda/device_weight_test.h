// Quantised weights for the tests of device kernels, in every form a kernel reads.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/cuda/device_test.h"
#include "kernels/cuda/pack.h"
#include "kernels/int4.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {

// Random codes and scales of a shape, on the host.
struct HostCodes {
  std::vector<int32_t> codes;
  std::vector<BFloat16> scale;
};

inline HostCodes RandomCodes(const PackedShape& shape, uint64_t seed) {
  HostCodes host;
  const int64_t k = shape.in_features;
  const int64_t words = PackedWords(k, shape.num_bits);
  host.codes.assign(shape.out_features * words, 0);
  for (size_t i = 0; i < host.codes.size(); ++i) {
    host.codes[i] = static_cast<int32_t>(UniformDouble(seed, i, 0) * 4294967296.0 - 2147483648.0);
  }
  for (const float v : RandomFloats(shape.out_features * (k / shape.group_size), seed + 1)) {
    host.scale.push_back(ToBFloat16(0.01f * std::exp(v)));
  }
  return host;
}

inline std::vector<BFloat16> Dequantize(const PackedShape& shape, const HostCodes& host) {
  const int64_t k = shape.in_features;
  std::vector<BFloat16> weight(shape.out_features * k);
  for (int64_t n = 0; n < shape.out_features; ++n) {
    const int32_t* row = host.codes.data() + n * PackedWords(k, shape.num_bits);
    for (int64_t i = 0; i < k; ++i) {
      weight[n * k + i] =
          DequantizeCode(UnpackCode(row, i, shape.num_bits),
                         host.scale[n * (k / shape.group_size) + i / shape.group_size]);
    }
  }
  return weight;
}

// A weight on the device in every form a kernel reads.
struct DeviceWeight {
  PackedShape shape;
  DeviceVector<int32_t> codes;
  DeviceVector<BFloat16> scale;
  DeviceVector<BFloat16> plain;  // w'
  DeviceVector<uint8_t> packed;

  DeviceWeight(const PackedShape& s, const HostCodes& host)
      : shape(s),
        codes(host.codes),
        scale(host.scale),
        plain(Dequantize(s, host)),
        packed(static_cast<size_t>(PackedBytes(s))) {
    PackWeights(shape, {codes.data(), scale.data()}, packed.data(), nullptr, nullptr);
  }
};

}  // namespace quatrain::cuda
