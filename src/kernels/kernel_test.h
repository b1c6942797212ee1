// What the kernels' tests share: keyed random data, the 16 partial sums written plainly, comparison
// by bits, and a walk over the instruction sets of this machine.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/random.h"
#include "hwy/targets.h"
#include "kernels/bfloat16.h"

namespace quatrain {

// Standard normal (Box and Muller), the same for the same seed.
inline std::vector<float> RandomFloats(int64_t size, uint64_t seed, float scale = 1.0f) {
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) {
    const double u = 1.0 - UniformDouble(seed, i, 0);
    const double angle = 6.283185307179586 * UniformDouble(seed, i, 1);
    values[i] = scale * static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(angle));
  }
  return values;
}

template <class T>
std::vector<T> RoundAll(const std::vector<float>& values) {
  std::vector<T> rounded;
  rounded.reserve(values.size());
  for (const float value : values) rounded.push_back(RoundTo<T>(value));
  return rounded;
}

template <class T>
std::vector<T> RandomRounded(int64_t size, uint64_t seed, float scale = 1.0f) {
  return RoundAll<T>(RandomFloats(size, seed, scale));
}

// Bytes of a vector, so that -0, NaN and BFloat16 compare by what they are.
template <class T>
std::vector<uint8_t> Bits(const std::vector<T>& values) {
  std::vector<uint8_t> bytes(values.size() * sizeof(T));
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// The fixed tree over 16 partial sums.
inline float TreeSum(const float (&lanes)[16]) {
  float sums[16];
  std::memcpy(sums, lanes, sizeof(sums));
  for (int width = 8; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

// Dot product in 16 partial sums.
template <class A, class B>
float Dot16(const A* a, const B* b, int64_t size) {
  float lanes[16] = {};
  for (int64_t i = 0; i < size; ++i) {
    lanes[i % 16] = std::fma(ToFloat(a[i]), ToFloat(b[i]), lanes[i % 16]);
  }
  return TreeSum(lanes);
}

// ||a - b|| / ||b||.
template <class A, class B>
double RelativeError(const std::vector<A>& a, const std::vector<B>& b) {
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    norm += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / norm);
}

// Calls body() once with each instruction set of this machine chosen, the fallback included; then
// the best one again.
template <class Body>
void ForEachInstructionSet(const Body& body) {
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t rest = supported; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::GetChosenTarget().Update(target);
    body();
  }
  hwy::GetChosenTarget().Update(supported);
}

}  // namespace quatrain
