#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/kernel_test.h"

namespace quatrain {
namespace {

struct Heads {
  int64_t num_heads, num_kv_heads, head_dim;
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }
  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

// A few sequences, packed.
template <class T>
struct Packed {
  Packed(const Heads& heads, std::vector<int64_t> lengths, uint64_t seed)
      : heads(heads), lengths(std::move(lengths)) {
    for (const int64_t length : this->lengths) {
      sequences.push_back({.q_begin = num_tokens,
                           .num_queries = length,
                           .num_keys = length,
                           .kv_begin = num_tokens});
      num_tokens += length;
    }
    q = RandomRounded<T>(num_tokens * heads.q_size(), seed, 2.0f);
    k = RandomRounded<T>(num_tokens * heads.kv_size(), seed + 1, 2.0f);
    v = RandomRounded<T>(num_tokens * heads.kv_size(), seed + 2);
  }
  AttentionArgs<T> Args() const {
    return {.q = q.data(),
            .k = k.data(),
            .v = v.data(),
            .num_heads = heads.num_heads,
            .num_kv_heads = heads.num_kv_heads,
            .head_dim = heads.head_dim,
            .scale = heads.scale(),
            .sequences = sequences};
  }
  std::vector<T> Forward(ThreadPool& pool) const {
    std::vector<T> out(q.size());
    AttentionArgs<T> args = Args();
    args.out = out.data();
    AttentionForward(pool, args);
    return out;
  }

  Heads heads;
  std::vector<int64_t> lengths;
  std::vector<AttentionSequence> sequences;
  int64_t num_tokens = 0;
  std::vector<T> q, k, v;
};

// Causal attention in double: out, and with dout the gradients.
struct Exact {
  template <class T>
  Exact(const Packed<T>& packed, const std::vector<float>& dout)
      : out(packed.q.size()), dq(packed.q.size()), dk(packed.k.size()), dv(packed.k.size()) {
    const Heads& heads = packed.heads;
    for (const AttentionSequence& sequence : packed.sequences) {
      for (int64_t head = 0; head < heads.num_heads; ++head) {
        for (int64_t i = 0; i < sequence.num_queries; ++i) Row(packed, sequence, head, i, dout);
      }
    }
  }

  template <class T>
  void Row(const Packed<T>& packed, const AttentionSequence& sequence, int64_t head, int64_t i,
           const std::vector<float>& dout) {
    const Heads& heads = packed.heads;
    const int64_t dim = heads.head_dim;
    const int64_t kv_head = head / (heads.num_heads / heads.num_kv_heads);
    const auto q_at = static_cast<size_t>((sequence.q_begin + i) * heads.q_size() + head * dim);
    const auto kv_at = [&](int64_t j) {
      return static_cast<size_t>((sequence.kv_begin + j) * heads.kv_size() + kv_head * dim);
    };
    const double scale = heads.scale();
    std::vector<double> p, dp;
    double largest = -1e300;
    for (int64_t j = 0; j <= i; ++j) {
      double dot = 0.0, grad = 0.0;
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
        dot += static_cast<double>(ToFloat(packed.q[q_at + d])) * ToFloat(packed.k[kv_at(j) + d]);
        if (!dout.empty()) grad += dout[q_at + d] * ToFloat(packed.v[kv_at(j) + d]);
      }
      p.push_back(dot * scale);
      dp.push_back(grad);
      largest = std::max(largest, p.back());
    }
    double sum = 0.0, mean = 0.0;
    for (double& each : p) sum += each = std::exp(each - largest);
    for (double& each : p) each /= sum;
    for (size_t j = 0; j < p.size(); ++j) mean += p[j] * dp[j];
    for (size_t j = 0; j < p.size(); ++j) {
      const double ds = p[j] * (dp[j] - mean) * scale;
      const size_t at = kv_at(static_cast<int64_t>(j));
      for (size_t d = 0; d < static_cast<size_t>(dim); ++d) {
        out[q_at + d] += p[j] * ToFloat(packed.v[at + d]);
        if (dout.empty()) continue;
        dq[q_at + d] += ds * ToFloat(packed.k[at + d]);
        dk[at + d] += ds * ToFloat(packed.q[q_at + d]);
        dv[at + d] += p[j] * dout[q_at + d];
      }
    }
  }

