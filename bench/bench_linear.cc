// Rates of the CPU linear kernels: y = x W^T over the weight types, and the two gradients.
//
//   bench_linear [--benchmark_filter=Forward.*int4]
//
// Names: Forward/<type>/n:<out>/k:<in>/m:<rows>/threads:<count>. flops counts 2 m n k a second;
// ns_per_weight is the figure that matters for few rows.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/threads.h"
#include "kernels/int4.h"
#include "kernels/linear.h"

namespace quatrain {
namespace {

constexpr int64_t kGroupSize = 32;

const char* TypeName(WeightType type) {
  switch (type) {
    case WeightType::kFloat32:
      return "float32";
    case WeightType::kBFloat16:
      return "bfloat16";
    case WeightType::kInt4:
      return "int4";
    case WeightType::kInt8:
      return "int8";
  }
  return "";
}

struct Shape {
  int64_t n, k;
};

struct Operands {
  Operands(WeightType type, Shape shape, int64_t rows) {
    const auto bytes = static_cast<size_t>(shape.n * shape.k * 4);
    data.resize(bytes);
    for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<uint8_t>(HashBits(1, 0, i) & 0x3Fu);
    scale.assign(static_cast<size_t>(shape.n * shape.k / kGroupSize), ToBFloat16(0.01f));
    x.assign(static_cast<size_t>(rows * shape.k), ToBFloat16(0.5f));
    y.resize(static_cast<size_t>(rows * shape.n));
    dy.assign(static_cast<size_t>(rows * shape.n), 0.25f);
    gradient.assign(static_cast<size_t>((rows + shape.n) * shape.k), 0.0f);
    weight = {.type = type,
              .out_features = shape.n,
              .in_features = shape.k,
              .group_size = kGroupSize,
              .data = data.data(),
              .scale = scale.data()};
  }
  std::vector<uint8_t> data;
  std::vector<BFloat16> scale, x, y;
  std::vector<float> dy, gradient;
  WeightView weight;
};

void Count(benchmark::State& state, Shape shape, int64_t rows) {
  const double weights = static_cast<double>(shape.n * shape.k);
  state.counters["flops"] = benchmark::Counter(2.0 * weights * static_cast<double>(rows),
                                               benchmark::Counter::kIsIterationInvariantRate);
  state.counters["ns_per_weight"] = benchmark::Counter(
      weights * 1e-9, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
}

void Forward(benchmark::State& state, WeightType type, Shape shape, int64_t rows, int threads) {
  ThreadPool pool(threads);
  Operands operands(type, shape, rows);
  const LinearTask<BFloat16> task{
      .x = operands.x.data(), .rows = rows, .weight = operands.weight, .y = operands.y.data()};
  for (auto _ : state) LinearForward<BFloat16>(pool, {&task, 1});
  Count(state, shape, rows);
}

void InputGrad(benchmark::State& state, WeightType type, Shape shape, int64_t rows, int threads) {
  ThreadPool pool(threads);
  Operands operands(type, shape, rows);
  const LinearInputGradTask task{.dy = operands.dy.data(),
                                 .rows = rows,
                                 .weight = operands.weight,
                                 .dx = operands.gradient.data()};
  for (auto _ : state) LinearInputGrad(pool, {&task, 1});
  Count(state, shape, rows);
}

void WeightGrad(benchmark::State& state, WeightType type, Shape shape, int64_t rows, int threads) {
  ThreadPool pool(threads);
  Operands operands(type, shape, rows);
  const LinearWeightGradTask<BFloat16> task{.dy = operands.dy.data(),
                                            .x = operands.x.data(),
                                            .rows = rows,
                                            .out_features = shape.n,
                                            .in_features = shape.k,
                                            .dweight = operands.gradient.data()};
  for (auto _ : state) LinearWeightGrad<BFloat16>(pool, {&task, 1});
  Count(state, shape, rows);
}

// A job of empty chunks: what ParallelFor itself costs.
void EmptyJob(benchmark::State& state, int threads) {
  ThreadPool pool(threads);
  for (auto _ : state) {
    pool.ParallelFor(8, [](int64_t chunk, int) { benchmark::DoNotOptimize(chunk); });
  }
}

using Body = void (*)(benchmark::State&, WeightType, Shape, int64_t, int);

void Register(const char* name, Body body, WeightType type, Shape shape, int64_t rows) {
  for (const int threads : {1, 2}) {
    const std::string title = std::string(name) + "/" + TypeName(type) +
                              "/n:" + std::to_string(shape.n) + "/k:" + std::to_string(shape.k) +
                              "/m:" + std::to_string(rows) + "/threads:" + std::to_string(threads);
    benchmark::RegisterBenchmark(title.c_str(), body, type, shape, rows, threads)
        ->UseRealTime()
        ->Unit(benchmark::kMicrosecond);
  }
}

void RegisterAll() {
  constexpr Shape kShapes[] = {{128, 128}, {384, 128}, {2048, 128}, {512, 512}, {896, 4864}};
  constexpr int64_t kRows[] = {1, 8, 64, 256, 2048};
  for (const int threads : {1, 2}) {
    benchmark::RegisterBenchmark(("EmptyJob/threads:" + std::to_string(threads)).c_str(), EmptyJob,
                                 threads)
        ->UseRealTime();
  }
  for (const Shape shape : kShapes) {
    for (const int64_t rows : kRows) {
      for (const WeightType type :
           {WeightType::kInt4, WeightType::kInt8, WeightType::kBFloat16, WeightType::kFloat32}) {
        Register("Forward", Forward, type, shape, rows);
      }
      Register("InputGrad", InputGrad, WeightType::kInt4, shape, rows);
      Register("WeightGrad", WeightGrad, WeightType::kBFloat16, shape, rows);
    }
  }
}

}  // namespace
}  // namespace quatrain

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  quatrain::RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
