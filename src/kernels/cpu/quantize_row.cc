#include "kernels/cpu/quantize_row.h"

#include <algorithm>
#include <bit>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize_row.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/bfloat16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Largest |w| as bits: without the sign, BF16 bit patterns order like their values (NaN above Inf).
uint16_t AbsmaxBits(const BFloat16* weight, int64_t count) {
  const hn::ScalableTag<uint32_t> d;
  const hn::Rebind<uint16_t, decltype(d)> du16;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto magnitude = hn::Set(d, 0x7FFFu);
  auto largest = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(weight + i));
    largest = hn::Max(largest, hn::And(hn::PromoteTo(d, bits), magnitude));
  }
  uint16_t absmax = static_cast<uint16_t>(hn::GetLane(hn::MaxOfLanes(d, largest)));
  for (; i < count; ++i) absmax = std::max<uint16_t>(absmax, weight[i].bits & 0x7FFF);
  return absmax;
}

void QuantizeGroup(const BFloat16* weight, int64_t count, BFloat16 scale, const CodeGrid& grid,
                   int8_t* codes) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto s = hn::Set(df, ToFloat(scale));
  const auto lo = hn::Set(df, static_cast<float>(grid.lo));
  const auto hi = hn::Set(df, static_cast<float>(grid.hi));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    // Round is to nearest, ties to even, as rintf.
    const auto q = hn::Round(hn::Div(LoadBFloat16(df, weight + i), s));
    const auto clamped = hn::Min(hn::Max(q, lo), hi);
    hn::StoreU(hn::DemoteTo(di8, hn::ConvertTo(di32, clamped)), di8, codes + i);
  }
  for (; i < count; ++i) {
    codes[i] = static_cast<int8_t>(QuantizeCode(ToFloat(weight[i]), scale, grid));
  }
}

void DequantizeGroup(const int8_t* codes, int64_t count, BFloat16 scale, BFloat16* weight) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<int32_t, decltype(df)> di32;
  const hn::Rebind<int8_t, decltype(df)> di8;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
  const auto s = hn::Set(df, ToFloat(scale));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto q = hn::ConvertTo(df, hn::PromoteTo(di32, hn::LoadU(di8, codes + i)));
    StoreBFloat16(df, hn::Mul(q, s), weight + i);
  }
  for (; i < count; ++i) weight[i] = DequantizeCode(codes[i], scale);
}

void QuantizeRow(const BFloat16* weight_I, int64_t in_features, const QuantizeSpec& spec,
                 int8_t* codes_I, BFloat16* scale_G) {
  const int64_t g = spec.group_size;
  const bool derives_scale = RuleDerivesScale(spec.rule);
  for (int64_t group = 0; group < in_features / g; ++group) {
    const BFloat16* weight = weight_I + group * g;
    if (derives_scale) {
      const float amax = ToFloat(BFloat16{AbsmaxBits(weight, g)});
      scale_G[group] = ScaleFromAbsmax(amax, spec.rule, spec.grid);
    }
    QuantizeGroup(weight, g, scale_G[group], spec.grid, codes_I + group * g);
  }
}

void DequantizeRow(const int8_t* codes_I, const BFloat16* scale_G, int64_t in_features,
                   int64_t group_size, BFloat16* weight_I) {
  for (int64_t group = 0; group < in_features / group_size; ++group) {
    DequantizeGroup(codes_I + group * group_size, group_size, scale_G[group],
                    weight_I + group * group_size);
  }
}

