#if defined(QT_WITH_CUDA)
#include <cmath>

#include "kernels/cuda/attention_latent.h"
#include "kernels/cuda/attention_latent_reference.h"
#include "kernels/cuda/device_test.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

struct Shape {
  int keys, queries, heads;  // the sequence's last queries
  int block_size = 64;       // of the paged cache
};

struct Output {
  std::vector<BFloat16> out;
  std::vector<float> lse;
};

enum class Kernel { kFast, kReference };

constexpr float kScale = 0.1352f;  // 1 / sqrt(192) times YaRN's 1.3689 squared

// One sequence's queries and keys on the device, keys contiguous and as shuffled pages whose unused
// rows are NaN.
class Problem {
 public:
  explicit Problem(const Shape& s)
      : shape_(s),
        q_(RandomRounded<BFloat16>(int64_t{s.queries} * s.heads * kLatentKeyDim, 1)),
        kv_(RandomRounded<BFloat16>(int64_t{s.keys} * kLatentKeyDim, 2, 0.7f)),
        dq_(q_),
        dkv_(kv_),
        table_(Table(s)),
        pages_(Paged()) {}

  // Queries [begin, end) as one sequence.
  Output Together(int begin, int end, bool is_paged, Kernel kernel = Kernel::kFast) {
    return Run({Sequence(begin, end, is_paged)}, begin, end, is_paged, kernel);
  }

  // Each query of [begin, end) on its own, as decode sees it.
  Output Apart(int begin, int end, bool is_paged) {
    std::vector<AttentionSequence> sequences;
    for (int i = begin; i < end; ++i) sequences.push_back(Sequence(i, i + 1, is_paged));
    return Run(sequences, begin, end, is_paged, Kernel::kFast);
  }

  // A row in double: outputs, then the log-sum-exp.
  std::vector<double> InDouble(int query, int head) const {
    const int visible = shape_.keys - shape_.queries + query + 1;
    const auto* q = q_.data() + (int64_t{query} * shape_.heads + head) * kLatentKeyDim;
    std::vector<double> out(kLatentDim + 1);
    double sum = 0.0;
    for (int j = 0; j < visible; ++j) {
      const auto* key = kv_.data() + int64_t{j} * kLatentKeyDim;
      double score = 0.0;
      for (int d = 0; d < kLatentKeyDim; ++d) score += double{ToFloat(q[d])} * ToFloat(key[d]);
      const double p = std::exp(score * kScale);
      sum += p;
      for (int d = 0; d < kLatentDim; ++d) out[d] += p * ToFloat(key[d]);
    }
    for (int d = 0; d < kLatentDim; ++d) out[d] /= sum;
    out[kLatentDim] = std::log(sum);
    return out;
  }

 private:
  AttentionSequence Sequence(int begin, int end, bool is_paged) {
    return {.q_begin = begin,
            .num_queries = end - begin,
            .num_keys = shape_.keys - shape_.queries + end,
            .block_table = is_paged ? table_.data() : nullptr};
  }

  static std::vector<int32_t> Table(const Shape& s) {
    std::vector<int32_t> table;
    for (const int64_t page : Permutation((s.keys + s.block_size - 1) / s.block_size, 4, 0)) {
      table.push_back(static_cast<int32_t>(page));
    }
    return table;
  }

  std::vector<BFloat16> Paged() {
    const std::vector<int32_t> table = table_.Download();
    const int size = shape_.block_size;
    std::vector<BFloat16> pages(table.size() * size * kLatentKeyDim, BFloat16{0x7FC0});
    for (int j = 0; j < shape_.keys; ++j) {
      const int64_t place = int64_t{table[j / size]} * size + j % size;
      std::copy_n(kv_.begin() + int64_t{j} * kLatentKeyDim, kLatentKeyDim,
                  pages.begin() + place * kLatentKeyDim);
    }
    return pages;
  }

