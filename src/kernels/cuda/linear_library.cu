#include <dlfcn.h>

#include <map>
#include <tuple>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/linear_library.h"

#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define QT_HAS_CUBLASLT 1
#endif

namespace quatrain::cuda {

#ifdef QT_HAS_CUBLASLT

namespace {

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

struct LinearLibrary::State {
  Functions call;
  cublasLtHandle_t handle = nullptr;
  void* workspace = nullptr;
  // By N, K and the number of rows, rounded up.
  std::map<std::tuple<int64_t, int64_t, int64_t>, cublasLtMatmulAlgo_t> algorithms;

  ~State() {
    if (handle != nullptr) call.destroy(handle);
    cudaFree(workspace);
  }

  // Row-major [rows, columns], which is the library's [columns, rows].
  cublasLtMatrixLayoutOpaque_t Matrix(int64_t rows, int64_t columns) const {
    cublasLtMatrixLayoutOpaque_t matrix;
    Check(call.describe_matrix(&matrix, sizeof(matrix), CUDA_R_16BF, columns, rows, columns),
          "matrix");
    return matrix;
  }
  cublasLtMatmulDescOpaque_t Product() const {
    cublasLtMatmulDescOpaque_t product;
    Check(call.describe_product(&product, sizeof(product), CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "product");
    const cublasOperation_t transposed = CUBLAS_OP_T;
    Check(call.set_product(&product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed)),
          "product");
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
  cublasLtMatmulAlgo_t Find(int64_t n, int64_t k, int64_t rows) const {
    cublasLtMatmulPreferenceOpaque_t wish;
    Check(call.describe_wish(&wish, sizeof(wish)), "preference");
    const uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    Check(call.set_wish(&wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof(none)),
          "preference");
    Check(call.set_wish(&wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                        sizeof(kWorkspaceBytes)),
          "preference");
    auto product = Product();
    auto weight = Matrix(n, k);
    auto x = Matrix(rows, k);
    auto y = Matrix(rows, n);
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
    throw Error(ErrorCode::kResource,
                ErrorParts{.where = "linear_library",
                           .what = fmt::format("no algorithm keeps one chain for N {}, K {}", n, k),
                           .todo = "Use LinearWide (linear_wide.h)."});
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
  const int64_t rows = (m + kRowsTogether - 1) / kRowsTogether * kRowsTogether;
  auto entry = state_->algorithms.find({n, k, rows});
  if (entry == state_->algorithms.end()) {
    entry = state_->algorithms.emplace(std::tuple(n, k, rows), state_->Find(n, k, rows)).first;
  }
  const float one = 1;
  const float zero = 0;
  auto product = state_->Product();
  auto weight = state_->Matrix(n, k);
  auto x = state_->Matrix(m, k);
  auto y = state_->Matrix(m, n);
  Check(state_->call.multiply(state_->handle, &product, &one, args.weight_NK, &weight, args.x, &x,
                              &zero, args.y, &y, args.y, &y, &entry->second, state_->workspace,
                              kWorkspaceBytes, stream),
        "cublasLtMatmul");
}

#else

struct LinearLibrary::State {};
LinearLibrary::LinearLibrary(std::unique_ptr<State> state) : state_(std::move(state)) {}
LinearLibrary::~LinearLibrary() = default;
std::unique_ptr<LinearLibrary> LinearLibrary::Open() { return nullptr; }
void LinearLibrary::Multiply(const LinearLibraryArgs&, cudaStream_t) {}

#endif

}  // namespace quatrain::cuda
