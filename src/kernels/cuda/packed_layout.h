// How INT4 and INT8 weights lie in device memory for the linear kernels ("kernel layout").
//
// A unit is 8 output rows by 128 inputs (K128). The units of 8 rows follow each other along K, so a
// warp that owns 8 rows reads one contiguous stream, codes and scales together:
//
//   rows 8u .. 8u+7:  [ chunk 0 ][ chunk 1 ] ... [ chunk ceil(K/128)-1 ]
//   chunk:            [ codes, 512 B (INT4) or 1024 B (INT8) ][ scales, 8 rows x 128/g BF16 ]
//
// Codes lie as the fragments of mma.sync.m16n8k16 want them. Lane l = 4 r + t holds row r and, of
// each k16 step, the inputs 2t, 2t+1 (register 0) and 2t+8, 2t+9 (register 1). Stored value u = q +
// 8 or q + 128.
//
//   INT4: 16 bytes a lane at l * 16; word p covers steps 2p and 2p+1 (K32):
//     bits   3..0  7..4  11..8  15..12 | 19..16 23..20 27..24 31..28
//     step   even  even  odd    odd    | even   even   odd    odd
//     input  2t    2t+8  2t     2t+8   | 2t+1   2t+9   2t+1   2t+9
//   INT8: words of step j at (j / 4) * 512 + l * 16 + (j % 4) * 4:
//     byte     0     1     2     3
//     input    2t    2t+8  2t+1  2t+9
//   scales: BF16 at 2 * (r * 128/g + group in the chunk)
//
// Per-channel scales (g = K) and g a multiple of 128 repeat their scale in every chunk. Rows are
// padded to 8 and K to 128 with q = 0 and scale 0. Bytes a weight: 0.516 (INT4, g128), 0.531 (g64),
// 0.5625 (g32).
#pragma once

#include <cstdint>

#include "kernels/bfloat16.h"

namespace quatrain::cuda {

inline constexpr int64_t kUnitRows = 8;
inline constexpr int64_t kChunkInputs = 128;

// Shape of a weight in codes.
struct PackedShape {
  int64_t out_features = 0;  // N
  int64_t in_features = 0;   // K
  int64_t group_size = 0;    // 32, 64, a multiple of 128, or K (per channel)
  int num_bits = 4;          // 4 or 8
};

QT_HOST_DEVICE int64_t NumUnits(const PackedShape& s) {
  return (s.out_features + kUnitRows - 1) / kUnitRows;
}
QT_HOST_DEVICE int64_t NumChunks(const PackedShape& s) {
  return (s.in_features + kChunkInputs - 1) / kChunkInputs;
}
// Scales of one row in one chunk: 1, 2 or 4.
QT_HOST_DEVICE int64_t ScalesPerChunk(const PackedShape& s) {
  return s.group_size >= kChunkInputs || s.group_size == s.in_features
             ? 1
             : kChunkInputs / s.group_size;
}
QT_HOST_DEVICE int64_t CodeBytes(const PackedShape& s) {
  return kUnitRows * kChunkInputs * s.num_bits / 8;
}
QT_HOST_DEVICE int64_t ChunkBytes(const PackedShape& s) {
  return CodeBytes(s) + kUnitRows * 2 * ScalesPerChunk(s);
}
QT_HOST_DEVICE int64_t UnitBytes(const PackedShape& s) { return NumChunks(s) * ChunkBytes(s); }
QT_HOST_DEVICE int64_t PackedBytes(const PackedShape& s) { return NumUnits(s) * UnitBytes(s); }

// Where a code lies in its chunk.
struct CodePlace {
  int64_t word;  // 32-bit word of the chunk
  int shift;
};
// `row` 0..7, `input` 0..127.
QT_HOST_DEVICE CodePlace PlaceOfCode(int row, int input, int num_bits) {
  const int step = input / 16;
  const int in_step = input % 16;
  const int lane = 4 * row + (in_step % 8) / 2;
  const int reg = in_step / 8;
  const int half = in_step % 2;
  if (num_bits == 4) {
    return {lane * 4 + step / 2, 16 * half + 8 * (step % 2) + 4 * reg};
  }
  return {(step / 4) * 128 + lane * 4 + step % 4, 16 * half + 8 * reg};
}

}  // namespace quatrain::cuda
