#if defined(QT_WITH_CUDA)
#include <algorithm>
#include <numeric>
#include <tuple>

#include "kernels/attention.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_test.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

struct Shape {
  int length, heads, kv_heads, head_dim;
  int block_size = 16;  // of the paged cache
};

struct Output {
  std::vector<BFloat16> out;
  std::vector<float> lse;
};

// One sequence's q, k, v on the device, contiguous and as shuffled pages whose unused rows are NaN.
class Problem {
 public:
  explicit Problem(const Shape& s)
      : shape_(s),
        q_(RandomRounded<BFloat16>(int64_t{s.length} * s.heads * s.head_dim, 1, 2.0f)),
        k_(RandomRounded<BFloat16>(int64_t{s.length} * s.kv_heads * s.head_dim, 2)),
        v_(RandomRounded<BFloat16>(int64_t{s.length} * s.kv_heads * s.head_dim, 3)),
        dq_(q_),
        dk_(k_),
        dv_(v_),
        pages_(Table(s)),
        k_pages_(Paged(k_)),
        v_pages_(Paged(v_)) {}

  // Queries [begin, end) of the sequence in one call of prefill.
  Output Prefill(int begin, int end, bool is_paged) {
    return Run(std::vector<AttentionSequence>{Sequence(begin, end, is_paged)}, begin, is_paged,
               false);
  }

  // Each query of [begin, end) on its own, as decode sees it.
  Output Decode(int begin, int end, bool is_paged) {
    std::vector<AttentionSequence> sequences;
    for (int i = begin; i < end; ++i) sequences.push_back(Sequence(i, i + 1, is_paged));
    return Run(sequences, begin, is_paged, true);
  }

  // Some queries, each on its own, in one call of decode; the rows of others are not written.
  Output DecodeEach(const std::vector<int>& queries) {
    std::vector<AttentionSequence> sequences;
    for (const int i : queries) sequences.push_back(Sequence(i, i + 1, true));
    return Run(sequences, 0, true, true);
  }

  // The same beside requests without queries, without keys, without either.
  Output DecodeBesideEmpty(const std::vector<int>& queries) {
    std::vector<AttentionSequence> sequences = {{}};
    for (const int i : queries) sequences.push_back(Sequence(i, i + 1, true));
    sequences.insert(sequences.begin() + 2, {.num_keys = 40, .block_table = pages_.data()});
    sequences.push_back({});
    return Run(sequences, 0, true, true);
  }

  // Some queries, a call each, all with one scratch, in a graph in which calls start early. The
  // outputs after each of some replays.
  std::vector<Output> DecodeInTurn(const std::vector<int>& queries, int replays) {
    DeviceVector<BFloat16> out(q_.size());
    DeviceVector<float> lse(int64_t{shape_.length} * shape_.heads);
    std::vector<AttentionSequence> sequences;
    for (const int i : queries) sequences.push_back(Sequence(i, i + 1, true));
    DeviceVector<AttentionSequence> device(sequences);
    std::vector<DeviceAttentionArgs> calls;
    int64_t bytes = 0, words = 0;
    for (size_t i = 0; i < queries.size(); ++i) {
      DeviceAttentionArgs args = Args(true);
      args.out = out.data();
      args.lse = lse.data();
      args.sequences = device.data() + i;
      args.num_sequences = 1;
      args.max_queries = 1;
      args.max_keys = queries[i] + 1;
      bytes = std::max(bytes, AttentionDecodeScratchBytes(args));
      words = std::max(words, AttentionDecodeTickets(args));
      calls.push_back(args);
    }
    DeviceVector<uint8_t> scratch(bytes);
    CheckCuda(cudaMemset(scratch.data(), 0, words * 4), "tickets");
    DeviceGraph graph([&](cudaStream_t stream) {
      for (const DeviceAttentionArgs& args : calls) {
        AttentionDecode(args, scratch.data(), stream, LaunchOrder::kOverlap);
      }
    });
    std::vector<Output> outputs;
    for (int replay = 0; replay < replays; ++replay) {
      CheckCuda(cudaMemset(out.data(), 0xA5, 2 * out.size()), "poison");
      CheckCuda(cudaDeviceSynchronize(), "poison");
      graph.Replay();
      outputs.push_back({out.Download(), lse.Download()});
    }
    ExpectZero(scratch, words);
    return outputs;
  }

