// Rates of the calibrator's own stages beside this machine's FP32 and BF16 matrix product.
//
//   bench_calibrate --benchmark_enable_random_interleaving=true --benchmark_repetitions=5
//
// Names: <stage>/<shape>/threads:<count>. flops counts a multiply and an add of what is computed:
// the upper triangle for a Hessian and its factor. The best of several repetitions is the figure:
// a busy neighbour only ever makes a stage slower.
#include <ATen/Parallel.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"
#include "base/threads.h"
#include "calibrate/gptq.h"
#include "calibrate/input_error.h"

namespace quatrain {
namespace {

struct Shape {
  int64_t out_features, in_features, num_tokens;
};

std::vector<BFloat16> RandomValues(int64_t count, uint64_t stream) {
  std::vector<BFloat16> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = ToBFloat16(static_cast<float>(UniformDouble(1, stream, i)) - 0.5f);
  }
  return values;
}

// A weight, its inputs and what calibration makes of them.
struct Problem {
  explicit Problem(Shape size)
      : shape(size),
        inputs_TI(RandomValues(size.num_tokens * size.in_features, 1)),
        reference_TI(RandomValues(size.num_tokens * size.in_features, 2)),
        weight_OI(RandomValues(size.out_features * size.in_features, 3)),
        hessian(size.in_features) {}

  void Accumulate(ThreadPool& pool) {
    AccumulateHessian(pool, inputs_TI.data(), shape.num_tokens, hessian);
  }
  void AccumulateError(ThreadPool& pool) {
    error.in_features = shape.in_features;
    AccumulateInputError(pool, inputs_TI.data(), ReferenceRows(), shape.num_tokens, error);
  }
  void AccumulateBoth(ThreadPool& pool) {
    error.in_features = shape.in_features;
    AccumulateHessianAndError(pool, inputs_TI.data(), ReferenceRows(), shape.num_tokens, hessian,
                              error);
  }
  MatrixRows<BFloat16> ReferenceRows() const {
    return {.data = reference_TI.data(), .row_stride = shape.in_features};
  }
  WeightMatrix Weight() const {
    return {.data = weight_OI.data(),
            .out_features = shape.out_features,
            .in_features = shape.in_features};
  }
  double weights() const { return static_cast<double>(shape.out_features * shape.in_features); }
  double features() const { return static_cast<double>(shape.in_features); }

  Shape shape;
  std::vector<BFloat16> inputs_TI, reference_TI, weight_OI;
  Hessian hessian;
  InputError error;
};

void CountFlops(benchmark::State& state, double flops) {
  state.counters["flops"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void RunHessian(benchmark::State& state, Shape shape, int threads) {
  ThreadPool pool(threads);
  Problem problem(shape);
  for (auto _ : state) problem.Accumulate(pool);
  CountFlops(state,
             problem.features() * problem.features() * static_cast<double>(shape.num_tokens));
}

void RunInputError(benchmark::State& state, Shape shape, int threads) {
  ThreadPool pool(threads);
  Problem problem(shape);
  for (auto _ : state) problem.AccumulateError(pool);
  CountFlops(state,
             2 * problem.features() * problem.features() * static_cast<double>(shape.num_tokens));
}

void RunBoth(benchmark::State& state, Shape shape, int threads) {
  ThreadPool pool(threads);
  Problem problem(shape);
  for (auto _ : state) problem.AccumulateBoth(pool);
  CountFlops(state,
             3 * problem.features() * problem.features() * static_cast<double>(shape.num_tokens));
}

void RunFactor(benchmark::State& state, Shape shape, int threads) {
  ThreadPool pool(threads);
  Problem problem(shape);
  problem.Accumulate(pool);
  for (auto _ : state) {
    benchmark::DoNotOptimize(FactorHessian(pool, problem.hessian, {}, "m").pivot_I.data());
  }
  const double n = problem.features();
  CountFlops(state, n * n * n / 3);
}

void RunCorrection(benchmark::State& state, Shape shape, int threads) {
  ThreadPool pool(threads);
  Problem problem(shape);
  problem.Accumulate(pool);
  problem.AccumulateError(pool);
  const HessianFactor factor = FactorHessian(pool, problem.hessian, {}, "m");
  for (auto _ : state) {
    const InputCorrection correction(pool, factor, problem.error);
    benchmark::DoNotOptimize(correction.Apply(pool, problem.Weight()).data());
  }
  const double n = problem.features();
  CountFlops(state, 2 * n * n * n + 2 * problem.weights() * n);
}

void RunQuantise(benchmark::State& state, Shape shape, ScaleRule rule, int threads) {
  ThreadPool pool(threads);
  Problem problem(shape);
  problem.Accumulate(pool);
  const GptqOptions options{.scale_rule = rule};
  const HessianFactor factor = FactorHessian(pool, problem.hessian, options, "m");
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        QuantizeWeight(pool, problem.Weight(), problem.hessian, factor, options, "m").loss);
  }
  CountFlops(state, problem.weights() * problem.features());
}

// libtorch's own product, the machine's rate.
void RunMatmul(benchmark::State& state, at::ScalarType type, int threads) {
  constexpr int64_t kSize = 2048;
  at::set_num_threads(threads);
  const at::Tensor a = at::randn({kSize, kSize}).to(type);
  const at::Tensor b = at::randn({kSize, kSize}).to(type);
  for (auto _ : state) benchmark::DoNotOptimize(at::mm(a, b).data_ptr());
  CountFlops(state, 2.0 * kSize * kSize * kSize);
}

template <class Body>
void Register(const std::string& stage, const Body& body) {
  for (const int threads : {1, 2}) {
    benchmark::RegisterBenchmark((stage + "/threads:" + std::to_string(threads)).c_str(),
                                 [body, threads](benchmark::State& state) { body(state, threads); })
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

void RegisterAll() {
  for (const auto& [name, type] : {std::pair{"float32", at::kFloat}, {"bfloat16", at::kBFloat16}}) {
    Register(std::string("Matmul/") + name,
             [type](benchmark::State& state, int threads) { RunMatmul(state, type, threads); });
  }
  // The first is an expert's, which sees few tokens of a batch.
  for (const Shape shape : {Shape{256, 256, 256}, Shape{896, 896, 4096}, Shape{896, 4864, 4096}}) {
    const std::string name =
        "/o:" + std::to_string(shape.out_features) + "/i:" + std::to_string(shape.in_features);
    using Stage = void (*)(benchmark::State&, Shape, int);
    for (const auto& [stage, run] : {std::pair<const char*, Stage>{"Hessian", RunHessian},
                                     {"InputError", RunInputError},
                                     {"HessianAndError", RunBoth},
                                     {"Factor", RunFactor},
                                     {"Correction", RunCorrection}}) {
      Register(stage + name, [shape = shape, run = run](benchmark::State& state, int threads) {
        run(state, shape, threads);
      });
    }
    for (const auto& [rule_name, rule] :
         {std::pair{"absmax", ScaleRule::kAbsmax7_5}, {"searched", ScaleRule::kSearched}}) {
      Register(std::string("Quantise_") + rule_name + name,
               [shape = shape, rule = rule](benchmark::State& state, int threads) {
                 RunQuantise(state, shape, rule, threads);
               });
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
