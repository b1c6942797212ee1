// Computes one chunk of a LinearProduct; compiled once per instruction set.
//
// Plan: A of the chunk (up to 264 rows) becomes FP32 per block of 256 steps, B is unpacked to FP32
// panels of 32 columns in strips of 2 vectors (16 KiB with AVX2: half of L1), and a tile of
// kTileRows x 2 vectors of C stays in registers through a block: one fma per element and step,
// r ascending. Between blocks C waits in FP32, which changes no bit of its chain. A lane is always
// one element of C.
#if defined(QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_
#undef QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_LINEAR_CHUNK_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/cpu/linear_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Accumulators that the registers hold beside two vectors of B and one of A.
constexpr int64_t kTileRows = HWY_TARGET == HWY_AVX2 ? 6 : 12;
constexpr int64_t kMostTiles = kRowBlock / kTileRows;
static_assert(kRowBlock % kTileRows == 0 && kTileRows <= kMostTileRows);

// How packed A of a tile lies, after how A lies in memory: rows kPackedStride apart, or a strip in
// which the rows of one step are neighbours and the steps kTileRows apart.
enum class RowLayout { kRows, kStrip };

// Strips of A, one after the other; the room between them keeps them out of one cache set and
// takes what a whole vector stores past the last step.
constexpr int64_t kRowStripSize = kDepthBlock * kTileRows + 16;
constexpr int64_t kStripLoad = (kTileRows + kLanes - 1) / kLanes * kLanes;
static_assert(kStripLoad <= 16 && kMostTiles * kRowStripSize <= kRowBlock * kPackedStride);

// The elements of C of a tile, kStripCols wide.
struct TileChains {
  const float* start;  // null: +0
  int64_t start_stride;
  float* c;              // one of the two, same stride
  BFloat16* c_bfloat16;  // rounded
  int64_t stride;
  const float* bias;  // [kStripCols] or null
};

template <int kRows, RowLayout kLayout>
HWY_INLINE void AddStep(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                        VecF (&sum0)[kRows], VecF (&sum1)[kRows]) {
  const LinearF df;
  const VecF b0 = hn::Load(df, b);
  const VecF b1 = hn::Load(df, b + kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    const VecF ai = hn::Set(df, a[kLayout == RowLayout::kRows ? i * kPackedStride : i]);
    sum0[i] = hn::MulAdd(ai, b0, sum0[i]);
    sum1[i] = hn::MulAdd(ai, b1, sum1[i]);
  }
}

template <int kRows>
HWY_INLINE void StoreTile(const TileChains& chains, VecF (&sum0)[kRows], VecF (&sum1)[kRows]) {
  const LinearF df;
  if (chains.bias != nullptr) {
    const VecF bias0 = hn::LoadU(df, chains.bias);
    const VecF bias1 = hn::LoadU(df, chains.bias + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sum0[i] = hn::Add(sum0[i], bias0);
      sum1[i] = hn::Add(sum1[i], bias1);
    }
  }
  if (chains.c != nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      hn::StoreU(sum0[i], df, chains.c + i * chains.stride);
      hn::StoreU(sum1[i], df, chains.c + i * chains.stride + kLanes);
    }
    return;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
    StoreBFloat16(df, sum0[i], chains.c_bfloat16 + i * chains.stride);
    StoreBFloat16(df, sum1[i], chains.c_bfloat16 + i * chains.stride + kLanes);
  }
}

// Goes on with the chains of kRows rows of A through a strip [depth, kStripCols] of B.
template <int kRows, RowLayout kLayout>
void MultiplyTile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int64_t depth,
                  const TileChains& chains) {
  constexpr int64_t kStep = kLayout == RowLayout::kRows ? 1 : kTileRows;
  const LinearF df;
  VecF sum0[kRows], sum1[kRows];
  if (chains.start == nullptr) {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) sum0[i] = sum1[i] = hn::Zero(df);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      sum0[i] = hn::LoadU(df, chains.start + i * chains.start_stride);
      sum1[i] = hn::LoadU(df, chains.start + i * chains.start_stride + kLanes);
    }
  }
  for (int64_t r = 0; r < depth; ++r) {
    AddStep<kRows, kLayout>(a, b, sum0, sum1);
    a += kStep;
    b += kStripCols;
  }
  StoreTile<kRows>(chains, sum0, sum1);
}

using TileFunction = void (*)(const float*, const float*, int64_t, const TileChains&);

template <RowLayout kLayout, int... kIndices>
constexpr std::array<TileFunction, sizeof...(kIndices)> TileTable(
    std::integer_sequence<int, kIndices...>) {
  return {&MultiplyTile<kIndices + 1, kLayout>...};
}

HWY_INLINE VecF LoadAsFloat(const float* from) { return hn::LoadU(LinearF(), from); }
HWY_INLINE VecF LoadAsFloat(const BFloat16* from) { return LoadBFloat16(LinearF(), from); }

