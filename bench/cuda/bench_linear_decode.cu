// Decode linears against cuBLAS BF16 and the streaming read, in one run; checks bits first.
//
//   nvcc -std=c++20 -O3 --fmad=false -gencode arch=compute_90a,code=sm_90a -DFMT_CONSTEVAL=
//   -DFMT_USE_CONSTEXPR=1 -DFMT_HEADER_ONLY -Isrc -I. -o bench_linear_decode
//   bench/cuda/bench_linear_decode.cu src/kernels/cuda/linear_*.cu
//   src/kernels/cuda/moe_wide.cu src/kernels/cuda/pack.cu src/kernels/cuda/tensor_map.cu
//   src/base/error.cc -lcublas
//   ./bench_linear_decode [all|int4|int8|bf16|prefill|sweep|wide|plain] > rows.jsonl
//   ./bench_linear_decode int4|int8|bf16 N K G M[,M...]                       rows of one shape
//   ./bench_linear_decode int4|int8|bf16 N K G M TOKENS WARPGROUPS CLUSTER    one plan
//   ./bench_linear_decode int4|int8|bf16 N K G M UNITS GROUPS CTAS KB CHUNKS  one of decode
//
// A row: kernel, n, k, m, g, microseconds, bytes of weights, TB/s, share of the streaming read,
// cuBLAS microseconds and ratio, outputs that differ from the reference chain and from cuBLAS with
// 128 rows (its order for these shapes is the same chain where it does not split K). CUDA graphs of
// launches in a chain over weights rotated past the L2, interleaved, random-normal data.
#include <cublas_v2.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <sstream>
#include <string>

#include "bench/cuda/bench_support.cuh"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_plain.h"
#include "kernels/cuda/linear_reference.h"
#include "kernels/cuda/linear_wide.h"
#include "kernels/cuda/pack.h"
#include "kernels/int4.h"

namespace quatrain::bench {
namespace {

using cuda::CodeTensors;
using cuda::LaunchOrder;
using cuda::LinearDecodeArgs;
using cuda::PackedShape;

constexpr int kFewestRows = 128;    // of the library's product that bits are compared with
constexpr int kSweepLaunches = 30;  // of a graph
constexpr int kMultiprocessors = 132;

// Absmax / 7 round to nearest, one thread a group; speed does not matter here.
__global__ void QuantizeKernel(const BFloat16* weight, PackedShape shape, int32_t* codes,
                               BFloat16* scale) {
  const int64_t g = shape.group_size;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (group >= shape.out_features * shape.in_features / g) return;
  const BFloat16* w = weight + group * g;
  float amax = 0;
  for (int64_t i = 0; i < g; ++i) amax = fmaxf(amax, fabsf(ToFloat(w[i])));
  const CodeGrid grid = GridOf(ScaleRule::kAbsmax7, shape.num_bits);
  const BFloat16 s = ScaleFromAbsmax(amax, ScaleRule::kAbsmax7, grid);
  scale[group] = s;
  int32_t* words = codes + group * g * shape.num_bits / 32;
  for (int64_t i = 0; i < g * shape.num_bits / 32; ++i) words[i] = 0;
  for (int64_t i = 0; i < g; ++i) {
    PackCode(QuantizeCode(ToFloat(w[i]), s, grid), i, shape.num_bits, words);
  }
}

__global__ void CountDifferentKernel(const BFloat16* a, const BFloat16* b, const float* exact,
                                     int64_t count, int* num_different) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint16_t other = exact != nullptr ? ToBFloat16(exact[i]).bits : b[i].bits;
  if (a[i].bits != other) atomicAdd(num_different, 1);
}

struct Case {
  WeightType type;
  int64_t n, k, g;
};

class LinearBench {
 public:
  LinearBench(cudaStream_t stream, cublasHandle_t cublas, double read_rate)
      : stream_(stream), cublas_(cublas), read_rate_(read_rate), counter_(4) {}

  void Run(const Case& c, const std::vector<int>& tokens) {
    max_tokens_ = std::max(kFewestRows, *std::max_element(tokens.begin(), tokens.end()));
    Prepare(c, tokens.back());
    for (const int m : tokens) Measure(c, m);
  }