  Output Run(const std::vector<AttentionSequence>& sequences, int begin, int end, bool is_paged,
             Kernel kernel) {
    DeviceVector<AttentionSequence> device(sequences);
    const int64_t rows = int64_t{shape_.queries} * shape_.heads;
    DeviceVector<BFloat16> out(rows * kLatentDim);
    DeviceVector<float> lse(rows);
    DeviceLatentAttentionArgs args = {.q = dq_.data(),
                                      .kv = is_paged ? pages_.data() : dkv_.data(),
                                      .out = out.data(),
                                      .lse = lse.data(),
                                      .q_stride = shape_.heads * kLatentKeyDim,
                                      .kv_stride = kLatentKeyDim,
                                      .num_heads = shape_.heads,
                                      .block_size = is_paged ? shape_.block_size : 0,
                                      .scale = kScale,
                                      .sequences = device.data(),
                                      .num_sequences = static_cast<int>(sequences.size())};
    for (const AttentionSequence& s : sequences) {
      args.max_queries = std::max(args.max_queries, static_cast<int>(s.num_queries));
      args.max_keys = std::max(args.max_keys, static_cast<int>(s.num_keys));
    }
    if (kernel == Kernel::kReference) {
      AttentionLatentReference(args, nullptr);
    } else {
      DeviceVector<uint8_t> scratch(AttentionLatentScratchBytes(args));
      CheckCuda(cudaMemset(scratch.data(), 0, AttentionLatentSlots() * 4), "slots");
      // Twice: the slots must come back to zero.
      AttentionLatent(args, scratch.data(), nullptr, LaunchOrder::kAfterPrevious);
      AttentionLatent(args, scratch.data(), nullptr, LaunchOrder::kAfterPrevious);
      CheckCuda(cudaDeviceSynchronize(), "attention over a latent");
    }
    const auto all = out.Download();
    const auto all_lse = lse.Download();
    const int64_t row = shape_.heads * kLatentDim;
    return {{all.begin() + begin * row, all.begin() + end * row},
            {all_lse.begin() + begin * shape_.heads, all_lse.begin() + end * shape_.heads}};
  }

  Shape shape_;
  std::vector<BFloat16> q_, kv_;
  DeviceVector<BFloat16> dq_, dkv_;
  DeviceVector<int32_t> table_;
  DeviceVector<BFloat16> pages_;
};

Output Part(const Output& whole, const Shape& s, int begin, int end) {
  const int64_t row = s.heads * kLatentDim;
  return {{whole.out.begin() + begin * row, whole.out.begin() + end * row},
          {whole.lse.begin() + begin * s.heads, whole.lse.begin() + end * s.heads}};
}

void ExpectSameBits(const Output& a, const Output& b, const char* what) {
  EXPECT_EQ(CountDifferences(a.out, b.out), 0) << what;
  EXPECT_EQ(CountDifferences(a.lse, b.lse), 0) << what;
}

// Prefill, chunks that end in the middle of blocks and segments, decode of many rows (each CTA
// walks) and of few (each CTA takes a segment): the reference's bits.
void ExpectOneArithmetic(const Shape& s) {
  SCOPED_TRACE(testing::Message() << s.keys << " keys, " << s.queries << " queries, " << s.heads
                                  << " heads, pages of " << s.block_size);
  Problem problem(s);
  const Output whole = problem.Together(0, s.queries, false, Kernel::kReference);
  ExpectSameBits(problem.Together(0, s.queries, false), whole, "prefill");
  ExpectSameBits(problem.Together(0, s.queries, true), whole, "paged prefill");
  for (int begin = 0; begin < s.queries; begin += 147) {
    const int end = std::min(s.queries, begin + 147);
    ExpectSameBits(problem.Together(begin, end, true), Part(whole, s, begin, end), "chunk");
  }
  const int first = std::max(0, s.queries - 160);
  ExpectSameBits(problem.Apart(first, s.queries, true), Part(whole, s, first, s.queries), "decode");
  const int last = std::max(0, s.queries - 3);
  ExpectSameBits(problem.Apart(last, s.queries, true), Part(whole, s, last, s.queries), "few");
  ExpectSameBits(problem.Apart(last, s.queries, false), Part(whole, s, last, s.queries), "varlen");
  ExpectSameBits(problem.Together(last, s.queries, true), Part(whole, s, last, s.queries), "three");
}

