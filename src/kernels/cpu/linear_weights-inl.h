// Unpacks weights into FP32 panels of 32 columns; compiled once per instruction set.
//
// A weight row is read as 32-bit words: 8 INT4 codes, 4 INT8 codes, 2 BF16 values or 1 FP32 value
// each. For the forward the WORDS of 32 rows are transposed, so that a lane is an output and the
// cost of shuffling is shared by all weights of a word; then each word is unpacked in place.
// Codes become w' = rn_bf16(q * s) here, exactly as DequantizeCode of kernels/int4.h.
#if defined(QUATRAIN_KERNELS_CPU_LINEAR_WEIGHTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QUATRAIN_KERNELS_CPU_LINEAR_WEIGHTS_INL_H_
#undef QUATRAIN_KERNELS_CPU_LINEAR_WEIGHTS_INL_H_
#else
#define QUATRAIN_KERNELS_CPU_LINEAR_WEIGHTS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/bfloat16-inl.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/int4.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using LinearF = hn::CappedTag<float, 16>;
using LinearU = hn::RebindToUnsigned<LinearF>;
using LinearI = hn::RebindToSigned<LinearF>;
using VecF = hn::Vec<LinearF>;
using VecU = hn::Vec<LinearU>;
constexpr int64_t kLanes = static_cast<int64_t>(hn::MaxLanes(LinearF()));
constexpr int kWordsPerLoad = 4;
// A panel is stored strip after strip, each [kDepthBlock, kStripCols]: what a tile walks through
// lies side by side.
constexpr int64_t kStripCols = 2 * kLanes;
constexpr int64_t kStripSize = kDepthBlock * kStripCols;
static_assert(kPanelCols % kStripCols == 0);

// Where column j of a panel begins.
HWY_INLINE constexpr int64_t PanelOffset(int64_t j) {
  return j / kStripCols * kStripSize + j % kStripCols;
}

// rn_bf16 of q * s, kept in FP32. A NaN scale comes out as ToBFloat16 has it: q * s is quiet.
HWY_INLINE VecF RoundProduct(VecF product) {
  const LinearU du;
  const auto bits = hn::BitCast(du, product);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFFu)), odd);
  return hn::BitCast(LinearF(), hn::And(rounded, hn::Set(du, 0xFFFF0000u)));
}

// Each format: how many weights a word holds, and weight kIndex of every lane's word.
struct Int4Word {
  static constexpr int kPerWord = 8;
  static constexpr int kBits = 4;
  static constexpr uint32_t kSignBits = 0x88888888u;  // u = q + 8 becomes two's complement q
  template <int kIndex>
  static HWY_INLINE VecF Unpack(VecU word, VecF scale) {
    const auto top = hn::BitCast(LinearI(), hn::ShiftLeft<28 - 4 * kIndex>(word));
    return RoundProduct(hn::Mul(hn::ConvertTo(LinearF(), hn::ShiftRight<28>(top)), scale));
  }
};

struct Int8Word {
  static constexpr int kPerWord = 4;
  static constexpr int kBits = 8;
  static constexpr uint32_t kSignBits = 0x80808080u;
  template <int kIndex>
  static HWY_INLINE VecF Unpack(VecU word, VecF scale) {
    const auto top = hn::BitCast(LinearI(), hn::ShiftLeft<24 - 8 * kIndex>(word));
    return RoundProduct(hn::Mul(hn::ConvertTo(LinearF(), hn::ShiftRight<24>(top)), scale));
  }
};

struct BFloat16Word {
  static constexpr int kPerWord = 2;
  static constexpr int kBits = 0;  // no codes, no scales
  static constexpr uint32_t kSignBits = 0;
  template <int kIndex>
  static HWY_INLINE VecF Unpack(VecU word, VecF) {
    if constexpr (kIndex == 0) return hn::BitCast(LinearF(), hn::ShiftLeft<16>(word));
    return hn::BitCast(LinearF(), hn::And(word, hn::Set(LinearU(), 0xFFFF0000u)));
  }
};

struct FloatWord {
  static constexpr int kPerWord = 1;
  static constexpr int kBits = 0;
  static constexpr uint32_t kSignBits = 0;
  template <int kIndex>
  static HWY_INLINE VecF Unpack(VecU word, VecF) {
    return hn::BitCast(LinearF(), word);
  }
};

// Bytes of a weight row.
inline int64_t RowBytes(const WeightView& weight) {
  switch (weight.type) {
    case WeightType::kInt4:
      return PackedWords(weight.in_features, 4) * 4;
    case WeightType::kInt8:
      return PackedWords(weight.in_features, 8) * 4;
    case WeightType::kBFloat16:
      return weight.in_features * 2;
    case WeightType::kFloat32:
      break;
  }
  return weight.in_features * 4;
}