  // Microseconds of plans other than the planner's.
  void Sweep(const Case& c, const std::vector<int>& tokens) {
    max_tokens_ = kFewestRows;
    Prepare(c, 1);
    const int64_t units = cuda::NumUnits(shape_);
    const int segments = cuda::NumSegments(c.n, c.k);
    const bool is_plain = c.type == WeightType::kBFloat16;
    for (const int m : tokens) {
      for (const int row_units : {1, 2}) {
        if (is_plain == (row_units == 2)) continue;
        for (const int per_sm : {1, 2}) {
          for (const int stage_chunks : {0, 2, 4, 8}) {
            const int64_t all = (units + row_units - 1) / row_units;
            const int ctas = static_cast<int>(std::min<int64_t>(all, 132 * per_sm));
            const int most = static_cast<int>((all + ctas - 1) / ctas);
            for (int rounds = 1; rounds <= 3; ++rounds) {
              const int groups = is_plain && most > 12 ? 3 + rounds : (most + rounds - 1) / rounds;
              if (groups * segments > 8 || groups < 1 || (rounds > most)) continue;
              SweepOne(c, m, {row_units, groups, ctas, (m > 16 ? 220 : 112) << 10, stage_chunks});
            }
          }
        }
      }
    }
    std::fflush(stdout);
  }

  // The time of one plan, also for a profiler.
  void One(const Case& c, int m, const cuda::WidePlan& plan) {
    max_tokens_ = std::max(kFewestRows, m);
    Prepare(c, m);
    SweepOneWide(c, m, plan);
  }

  void OneDecode(const Case& c, int m, const cuda::DecodePlan& plan) {
    max_tokens_ = kFewestRows;
    Prepare(c, m);
    SweepOne(c, m, plan);
  }

  // The same of plans for rows of BF16, beside what the kernel for few tokens and the library take.
  void SweepPlain(const Case& c, const std::vector<int>& tokens) {
    max_tokens_ = std::max(kFewestRows, *std::max_element(tokens.begin(), tokens.end()));
    Prepare(c, static_cast<int>(max_tokens_));
    for (const int m : tokens) {
      const LinearDecodeArgs args = ArgsOf(c, m, 0);
      Graph library(stream_, kSweepLaunches, [&](int i) {
        Library(c, m, bf16_->as<void>((i % bf16_copies_) * bf16_bytes_), y_->as<BFloat16>());
      });
      std::printf("cublas %lldx%lld m %d us %.2f\n", static_cast<long long>(c.n),
                  static_cast<long long>(c.k), m, MeasureInterleaved({&library}, 5)[0]);
      if (m <= 16) SweepOne(c, m, cuda::PlanLinearDecode(args, kMultiprocessors));
      SweepOnePlain(c, m, cuda::PlanLinearPlain(args, kMultiprocessors));
      for (const int rows : cuda::kPlainRows) {
        const int64_t blocks = c.n / rows;
        if (blocks < 48 || blocks > 20 * kMultiprocessors) continue;
        for (const int groups : {1, 2}) {
          if (groups == 2 && m <= 64) continue;
          for (const int boxes : {1, 2, 4}) SweepOnePlain(c, m, {rows, groups, boxes});
          if (rows < cuda::kFewestRowsShared || m <= 64 * groups) continue;
          for (const int boxes : {1, 2}) {
            SweepOnePlain(c, m,
                          {.rows = rows, .num_warpgroups = groups, .boxes = boxes, .sharing = 2});
          }
        }
      }
    }
    std::fflush(stdout);
  }

  // The same of plans for more tokens.
  void SweepWide(const Case& c, const std::vector<int>& tokens) {
    max_tokens_ = *std::max_element(tokens.begin(), tokens.end());
    Prepare(c, 1);
    for (const int m : tokens) {
      for (const int width : {32, 64, 128}) {
        if ((width > 2 * m && width > 32) || m > 16 * width) continue;
        for (const int groups : {1, 2, 3}) {
          for (const int cluster : {1, 2, 4}) SweepOneWide(c, m, {width, groups, cluster});
        }
      }
    }
    std::fflush(stdout);
  }

