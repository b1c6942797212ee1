// Which instruction sets the CPU kernels are compiled for: AVX2, AVX-512 and NEON, and whatever the
// compiler may assume anyway. Include before any Highway header; the others would cost compile time
// and give the same bits.
#pragma once

#define HWY_DISABLED_TARGETS                                                                \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | HWY_AVX3_ZEN4 | HWY_AVX3_SPR | HWY_SVE | HWY_SVE2 | \
   HWY_SVE_256 | HWY_SVE2_128)

#include "hwy/detect_targets.h"

// Older Highways do not know these. Within the header above an unknown name counts as 0.
#ifndef HWY_AVX3_ZEN4
#define HWY_AVX3_ZEN4 0
#endif
#ifndef HWY_AVX3_SPR
#define HWY_AVX3_SPR 0
#endif