  // Several queries of the sequence in one call of decode.
  Output DecodeTogether(int begin, int end) {
    return Run(std::vector<AttentionSequence>{Sequence(begin, end, true)}, begin, true, true);
  }

  double LogSumExpInDouble(int query, int head) const {
    const int64_t kv_head = head / (shape_.heads / shape_.kv_heads);
    double sum = 0.0;
    for (int64_t j = 0; j <= query; ++j) {
      double score = 0.0;
      for (int64_t d = 0; d < shape_.head_dim; ++d) {
        score += double{ToFloat(q_[(int64_t{query} * shape_.heads + head) * shape_.head_dim + d])} *
                 ToFloat(k_[(j * shape_.kv_heads + kv_head) * shape_.head_dim + d]);
      }
      sum += std::exp(score * Scale());
    }
    return std::log(sum);
  }

  Output OnCpu() {
    ThreadPool pool(16);
    const AttentionSequence sequence = {.num_queries = shape_.length, .num_keys = shape_.length};
    std::vector<BFloat16> out(q_.size());
    AttentionForward<BFloat16>(pool, {.q = q_.data(),
                                      .k = k_.data(),
                                      .v = v_.data(),
                                      .out = out.data(),
                                      .num_heads = shape_.heads,
                                      .num_kv_heads = shape_.kv_heads,
                                      .head_dim = shape_.head_dim,
                                      .scale = Scale(),
                                      .sequences = {&sequence, 1}});
    return {out, {}};
  }

 private:
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  AttentionSequence Sequence(int begin, int end, bool is_paged) {
    return {.q_begin = begin,
            .num_queries = end - begin,
            .num_keys = end,
            .block_table = is_paged ? pages_.data() : nullptr};
  }

  static std::vector<int32_t> Table(const Shape& s) {
    std::vector<int32_t> table;
    for (const int64_t page : Permutation((s.length + s.block_size - 1) / s.block_size, 4, 0)) {
      table.push_back(static_cast<int32_t>(page));
    }
    return table;
  }

  std::vector<BFloat16> Paged(const std::vector<BFloat16>& rows) {
    const std::vector<int32_t> table = pages_.Download();
    const int64_t row = shape_.kv_heads * shape_.head_dim;
    const int size = shape_.block_size;
    std::vector<BFloat16> pages(table.size() * size * row, BFloat16{0x7FC0});
    for (int64_t j = 0; j < shape_.length; ++j) {
      const int64_t place = int64_t{table[j / size]} * size + j % size;
      std::copy_n(rows.begin() + j * row, row, pages.begin() + place * row);
    }
    return pages;
  }

  DeviceAttentionArgs Args(bool is_paged) {
    return {.q = dq_.data(),
            .k = is_paged ? k_pages_.data() : dk_.data(),
            .v = is_paged ? v_pages_.data() : dv_.data(),
            .q_stride = shape_.heads * shape_.head_dim,
            .kv_stride = shape_.kv_heads * shape_.head_dim,
            .num_heads = shape_.heads,
            .num_kv_heads = shape_.kv_heads,
            .head_dim = shape_.head_dim,
            .block_size = is_paged ? shape_.block_size : 0,
            .scale = Scale()};
  }

  static void ExpectZero(const DeviceVector<uint8_t>& scratch, int64_t words) {
    const std::vector<uint8_t> bytes = scratch.Download();
    EXPECT_EQ(std::count(bytes.begin(), bytes.begin() + words * 4, 0), words * 4) << "left behind";
  }

