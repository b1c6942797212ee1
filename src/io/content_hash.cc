#include "io/content_hash.h"

#include <xxhash.h>

namespace quatrain {

uint64_t ContentHash(std::span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace quatrain
