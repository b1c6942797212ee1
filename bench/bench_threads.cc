// Two threads against one for jobs of eight chunks and 10 us to 10 ms, both in turn within every
// iteration, so that whatever else the machine does meets both alike.
//
//   bench_threads [--benchmark_repetitions=5]
//   sh -c 'while :; do :; done' & bench_threads; kill $!    # beside a busy process
//
// speed_of_two: time of one thread over time of two, summed over the iterations.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "base/threads.h"

namespace quatrain {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int64_t kChunks = 8;
constexpr int64_t kTurn = 20000;  // microseconds that one pool works before it is the other's turn

// A chain of multiply-adds, about 550 a microsecond on the machines of bench/results/cpu.
void Work(int64_t steps) {
  float value = 1.0f;
  for (int64_t i = 0; i < steps; ++i) value = value * 0.9999f + 0.001f;
  benchmark::DoNotOptimize(value);
}

double Turn(ThreadPool& pool, int64_t jobs, int64_t steps) {
  const auto begin = Clock::now();
  for (int64_t i = 0; i < jobs; ++i) {
    pool.ParallelFor(kChunks, [&](int64_t, int) { Work(steps); });
  }
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void TwoAgainstOne(benchmark::State& state) {
  ThreadPool one(1), two(2);
  const int64_t jobs = std::max<int64_t>(1, kTurn / state.range(0));
  const int64_t steps = state.range(0) * 550 / kChunks;
  double time_of_one = 0, time_of_two = 0;
  for (auto _ : state) {
    time_of_one += Turn(one, jobs, steps);
    time_of_two += Turn(two, jobs, steps);
  }
  state.counters["us_of_one"] =
      time_of_one * 1e6 / static_cast<double>(jobs * static_cast<int64_t>(state.iterations()));
  state.counters["speed_of_two"] = time_of_one / time_of_two;
}
BENCHMARK(TwoAgainstOne)
    ->ArgName("us")
    ->Arg(10)
    ->Arg(50)
    ->Arg(200)
    ->Arg(1000)
    ->Arg(10000)
    ->UseRealTime()
    ->MinTime(1.0);

}  // namespace
}  // namespace quatrain

BENCHMARK_MAIN();
