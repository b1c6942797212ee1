#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <tuple>

#include "kernels/cuda/canonical.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_decode.h"
#include "kernels/cuda/linear_library.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define QT_HAS_CUBLASLT 1
#endif

namespace quatrain::cuda {

int64_t LinearLibrarySums(int64_t out_features, int64_t in_features, int64_t num_tokens) {
  return NumSegments(out_features, in_features) == 1 ? 0 : num_tokens * out_features;
}

#ifdef QT_HAS_CUBLASLT

namespace {

constexpr int kRoundThreads = 256;

// y = round(sums + bias), eight elements a thread; n is a multiple of 8.
__global__ void __launch_bounds__(kRoundThreads)
    RoundSumsKernel(const float* sums, const BFloat16* bias, int64_t total, int64_t n,
                    BFloat16* y) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kRoundThreads + threadIdx.x) * 8;
  if (at >= total) return;
  uint32_t pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float2 sum = *reinterpret_cast<const float2*>(sums + at + 2 * i);
    if (bias != nullptr) {
      sum.x = AddRn(sum.x, ToFloat(bias[at % n + 2 * i]));
      sum.y = AddRn(sum.y, ToFloat(bias[at % n + 2 * i + 1]));
    }
    pairs[i] = RoundPair(sum.x, sum.y);
  }
  *reinterpret_cast<uint4*>(y + at) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

constexpr size_t kWorkspaceBytes = size_t{32} << 20;
constexpr int64_t kRowsTogether = 128;  // numbers of rows that share an algorithm
constexpr int kMostAlgorithms = 16;     // that are looked at for one that is pinned

// The functions that are used, as the library has them.
struct Functions {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtMatmulDescInit_internal) describe_product;
  decltype(&cublasLtMatmulDescSetAttribute) set_product;
  decltype(&cublasLtMatrixLayoutInit_internal) describe_matrix;
  decltype(&cublasLtMatmulPreferenceInit_internal) describe_wish;
  decltype(&cublasLtMatmulPreferenceSetAttribute) set_wish;
  decltype(&cublasLtMatmulAlgoGetHeuristic) find_algorithms;
  decltype(&cublasLtMatmulAlgoConfigGetAttribute) get_algorithm;
  decltype(&cublasLtMatmul) multiply;

  // False if one is missing.
  bool Load(void* library) {
    const auto load = [library](const char* name, auto* function) {
      *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
      return *function != nullptr;
    };
    return load("cublasLtCreate", &create) && load("cublasLtDestroy", &destroy) &&
           load("cublasLtMatmulDescInit_internal", &describe_product) &&
           load("cublasLtMatmulDescSetAttribute", &set_product) &&
           load("cublasLtMatrixLayoutInit_internal", &describe_matrix) &&
           load("cublasLtMatmulPreferenceInit_internal", &describe_wish) &&
           load("cublasLtMatmulPreferenceSetAttribute", &set_wish) &&
           load("cublasLtMatmulAlgoGetHeuristic", &find_algorithms) &&
           load("cublasLtMatmulAlgoConfigGetAttribute", &get_algorithm) &&
           load("cublasLtMatmul", &multiply);
  }
};

void Check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(ErrorCode::kResource,
              ErrorParts{.where = "linear_library",
                         .what = fmt::format("{}: status {}", what, static_cast<int>(status))});
}

}  // namespace

// One product as the library sees it.
struct LibraryProduct {
  const BFloat16* weight;
  const BFloat16* x;
  int64_t n, k, m;
  int64_t stride;              // of rows of weight and x
  const BFloat16* bias;        // or null
  void* y;                     // BFloat16, or float with is_float
  bool is_float, accumulates;  // float only
};

struct LinearLibrary::State {
  Functions call;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  // By N, K, stride, the number of rows, rounded up, and what becomes of the sums.
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t, int>, cublasLtMatmulAlgo_t> algorithms;

  ~State() {
    if (handle != nullptr) call.destroy(handle);
    cudaFree(workspace);
  }