  Output Run(const std::vector<AttentionSequence>& sequences, int begin, bool is_paged,
             bool is_decode) {
    DeviceVector<AttentionSequence> device(sequences);
    DeviceVector<BFloat16> out(q_.size());
    DeviceVector<float> lse(int64_t{shape_.length} * shape_.heads);
    DeviceAttentionArgs args = Args(is_paged);
    args.out = out.data();
    args.lse = lse.data();
    args.sequences = device.data();
    args.num_sequences = static_cast<int>(sequences.size());
    int end = begin;
    for (const AttentionSequence& s : sequences) {
      args.max_queries = std::max(args.max_queries, static_cast<int>(s.num_queries));
      args.max_keys = std::max(args.max_keys, static_cast<int>(s.num_keys));
      end = std::max(end, static_cast<int>(s.q_begin + s.num_queries));
    }
    if (is_decode) {
      DeviceVector<uint8_t> scratch(AttentionDecodeScratchBytes(args));
      CheckCuda(cudaMemset(scratch.data(), 0, AttentionDecodeTickets(args) * 4), "tickets");
      // Twice, each time to the same place: what must be zero is zero again.
      AttentionDecode(args, scratch.data(), nullptr, LaunchOrder::kAfterPrevious);
      const auto once = out.Download();
      CheckCuda(cudaMemset(out.data(), 0xA5, 2 * out.size()), "poison");
      AttentionDecode(args, scratch.data(), nullptr, LaunchOrder::kAfterPrevious);
      EXPECT_EQ(CountDifferences(out.Download(), once), 0) << "second launch";
      ExpectZero(scratch, AttentionDecodeTickets(args));
    } else {
      AttentionPrefill(args, nullptr, LaunchOrder::kAfterPrevious);
    }
    const auto all = out.Download();
    const auto all_lse = lse.Download();
    const int64_t row = shape_.heads * shape_.head_dim;
    return {{all.begin() + begin * row, all.begin() + end * row},
            {all_lse.begin() + begin * shape_.heads, all_lse.begin() + end * shape_.heads}};
  }

  Shape shape_;
  std::vector<BFloat16> q_, k_, v_;
  DeviceVector<BFloat16> dq_, dk_, dv_;
  DeviceVector<int32_t> pages_;
  DeviceVector<BFloat16> k_pages_, v_pages_;
};

Output Part(const Output& whole, const Shape& s, int begin, int end) {
  const int64_t row = s.heads * s.head_dim;
  return {{whole.out.begin() + begin * row, whole.out.begin() + end * row},
          {whole.lse.begin() + begin * s.heads, whole.lse.begin() + end * s.heads}};
}

void ExpectSameBits(const Output& a, const Output& b, const char* what) {
  EXPECT_EQ(CountDifferences(a.out, b.out), 0) << what;
  EXPECT_EQ(CountDifferences(a.lse, b.lse), 0) << what;
}

std::vector<float> Floats(const std::vector<BFloat16>& values) {
  std::vector<float> floats;
  for (const BFloat16 value : values) floats.push_back(ToFloat(value));
  return floats;
}

void ExpectOneArithmetic(const Shape& s) {
  SCOPED_TRACE(testing::Message() << "length " << s.length << ", heads " << s.heads << "/"
                                  << s.kv_heads << ", head_dim " << s.head_dim);
  Problem problem(s);
  const Output whole = problem.Prefill(0, s.length, false);
  if (s.length <= 600) {
    EXPECT_LT(RelativeError(Floats(whole.out), Floats(problem.OnCpu().out)), 4e-3);
  }
  ExpectSameBits(problem.Prefill(0, s.length, true), whole, "paged prefill");
  // Chunks that end in the middle of blocks and segments.
  for (int begin = 0; begin < s.length; begin += 147) {
    const int end = std::min(s.length, begin + 147);
    ExpectSameBits(problem.Prefill(begin, end, true), Part(whole, s, begin, end), "chunk");
  }
  const int last = std::max(0, s.length - 5);
  ExpectSameBits(problem.Decode(last, s.length, false), Part(whole, s, last, s.length), "varlen");
  ExpectSameBits(problem.Decode(last, s.length, true), Part(whole, s, last, s.length), "few");
  ExpectSameBits(problem.DecodeTogether(last, s.length), Part(whole, s, last, s.length), "five");
}

class AttentionGpuShapes : public testing::TestWithParam<Shape> {};

TEST_P(AttentionGpuShapes, PrefillChunksAndDecodeGiveTheSameBits) {
  QT_NEEDS_DEVICE();
  ExpectOneArithmetic(GetParam());
}

// So many requests at once that segments have a CTA each.
class ManyRequestsGpu : public testing::TestWithParam<Shape> {};

TEST_P(ManyRequestsGpu, DecodeGivesTheSameBits) {
  QT_NEEDS_DEVICE();
  const Shape& s = GetParam();
  Problem problem(s);
  const Output whole = problem.Prefill(0, s.length, false);
  const int first = std::max(0, s.length - 520);
  ExpectSameBits(problem.Decode(first, s.length, true), Part(whole, s, first, s.length), "decode");
}

