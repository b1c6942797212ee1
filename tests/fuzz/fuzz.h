// What the fuzzers share: an Error is how data is refused; a broken invariant of ours, any other
// exception, and data that is taken and should not have been, are findings.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/error.h"

namespace quatrain::fuzz {

inline void Require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "finding: %s\n", what.c_str());
  std::abort();
}

// False if the body refuses its data.
template <class Body>
bool Accepts(const Body& body) {
  try {
    body();
    return true;
  } catch (const Error& error) {
    Require(error.code() != ErrorCode::kInternal, error.what());
    return false;
  }
}

}  // namespace quatrain::fuzz
