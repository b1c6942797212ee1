// The forms of weights that the decode engine (decode_stream.cuh) reads: how many streams a unit of
// 8 rows has, and how a chunk (K128) becomes fragments of the tensor-core steps.
#pragma once

#include <cstdint>

#include "kernels/cuda/chain.cuh"

namespace quatrain::cuda {

inline constexpr int kChunkXBytes = 256;  // a row of x, or of BF16 weights, in a chunk
inline constexpr int kRowPadding = 16;    // of such rows in shared memory: no bank conflicts

// Codes of kBits with kScales (1, 2, 4) scales of each row in a chunk.
template <int kBits_, int kScales_>
struct CodeFormat {
  static constexpr int kBits = kBits_;
  static constexpr int kScales = kScales_;
  static constexpr bool kIsCodes = true;
  static constexpr int kStreamsPerUnit = 1;
  static constexpr int kCodeBytes = 1024 * kBits / 8;
  static constexpr int kChunkBytes = kCodeBytes + 16 * kScales;
  static constexpr int kPadding = 0;  // of a stream in a ring slot
  static constexpr float kUnscale = kCodeUnscale;
  // Bytes of a stream over `inputs` of K.
  static __device__ int StreamBytes(int inputs) { return (inputs + 127) / 128 * kChunkBytes; }

  struct Chunk {
    uint4 codes[kBits / 4];
    uint32_t scales[kScales > 2 ? 2 : 1];
  };
  // Where a lane's scales lie in a chunk.
  static __device__ __forceinline__ uint32_t ScalesOf(int lane) {
    return kCodeBytes + (lane / 4) * 2 * kScales;
  }
  // `address`: of the chunk in shared memory.
  static __device__ __forceinline__ void Load(uint32_t address, int lane, Chunk* chunk) {
    LoadFrom(address + lane * 16, address + ScalesOf(lane), chunk);
  }
  // From the lane's own addresses.
  static __device__ __forceinline__ void LoadFrom(uint32_t codes, uint32_t at, Chunk* chunk) {
    chunk->codes[0] = LoadShared16(codes);
    if constexpr (kBits == 8) chunk->codes[1] = LoadShared16(codes + 512);
    if constexpr (kScales == 1) {
      asm volatile("ld.shared.u16 %0, [%1];" : "=r"(chunk->scales[0]) : "r"(at) : "memory");
    } else if constexpr (kScales == 2) {
      chunk->scales[0] = LoadShared4(at);
    } else {
      asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];"
                   : "=r"(chunk->scales[0]), "=r"(chunk->scales[1])
                   : "r"(at)
                   : "memory");
    }
  }
  // Fragments of steps 2 pair and 2 pair + 1, two words each; `factors` is carried from pair to
  // pair of a chunk.
  static __device__ __forceinline__ void Weights(const Chunk& chunk, int pair,
                                                 GroupFactors* factors, uint32_t* b) {
    if (pair * kScales % 4 == 0) {
      const int group = pair * kScales / 4;
      const uint32_t word = chunk.scales[group / 2];
      *factors = FactorsOf<kBits>(__byte_perm(word, word, group % 2 == 0 ? 0x1010 : 0x3232));
    }
    if constexpr (kBits == 4) {
      const uint4& c = chunk.codes[0];
      WeightsOfInt4Word(pair == 0 ? c.x : pair == 1 ? c.y : pair == 2 ? c.z : c.w, *factors, b);
    } else {
      const uint4& c = chunk.codes[pair / 2];
      WeightsOfInt8Word(pair % 2 == 0 ? c.x : c.z, *factors, b);
      WeightsOfInt8Word(pair % 2 == 0 ? c.y : c.w, *factors, b + 2);
    }
  }
};

// Plain BF16 weights [N, K], row-major: a stream is a row.
struct BFloat16Format {
  static constexpr bool kIsCodes = false;
  static constexpr int kStreamsPerUnit = 8;
  static constexpr int kChunkBytes = kChunkXBytes;
  static constexpr int kPadding = kRowPadding;
  static constexpr float kUnscale = 1.0f;
  static __device__ int StreamBytes(int inputs) { return inputs * 2; }
  struct Chunk {};
};

}  // namespace quatrain::cuda