 private:
  void SweepOneWide(const Case& c, int m, const cuda::WidePlan& plan) {
    Graph graph(stream_, 16, [&](int i) {
      cuda::LinearWide(ArgsOf(c, m, i), plan, stream_, LaunchOrder::kOverlap);
    });
    const std::vector<double> us = MeasureInterleaved({&graph}, 3);
    std::printf("wide %s %lldx%lld m %d tokens %d groups %d cluster %d us %.2f\n", Name(c.type),
                static_cast<long long>(c.n), static_cast<long long>(c.k), m, plan.tokens,
                plan.num_warpgroups, plan.cluster, us[0]);
  }

  void SweepOnePlain(const Case& c, int m, const cuda::PlainPlan& plan) {
    try {
      cuda::LinearPlain(ArgsOf(c, m, 0), plan, stream_, LaunchOrder::kAfterPrevious);
      CUDA_CHECK(cudaStreamSynchronize(stream_));
      const int bits = CountDifferent(m * c.n, exact_y_->as<float>());
      Graph graph(stream_, kSweepLaunches, [&](int i) {
        cuda::LinearPlain(ArgsOf(c, m, i), plan, stream_, LaunchOrder::kOverlap);
      });
      std::printf("plain %lldx%lld m %d rows %d groups %d boxes %d sharing %d us %.2f differ %d\n",
                  static_cast<long long>(c.n), static_cast<long long>(c.k), m, plan.rows,
                  plan.num_warpgroups, plan.boxes, plan.sharing, MeasureInterleaved({&graph}, 5)[0],
                  bits);
    } catch (const Error&) {
      // No room for this plan.
    }
  }

  void SweepOne(const Case& c, int m, const cuda::DecodePlan& plan) {
    try {
      Graph pdl(stream_, 24, [&](int i) { Ours(c, m, i, &plan, LaunchOrder::kOverlap); });
      Graph plain(stream_, 24, [&](int i) { Ours(c, m, i, &plan, LaunchOrder::kAfterPrevious); });
      const std::vector<double> us = MeasureInterleaved({&pdl, &plain}, 3);
      std::printf(
          "sweep %lldx%lld m %d units %d groups %d ctas %d kb %d stage %d us %.2f plain %.2f\n",
          static_cast<long long>(c.n), static_cast<long long>(c.k), m, plan.row_units,
          plan.num_groups, plan.num_ctas, plan.shared_budget >> 10, plan.stage_chunks, us[0],
          us[1]);
    } catch (const Error&) {
      // No room for this plan.
      cudaGraph_t graph = nullptr;
      cudaStreamEndCapture(stream_, &graph);
      cudaGetLastError();
    }
  }

  static const char* Name(WeightType type) {
    return type == WeightType::kInt4 ? "w4a16" : type == WeightType::kInt8 ? "w8a16" : "bf16";
  }