// Block b (16 bytes) from rows[4 * b].
template <class D>
HWY_INLINE hn::Vec<D> LoadBlocks(D d, const uint8_t* const* rows) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return hn::BitCast(d, hn::LoadU(hn::Repartition<uint8_t, D>(), rows[0]));
  } else {
    const hn::Half<D> half;
    return hn::Combine(d, LoadBlocks(half, rows + hn::MaxLanes(D()) / 2), LoadBlocks(half, rows));
  }
}

// Four words of kLanes rows: words[w] lane i = word w of rows[i].
HWY_INLINE void LoadTransposed(const uint8_t* const* rows, VecU (&words)[kWordsPerLoad]) {
  const LinearU du;
  const hn::Repartition<uint64_t, LinearU> du64;
  const VecU row0 = LoadBlocks(du, rows), row1 = LoadBlocks(du, rows + 1);
  const VecU row2 = LoadBlocks(du, rows + 2), row3 = LoadBlocks(du, rows + 3);
  const auto low01 = hn::BitCast(du64, hn::InterleaveLower(du, row0, row1));
  const auto low23 = hn::BitCast(du64, hn::InterleaveLower(du, row2, row3));
  const auto high01 = hn::BitCast(du64, hn::InterleaveUpper(du, row0, row1));
  const auto high23 = hn::BitCast(du64, hn::InterleaveUpper(du, row2, row3));
  words[0] = hn::BitCast(du, hn::InterleaveLower(du64, low01, low23));
  words[1] = hn::BitCast(du, hn::InterleaveUpper(du64, low01, low23));
  words[2] = hn::BitCast(du, hn::InterleaveLower(du64, high01, high23));
  words[3] = hn::BitCast(du, hn::InterleaveUpper(du64, high01, high23));
}

template <class Word, int kIndex>
HWY_INLINE void UnpackWord(VecU word, VecF scale, float* HWY_RESTRICT to) {
  if constexpr (kIndex < Word::kPerWord) {
    hn::Store(Word::template Unpack<kIndex>(word, scale), LinearF(), to + kIndex * kStripCols);
    UnpackWord<Word, kIndex + 1>(word, scale, to);
  }
}

// A panel of the forward: rows [out_begin, out_begin + 32) of the weight (past the last row, the
// last again), inputs [depth_begin, depth_begin + depth).
struct PanelCut {
  int64_t out_begin;
  int64_t depth_begin;
  int64_t depth;
};

// scratch.scale[g, j] = scale of output j for the block's g-th group.
inline void UnpackScales(const WeightView& weight, const PanelCut& cut, LinearScratch& scratch) {
  const int64_t num_groups = weight.in_features / weight.group_size;
  const int64_t first = cut.depth_begin / weight.group_size;
  const int64_t count = (cut.depth_begin + cut.depth - 1) / weight.group_size + 1 - first;
  for (int64_t j = 0; j < kPanelCols; ++j) {
    const int64_t row = std::min(cut.out_begin + j, weight.out_features - 1);
    const BFloat16* scale = weight.scale + row * num_groups + first;
    for (int64_t g = 0; g < count; ++g) scratch.scale[g * kPanelCols + j] = ToFloat(scale[g]);
  }
}

// The words of one quad of words for all 32 outputs. scale_rows[w]: offset of the word's scales.
template <class Word>
HWY_INLINE void UnpackQuad(const uint8_t* const* rows, const float* scale,
                           const int32_t* scale_rows, float* HWY_RESTRICT to) {
  const LinearU du;
  VecU words[kWordsPerLoad];
  LoadTransposed(rows, words);
  for (int w = 0; w < kWordsPerLoad; ++w) {
    VecF lane_scales = hn::Zero(LinearF());
    if constexpr (Word::kBits != 0) {
      lane_scales = hn::Load(LinearF(), scale + scale_rows[w]);
      words[w] = hn::Xor(words[w], hn::Set(du, Word::kSignBits));
    }
    UnpackWord<Word, 0>(words[w], lane_scales, to + w * Word::kPerWord * kStripCols);
  }
}

