// Cuts of row-wise work into fixed chunks: by the problem alone, never by the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/threads.h"

namespace quatrain {

// Elements of one chunk: enough to pay for handing it to a thread, little enough to stay in L2.
inline constexpr int64_t kChunkElements = 16384;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t RoundUp(int64_t a, int64_t multiple) { return CeilDiv(a, multiple) * multiple; }

// Rows of a chunk when one row costs row_elements.
inline int64_t ChunkRows(int64_t row_elements) {
  return std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, row_elements));
}

// Calls body(begin, end) for the chunks of [0, count).
template <class Body>
void ParallelChunks(ThreadPool& pool, int64_t count, int64_t chunk_size, const Body& body) {
  pool.ParallelFor(CeilDiv(count, chunk_size), [&](int64_t chunk, int) {
    const int64_t begin = chunk * chunk_size;
    body(begin, std::min(count, begin + chunk_size));
  });
}

}  // namespace quatrain
