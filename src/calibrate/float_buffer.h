// Vectors of floats that begin at a line of the cache: a row of vectors that lies across two lines
// costs a product a quarter of its speed.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

namespace quatrain {

struct AlignedFloats : std::allocator<float> {
  template <class Other>
  struct rebind {
    using other = AlignedFloats;
  };
  static constexpr std::align_val_t kAlignment{64};
  float* allocate(size_t count) {
    return static_cast<float*>(::operator new(sizeof(float) * count, kAlignment));
  }
  void deallocate(float* at, size_t) { ::operator delete(at, kAlignment); }
};

// Not cleared when the vector grows: the threads that fill it are the first to touch its pages,
// which for large matrices costs as much as filling them.
struct UnsetFloats : AlignedFloats {
  template <class Other>
  struct rebind {
    using other = UnsetFloats;
  };
  void construct(float* at) { ::new (static_cast<void*>(at)) float; }
  void construct(float* at, float value) { ::new (static_cast<void*>(at)) float(value); }
};

using AlignedBuffer = std::vector<float, AlignedFloats>;
using FloatBuffer = std::vector<float, UnsetFloats>;

}  // namespace quatrain
