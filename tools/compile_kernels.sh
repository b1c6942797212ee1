#!/usr/bin/env bash
# Compiles the device kernels that need nothing of Hopper for another architecture, here only to see
# that they compile.
#
#   tools/compile_kernels.sh [ARCHITECTURE]     default: sm_80
#
# Status 0: all do. The other files use wgmma, clusters or tensor maps (sm_90a).
set -u
cd "$(dirname "$0")/.." || exit 2
architecture=${1:-sm_80}
command -v nvcc > /dev/null || { echo "compile_kernels: no nvcc here" >&2; exit 2; }
kernels=(
  adamw attention_decode attention_latent_merge elementwise int4_quantize linear_decode_bf16
  linear_decode_int4 linear_decode_int8 linear_reference logprob moe_backward moe_combine
  moe_decode moe_router pack sample
)
output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
for name in "${kernels[@]}"; do
  if nvcc -std=c++20 -O1 --fmad=false -arch="$architecture" -DFMT_HEADER_ONLY -DFMT_CONSTEVAL= \
    -DFMT_USE_CONSTEXPR=1 -DQT_WITH_CUDA=1 -DQT_VERSION='"0"' -Isrc -cubin -o "$output" \
    "src/kernels/cuda/$name.cu"; then
    echo "$architecture: $name"
  else
    echo "$architecture: $name does not compile" >&2
    status=1
  fi
done
exit "$status"