  std::vector<double> out, dq, dk, dv;
};

template <class T>
class Attention : public testing::Test {
 protected:
  ThreadPool pool_{2};
};
using ActivationTypes = testing::Types<float, BFloat16>;
TYPED_TEST_SUITE(Attention, ActivationTypes);

// Shapes with a head_dim that is no multiple of 16, multi-query, and groups of 3 and of 40.
const Heads kShapes[] = {{4, 2, 32}, {2, 2, 8},   {6, 2, 64},  {4, 1, 40},
                         {3, 1, 24}, {2, 1, 128}, {1, 1, 256}, {40, 1, 16}};

TYPED_TEST(Attention, IsCloseToTheFormulaInDouble) {
  using T = TypeParam;
  for (const Heads& heads : kShapes) {
    const Packed<T> packed(heads, {70, 1, 33, 0, 16}, 1);
    const Exact exact(packed, {});
    std::vector<float> out;
    for (const T value : packed.Forward(this->pool_)) out.push_back(ToFloat(value));
    // FP32 inside; the result is rounded to T once.
    EXPECT_LT(RelativeError(out, exact.out), sizeof(T) == 4 ? 1e-6 : 1.0 / 500) << heads.head_dim;
  }
}

// One query row after the contract: 16 partial sums, tree, one fma chain. Only exp is not ours.
TYPED_TEST(Attention, FollowsTheContractOnOneHotScores) {
  using T = TypeParam;
  const int64_t dim = 48, keys = 37;
  Packed<T> packed({1, 1, dim}, {keys}, 2);
  // Equal keys: every p is exp(0) = 1, so out = (chain of v) / count, bit for bit.
  for (int64_t j = 1; j < keys; ++j) std::copy_n(packed.k.begin(), dim, packed.k.begin() + j * dim);
  const std::vector<T> out = packed.Forward(this->pool_);
  for (int64_t i = 0; i < keys; ++i) {
    for (int64_t d = 0; d < dim; ++d) {
      float sum = 0.0f;
      for (int64_t j = 0; j <= i; ++j) {
        sum = std::fma(1.0f, ToFloat(packed.v[static_cast<size_t>(j * dim + d)]), sum);
      }
      EXPECT_EQ(ToFloat(out[static_cast<size_t>(i * dim + d)]),
                ToFloat(RoundTo<T>(sum / static_cast<float>(i + 1))));
    }
  }
}

// Paged copies of the packed sequences: shuffled blocks, stale NaN everywhere else.
template <class T>
struct Paged {
  Paged(const Packed<T>& packed, int64_t block_size, uint64_t seed) : block_size(block_size) {
    int64_t num_blocks = 0;
    for (const int64_t length : packed.lengths)
      num_blocks += (length + block_size - 1) / block_size;
    num_blocks += 5;
    const int64_t row = packed.heads.kv_size();
    const auto size = static_cast<size_t>(num_blocks * block_size * row);
    k.assign(size, RoundTo<T>(std::numeric_limits<float>::quiet_NaN()));
    v = k;
    const std::vector<int64_t> order = Permutation(num_blocks, seed, 0);
    size_t next = 0;
    for (size_t s = 0; s < packed.lengths.size(); ++s) {
      tables.emplace_back();
      for (int64_t j = 0; j < packed.lengths[s]; ++j) {
        if (j % block_size == 0) tables[s].push_back(static_cast<int32_t>(order[next++]));
        const int64_t to = (tables[s].back() * block_size + j % block_size) * row;
        const int64_t from = (packed.sequences[s].kv_begin + j) * row;
        std::copy_n(packed.k.begin() + from, row, k.begin() + to);
        std::copy_n(packed.v.begin() + from, row, v.begin() + to);
      }
    }
  }
  int64_t block_size;
  std::vector<T> k, v;
  std::vector<std::vector<int32_t>> tables;
};

// A piece of a sequence's queries, as the engine would schedule it.
struct Piece {
  size_t sequence;
  int64_t begin, end;  // query positions
};

// Runs the pieces as one batch over the paged cache and puts their rows where they belong in `out`.
template <class T>
void RunPaged(ThreadPool& pool, const Packed<T>& packed, const Paged<T>& paged,
              const std::vector<Piece>& pieces, std::vector<T>& out) {
  const int64_t row = packed.heads.q_size();
  std::vector<T> q;
  std::vector<AttentionSequence> sequences;
  for (const Piece& piece : pieces) {
    sequences.push_back({.q_begin = std::ssize(q) / row,
                         .num_queries = piece.end - piece.begin,
                         .num_keys = piece.end,
                         .block_table = paged.tables[piece.sequence].data()});
    const auto begin = packed.q.begin() + packed.sequences[piece.sequence].q_begin * row;
    q.insert(q.end(), begin + piece.begin * row, begin + piece.end * row);
  }
  std::vector<T> result(q.size());
  AttentionArgs<T> args = packed.Args();
  args.q = q.data();
  args.k = paged.k.data();
  args.v = paged.v.data();
  args.out = result.data();
  args.block_size = paged.block_size;
  args.sequences = sequences;
  AttentionForward(pool, args);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const int64_t to = packed.sequences[pieces[i].sequence].q_begin + pieces[i].begin;
    std::copy_n(result.begin() + sequences[i].q_begin * row, sequences[i].num_queries * row,
                out.begin() + to * row);
  }
}