// Fills element (r, j) of the panel with w'[out_begin + j, depth_begin + r]. depth_begin is a
// multiple of 256.
template <class Word>
void UnpackColumns(const WeightView& weight, const PanelCut& cut, LinearScratch& scratch) {
  constexpr int64_t kMaxWords = kDepthBlock / Word::kPerWord;
  const int64_t num_words = (cut.depth + Word::kPerWord - 1) / Word::kPerWord;
  int32_t scale_rows[kMaxWords + kWordsPerLoad] = {};
  if constexpr (Word::kBits != 0) {
    UnpackScales(weight, cut, scratch);
    const int64_t words_per_group = weight.group_size / Word::kPerWord;
    int64_t left = words_per_group - cut.depth_begin / Word::kPerWord % words_per_group;
    for (int64_t w = 1; w < num_words; ++w) {
      const bool next = --left == 0;
      if (next) left = words_per_group;
      scale_rows[w] = scale_rows[w - 1] + (next ? static_cast<int32_t>(kPanelCols) : 0);
    }
  }

  const int64_t row_bytes = RowBytes(weight);
  const int64_t begin_byte = cut.depth_begin * 4 / Word::kPerWord;
  const auto* bytes = static_cast<const uint8_t*>(weight.data) + begin_byte;
  const uint8_t* rows[kPanelCols];
  for (int64_t j = 0; j < kPanelCols; ++j) {
    rows[j] = bytes + std::min(cut.out_begin + j, weight.out_features - 1) * row_bytes;
  }
  // One cache line of each row at a time, so that the lines of a few rows suffice in L1.
  constexpr int64_t kLineWords = 16;
  const int64_t whole_words = std::min(num_words, (row_bytes - begin_byte) / 16 * kWordsPerLoad);
  for (int64_t line = 0; line < whole_words; line += kLineWords) {
    const int64_t line_end = std::min(line + kLineWords, whole_words);
    for (int64_t j = 0; j < kPanelCols; j += kLanes) {
      for (int64_t w = line; w < line_end; w += kWordsPerLoad) {
        UnpackQuad<Word>(rows + j, scratch.scale + j, scale_rows + w,
                         scratch.b + PanelOffset(j) + w * Word::kPerWord * kStripCols);
        for (int64_t i = j; i < j + kLanes; ++i) rows[i] += 16;
      }
    }
  }
  if (whole_words >= num_words) return;
  const auto tail_bytes = static_cast<size_t>(row_bytes - begin_byte - whole_words * 4);
  std::memset(scratch.tail, 0, sizeof(scratch.tail));
  for (int64_t j = 0; j < kPanelCols; ++j) {
    std::memcpy(scratch.tail + j * 16, rows[j], tail_bytes);
    rows[j] = scratch.tail + j * 16;
  }
  for (int64_t j = 0; j < kPanelCols; j += kLanes) {
    UnpackQuad<Word>(rows + j, scratch.scale + j, scale_rows + whole_words,
                     scratch.b + PanelOffset(j) + whole_words * Word::kPerWord * kStripCols);
  }
}

// Any group size, one weight at a time.
inline void UnpackColumnsSlowly(const WeightView& weight, const PanelCut& cut,
                                LinearScratch& scratch) {
  const int num_bits = weight.type == WeightType::kInt4 ? 4 : 8;
  const int64_t num_groups = weight.in_features / weight.group_size;
  const int64_t row_words = PackedWords(weight.in_features, num_bits);
  for (int64_t j = 0; j < kPanelCols; ++j) {
    const int64_t row = std::min(cut.out_begin + j, weight.out_features - 1);
    const int32_t* words = static_cast<const int32_t*>(weight.data) + row * row_words;
    for (int64_t r = 0; r < cut.depth; ++r) {
      const int64_t k = cut.depth_begin + r;
      scratch.b[PanelOffset(j) + r * kStripCols] = ToFloat(DequantizeCode(
          UnpackCode(words, k, num_bits), weight.scale[row * num_groups + k / weight.group_size]));
    }
  }
}

inline void UnpackColumns(const WeightView& weight, const PanelCut& cut, LinearScratch& scratch) {
  switch (weight.type) {
    case WeightType::kInt4:
      return weight.group_size % 8 == 0 ? UnpackColumns<Int4Word>(weight, cut, scratch)
                                        : UnpackColumnsSlowly(weight, cut, scratch);
    case WeightType::kInt8:
      return weight.group_size % 4 == 0 ? UnpackColumns<Int8Word>(weight, cut, scratch)
                                        : UnpackColumnsSlowly(weight, cut, scratch);
    case WeightType::kBFloat16:
      return UnpackColumns<BFloat16Word>(weight, cut, scratch);
    case WeightType::kFloat32:
      return UnpackColumns<FloatWord>(weight, cut, scratch);
  }
}

// Thirty-two inputs of one weight row, for the gradients and DequantizeRows.
class RowUnpacker {
 public:
  // k is a multiple of 32. Inputs past in_features come out as unspecified finite or scaled values
  // for codes and as 0 otherwise.
  RowUnpacker(const WeightView& weight, int64_t k)
      : weight_(weight), row_bytes_(RowBytes(weight)), begin_(k) {
    const bool is_codes = weight.scale != nullptr;
    if (!is_codes) return;
    num_groups_ = weight.in_features / weight.group_size;
    for (int64_t i = 0; i < kPanelCols; ++i) {
      group_[i] = std::min(k + i, weight.in_features - 1) / weight.group_size;
    }
  }