class LatentShapesGpu : public testing::TestWithParam<Shape> {};

TEST_P(LatentShapesGpu, PrefillChunksAndDecodeGiveTheBitsOfTheReference) {
  QT_NEEDS_DEVICE();
  ExpectOneArithmetic(GetParam());
}

// CTAs that walk several segments, and CTAs that share them.
TEST(AttentionLatentGpu, WalksAndSharedSegmentsGiveTheSameBits) {
  QT_NEEDS_DEVICE();
  const Shape s = {520, 330, 16};
  Problem problem(s);
  const Output whole = problem.Together(0, s.queries, true);
  for (const int begin : {0, 165}) {
    ExpectSameBits(problem.Together(begin, begin + 165, true), Part(whole, s, begin, begin + 165),
                   "half");
  }
}

// Few enough for a tool that follows every access.
std::vector<Shape> ShortShapes() {
  std::vector<Shape> shapes;
  for (const int length : {1, 63, 64, 65}) shapes.push_back({length, length, 16});
  shapes.push_back({600, 5, 16});
  shapes.push_back({130, 3, 40});  // more than one tile of rows
  // Pages by ordinary copies, by a box each, and of several tiles.
  for (const int block_size : {4, 16, 32, 256}) shapes.push_back({150, 2, 16, block_size});
  return shapes;
}

std::vector<Shape> LongShapes() {
  std::vector<Shape> shapes;
  for (const int length : {511, 512, 513}) shapes.push_back({length, length, 16});
  shapes.push_back({4097, 400, 16});
  for (const int heads : {1, 12, 40, 64, 128}) shapes.push_back({1100, 90, heads});
  shapes.push_back({2049, 70, 128});
  for (const int block_size : {4, 8, 16, 32, 256}) shapes.push_back({700, 50, 16, block_size});
  return shapes;
}

std::string NameOf(const testing::TestParamInfo<Shape>& info) {
  const Shape& s = info.param;
  return std::to_string(s.keys) + "_keys_" + std::to_string(s.queries) + "_queries_" +
         std::to_string(s.heads) + "_heads_pages_of_" + std::to_string(s.block_size);
}

INSTANTIATE_TEST_SUITE_P(Short, LatentShapesGpu, testing::ValuesIn(ShortShapes()), NameOf);
INSTANTIATE_TEST_SUITE_P(Long, LatentShapesGpu, testing::ValuesIn(LongShapes()), NameOf);

TEST(AttentionLatentGpu, IsTheSoftmaxOfScaledScores) {
  QT_NEEDS_DEVICE();
  const Shape s = {600, 600, 2};
  Problem problem(s);
  const Output out = problem.Together(0, s.queries, true);
  for (const int query : {0, 1, 63, 64, 511, 512, 599}) {
    for (int head = 0; head < s.heads; ++head) {
      const std::vector<double> expected = problem.InDouble(query, head);
      const int64_t row = query * s.heads + head;
      EXPECT_NEAR(out.lse[row], expected[kLatentDim], 1e-3);
      double error = 0.0, norm = 0.0;
      for (int d = 0; d < kLatentDim; ++d) {
        error += std::pow(ToFloat(out.out[row * kLatentDim + d]) - expected[d], 2);
        norm += std::pow(expected[d], 2);
      }
      EXPECT_LT(std::sqrt(error / norm), 5e-3);
    }
  }
}

TEST(AttentionLatentGpu, RefusesShapesWithoutAKernel) {
  EXPECT_THROW(AttentionLatent({.q_stride = 576, .kv_stride = 512, .num_heads = 1}, nullptr,
                               nullptr, LaunchOrder::kAfterPrevious),
               Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