int64_t FindBadColumn(const BFloat16* weight_I, int64_t in_features) {
  constexpr uint16_t kFirstBad = 0x7F7F;
  if (AbsmaxBits(weight_I, in_features) < kFirstBad) return -1;
  int64_t column = 0;
  while ((weight_I[column].bits & 0x7FFF) < kFirstBad) ++column;
  return column;
}

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace quatrain {

HWY_EXPORT(QuantizeRow);
HWY_EXPORT(DequantizeRow);
HWY_EXPORT(FindBadColumn);

void QuantizeRow(const BFloat16* weight_I, int64_t in_features, const QuantizeSpec& spec,
                 int8_t* codes_I, BFloat16* scale_G) {
  HWY_DYNAMIC_DISPATCH(QuantizeRow)(weight_I, in_features, spec, codes_I, scale_G);
}

void DequantizeRow(const int8_t* codes_I, const BFloat16* scale_G, int64_t in_features,
                   int64_t group_size, BFloat16* weight_I) {
  HWY_DYNAMIC_DISPATCH(DequantizeRow)(codes_I, scale_G, in_features, group_size, weight_I);
}

int64_t FindBadColumn(const BFloat16* weight_I, int64_t in_features) {
  return HWY_DYNAMIC_DISPATCH(FindBadColumn)(weight_I, in_features);
}

namespace {

// Eight signed codes (one a byte) to eight nibbles, and back; the halves are merged by doubling
// strides.
uint32_t PackNibbles(uint64_t codes) {
  uint64_t u = ((codes & 0x0F0F0F0F0F0F0F0Full) ^ 0x0808080808080808ull);  // q + 8 modulo 16
  u = (u | (u >> 4)) & 0x00FF00FF00FF00FFull;
  u = (u | (u >> 8)) & 0x0000FFFF0000FFFFull;
  return static_cast<uint32_t>(u | (u >> 16));
}

uint64_t UnpackNibbles(uint32_t word) {
  uint64_t u = word;
  u = (u | (u << 16)) & 0x0000FFFF0000FFFFull;
  u = (u | (u << 8)) & 0x00FF00FF00FF00FFull;
  u = (u | (u << 4)) & 0x0F0F0F0F0F0F0F0Full;
  // u - 8 in every byte: with bit 7 set first no byte borrows from its neighbour; then bit 7 is the
  // sign.
  return ((u | 0x8080808080808080ull) - 0x0808080808080808ull) ^ 0x8080808080808080ull;
}

}  // namespace

static_assert(std::endian::native == std::endian::little, "rows are packed through byte order");

void PackRow(const int8_t* codes_I, int64_t in_features, int num_bits, int32_t* packed_P) {
  const int64_t per_word = 32 / num_bits;
  const int64_t whole_words = in_features / per_word;
  for (int64_t word = 0; word < whole_words; ++word) {
    if (num_bits == 4) {
      uint64_t codes;
      std::memcpy(&codes, codes_I + word * 8, sizeof(codes));
      packed_P[word] = static_cast<int32_t>(PackNibbles(codes));
    } else {
      uint32_t codes;
      std::memcpy(&codes, codes_I + word * 4, sizeof(codes));
      packed_P[word] = static_cast<int32_t>(codes ^ 0x80808080u);  // q + 128 modulo 256
    }
  }
  if (whole_words < PackedWords(in_features, num_bits)) packed_P[whole_words] = 0;
  for (int64_t i = whole_words * per_word; i < in_features; ++i) {
    PackCode(codes_I[i], i, num_bits, packed_P);
  }
}

void UnpackRow(const int32_t* packed_P, int64_t in_features, int num_bits, int8_t* codes_I) {
  const int64_t per_word = 32 / num_bits;
  const int64_t whole_words = in_features / per_word;
  for (int64_t word = 0; word < whole_words; ++word) {
    const uint32_t bits = static_cast<uint32_t>(packed_P[word]);
    if (num_bits == 4) {
      const uint64_t codes = UnpackNibbles(bits);
      std::memcpy(codes_I + word * 8, &codes, sizeof(codes));
    } else {
      const uint32_t codes = bits ^ 0x80808080u;
      std::memcpy(codes_I + word * 4, &codes, sizeof(codes));
    }
  }
  for (int64_t i = whole_words * per_word; i < in_features; ++i) {
    codes_I[i] = static_cast<int8_t>(UnpackCode(packed_P, i, num_bits));
  }
}

}  // namespace quatrain
#endif  // HWY_ONCE