// Few enough for a tool that follows every access.
std::vector<Shape> ShortShapes() {
  std::vector<Shape> shapes;
  for (const int length : {1, 63, 64, 65}) {
    for (const auto& [heads, kv_heads] : std::vector<std::pair<int, int>>{{2, 2}, {8, 2}, {8, 1}}) {
      shapes.push_back({length, heads, kv_heads, 128});
    }
  }
  for (const int head_dim : {64, 256}) shapes.push_back({65, 4, 2, head_dim});
  for (const int block_size : {4, 8, 64}) shapes.push_back({70, 2, 1, 128, block_size});
  return shapes;
}

// Rings of each length: how many CTAs there are, and rows, decides.
std::vector<Shape> ShortShapesOfMany() {
  return {{135, 2, 2, 128}, {135, 8, 8, 128}, {135, 12, 1, 128}, {135, 4, 2, 64},
          {135, 16, 4, 64}, {135, 12, 1, 64}, {70, 4, 2, 256},   {70, 2, 2, 128, 4}};
}

std::vector<Shape> LongShapes() {
  std::vector<Shape> shapes;
  for (const int length : {511, 512, 513, 4097}) {
    for (const auto& [heads, kv_heads] : std::vector<std::pair<int, int>>{{2, 2}, {8, 2}, {8, 1}}) {
      shapes.push_back({length, heads, kv_heads, 128});
    }
  }
  for (const int head_dim : {64, 256}) {
    for (const int length : {513, 1100}) shapes.push_back({length, 4, 2, head_dim});
  }
  // Pages by ordinary loads, by a box each, and of several tiles.
  for (const int block_size : {4, 8, 32, 64, 256}) {
    shapes.push_back({700, 4, 2, 128, block_size});
    shapes.push_back({130, 2, 2, 64, block_size});
  }
  shapes.push_back({130, 24, 1, 64});  // more rows than one tile of decode
  return shapes;
}

std::string NameOf(const testing::TestParamInfo<Shape>& info) {
  const Shape& s = info.param;
  return std::to_string(s.length) + "_keys_" + std::to_string(s.heads) + "_of_" +
         std::to_string(s.kv_heads) + "_heads_of_" + std::to_string(s.head_dim) + "_pages_of_" +
         std::to_string(s.block_size);
}

INSTANTIATE_TEST_SUITE_P(Short, AttentionGpuShapes, testing::ValuesIn(ShortShapes()), NameOf);
INSTANTIATE_TEST_SUITE_P(Long, AttentionGpuShapes, testing::ValuesIn(LongShapes()), NameOf);
INSTANTIATE_TEST_SUITE_P(Short, ManyRequestsGpu, testing::ValuesIn(ShortShapesOfMany()), NameOf);
INSTANTIATE_TEST_SUITE_P(Long, ManyRequestsGpu, testing::ValuesIn(LongShapes()), NameOf);
// Segments of the same row tile by CTAs that share a multiprocessor, all 16 rows.
INSTANTIATE_TEST_SUITE_P(LongRows, ManyRequestsGpu,
                         testing::Values(Shape{600, 12, 1, 128}, Shape{600, 12, 1, 64},
                                         Shape{600, 12, 1, 256}, Shape{530, 2, 1, 64}),
                         NameOf);

// The last queries of a sequence of many segments, by every kernel that shares them among CTAs.
// What a chunk of prefill gives is what the whole gives (above).
class LongDecodeGpu : public testing::TestWithParam<Shape> {};

TEST_P(LongDecodeGpu, GivesTheBitsOfPrefill) {
  QT_NEEDS_DEVICE();
  const Shape& s = GetParam();
  Problem problem(s);
  const int first = s.length - 3;
  const Output expected = problem.Prefill(first, s.length, true);
  ExpectSameBits(problem.Decode(first, s.length, true), expected, "three requests");
  ExpectSameBits(problem.DecodeTogether(first, s.length), expected, "three queries");
  const Output last = problem.Prefill(s.length - 1, s.length, true);
  ExpectSameBits(problem.Decode(s.length - 1, s.length, true), last, "one request");
  ExpectSameBits(problem.Decode(s.length - 1, s.length, false), last, "varlen");
}

INSTANTIATE_TEST_SUITE_P(Shapes, LongDecodeGpu,
                         testing::Values(Shape{4200, 4, 2, 128},  // more than eight segments
                                         Shape{2049, 8, 2, 128}, Shape{2600, 2, 2, 128},
                                         Shape{3100, 32, 8, 128}, Shape{4096, 32, 8, 128},
                                         Shape{4097, 16, 1, 128}, Shape{2570, 8, 1, 128, 64},
                                         Shape{2111, 8, 4, 128, 256}, Shape{2111, 8, 4, 128, 4},
                                         Shape{2600, 2, 1, 64}, Shape{1100, 4, 1, 256}),
                         NameOf);

