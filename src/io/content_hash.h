// A fingerprint of bytes, to notice that a file was changed or damaged. Not for adversaries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace quatrain {

// XXH3, 64 bits.
uint64_t ContentHash(std::span<const std::byte> bytes);

}  // namespace quatrain