  // Input k + i goes to to[i / kStripCols * strip_size + i % kStripCols].
  HWY_INLINE void Unpack(int64_t row, int64_t strip_size, float* HWY_RESTRICT to) const {
    const auto* bytes = static_cast<const uint8_t*>(weight_.data) + row * row_bytes_;
    const Lanes lanes{to, strip_size};
    switch (weight_.type) {
      case WeightType::kInt4:
        return UnpackInt4(bytes, weight_.scale + row * num_groups_, lanes);
      case WeightType::kInt8:
        return UnpackInt8(bytes, weight_.scale + row * num_groups_, lanes);
      case WeightType::kBFloat16:
        return UnpackPlain(reinterpret_cast<const BFloat16*>(bytes), lanes);
      case WeightType::kFloat32:
        return UnpackPlain(reinterpret_cast<const float*>(bytes), lanes);
    }
  }

 private:
  struct Lanes {
    float* to;
    int64_t strip_size;
    HWY_INLINE float* At(int64_t i) const {
      return to + i / kStripCols * strip_size + i % kStripCols;
    }
  };

  // The inputs' bytes, copied with zeros behind them if the row ends within the 32.
  template <int64_t kBytes>
  HWY_INLINE const uint8_t* Codes(const uint8_t* row, uint8_t (&padded)[kBytes]) const {
    const int64_t begin_byte = begin_ * kBytes / kPanelCols;
    if (begin_byte + kBytes <= row_bytes_) return row + begin_byte;
    std::memset(padded, 0, kBytes);
    std::memcpy(padded, row + begin_byte, static_cast<size_t>(row_bytes_ - begin_byte));
    return padded;
  }

  HWY_INLINE VecF Scales(const BFloat16* scale, int64_t i) const {
    if (group_[i] == group_[i + kLanes - 1]) return hn::Set(LinearF(), ToFloat(scale[group_[i]]));
    alignas(64) float lanes[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = ToFloat(scale[group_[i + lane]]);
    return hn::Load(LinearF(), lanes);
  }

  HWY_INLINE void UnpackInt4(const uint8_t* row, const BFloat16* scale, Lanes to) const {
    const LinearI di;
    const LinearF df;
    uint8_t padded[16];
    const auto words = hn::LoadDup128(hn::Repartition<uint8_t, LinearU>(), Codes(row, padded));
    for (int64_t i = 0; i < kPanelCols; i += kLanes) {
      const auto input = hn::Add(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(i)));
      const auto word_of = hn::IndicesFromVec(df, hn::ShiftRight<3>(input));
      const auto shifts = hn::BitCast(LinearU(), hn::ShiftLeft<2>(hn::And(input, hn::Set(di, 7))));
      const auto lanes = hn::TableLookupLanes(hn::BitCast(df, words), word_of);
      const auto u =
          hn::And(hn::Shr(hn::BitCast(LinearU(), lanes), shifts), hn::Set(LinearU(), 15u));
      const auto q = hn::Sub(hn::BitCast(di, u), hn::Set(di, 8));
      hn::StoreU(RoundProduct(hn::Mul(hn::ConvertTo(df, q), Scales(scale, i))), df, to.At(i));
    }
  }

  HWY_INLINE void UnpackInt8(const uint8_t* row, const BFloat16* scale, Lanes to) const {
    const LinearI di;
    const LinearF df;
    uint8_t padded[32];
    const uint8_t* codes = Codes(row, padded);
    for (int64_t i = 0; i < kPanelCols; i += kLanes) {
      const auto u = hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, LinearF>(), codes + i));
      const auto q = hn::ConvertTo(df, hn::Sub(u, hn::Set(di, 128)));
      hn::StoreU(RoundProduct(hn::Mul(q, Scales(scale, i))), df, to.At(i));
    }
  }

  static HWY_INLINE VecF LoadFloats(const float* from) { return hn::LoadU(LinearF(), from); }
  static HWY_INLINE VecF LoadFloats(const BFloat16* from) { return LoadBFloat16(LinearF(), from); }

  template <class T>
  HWY_INLINE void UnpackPlain(const T* row, Lanes to) const {
    const int64_t count = std::min(kPanelCols, weight_.in_features - begin_);
    if (count == kPanelCols) {
      for (int64_t i = 0; i < kPanelCols; i += kLanes) {
        hn::StoreU(LoadFloats(row + begin_ + i), LinearF(), to.At(i));
      }
      return;
    }
    for (int64_t i = 0; i < kPanelCols; ++i) {
      *to.At(i) = i < count ? ToFloat(row[begin_ + i]) : 0.0f;
    }
  }

  const WeightView& weight_;
  int64_t row_bytes_;
  int64_t begin_;
  int64_t num_groups_ = 0;
  int64_t group_[kPanelCols] = {};  // group of each input
};

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