template <class T>
HWY_INLINE void CopyToFloat(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(LoadAsFloat(from + i), LinearF(), to + i);
  for (; i < count; ++i) to[i] = ToFloat(from[i]);
}

// One chunk: its rows in tiles of nearly equal height, its C, and where it stands in the chains.
class ChunkRunner {
 public:
  ChunkRunner(const LinearProduct& product, const LinearChunk& chunk, LinearScratch& scratch)
      : product_(product),
        chunk_(chunk),
        scratch_(scratch),
        rows_(chunk.row_end - chunk.row_begin),
        cols_(chunk.col_end - chunk.col_begin),
        num_tiles_((rows_ + kTileRows - 1) / kTileRows) {
    for (int64_t tile = 0; tile <= num_tiles_; ++tile) {
      tile_begin_[tile] = rows_ * tile / num_tiles_;
    }
    sums_ = scratch.c;
    sums_stride_ = (cols_ + kPanelCols - 1) / kPanelCols * kPanelCols;
    if (product.c_float != nullptr) {
      sums_ = product.c_float + chunk.row_begin * product.cols + chunk.col_begin;
      sums_stride_ = product.cols;
    }
    if (product.bias != nullptr) LoadBias();
  }

  void Run() {
    for (begin_ = 0; begin_ < product_.depth; begin_ += kDepthBlock) {
      depth_ = std::min(kDepthBlock, product_.depth - begin_);
      if (is_row_major()) {
        product_.a_is_bfloat16 ? PackRows<BFloat16>() : PackRows<float>();
      } else {
        PackStrips();
      }
      if (product_.row_sums != nullptr && chunk_.col_begin == 0) AddRowSums();
      for (int64_t col = 0; col < cols_; col += kPanelCols) {
        UnpackPanel(chunk_.col_begin + col);
        for (int64_t j = 0; j < kPanelCols && col + j < cols_; j += kStripCols) {
          MultiplyStrip(scratch_.b + PanelOffset(j), col + j);
        }
      }
    }
  }

 private:
  void LoadBias() {
    std::memset(scratch_.bias, 0, sizeof(scratch_.bias));
    if (product_.a_is_bfloat16) {
      const auto* bias = static_cast<const BFloat16*>(product_.bias);
      CopyToFloat(bias + chunk_.col_begin, cols_, scratch_.bias);
    } else {
      CopyToFloat(static_cast<const float*>(product_.bias) + chunk_.col_begin, cols_,
                  scratch_.bias);
    }
  }

  bool is_row_major() const { return product_.a_depth_stride == 1; }

  // Element (row_begin, begin) of A.
  template <class T>
  const T* Source() const {
    return static_cast<const T*>(product_.a) + chunk_.row_begin * product_.a_row_stride +
           begin_ * product_.a_depth_stride;
  }

  template <class T>
  void PackRows() const {
    const T* from = Source<T>();
    for (int64_t i = 0; i < rows_; ++i) {
      CopyToFloat(from + i * product_.a_row_stride, depth_, scratch_.a + i * kPackedStride);
    }
  }

  // Whole vectors as long as none of them reaches past the matrix, then what belongs to a strip.
  // Down a column no prefetcher of the processor's helps.
  void PackStrips() const {
    constexpr int64_t kStepsAtOnce = 32;  // so that the lines of a step stay in L1 for all strips
    const float* from = Source<float>();
    const int64_t stride = product_.a_depth_stride;
    const float* end = static_cast<const float*>(product_.a) + product_.depth * product_.rows;
    const int64_t whole =
        std::clamp<int64_t>((end - from - rows_ - kStripLoad) / stride, 0, depth_);
    for (int64_t first = 0; first < depth_; first += kStepsAtOnce) {
      const int64_t last = std::min(depth_, first + kStepsAtOnce);
      for (int64_t tile = 0; tile < num_tiles_; ++tile) {
        const int64_t height = tile_begin_[tile + 1] - tile_begin_[tile];
        const float* row = from + tile_begin_[tile] + first * stride;
        float* to = scratch_.a + tile * kRowStripSize + first * kTileRows;
        int64_t r = first;
        for (; r < std::min(last, whole); ++r, row += stride, to += kTileRows) {
          hwy::Prefetch(row + kStepsAtOnce * stride);
          for (int64_t i = 0; i < kStripLoad; i += kLanes) {
            hn::StoreU(hn::LoadU(LinearF(), row + i), LinearF(), to + i);
          }
        }
        for (; r < last; ++r, row += stride, to += kTileRows) std::copy_n(row, height, to);
      }
    }
  }

  // row_sums[i] += A(i, r), r ascending.
  void AddRowSums() const {
    const float* from = Source<float>();
    float* sums = product_.row_sums + chunk_.row_begin;
    for (int64_t r = 0; r < depth_; ++r) {
      for (int64_t i = 0; i < rows_; ++i) {
        sums[i] += from[i * product_.a_row_stride + r * product_.a_depth_stride];
      }
    }
  }

