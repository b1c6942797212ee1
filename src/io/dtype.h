// The element types of the safetensors format, by their names there.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace quatrain {

// In the order of the reference implementation: writers sort tensors by it, widest last, so that
// every tensor of a file is aligned (huggingface/safetensors:safetensors/src/tensor.rs).
enum class DType {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

// "BF16", "F8_E4M3", ...
std::string_view DTypeName(DType dtype);

// The type of that name; nullopt if the format has none.
std::optional<DType> FindDType(std::string_view name);

// Bits of one element: 4 and 6 for the packed floats, 8 for BOOL, else whole bytes.
int BitsOf(DType dtype);

// Bytes of a tensor; nullopt if a dimension is negative, the product overflows, or the bits are no
// whole bytes.
std::optional<uint64_t> BytesOf(DType dtype, std::span<const int64_t> shape);

}  // namespace quatrain
