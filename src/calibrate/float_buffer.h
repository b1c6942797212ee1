// A vector of floats that is not cleared when it grows: the threads that fill it are the first to
// touch its pages, which for large matrices costs as much as filling them.
#pragma once

#include <memory>
#include <vector>

namespace quatrain {

struct UnsetFloats : std::allocator<float> {
  template <class Other>
  struct rebind {
    using other = UnsetFloats;
  };
  void construct(float* at) { ::new (static_cast<void*>(at)) float; }
  void construct(float* at, float value) { ::new (static_cast<void*>(at)) float(value); }
};

using FloatBuffer = std::vector<float, UnsetFloats>;

}  // namespace quatrain