  void UnpackPanel(int64_t col) const {
    if (product_.b_is_transposed) {
      UnpackColumns(product_.b, PanelCut{col, begin_, depth_}, scratch_);
      return;
    }
    const RowUnpacker unpacker(product_.b, col);
    for (int64_t r = 0; r < depth_; ++r) {
      unpacker.Unpack(begin_ + r, kStripSize, scratch_.b + r * kStripCols);
    }
  }

  // Where the chains from (row, col) of the chunk stand before and after this block.
  TileChains ChainsAt(int64_t row, int64_t col) const {
    const bool is_last = begin_ + depth_ == product_.depth;
    TileChains chains{};
    float* sums = sums_ + row * sums_stride_ + col;
    if (begin_ > 0 || product_.accumulate) chains.start = sums;
    chains.start_stride = sums_stride_;
    if (is_last && product_.bias != nullptr) chains.bias = scratch_.bias + col;
    chains.c = sums;
    chains.stride = sums_stride_;
    if (is_last && product_.c_bfloat16 != nullptr) {
      chains.c = nullptr;
      chains.c_bfloat16 =
          product_.c_bfloat16 + (chunk_.row_begin + row) * product_.cols + chunk_.col_begin + col;
      chains.stride = product_.cols;
    }
    return chains;
  }

  void MultiplyStrip(const float* b, int64_t col) const {
    static constexpr auto kIndices = std::make_integer_sequence<int, kTileRows>();
    static constexpr auto kRowTiles = TileTable<RowLayout::kRows>(kIndices);
    static constexpr auto kStripTiles = TileTable<RowLayout::kStrip>(kIndices);
    const int64_t width = std::min(kStripCols, cols_ - col);
    for (int64_t tile = 0; tile < num_tiles_; ++tile) {
      const int64_t row = tile_begin_[tile];
      const auto height = static_cast<size_t>(tile_begin_[tile + 1] - row);
      const TileFunction run = is_row_major() ? kRowTiles[height - 1] : kStripTiles[height - 1];
      const float* a = scratch_.a + (is_row_major() ? row * kPackedStride : tile * kRowStripSize);
      const TileChains chains = ChainsAt(row, col);
      if (width == kStripCols) {
        run(a, b, depth_, chains);
      } else {
        alignas(64) float whole[kTileRows * kStripCols] = {};
        run(a, b, depth_, Widened(chains, height, width, whole));
        CopyBack(chains, height, width, whole);
      }
    }
  }

  // The last columns of C, fewer than a strip has: a copy takes their place.
  static TileChains Widened(const TileChains& chains, size_t height, int64_t width, float* whole) {
    TileChains wide = chains;
    wide.c = whole;
    wide.stride = kStripCols;
    if (chains.start == nullptr) return wide;
    for (size_t i = 0; i < height; ++i) {
      const float* from = chains.start + static_cast<int64_t>(i) * chains.start_stride;
      std::copy_n(from, width, whole + static_cast<int64_t>(i) * kStripCols);
    }
    wide.start = whole;
    wide.start_stride = kStripCols;
    return wide;
  }

  static void CopyBack(const TileChains& chains, size_t height, int64_t width, const float* whole) {
    for (size_t row = 0; row < height; ++row) {
      const auto i = static_cast<int64_t>(row);
      for (int64_t j = 0; j < width; ++j) {
        const float sum = whole[i * kStripCols + j];
        if (chains.c != nullptr) {
          chains.c[i * chains.stride + j] = sum;
        } else {
          chains.c_bfloat16[i * chains.stride + j] = ToBFloat16(sum);
        }
      }
    }
  }

  const LinearProduct& product_;
  const LinearChunk& chunk_;
  LinearScratch& scratch_;
  int64_t rows_, cols_;
  int64_t num_tiles_;
  int64_t tile_begin_[kMostTiles + 1];
  float* sums_;  // the chains between blocks: C itself, or scratch if C is rounded
  int64_t sums_stride_;
  int64_t begin_ = 0, depth_ = 0;  // the block at hand
};

void RunChunk(const LinearProduct& product, const LinearChunk& chunk, LinearScratch& scratch) {
  ChunkRunner(product, chunk, scratch).Run();
}

void DequantizeRowRange(const WeightView& weight, int64_t row_begin, int64_t row_end, float* out) {
  for (int64_t k = 0; k < weight.in_features; k += kPanelCols) {
    const RowUnpacker unpacker(weight, k);
    const int64_t count = std::min(kPanelCols, weight.in_features - k);
    for (int64_t row = row_begin; row < row_end; ++row) {
      float* to = out + (row - row_begin) * weight.in_features + k;
      if (count == kPanelCols) {
        unpacker.Unpack(row, kStripCols, to);
      } else {
        float whole[kPanelCols];
        unpacker.Unpack(row, kStripCols, whole);
        std::copy_n(whole, count, to);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
