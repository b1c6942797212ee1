// Rates of the row-wise CPU kernels on the shapes of one training step of a small model (17920
// tokens, hidden 128) and of a large vocabulary.
//
//   bench_elementwise [--benchmark_filter=Logprob]
//
// bytes_per_second counts each operand once, read or written. Times are for one thread.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/threads.h"
#include "kernels/elementwise.h"
#include "kernels/logprob.h"
#include "kernels/moe.h"
#include "kernels/sample.h"

namespace quatrain {
namespace {

constexpr int64_t kTokens = 17920;
constexpr int64_t kHidden = 128;
constexpr int64_t kSize = kTokens * kHidden;

std::vector<float> Floats(int64_t size) {
  std::vector<float> values(static_cast<size_t>(size));
  for (size_t i = 0; i < values.size(); ++i) values[i] = 3.0f * std::sin(static_cast<float>(i));
  return values;
}

std::vector<BFloat16> Halves(int64_t size) {
  std::vector<BFloat16> values;
  for (const float value : Floats(size)) values.push_back(ToBFloat16(value));
  return values;
}

void CountBytes(benchmark::State& state, int64_t bytes) {
  state.SetBytesProcessed(state.iterations() * bytes);
}

void RmsNorm(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t dim = state.range(0);
  const std::vector<BFloat16> x = Halves(kSize), weight = Halves(dim);
  std::vector<BFloat16> y(x.size());
  for (auto _ : state) {
    RmsNormForward(pool, x.data(), weight.data(), kSize / dim, dim, 1e-6f, y.data());
  }
  CountBytes(state, 4 * kSize);
}
BENCHMARK(RmsNorm)->Arg(32)->Arg(128);

void RmsNormGrad(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t dim = state.range(0);
  const std::vector<BFloat16> x = Halves(kSize), weight = Halves(dim);
  const std::vector<float> dy = Floats(kSize);
  std::vector<float> dx(dy.size()), dweight(weight.size());
  for (auto _ : state) {
    RmsNormBackward<BFloat16>(pool, {.x = x.data(),
                                     .weight = weight.data(),
                                     .dy = dy.data(),
                                     .rows = kSize / dim,
                                     .dim = dim,
                                     .eps = 1e-6f,
                                     .dx = dx.data(),
                                     .accumulate_dx = false,
                                     .dweight = dweight.data()});
  }
  CountBytes(state, 10 * kSize);
}
BENCHMARK(RmsNormGrad)->Arg(32)->Arg(128);

void Rope(benchmark::State& state) {
  ThreadPool pool(1);
  std::vector<float> cos(128 * 16), sin(128 * 16);
  std::vector<double> inverse_frequencies;
  for (int i = 0; i < 16; ++i) inverse_frequencies.push_back(std::pow(1e4, -2.0 * i / 32.0));
  FillRopeTable(128, inverse_frequencies, cos.data(), sin.data());
  std::vector<int32_t> positions;
  for (int32_t t = 0; t < kTokens; ++t) positions.push_back(t % 70);
  std::vector<BFloat16> x = Halves(kSize);
  const RopeTable table{.cos = cos.data(), .sin = sin.data(), .head_dim = 32};
  for (auto _ : state) RopeForward(pool, table, positions, 4, x.data());
  CountBytes(state, 4 * kSize);
}
BENCHMARK(Rope);

void SiluMul(benchmark::State& state) {
  ThreadPool pool(1);
  const std::vector<BFloat16> gate = Halves(kSize), up = Halves(kSize);
  std::vector<BFloat16> out(gate.size());
  for (auto _ : state) SiluMulForward(pool, gate.data(), up.data(), kSize, out.data());
  CountBytes(state, 6 * kSize);
}
BENCHMARK(SiluMul);

void SiluMulGrad(benchmark::State& state) {
  ThreadPool pool(1);
  const std::vector<BFloat16> gate = Halves(kSize), up = Halves(kSize);
  const std::vector<float> dout = Floats(kSize);
  std::vector<float> dgate(dout.size()), dup(dout.size());
  for (auto _ : state) {
    SiluMulBackward(pool, gate.data(), up.data(), dout.data(), kSize, dgate.data(), dup.data());
  }
  CountBytes(state, 16 * kSize);
}
BENCHMARK(SiluMulGrad);

void Residual(benchmark::State& state) {
  ThreadPool pool(1);
  std::vector<BFloat16> x = Halves(kSize);
  const std::vector<BFloat16> y = Halves(kSize);
  for (auto _ : state) AddInPlace(pool, x.data(), y.data(), kSize);
  CountBytes(state, 6 * kSize);
}
BENCHMARK(Residual);

void Router(benchmark::State& state) {
  ThreadPool pool(1);
  const RouterConfig config{.num_experts = state.range(0), .num_experts_per_tok = state.range(1)};
  const std::vector<float> logits = Floats(kTokens * config.num_experts);
  std::vector<int32_t> ids(static_cast<size_t>(kTokens * config.num_experts_per_tok));
  std::vector<float> weights(ids.size());
  for (auto _ : state) {
    RouterForward(pool, config, logits.data(), kTokens, false, ids.data(), weights.data());
  }
  CountBytes(state, 4 * kTokens * config.num_experts);
}
BENCHMARK(Router)->Args({8, 2})->Args({128, 8});

void Combine(benchmark::State& state) {
  ThreadPool pool(1);
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 2 * kTokens; ++i) ids.push_back(i * 7 % 8);
  const MoePermutation permutation = PermuteByExpert(ids, 8, 2);
  const std::vector<BFloat16> y = Halves(2 * kSize);
  const std::vector<float> weights = Floats(2 * kTokens);
  std::vector<BFloat16> out(y.size() / 2);
  for (auto _ : state) {
    CombineForward(pool, y.data(), weights.data(), permutation, kHidden, out.data());
  }
  CountBytes(state, 6 * kSize);
}
BENCHMARK(Combine);

void Logprob(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t vocab_size = state.range(0), rows = 2048 * 2048 / vocab_size;
  const std::vector<float> logits = Floats(rows * vocab_size), inv_temperature = {1.25f};
  const std::vector<int32_t> targets(static_cast<size_t>(rows), 7);
  std::vector<float> logprobs(targets.size()), entropy(targets.size());
  for (auto _ : state) {
    LogprobForward(pool, logits.data(), targets, inv_temperature, vocab_size, logprobs.data(),
                   entropy.data());
  }
  CountBytes(state, 4 * rows * vocab_size);
}
BENCHMARK(Logprob)->Arg(2048)->Arg(151936);

void LogprobGrad(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t vocab_size = state.range(0), rows = 2048 * 2048 / vocab_size;
  std::vector<float> logits = Floats(rows * vocab_size);
  const std::vector<int32_t> targets(static_cast<size_t>(rows), 7);
  const std::vector<float> dlogprobs(targets.size(), 1.0f);
  for (auto _ : state) {
    LogprobBackward(pool, logits.data(), targets, 1.25f, vocab_size, dlogprobs.data(), nullptr);
  }
  CountBytes(state, 8 * rows * vocab_size);
}
BENCHMARK(LogprobGrad)->Arg(2048)->Arg(151936);

// range(1): 0 temperature alone, 1 with top-p, 2 with top-k and top-p.
void Sample(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t vocab_size = state.range(0), num_rows = 256 * 2048 / vocab_size;
  const std::vector<float> logits = Floats(num_rows * vocab_size);
  std::vector<SamplingRow> rows(static_cast<size_t>(num_rows));
  for (size_t r = 0; r < rows.size(); ++r) {
    rows[r] = {.temperature = 0.8f,
               .top_p = state.range(1) > 0 ? 0.95f : 1.0f,
               .top_k = state.range(1) > 1 ? 50 : 0,
               .seed = r};
  }
  std::vector<int32_t> tokens(rows.size());
  std::vector<float> logprobs(rows.size());
  for (auto _ : state) {
    SampleRows(pool, logits.data(), rows, vocab_size, tokens.data(), logprobs.data());
  }
  state.SetItemsProcessed(state.iterations() * num_rows);
}
BENCHMARK(Sample)->ArgsProduct({{2048, 151936}, {0, 1, 2}});

}  // namespace
}  // namespace quatrain

BENCHMARK_MAIN();