// As clusters decode them: fewer segments than the longest has, a tile that is not whole, one key.
using Heads = std::pair<int, int>;
class UnlikeLengthsGpu : public testing::TestWithParam<std::tuple<Heads, std::vector<int>>> {};

TEST_P(UnlikeLengthsGpu, DecodeGivesTheSameBits) {
  QT_NEEDS_DEVICE();
  const auto& [heads, queries] = GetParam();
  const Shape shape = {queries.back() + 1, heads.first, heads.second, 128};
  Problem problem(shape);
  const Output some = problem.DecodeEach(queries);
  for (const int i : queries) {
    SCOPED_TRACE(testing::Message() << "query " << i);
    ExpectSameBits(Part(some, shape, i, i + 1), problem.Prefill(i, i + 1, true), "decode");
  }
}

std::vector<std::vector<int>> UnlikeQueries() {
  std::vector<int> many(24);
  for (int i = 0; i < 24; ++i) many[i] = i * 22;
  return {{0, 1, 62, 64, 300, 511},
          {0, 63, 511, 512, 700, 1023},
          {0, 63, 200, 400, 511, 512, 600, 900, 1023},
          {0, 100, 511, 512, 1023, 1024, 1535},
          {5, 512, 1100, 1536, 1800, 2047},
          {30, 2570},  // one segment and six
          {0, 50, 63, 120, 200, 250, 300, 400, 450, 511},
          many};
}

INSTANTIATE_TEST_SUITE_P(Lengths, UnlikeLengthsGpu,
                         testing::Combine(testing::Values(Heads{2, 2}, Heads{6, 2}, Heads{16, 2},
                                                          Heads{32, 2}),
                                          testing::ValuesIn(UnlikeQueries())));

// A growing and a shrinking request on one scratch: messages, segments, a cluster. Every call has
// another query.
TEST(AttentionGpu, OneScratchServesCallsOfAllKernels) {
  QT_NEEDS_DEVICE();
  const Shape shape = {5000, 16, 8, 128};
  Problem problem(shape);
  const std::vector<int> queries = {2999, 4999, 3000, 599, 2990, 2980, 4990, 2570, 40, 2960};
  const std::vector<Output> replays = problem.DecodeInTurn(queries, 3);
  for (const int i : queries) {
    SCOPED_TRACE(testing::Message() << "query " << i);
    const Output expected = problem.Prefill(i, i + 1, true);
    for (const Output& all : replays) {
      ExpectSameBits(Part(all, shape, i, i + 1), expected, "decode");
    }
  }
}

// Requests in a cluster, by messages, segments.
TEST(AttentionGpu, EmptyRequestsBesideOthersChangeNothing) {
  QT_NEEDS_DEVICE();
  std::vector<int> many(70);
  std::iota(many.begin(), many.end(), 480);
  for (const std::vector<int>& queries :
       std::vector<std::vector<int>>{{3, 500}, {2700, 2999}, many}) {
    const Shape shape = {queries.back() + 1, 2, 2, 128};
    Problem problem(shape);
    const Output some = problem.DecodeBesideEmpty(queries);
    for (const int i : queries) {
      SCOPED_TRACE(testing::Message() << "query " << i << " of " << queries.size());
      ExpectSameBits(Part(some, shape, i, i + 1), problem.Prefill(i, i + 1, true), "decode");
    }
  }
}

TEST(AttentionGpu, LogSumExpIsTheNaturalOne) {
  QT_NEEDS_DEVICE();
  Problem problem({600, 4, 2, 64});
  const Output out = problem.Prefill(0, 600, false);
  for (const int query : {0, 1, 63, 64, 511, 512, 599}) {
    for (int head = 0; head < 4; ++head) {
      EXPECT_NEAR(out.lse[query * 4 + head], problem.LogSumExpInDouble(query, head), 1e-4);
    }
  }
}

TEST(AttentionGpu, RefusesShapesWithoutAKernel) {
  EXPECT_THROW(AttentionPrefill({.num_heads = 2, .num_kv_heads = 1, .head_dim = 80}, nullptr,
                                LaunchOrder::kAfterPrevious),
               Error);
}

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
