#!/usr/bin/env bash
# The tests of the device kernels on a machine with a GPU.
#
#   tools/gpu_check.sh BUILD_DIR [test | memcheck | racecheck]
#
# test       (default) all of them: bits, then kernels_test's other tests
# memcheck   compute-sanitizer over all of them but the library's products: a minute and a half
# racecheck  its race detector over all but a few long cases whose kernels smaller ones run too:
#            some minutes; BUILD_DIR configured with -DQT_RACECHECK=ON, in which all lanes of a
#            warp arrive at barriers where one would do (src/kernels/cuda/warp_arrival.cuh)
#
# Status 0: everything passed and the sanitizer found nothing. JOBS (10): tests at a time under it.
set -u
if (($# < 1 || $# > 2)); then
  sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'
  exit 2
fi
program=$1/kernels_test
mode=${2:-test}
[[ -x $program ]] || { echo "gpu_check: no $program" >&2; exit 2; }
nvidia-smi -L > /dev/null || { echo "gpu_check: no GPU here" >&2; exit 2; }

# The library's products, and cases whose kernels smaller ones run, too.
long=(
  '*LinearLibrary*' 'Long*/*' 'LinearWideGpu.EveryPlanGives*' '*LinearDecodeGpuShapes*/7'
)
every="*Gpu*:-$(IFS=:; echo "${long[*]}")"
# Each test in a program of its own, JOBS at a time: the tool's time is the processor's.
check() {
  local folder failed=0
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$program" --gtest_list_tests --gtest_filter="$2" |
    awk '/^[^ ]/ {suite = $1} /^ / {print suite $1}' | grep '\.' > "$folder/names"
  export folder program
  # shellcheck disable=SC2016
  xargs -P "${JOBS:-10}" -I{} bash -c '
    log=$folder/$(echo "{}" | tr / _)
    if compute-sanitizer --tool '"$1"' --error-exitcode 1 "$program" --gtest_brief=1 \
      --gtest_filter="{}" > "$log" 2>&1; then
      echo "clean {} ($SECONDS s)"
    elif grep -q "terminated before first instrumented" "$log" && grep -q "PASSED" "$log"; then
      echo "launches nothing {}"
    else
      echo "NOT CLEAN {} ($SECONDS s)"; tail -n 40 "$log"; exit 1
    fi' < "$folder/names" || failed=1
  echo "gpu_check: $(wc -l < "$folder/names") tests under $1"
  exit "$failed"
}

case $mode in
  test)
    exec "$program" --gtest_brief=1
    ;;
  memcheck)
    check memcheck '*Gpu*:-*LinearLibrary*'
    ;;
  racecheck)
    if ! grep -qs '^QT_RACECHECK:BOOL=ON' "$1/CMakeCache.txt"; then
      echo "gpu_check: configure $1 with -DQT_RACECHECK=ON" >&2
      exit 2
    fi
    check racecheck "$every"
    ;;
  *)
    echo "gpu_check: no mode $mode" >&2
    exit 2
    ;;
esac
