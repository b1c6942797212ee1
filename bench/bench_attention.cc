// Rates of CPU attention: long prefill, decode over a cache, and the training step of short packed
// sequences (forward and backward).
//
//   bench_attention [--benchmark_filter=Decode]
//
// Names: <case>/keys:<keys>/dim:<head_dim>/threads:<count>; 8 query heads share 2 kv heads, BF16.
// flops counts 4 x (query, visible key) pairs x head_dim forward and 10 x backward.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/threads.h"
#include "kernels/attention.h"

namespace quatrain {
namespace {

constexpr int64_t kHeads = 8;
constexpr int64_t kKvHeads = 2;

// num_sequences sequences of num_keys keys, of which the last num_queries are queries.
struct Batch {
  Batch(int64_t num_sequences, int64_t num_queries, int64_t num_keys, int64_t head_dim) {
    const auto q_size = static_cast<size_t>(num_sequences * num_queries * kHeads * head_dim);
    const auto kv_size = static_cast<size_t>(num_sequences * num_keys * kKvHeads * head_dim);
    q.resize(q_size);
    k.resize(kv_size);
    for (size_t i = 0; i < q_size; ++i) q[i] = ToBFloat16(std::sin(static_cast<float>(i)));
    for (size_t i = 0; i < kv_size; ++i) k[i] = ToBFloat16(std::cos(static_cast<float>(i)));
    out.resize(q_size);
    dout.assign(q_size, 0.5f);
    dq.resize(q_size);
    dk.resize(kv_size);
    dv.resize(kv_size);
    for (int64_t s = 0; s < num_sequences; ++s) {
      sequences.push_back({.q_begin = s * num_queries,
                           .num_queries = num_queries,
                           .num_keys = num_keys,
                           .kv_begin = s * num_keys});
    }
    args = {.q = q.data(),
            .k = k.data(),
            .v = k.data(),
            .out = out.data(),
            .num_heads = kHeads,
            .num_kv_heads = kKvHeads,
            .head_dim = head_dim,
            .scale = 1.0f / std::sqrt(static_cast<float>(head_dim)),
            .sequences = sequences};
    const double first = static_cast<double>(num_keys - num_queries + 1);
    const double mean_keys = (first + static_cast<double>(num_keys)) / 2.0;
    pair_flops = mean_keys * static_cast<double>(num_sequences * num_queries * kHeads * head_dim);
  }

  std::vector<BFloat16> q, k, out;
  std::vector<float> dout, dq, dk, dv;
  std::vector<AttentionSequence> sequences;
  AttentionArgs<BFloat16> args;
  double pair_flops = 0.0;
};

void CountFlops(benchmark::State& state, double flops) {
  state.counters["flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void Forward(benchmark::State& state, int64_t num_sequences, bool is_decode) {
  const int64_t num_keys = state.range(0);
  Batch batch(num_sequences, is_decode ? 1 : num_keys, num_keys, state.range(1));
  ThreadPool pool(static_cast<int>(state.range(2)));
  for (auto _ : state) AttentionForward(pool, batch.args);
  CountFlops(state, 4.0 * batch.pair_flops);
}

void Prefill(benchmark::State& state) { Forward(state, 1, false); }
void Packed(benchmark::State& state) { Forward(state, 256, false); }
void Decode(benchmark::State& state) { Forward(state, 256, true); }
void DecodeOne(benchmark::State& state) { Forward(state, 1, true); }

void PackedBackward(benchmark::State& state) {
  const int64_t num_keys = state.range(0);
  Batch batch(256, num_keys, num_keys, state.range(1));
  const AttentionGrads grads{.dout = batch.dout.data(),
                             .dq = batch.dq.data(),
                             .dk = batch.dk.data(),
                             .dv = batch.dv.data()};
  ThreadPool pool(static_cast<int>(state.range(2)));
  for (auto _ : state) AttentionBackward(pool, batch.args, grads);
  CountFlops(state, 10.0 * batch.pair_flops);
}

const std::vector<std::string> kNames = {"keys", "dim", "threads"};
BENCHMARK(Prefill)->ArgNames(kNames)->ArgsProduct({{512, 4096}, {64, 128}, {1, 2}})->UseRealTime();
BENCHMARK(Packed)->ArgNames(kNames)->ArgsProduct({{70}, {32, 128}, {1, 2}})->UseRealTime();
BENCHMARK(PackedBackward)->ArgNames(kNames)->ArgsProduct({{70}, {32, 128}, {1, 2}})->UseRealTime();
BENCHMARK(Decode)->ArgNames(kNames)->ArgsProduct({{70, 1024}, {32, 128}, {1, 2}})->UseRealTime();
BENCHMARK(DecodeOne)->ArgNames(kNames)->ArgsProduct({{4096}, {128}, {1, 2}})->UseRealTime();

}  // namespace
}  // namespace quatrain

BENCHMARK_MAIN();