// Every sequence one token at a time, all together: what a rollout does.
std::vector<std::vector<Piece>> DecodeSchedule(const std::vector<int64_t>& lengths) {
  std::vector<std::vector<Piece>> steps;
  for (int64_t i = 0; i < *std::max_element(lengths.begin(), lengths.end()); ++i) {
    steps.emplace_back();
    for (size_t s = 0; s < lengths.size(); ++s) {
      if (i < lengths[s]) steps.back().push_back({s, i, i + 1});
    }
  }
  return steps;
}

TYPED_TEST(Attention, PrefillChunksDecodeAndTrainingGiveTheSameBits) {
  using T = TypeParam;
  for (const Heads& heads : {Heads{4, 2, 32}, Heads{6, 2, 24}, Heads{8, 1, 128}}) {
    const Packed<T> packed(heads, {70, 45, 130}, 3);
    const std::vector<T> expected = packed.Forward(this->pool_);
    for (const int64_t block_size : {16, 5}) {
      const Paged<T> paged(packed, block_size, 4);
      const auto run = [&](const std::vector<std::vector<Piece>>& steps) {
        std::vector<T> out(expected.size());
        for (const std::vector<Piece>& pieces : steps) {
          RunPaged(this->pool_, packed, paged, pieces, out);
        }
        return Bits(out);
      };
      EXPECT_EQ(run({{{0, 0, 70}, {1, 0, 45}, {2, 0, 130}}}), Bits(expected)) << "prefill";
      EXPECT_EQ(run({{{2, 0, 130}}, {{1, 0, 45}}, {{0, 0, 70}}}), Bits(expected)) << "one by one";
      EXPECT_EQ(run({{{0, 0, 7}, {2, 0, 64}},
                     {{1, 0, 33}, {0, 7, 50}, {2, 64, 65}},
                     {{2, 65, 130}, {1, 33, 45}, {0, 50, 70}}}),
                Bits(expected))
          << "chunked prefill";
      EXPECT_EQ(run(DecodeSchedule(packed.lengths)), Bits(expected)) << "decode";
    }
  }
}

TYPED_TEST(Attention, GivesTheSameBitsForAnyThreadCountAndInstructionSet) {
  using T = TypeParam;
  for (const Heads& heads : kShapes) {
    const Packed<T> packed(heads, {40, 3, 67}, 5);
    ThreadPool one(1), four(4);
    const std::vector<T> expected = packed.Forward(one);
    ForEachInstructionSet([&] { EXPECT_EQ(Bits(packed.Forward(four)), Bits(expected)); });
  }
}

TYPED_TEST(Attention, NeverLooksAheadEvenAtInfinities) {
  using T = TypeParam;
  Packed<T> packed({4, 2, 16}, {50}, 6);
  const std::vector<T> expected = packed.Forward(this->pool_);
  const int64_t row = packed.heads.kv_size();
  std::fill(packed.k.begin() + 29 * row, packed.k.end(),
            RoundTo<T>(std::numeric_limits<float>::infinity()));
  std::fill(packed.v.begin() + 29 * row, packed.v.end(),
            RoundTo<T>(std::numeric_limits<float>::quiet_NaN()));
  const std::vector<T> out = packed.Forward(this->pool_);
  const auto seen = static_cast<size_t>(29 * packed.heads.q_size());
  EXPECT_EQ(Bits(std::vector<T>(out.begin(), out.begin() + static_cast<int64_t>(seen))),
            Bits(std::vector<T>(expected.begin(), expected.begin() + static_cast<int64_t>(seen))));
  EXPECT_TRUE(std::isnan(ToFloat(out[seen])));
}

struct Grads {
  std::vector<float> dq, dk, dv;
};