  void Prepare(const Case& c, int most_tokens) {
    const bool is_codes = c.type != WeightType::kBFloat16;
    shape_ = {c.n, c.k, c.g, c.type == WeightType::kInt8 ? 8 : 4};
    bf16_bytes_ = 2 * c.n * c.k;
    packed_bytes_ = is_codes ? cuda::PackedBytes(shape_) : bf16_bytes_;
    bf16_copies_ = static_cast<int>(std::max<int64_t>(2, (int64_t{250} << 20) / bf16_bytes_ + 1));
    packed_copies_ =
        is_codes ? static_cast<int>(std::max<int64_t>(2, (int64_t{250} << 20) / packed_bytes_ + 1))
                 : 1;
    bf16_ = std::make_unique<DeviceBuffer>(bf16_bytes_ * bf16_copies_);
    packed_ = std::make_unique<DeviceBuffer>(packed_bytes_ * packed_copies_);
    x_ = std::make_unique<DeviceBuffer>(2 * max_tokens_ * c.k);
    y_ = std::make_unique<DeviceBuffer>(2 * max_tokens_ * c.n);
    library_y_ = std::make_unique<DeviceBuffer>(2 * max_tokens_ * c.n);
    exact_y_ = std::make_unique<DeviceBuffer>(4 * max_tokens_ * c.n);
    FillNormal(bf16_->as<BFloat16>(), c.n * c.k, 0.02f, 1);
    FillNormal(x_->as<BFloat16>(), max_tokens_ * c.k, 1.0f, 2);
    if (is_codes) {
      const int64_t groups = c.n * c.k / c.g;
      DeviceBuffer codes(c.n * c.k * shape_.num_bits / 8);
      DeviceBuffer scale(2 * groups);
      const CodeTensors tensors{codes.as<int32_t>(), scale.as<BFloat16>()};
      QuantizeKernel<<<static_cast<unsigned>((groups + 127) / 128), 128>>>(
          bf16_->as<BFloat16>(), shape_, tensors.codes, tensors.scale);
      cuda::DequantizeWeights(shape_, tensors, bf16_->as<BFloat16>(), nullptr);
      cuda::PackWeights(shape_, tensors, packed_->as<uint8_t>(), nullptr, nullptr);
      CUDA_CHECK(cudaDeviceSynchronize());
    }
    for (int i = 1; i < bf16_copies_; ++i) {
      CUDA_CHECK(cudaMemcpy(bf16_->as<void>(i * bf16_bytes_), bf16_->as<void>(), bf16_bytes_,
                            cudaMemcpyDeviceToDevice));
    }
    for (int i = 1; i < packed_copies_; ++i) {
      CUDA_CHECK(cudaMemcpy(packed_->as<void>(i * packed_bytes_), packed_->as<void>(),
                            packed_bytes_, cudaMemcpyDeviceToDevice));
    }
    // The reference: own chain, and the library at 128 rows.
    cuda::LinearReference({.weight_NK = bf16_->as<BFloat16>(),
                           .x = x_->as<BFloat16>(),
                           .out_features = c.n,
                           .in_features = c.k,
                           .num_tokens = most_tokens,
                           .segment_inputs = cuda::SegmentInputs(c.n, c.k),
                           .y_float = exact_y_->as<float>()},
                          stream_);
    Library(c, static_cast<int>(max_tokens_), bf16_->as<void>(), library_y_->as<BFloat16>());
    CUDA_CHECK(cudaDeviceSynchronize());
  }

