// Randomness by key, not by state: the same (seed, stream, counter) gives the same bits whatever
// else was drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace quatrain {

// 64 well-mixed bits of three words (three rounds of the splitmix64 finaliser; Steele et al.,
// OOPSLA 2014).
inline uint64_t HashBits(uint64_t seed, uint64_t stream, uint64_t counter) {
  auto mix = [](uint64_t z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  };
  return mix(mix(mix(seed) ^ stream) ^ counter);
}

// Uniform in [0, 1) with 53 bits.
inline double UniformDouble(uint64_t seed, uint64_t stream, uint64_t counter) {
  return static_cast<double>(HashBits(seed, stream, counter) >> 11) * 0x1.0p-53;
}

// A permutation of 0..n-1 (Fisher-Yates keyed by seed and stream).
inline std::vector<int64_t> Permutation(int64_t n, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
  for (int64_t i = n - 1; i > 0; --i) {
    const auto j = static_cast<size_t>(HashBits(seed, stream, static_cast<uint64_t>(i)) %
                                       static_cast<uint64_t>(i + 1));
    std::swap(order[static_cast<size_t>(i)], order[j]);
  }
  return order;
}

}  // namespace quatrain