template <class T>
Grads Backward(ThreadPool& pool, const Packed<T>& packed, const std::vector<float>& dout) {
  // Overwritten, so what stood there before must not matter.
  Grads grads{RandomFloats(std::ssize(packed.q), 90), RandomFloats(std::ssize(packed.k), 91),
              RandomFloats(std::ssize(packed.k), 92)};
  AttentionBackward(
      pool, packed.Args(),
      {.dout = dout.data(), .dq = grads.dq.data(), .dk = grads.dk.data(), .dv = grads.dv.data()});
  return grads;
}

TYPED_TEST(Attention, GradientsAreCloseToTheFormulaInDouble) {
  using T = TypeParam;
  for (const Heads& heads : kShapes) {
    const Packed<T> packed(heads, {70, 1, 33, 0, 16}, 7);
    const std::vector<float> dout = RandomFloats(std::ssize(packed.q), 8);
    const Exact exact(packed, dout);
    const Grads grads = Backward(this->pool_, packed, dout);
    // FP32 sums of up to 70 * N / M terms; the inputs are exact in double.
    EXPECT_LT(RelativeError(grads.dq, exact.dq), 3e-6) << heads.head_dim;
    EXPECT_LT(RelativeError(grads.dk, exact.dk), 3e-6) << heads.head_dim;
    EXPECT_LT(RelativeError(grads.dv, exact.dv), 3e-6) << heads.head_dim;
  }
}

TYPED_TEST(Attention, GradientsMatchDifferencesOfTheForward) {
  using T = TypeParam;
  const Packed<T> packed({2, 1, 8}, {12}, 9);
  const std::vector<float> dout = RandomFloats(std::ssize(packed.q), 10);
  const Grads grads = Backward(this->pool_, packed, dout);
  // Directional derivative of sum dout out along random dq, dk, dv, on the double formula.
  const auto loss = [&](double step) {
    Packed<float> moved({2, 1, 8}, {12}, 9);
    const auto move = [&](const std::vector<T>& from, uint64_t seed, std::vector<float>& to) {
      const std::vector<float> direction = RandomFloats(std::ssize(from), seed);
      for (size_t i = 0; i < from.size(); ++i) {
        to[i] = static_cast<float>(ToFloat(from[i]) + step * direction[i]);
      }
    };
    move(packed.q, 11, moved.q);
    move(packed.k, 12, moved.k);
    move(packed.v, 13, moved.v);
    const Exact exact(moved, {});
    double sum = 0.0;
    for (size_t i = 0; i < dout.size(); ++i) sum += exact.out[i] * dout[i];
    return sum;
  };
  const double step = 1e-3;
  const double expected = (loss(step) - loss(-step)) / (2.0 * step);
  double actual = 0.0;
  const auto add = [&](const std::vector<float>& grad, uint64_t seed) {
    const std::vector<float> direction = RandomFloats(std::ssize(grad), seed);
    for (size_t i = 0; i < grad.size(); ++i) actual += static_cast<double>(grad[i]) * direction[i];
  };
  add(grads.dq, 11);
  add(grads.dk, 12);
  add(grads.dv, 13);
  // The moved inputs are FP32 (6e-8 / step) and the difference is of second order.
  EXPECT_NEAR(actual, expected, 2e-3 * std::fabs(expected));
}

TYPED_TEST(Attention, GradientsAreTheSameBitsForAnyThreadCountBatchAndInstructionSet) {
  using T = TypeParam;
  const Packed<T> packed({6, 2, 40}, {40, 3, 67}, 14);
  const std::vector<float> dout = RandomFloats(std::ssize(packed.q), 15);
  ThreadPool one(1), four(4);
  const Grads expected = Backward(one, packed, dout);
  ForEachInstructionSet([&] {
    const Grads grads = Backward(four, packed, dout);
    EXPECT_EQ(Bits(grads.dq), Bits(expected.dq));
    EXPECT_EQ(Bits(grads.dk), Bits(expected.dk));
    EXPECT_EQ(Bits(grads.dv), Bits(expected.dv));
  });
  Packed<T> last = packed;  // the last sequence alone, where it stands
  last.sequences.erase(last.sequences.begin(), last.sequences.end() - 1);
  const Grads alone = Backward(one, last, dout);
  const int64_t from = 43 * packed.heads.kv_size();
  EXPECT_EQ(Bits(std::vector<float>(alone.dk.begin() + from, alone.dk.end())),
            Bits(std::vector<float>(expected.dk.begin() + from, expected.dk.end())));
}

}  // namespace
}  // namespace quatrain