  void Library(const Case& c, int m, const void* weight, BFloat16* y) {
    const float one = 1;
    const float zero = 0;
    const cublasStatus_t status =
        cublasGemmEx(cublas_, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(c.n), m,
                     static_cast<int>(c.k), &one, weight, CUDA_R_16BF, static_cast<int>(c.k),
                     x_->as<void>(), CUDA_R_16BF, static_cast<int>(c.k), &zero, y, CUDA_R_16BF,
                     static_cast<int>(c.n), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    if (status != CUBLAS_STATUS_SUCCESS) {
      std::fprintf(stderr, "cublasGemmEx failed: %d\n", status);
      std::exit(1);
    }
  }

  LinearDecodeArgs ArgsOf(const Case& c, int m, int copy) {
    const bool is_codes = c.type != WeightType::kBFloat16;
    return {.type = c.type,
            .shape = shape_,
            .weight = is_codes ? packed_->as<void>((copy % packed_copies_) * packed_bytes_)
                               : bf16_->as<void>((copy % bf16_copies_) * bf16_bytes_),
            .x = x_->as<BFloat16>(),
            .num_tokens = m,
            .y = y_->as<BFloat16>()};
  }

  void Ours(const Case& c, int m, int copy, const cuda::DecodePlan* plan, LaunchOrder order) {
    const LinearDecodeArgs args = ArgsOf(c, m, copy);
    if (plan == nullptr) {
      cuda::LinearDecode(args, stream_, order);
    } else {
      cuda::LinearDecode(args, *plan, stream_, order);
    }
  }

  int CountDifferent(int64_t count, const float* exact) {
    CUDA_CHECK(cudaMemset(counter_.as<int>(), 0, 4));
    CountDifferentKernel<<<static_cast<unsigned>((count + 255) / 256), 256>>>(
        y_->as<BFloat16>(), library_y_->as<BFloat16>(), exact, count, counter_.as<int>());
    int result = 0;
    CUDA_CHECK(cudaMemcpy(&result, counter_.as<int>(), 4, cudaMemcpyDeviceToHost));
    return result;
  }

  void Measure(const Case& c, int m) {
    CUDA_CHECK(cudaMemset(y_->as<void>(), 0xFF, 2 * max_tokens_ * c.n));
    Ours(c, m, 0, nullptr, LaunchOrder::kAfterPrevious);
    CUDA_CHECK(cudaDeviceSynchronize());
    const int bits = CountDifferent(m * c.n, exact_y_->as<float>());
    const int library_bits = CountDifferent(m * c.n, nullptr);
    // The same number of launches for all: a graph's own start is shared by them.
    const int launches = std::max({2 * packed_copies_, 2 * bf16_copies_, m > 256 ? 20 : 60});
    Graph ours(stream_, launches, [&](int i) { Ours(c, m, i, nullptr, LaunchOrder::kOverlap); });
    Graph plain(stream_, launches,
                [&](int i) { Ours(c, m, i, nullptr, LaunchOrder::kAfterPrevious); });
    Graph library(stream_, launches, [&](int i) {
      Library(c, m, bf16_->as<void>((i % bf16_copies_) * bf16_bytes_), y_->as<BFloat16>());
    });
    const std::vector<double> us = MeasureInterleaved({&ours, &library, &plain}, 7);
    const double rate = packed_bytes_ / us[0] / 1e6;
    std::printf(
        "{\"kernel\": \"linear_decode %s\", \"n\": %lld, \"k\": %lld, \"m\": %d, \"g\": %lld, "
        "\"us\": %.2f, \"us_without_pdl\": %.2f, \"bytes\": %lld, \"tb_per_s\": %.3f, "
        "\"of_streaming_read\": %.3f, \"cublas_us\": %.2f, \"ratio_to_cublas\": %.2f, "
        "\"differ_from_chain\": %d, \"differ_from_cublas\": %d}\n",
        Name(c.type), static_cast<long long>(c.n), static_cast<long long>(c.k), m,
        static_cast<long long>(c.g), us[0], us[2], static_cast<long long>(packed_bytes_), rate,
        rate / read_rate_, us[1], us[1] / us[0], bits, library_bits);
    std::fflush(stdout);
  }

  cudaStream_t stream_;
  cublasHandle_t cublas_;
  double read_rate_;
  int64_t max_tokens_ = kFewestRows;
  DeviceBuffer counter_;
  PackedShape shape_;
  int64_t bf16_bytes_ = 0, packed_bytes_ = 0;
  int bf16_copies_ = 0, packed_copies_ = 0;
  std::unique_ptr<DeviceBuffer> bf16_, packed_, x_, y_, library_y_, exact_y_;
};

void RunAll(const std::string& which, LinearBench* bench) {
  const auto wants = [&](const char* name) { return which == "all" || which == name; };
  if (wants("int4")) {
    const std::vector<int> tokens = {1, 8, 16};
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{4096, 4096},
                                                                       {6144, 4096},
                                                                       {4096, 12288},
                                                                       {24576, 4096},
                                                                       {16384, 16384},
                                                                       {28672, 8192}}) {
      bench->Run({WeightType::kInt4, n, k, 128}, tokens);
    }
    bench->Run({WeightType::kInt4, 8192, 8192, 128}, {1, 2, 8, 16, 32, 64, 128, 256});
    bench->Run({WeightType::kInt4, 8192, 8192, 32}, {1, 8, 16});
    bench->Run({WeightType::kInt4, 24576, 4096, 32}, {1, 8, 16});
    bench->Run({WeightType::kInt4, 8192, 8192, 64}, {1, 8});
    bench->Run({WeightType::kInt4, 8192, 8192, 8192}, {1});
  }
  if (wants("prefill")) {
    bench->Run({WeightType::kInt4, 8192, 8192, 128}, {512, 2048, 8192});
    bench->Run({WeightType::kInt4, 24576, 4096, 128}, {32, 64, 128, 512, 2048, 8192});
    bench->Run({WeightType::kInt4, 8192, 8192, 32}, {32, 64, 128, 512});
  }
  if (which == "wide") {
    bench->SweepWide({WeightType::kInt4, 8192, 8192, 128}, {32, 64, 128, 256, 512, 2048});
    bench->SweepWide({WeightType::kInt4, 24576, 4096, 128}, {32, 64, 128, 512});
    bench->SweepWide({WeightType::kInt4, 8192, 8192, 32}, {64, 128, 512});
    bench->SweepWide({WeightType::kInt4, 4096, 4096, 128}, {32, 64, 128, 512});
  }
  if (which == "plain") {
    bench->SweepPlain({WeightType::kBFloat16, 5120, 2048, 0}, {1, 16, 64, 128});
    bench->SweepPlain({WeightType::kBFloat16, 2048, 4096, 0}, {1, 16, 64, 128});
    bench->SweepPlain({WeightType::kBFloat16, 4096, 4096, 0}, {1, 64, 128, 256});
    bench->SweepPlain({WeightType::kBFloat16, 8192, 8192, 0}, {1, 64, 128, 512});
    bench->SweepPlain({WeightType::kBFloat16, 151936, 2048, 0}, {64, 128});
  }
  if (which == "sweep") {
    for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{{4096, 4096},
                                                                       {6144, 4096},
                                                                       {4096, 12288},
                                                                       {8192, 8192},
                                                                       {24576, 4096},
                                                                       {16384, 16384},
                                                                       {28672, 8192}}) {
      bench->Sweep({WeightType::kInt4, n, k, 128}, {1, 8, 16});
    }
    bench->Sweep({WeightType::kInt4, 8192, 8192, 128}, {32, 64});
    for (const auto& [n, k] :
         std::vector<std::pair<int64_t, int64_t>>{{5120, 2048}, {2048, 4096}, {151936, 2048}}) {
      bench->Sweep({WeightType::kBFloat16, n, k, 0}, {1, 8, 16});
    }
  }
  if (wants("bf16")) {
    bench->Run({WeightType::kBFloat16, 5120, 2048, 0}, {1, 8, 16, 32, 64, 96, 128});
    bench->Run({WeightType::kBFloat16, 2048, 4096, 0}, {1, 8, 16, 32, 64, 96, 128});
    bench->Run({WeightType::kBFloat16, 4096, 4096, 0}, {1, 16, 64, 96, 128});
    bench->Run({WeightType::kBFloat16, 151936, 2048, 0}, {1, 8, 16, 64, 128});
  }
  if (wants("int8")) bench->Run({WeightType::kInt8, 8192, 8192, 128}, {1, 8, 16});
}

}  // namespace
}  // namespace quatrain::bench

