#!/usr/bin/env bash
# The tests of the device kernels on a machine with a GPU.
#
#   tools/gpu_check.sh BUILD_DIR [test | memcheck | racecheck]
#
# test       (default) all of them: bits, then kernels_test's other tests
# memcheck   compute-sanitizer over the small cases of every suite
# racecheck  cases of the kernels with barriers under its race detector; BUILD_DIR configured with
#            -DQT_RACECHECK=ON, in which all lanes of a warp arrive at barriers where one would do
#            (src/kernels/cuda/warp_arrival.cuh)
#
# Status 0: everything passed and the sanitizer found nothing. The cases left out of memcheck are
# larger copies of cases that it sees, and those whose time is the library's.
set -u
if (($# < 1 || $# > 2)); then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'
  exit 2
fi
program=$1/kernels_test
mode=${2:-test}
[[ -x $program ]] || { echo "gpu_check: no $program" >&2; exit 2; }
nvidia-smi -L > /dev/null || { echo "gpu_check: no GPU here" >&2; exit 2; }

large=(
  '*LinearLibrary*' '*ModelGpu*' '*EveryPlanGivesTheSameBits*' '*EveryScaleTimesEveryCode*'
  '*LinearDecodeGpuShapes*/'{0,3,4,5,6} '*MoeRouterGpu*/'{6,7} '*MoeExpertsGpu*/'{2,3}
  '*ManyRowsGiveTheSameBits*' '*ManyInAGraph*' '*WeightGradGpu*/'{5,6,7}
)
small="*Gpu*:-$(IFS=:; echo "${large[*]}")"
raced=(
  'WeightGradGpu*' '*WeightGradGpu*/'{0,1,2,3,4} '*LinearDecodeGpuShapes*/'{1,2}
  '*BiasAndResidualRoundAsWritten*' 'AttentionGpu.LogSumExp*' 'MoeBackwardGpu*' 'ElementwiseGpu*'
  'AttentionGpu.Short*' 'AttentionLatentGpu.Short*' 'MoeExpertsGpu.EveryPlan*'
  '*MoeManyRowsGpu*/4' '*MoeRouterGpu*/1' 'MoeRouterGpu.BreaksTies*'
)
raced=$(IFS=:; echo "${raced[*]}")

case $mode in
  test)
    exec "$program" --gtest_brief=1
    ;;
  memcheck)
    exec compute-sanitizer --tool memcheck --error-exitcode 1 "$program" --gtest_brief=1 \
      --gtest_filter="$small"
    ;;
  racecheck)
    if ! grep -qs '^QT_RACECHECK:BOOL=ON' "$1/CMakeCache.txt"; then
      echo "gpu_check: configure $1 with -DQT_RACECHECK=ON" >&2
      exit 2
    fi
    exec compute-sanitizer --tool racecheck --error-exitcode 1 "$program" --gtest_brief=1 \
      --gtest_filter="$raced"
    ;;
  *)
    echo "gpu_check: no mode $mode" >&2
    exit 2
    ;;
esac
