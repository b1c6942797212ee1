#if defined(QT_WITH_CUDA)
#include <memory>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_latent.h"
#include "kernels/cuda/device_test.h"
#include "kernels/cuda/elementwise.h"
#include "kernels/kernel_test.h"

namespace quatrain::cuda {
namespace {

constexpr int kTokens = 1024;
constexpr int kHeads = 2;
constexpr int kHeadDim = 64;
constexpr int64_t kSize = int64_t{kTokens} * kHeads * kHeadDim;

// A prefill of a few multiprocessors, which lets the next kernel start at once and writes `out`
// long after.
class Writer {
 public:
  Writer()
      : rows_(RandomRounded<BFloat16>(kSize, 1)),
        sequence_(std::vector<AttentionSequence>{{.num_queries = kTokens, .num_keys = kTokens}}),
        out_(kSize) {}

  void Start(cudaStream_t stream) {
    CheckCuda(cudaMemsetAsync(out_.data(), 0xFF, 2 * kSize, stream), "memset");  // NaN
    AttentionPrefill({.q = rows_.data(),
                      .k = rows_.data(),
                      .v = rows_.data(),
                      .out = out_.data(),
                      .q_stride = kHeads * kHeadDim,
                      .kv_stride = kHeads * kHeadDim,
                      .num_heads = kHeads,
                      .num_kv_heads = kHeads,
                      .head_dim = kHeadDim,
                      .scale = 0.125f,
                      .sequences = sequence_.data(),
                      .num_sequences = 1,
                      .max_queries = kTokens,
                      .max_keys = kTokens},
                     stream, LaunchOrder::kAfterPrevious);
  }
  const BFloat16* out() { return out_.data(); }

 private:
  DeviceVector<BFloat16> rows_;
  DeviceVector<AttentionSequence> sequence_;
  DeviceVector<BFloat16> out_;
};

struct EmptyCase {
  int head_dim;  // 0: over a latent
  int num_sequences, max_keys;
};

// A call of decode, or of attention over a latent, whose requests have neither queries nor keys.
class EmptyCall {
 public:
  explicit EmptyCall(const EmptyCase& c)
      : case_(c), sequences_(std::vector<AttentionSequence>(c.num_sequences)) {
    const int64_t bytes = c.head_dim > 0 ? AttentionDecodeScratchBytes(Decode())
                                         : AttentionLatentScratchBytes(Latent());
    scratch_ = std::make_unique<DeviceVector<uint8_t>>(bytes);
    scratch_->Zero();
  }

  void Start(cudaStream_t stream) {
    if (case_.head_dim > 0) {
      AttentionDecode(Decode(), scratch_->data(), stream, LaunchOrder::kOverlap);
    } else {
      AttentionLatent(Latent(), scratch_->data(), stream, LaunchOrder::kOverlap);
    }
  }

 private:
  DeviceAttentionArgs Decode() {
    return {.q = nothing_.data(),
            .k = nothing_.data(),
            .v = nothing_.data(),
            .out = nothing_.data(),
            .q_stride = 4 * case_.head_dim,
            .kv_stride = 2 * case_.head_dim,
            .num_heads = 4,
            .num_kv_heads = 2,
            .head_dim = case_.head_dim,
            .block_size = 16,
            .scale = 1.0f,
            .sequences = sequences_.data(),
            .num_sequences = case_.num_sequences,
            .max_queries = 1,
            .max_keys = case_.max_keys};
  }
  DeviceLatentAttentionArgs Latent() {
    return {.q = nothing_.data(),
            .kv = nothing_.data(),
            .out = nothing_.data(),
            .q_stride = 16 * kLatentKeyDim,
            .kv_stride = kLatentKeyDim,
            .num_heads = 16,
            .block_size = 16,
            .scale = 1.0f,
            .sequences = sequences_.data(),
            .num_sequences = case_.num_sequences,
            .max_queries = 1,
            .max_keys = case_.max_keys};
  }

  EmptyCase case_;
  DeviceVector<BFloat16> nothing_{1024};
  DeviceVector<AttentionSequence> sequences_;
  std::unique_ptr<DeviceVector<uint8_t>> scratch_;
};

class EmptyAttentionGpu : public testing::TestWithParam<EmptyCase> {};

// A kernel waits for the one before it, and no further: so an empty call must not end before the
// writer does. (An H100 holds its end back whether it waits or not, so there this passes anyway.)
TEST_P(EmptyAttentionGpu, EndsAfterTheKernelBefore) {
  QT_NEEDS_DEVICE();
  constexpr int kChains = 6;
  Writer writer;
  EmptyCall empty(GetParam());
  DeviceVector<BFloat16> read(kChains * kSize);
  DeviceGraph graph([&](cudaStream_t stream) {
    for (int i = 0; i < kChains; ++i) {
      BFloat16* const to = read.data() + i * kSize;
      CheckCuda(cudaMemsetAsync(to, 0, 2 * kSize, stream), "memset");
      writer.Start(stream);
      empty.Start(stream);
      AddInPlace(to, writer.out(), kSize, stream, LaunchOrder::kOverlap);
    }
  });
  DeviceVector<BFloat16> expected(kSize);
  expected.Zero();
  writer.Start(graph.stream());
  AddInPlace(expected.data(), writer.out(), kSize, graph.stream(), LaunchOrder::kAfterPrevious);
  const std::vector<BFloat16> one = expected.Download();
  for (int replay = 0; replay < 3; ++replay) {
    graph.Replay();
    const std::vector<BFloat16> all = read.Download();
    for (int i = 0; i < kChains; ++i) {
      const std::vector<BFloat16> mine(all.begin() + i * kSize, all.begin() + (i + 1) * kSize);
      EXPECT_EQ(CountDifferences(mine, one), 0) << "replay " << replay << ", chain " << i;
    }
  }
}

// Every kernel: clusters of one, two and four segments, of more; segments; a walk over a latent,
// and CTAs that share one.
INSTANTIATE_TEST_SUITE_P(Kernels, EmptyAttentionGpu,
                         testing::Values(EmptyCase{128, 1, 512}, EmptyCase{128, 1, 1024},
                                         EmptyCase{128, 1, 2048}, EmptyCase{128, 1, 8192},
                                         EmptyCase{64, 1, 512}, EmptyCase{128, 100, 512},
                                         EmptyCase{0, 1, 512}, EmptyCase{0, 3, 4096}));

}  // namespace
}  // namespace quatrain::cuda
#endif  // QT_WITH_CUDA