int main(int argc, char** argv) {
  using namespace quatrain::bench;
  cudaStream_t stream;
  CUDA_CHECK(cudaStreamCreate(&stream));
  cublasHandle_t cublas;
  if (cublasCreate(&cublas) != CUBLAS_STATUS_SUCCESS) return 1;
  cublasSetStream(cublas, stream);
  DeviceBuffer workspace(64 << 20);
  cublasSetWorkspace(cublas, workspace.as<void>(), 64 << 20);
  const double rate = StreamingReadRate(stream);
  std::printf("{\"kernel\": \"streaming read\", \"tb_per_s\": %.3f}\n", rate);
  LinearBench bench(stream, cublas, rate);
  if (argc == 6 || argc == 9 || argc == 11) {
    const auto number = [&](int i) { return std::atoi(argv[i]); };
    const std::string name = argv[1];
    const auto type = name == "bf16"   ? quatrain::WeightType::kBFloat16
                      : name == "int8" ? quatrain::WeightType::kInt8
                                       : quatrain::WeightType::kInt4;
    const Case c{type, number(2), number(3), number(4)};
    if (argc == 9) {
      bench.One(c, number(5), {number(6), number(7), number(8)});
      return 0;
    }
    if (argc == 11) {
      bench.OneDecode(c, number(5), {number(6), number(7), number(8), number(9) << 10, number(10)});
      return 0;
    }
    std::vector<int> tokens;
    std::istringstream list(argv[5]);
    for (std::string m; std::getline(list, m, ',');) tokens.push_back(std::stoi(m));
    bench.Run(c, tokens);
    return 0;
  }
  RunAll(argc > 1 ? argv[1] : "all", &bench);
  std::printf("{\"kernel\": \"streaming read\", \"tb_per_s\": %.3f}\n", StreamingReadRate(stream));
  return 0;
}