  // Row-major [rows, columns], which is the library's [columns, rows].
  cublasLtMatrixLayoutOpaque_t Matrix(cudaDataType_t type, int64_t rows, int64_t columns,
                                      int64_t stride) const {
    cublasLtMatrixLayoutOpaque_t matrix;
    Check(call.describe_matrix(&matrix, sizeof(matrix), type, columns, rows, stride), "matrix");
    return matrix;
  }
  cublasLtMatmulDescOpaque_t Describe(const LibraryProduct& p) const {
    cublasLtMatmulDescOpaque_t product;
    Check(call.describe_product(&product, sizeof(product), CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "product");
    const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
      Check(call.set_product(&product, attribute, &value, sizeof(value)), "product");
    };
    set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (p.bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
      set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
    }
    return product;
  }
  bool IsOneChain(const cublasLtMatmulAlgo_t& algorithm) const {
    int32_t split = 0;
    uint32_t reduction = 0;
    size_t written = 0;
    Check(call.get_algorithm(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof(split),
                             &written),
          "split of K");
    Check(call.get_algorithm(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                             sizeof(reduction), &written),
          "reduction");
    return split <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
  }
  cublasLtMatmulAlgo_t Find(LibraryProduct p) const {
    cublasLtMatmulPreferenceOpaque_t wish;
    Check(call.describe_wish(&wish, sizeof(wish)), "preference");
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    Check(call.set_wish(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof(none)),
          "preference");
    Check(call.set_wish(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                        sizeof(kWorkspaceBytes)),
          "preference");
    auto product = Describe(p);
    auto weight = Matrix(CUDA_R_16BF, p.n, p.k, p.stride);
    auto x = Matrix(CUDA_R_16BF, p.m, p.k, p.stride);
    auto y = Matrix(p.is_float ? CUDA_R_32F : CUDA_R_16BF, p.m, p.n, p.n);
    cublasLtMatmulHeuristicResult_t found[kMostAlgorithms];
    int count = 0;
    Check(call.find_algorithms(handle, &product, &weight, &x, &y, &y, &wish, kMostAlgorithms, found,
                               &count),
          "algorithms");
    for (int i = 0; i < count; ++i) {
      if (found[i].state == CUBLAS_STATUS_SUCCESS && IsOneChain(found[i].algo)) {
        return found[i].algo;
      }
    }
    throw Error(
        ErrorCode::kResource,
        ErrorParts{.where = "linear_library",
                   .what = fmt::format("no algorithm keeps one chain for N {}, K {}", p.n, p.k),
                   .todo = "Use LinearWide (linear_wide.h)."});
  }
  void Run(const LibraryProduct& p, cudaStream_t stream) {
    LibraryProduct rounded = p;
    rounded.m = (p.m + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
    const std::tuple key(p.n, p.k, p.stride, rounded.m,
                         2 * int{p.is_float} + int{p.bias != nullptr});
    auto entry = algorithms.find(key);
    if (entry == algorithms.end()) entry = algorithms.emplace(key, Find(rounded)).first;
    const float one = 1;
    const float beta = p.accumulates ? 1 : 0;
    auto product = Describe(p);
    auto weight = Matrix(CUDA_R_16BF, p.n, p.k, p.stride);
    auto x = Matrix(CUDA_R_16BF, p.m, p.k, p.stride);
    auto y = Matrix(p.is_float ? CUDA_R_32F : CUDA_R_16BF, p.m, p.n, p.n);
    Check(call.multiply(handle, &product, &one, p.weight, &weight, p.x, &x, &beta, p.y, &y, p.y, &y,
                        &entry->second, workspace, kWorkspaceBytes, stream),
          "cublasLtMatmul");
  }
};

LinearLibrary::LinearLibrary(std::unique_ptr<State> state) : state_(std::move(state)) {}
LinearLibrary::~LinearLibrary() = default;

std::unique_ptr<LinearLibrary> LinearLibrary::Open() {
  void* library = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  auto state = std::make_unique<State>();
  if (library == nullptr || !state->call.Load(library)) return nullptr;
  Check(state->call.create(&state->handle), "cublasLtCreate");
  CheckCuda(cudaMalloc(&state->workspace, kWorkspaceBytes), "workspace of linear_library");
  return std::unique_ptr<LinearLibrary>(new LinearLibrary(std::move(state)));
}

void LinearLibrary::Multiply(const LinearLibraryArgs& args, cudaStream_t stream) {
  const int64_t n = args.out_features;
  const int64_t k = args.in_features;
  if (n <= 0 || k <= 0 || n % 8 != 0 || k % 8 != 0) {
    throw Error(ErrorCode::kShape, ErrorParts{.where = "linear_library",
                                              .expected = "N and K multiples of 8",
                                              .found = fmt::format("N {}, K {}", n, k)});
  }
  const int64_t m = args.num_tokens;
  if (m == 0) return;
  LibraryProduct product{.weight = args.weight_NK,
                         .x = args.x,
                         .n = n,
                         .k = k,
                         .m = m,
                         .stride = k,
                         .bias = args.bias,
                         .y = args.y,
                         .is_float = false,
                         .accumulates = false};
  if (NumSegments(n, k) == 1) return state_->Run(product, stream);
  QT_CHECK(args.sums != nullptr, "K {} is cut: sums are needed", k);
  product.bias = nullptr;
  product.y = args.sums;
  product.is_float = true;
  const int64_t each = SegmentInputs(n, k);
  for (int64_t begin = 0; begin < k; begin += each) {
    product.weight = args.weight_NK + begin;
    product.x = args.x + begin;
    product.k = std::min(each, k - begin);
    product.accumulates = begin > 0;
    state_->Run(product, stream);
  }
  const int64_t threads = m * n / 8;
  LaunchKernel({.grid = dim3(static_cast<unsigned>((threads + kRoundThreads - 1) / kRoundThreads)),
                .block = dim3(kRoundThreads),
                .stream = stream},
               RoundSumsKernel, args.sums, args.bias, m * n, n, args.y);
}

#else

struct LinearLibrary::State {};
LinearLibrary::LinearLibrary(std::unique_ptr<State> state) : state_(std::move(state)) {}
LinearLibrary::~LinearLibrary() = default;
std::unique_ptr<LinearLibrary> LinearLibrary::Open() { return nullptr; }
void LinearLibrary::Multiply(const LinearLibraryArgs&, cudaStream_t) {}

#endif

}  // namespace quatrain::cuda
