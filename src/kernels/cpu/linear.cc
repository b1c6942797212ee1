#include "kernels/linear.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/error.h"
#include "kernels/cpu/chunks.h"
#include "kernels/cpu/linear_product.h"
#include "kernels/cpu/simd_targets.h"

// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#if HWY_NATIVE_FMA
#include "kernels/cpu/linear_chunk-inl.h"
#else

HWY_BEFORE_NAMESPACE();
namespace quatrain {
namespace HWY_NAMESPACE {

// A chain without a fused multiply-add would have other bits.
[[noreturn]] inline void ThrowNoFma() {
  throw Error(ErrorCode::kResource, {.where = "CPU",
                                     .what = "the linear kernels cannot run on this processor",
                                     .expected = "AVX2 and FMA, or AVX-512, or NEON",
                                     .found = "none of them",
                                     .todo = "Use a processor of 2013 or later."});
}

void RunChunk(const LinearProduct&, const LinearChunk&, LinearScratch&) { ThrowNoFma(); }
void DequantizeRowRange(const WeightView&, int64_t, int64_t, float*) { ThrowNoFma(); }

}  // namespace HWY_NAMESPACE
}  // namespace quatrain
HWY_AFTER_NAMESPACE();

#endif  // HWY_NATIVE_FMA

#if HWY_ONCE
namespace quatrain {
namespace {

HWY_EXPORT(RunChunk);
HWY_EXPORT(DequantizeRowRange);

// Rough cycles, to balance chunks: one fma of 32 lanes and one unpacked weight.
constexpr int64_t kLanesPerCycle = 32;
constexpr int64_t kUnpackedPerCycle = 2;
// About 4 us: what handing a chunk to a thread must be small against.
constexpr int64_t kLeastChunkCost = 16000;
// Few enough that A is not packed again for every panel, enough for threads to end together. Where
// a product is cut changes no bit of it, so the number of threads has a say.
constexpr int64_t kChunksPerThread = 6;

bool IsCodes(WeightType type) { return type == WeightType::kInt4 || type == WeightType::kInt8; }

void CheckWeight(const WeightView& weight) {
  QT_CHECK(weight.out_features > 0 && weight.in_features > 0 && weight.data != nullptr,
           "weight [{}, {}]", weight.out_features, weight.in_features);
  if (!IsCodes(weight.type)) return;
  QT_CHECK(weight.scale != nullptr && weight.group_size > 0 &&
               weight.in_features % weight.group_size == 0,
           "group size {} of {} inputs", weight.group_size, weight.in_features);
}

// A dense matrix [rows, cols] as the products' operand B.
template <class T>
WeightView DenseView(const T* data, int64_t rows, int64_t cols) {
  constexpr bool kIsFloat = std::is_same_v<T, float>;
  return {.type = kIsFloat ? WeightType::kFloat32 : WeightType::kBFloat16,
          .out_features = rows,
          .in_features = cols,
          .data = data};
}

int64_t PanelCost(const LinearProduct& product, int64_t rows) {
  return kPanelCols * product.depth * (kLanesPerCycle / kUnpackedPerCycle + rows) / kLanesPerCycle;
}

struct ChunkShape {
  int64_t rows;
  int64_t panels;
  int64_t cost;
};

ChunkShape ShapeOf(const LinearProduct& product, int64_t num_blocks, int64_t chunk_cost) {
  const int64_t rows = RoundUp(CeilDiv(product.rows, num_blocks), kMostTileRows);
  const int64_t panel_cost = PanelCost(product, std::min(rows, product.rows));
  const int64_t most_cols = NeedsResults(product) ? kResults / rows : kMostCols;
  const int64_t most_panels = std::min(kMostCols, most_cols) / kPanelCols;
  const int64_t panels =
      std::clamp<int64_t>((chunk_cost + panel_cost / 2) / panel_cost, 1, most_panels);
  return {rows, panels, panels * panel_cost};
}

// Cuts a product into blocks of rows and groups of panels. A is packed once for a group and B once
// for a block, so a chunk is rather square than tall if it can be.
void AddChunks(const LinearProduct& product, int64_t index, int64_t chunk_cost,
               std::vector<LinearChunk>& chunks) {
  const int64_t num_blocks = CeilDiv(product.rows, kRowBlock);
  ChunkShape shape = ShapeOf(product, num_blocks, chunk_cost);
  if (shape.rows >= 4 * shape.panels * kPanelCols) {
    const ChunkShape lower = ShapeOf(product, 2 * num_blocks, chunk_cost);
    if (lower.panels >= 2 * shape.panels) shape = lower;
  }
  const int64_t cols = shape.panels * kPanelCols;
  for (int64_t col = 0; col < product.cols; col += cols) {
    for (int64_t row = 0; row < product.rows; row += shape.rows) {
      chunks.push_back({.product = index,
                        .row_begin = row,
                        .row_end = std::min(product.rows, row + shape.rows),
                        .col_begin = col,
                        .col_end = std::min(product.cols, col + cols),
                        .cost = shape.cost});
    }
  }
}

// The largest first, so that no thread starts a long one when the others are done.
std::vector<LinearChunk> CutIntoChunks(const std::vector<LinearProduct>& products,
                                       int num_threads) {
  int64_t total_cost = 0;
  for (const LinearProduct& product : products) {
    total_cost += CeilDiv(product.cols, kPanelCols) * PanelCost(product, product.rows);
  }
  const int64_t chunk_cost =
      std::max(kLeastChunkCost, total_cost / (kChunksPerThread * num_threads));
  std::vector<LinearChunk> chunks;
  for (size_t i = 0; i < products.size(); ++i) {
    AddChunks(products[i], static_cast<int64_t>(i), chunk_cost, chunks);
  }
  if (products.size() > 1) {
    std::stable_sort(chunks.begin(), chunks.end(),
                     [](const LinearChunk& a, const LinearChunk& b) { return a.cost > b.cost; });
  }
  return chunks;
}

LinearScratch& ThreadScratch() {
  thread_local const std::unique_ptr<LinearScratch> scratch(new LinearScratch);
  return *scratch;
}

void RunProducts(ThreadPool& pool, const std::vector<LinearProduct>& products) {
  const std::vector<LinearChunk> chunks = CutIntoChunks(products, pool.num_threads());
  pool.ParallelFor(static_cast<int64_t>(chunks.size()), [&](int64_t index, int) {
    const LinearChunk& chunk = chunks[static_cast<size_t>(index)];
    HWY_DYNAMIC_DISPATCH(RunChunk)
    (products[static_cast<size_t>(chunk.product)], chunk, ThreadScratch());
  });
}

template <class T>
LinearProduct ForwardProduct(const LinearTask<T>& task) {
  const WeightView& weight = task.weight;
  LinearProduct product{.rows = task.rows,
                        .cols = weight.out_features,
                        .depth = weight.in_features,
                        .a = task.x,
                        .a_is_bfloat16 = std::is_same_v<T, BFloat16>,
                        .a_row_stride = weight.in_features,
                        .a_depth_stride = 1,
                        .b = weight,
                        .b_is_transposed = true,
                        .c_float = task.y_float,
                        .bias = task.bias};
  if constexpr (std::is_same_v<T, BFloat16>) {
    product.c_bfloat16 = task.y;
  } else if (task.y != nullptr) {
    product.c_float = task.y;
  }
  return product;
}

}  // namespace

template <class T>
void LinearForward(ThreadPool& pool, std::span<const LinearTask<T>> tasks) {
  std::vector<LinearProduct> products;
  products.reserve(tasks.size());
  for (const LinearTask<T>& task : tasks) {
    if (task.rows == 0) continue;
    CheckWeight(task.weight);
    QT_CHECK(task.rows > 0 && task.x != nullptr);
    QT_CHECK((task.y == nullptr) != (task.y_float == nullptr), "exactly one output");
    products.push_back(ForwardProduct(task));
  }
  RunProducts(pool, products);
}

void LinearInputGrad(ThreadPool& pool, std::span<const LinearInputGradTask> tasks) {
  std::vector<LinearProduct> products;
  products.reserve(tasks.size());
  for (const LinearInputGradTask& task : tasks) {
    if (task.rows == 0) continue;
    CheckWeight(task.weight);
    QT_CHECK(task.rows > 0 && task.dy != nullptr && task.dx != nullptr);
    products.push_back({.rows = task.rows,
                        .cols = task.weight.in_features,
                        .depth = task.weight.out_features,
                        .a = task.dy,
                        .a_row_stride = task.weight.out_features,
                        .a_depth_stride = 1,
                        .b = task.weight,
                        .c_float = task.dx,
                        .accumulate = task.accumulate});
  }
  RunProducts(pool, products);
}

template <class T>
void LinearWeightGrad(ThreadPool& pool, std::span<const LinearWeightGradTask<T>> tasks) {
  std::vector<LinearProduct> products;
  products.reserve(tasks.size());
  for (const LinearWeightGradTask<T>& task : tasks) {
    if (task.rows == 0) continue;
    QT_CHECK(task.rows > 0 && task.dy != nullptr && task.x != nullptr && task.dweight != nullptr);
    QT_CHECK(task.out_features > 0 && task.in_features > 0);
    products.push_back({.rows = task.out_features,
                        .cols = task.in_features,
                        .depth = task.rows,
                        .a = task.dy,
                        .a_row_stride = 1,
                        .a_depth_stride = task.out_features,
                        .b = DenseView(task.x, task.rows, task.in_features),
                        .c_float = task.dweight,
                        .accumulate = true,
                        .row_sums = task.dbias});
  }
  RunProducts(pool, products);
}

void DequantizeRows(const WeightView& weight, int64_t row_begin, int64_t row_end, float* out) {
  CheckWeight(weight);
  QT_CHECK(0 <= row_begin && row_begin <= row_end && row_end <= weight.out_features,
           "rows [{}, {}) of {}", row_begin, row_end, weight.out_features);
  HWY_DYNAMIC_DISPATCH(DequantizeRowRange)(weight, row_begin, row_end, out);
}

template void LinearForward<float>(ThreadPool&, std::span<const LinearTask<float>>);
template void LinearForward<BFloat16>(ThreadPool&, std::span<const LinearTask<BFloat16>>);
template void LinearWeightGrad<float>(ThreadPool&, std::span<const LinearWeightGradTask<float>>);
template void LinearWeightGrad<BFloat16>(ThreadPool&,
                                         std::span<const LinearWeightGradTask<BFloat16>>);

}  // namespace quatrain
#endif  // HWY_ONCE
