#include "io/dtype.h"

#include <array>
#include <cstddef>

namespace quatrain {
namespace {

struct Description {
  std::string_view name;
  int bits;
};

// Indexed by DType.
constexpr std::array<Description, 22> kDescriptions = {{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};
static_assert(kDescriptions.size() == static_cast<size_t>(DType::kU64) + 1);

}  // namespace

std::string_view DTypeName(DType dtype) { return kDescriptions[static_cast<size_t>(dtype)].name; }

std::optional<DType> FindDType(std::string_view name) {
  for (size_t i = 0; i < kDescriptions.size(); ++i) {
    if (kDescriptions[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

int BitsOf(DType dtype) { return kDescriptions[static_cast<size_t>(dtype)].bits; }

std::optional<uint64_t> BytesOf(DType dtype, std::span<const int64_t> shape) {
  uint64_t bits = static_cast<uint64_t>(BitsOf(dtype));
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bits, static_cast<uint64_t>(size), &bits))
      return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

}  // namespace quatrain
