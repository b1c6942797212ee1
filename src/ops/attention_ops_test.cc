#include "ops/attention_ops.h"

#include <cmath>

#include "ops/test_support.h"

namespace quatrain {
namespace {

// Causal attention of one sequence with libtorch; query heads share kv heads in groups.
at::Tensor Reference(const at::Tensor& q_TNH, const at::Tensor& k_TMH, const at::Tensor& v_TMH) {
  const int64_t tokens = q_TNH.size(0), group = q_TNH.size(1) / k_TMH.size(1);
  std::vector<at::Tensor> heads;
  for (int64_t head = 0; head < q_TNH.size(1); ++head) {
    const at::Tensor q = q_TNH.select(1, head), k = k_TMH.select(1, head / group),
                     v = v_TMH.select(1, head / group);
    at::Tensor scores = at::matmul(q, k.t()) / std::sqrt(static_cast<double>(q_TNH.size(2)));
    scores = scores + at::full({tokens, tokens}, -1e30, scores.options()).triu(1);
    heads.push_back(at::matmul(at::softmax(scores, -1), v));
  }
  return at::stack(heads, 1);
}

std::vector<AttentionSequence> Two() {
  return {{.q_begin = 0, .num_queries = 3, .num_keys = 3, .kv_begin = 0},
          {.q_begin = 3, .num_queries = 4, .num_keys = 4, .kv_begin = 3}};
}

TEST(AttentionOps, VarlenIsCausalAttentionOfEachSequence) {
  ThreadPool pool(1);
  const at::Tensor q = RandomTensor({7, 4, 8}, 1), k = RandomTensor({7, 2, 8}, 2),
                   v = RandomTensor({7, 2, 8}, 3);
  const std::vector<AttentionSequence> sequences = Two();
  const at::Tensor out = Attention({pool}, {q, k, v, sequences});
  for (const auto& [begin, size] : {std::pair{0, 3}, std::pair{3, 4}}) {
    ExpectClose(
        out.narrow(0, begin, size),
        Reference(q.narrow(0, begin, size), k.narrow(0, begin, size), v.narrow(0, begin, size)),
        1e-5);
  }
}

TEST(AttentionOps, PagedKeysGiveTheSameBits) {
  ThreadPool pool(1);
  const at::Tensor q = RandomTensor({4, 4, 8}, 1), k = RandomTensor({4, 2, 8}, 2),
                   v = RandomTensor({4, 2, 8}, 3);
  const std::vector<AttentionSequence> varlen = {
      {.q_begin = 0, .num_queries = 4, .num_keys = 4, .kv_begin = 0}};
  const std::vector<int32_t> blocks = {2, 0};  // of 2 tokens each
  const at::Tensor keys = ZeroTensor({6, 2, 8}, at::kFloat), values = keys.clone();
  for (int64_t t = 0; t < 4; ++t) {
    const int64_t row = blocks[static_cast<size_t>(t / 2)] * 2 + t % 2;
    keys[row].copy_(k[t]);
    values[row].copy_(v[t]);
  }
  const std::vector<AttentionSequence> paged = {
      {.q_begin = 0, .num_queries = 4, .num_keys = 4, .block_table = blocks.data()}};
  EXPECT_TRUE(at::equal(Attention({pool}, {q, k, v, varlen}),
                        Attention({pool}, {q, keys, values, paged, 2})));
}

TEST(AttentionOps, Gradient) {
  ThreadPool pool(1);
  const at::Tensor q = RandomTensor({7, 2, 8}, 1), k = RandomTensor({7, 1, 8}, 2),
                   v = RandomTensor({7, 1, 8}, 3), dout = RandomTensor({7, 2, 8}, 4);
  const std::vector<AttentionSequence> sequences = Two();
  const AttentionCall call{q, k, v, sequences};
  const AttentionGradTensors grads = AttentionGrad({pool}, call, dout);
  const auto loss = [&] { return Dot(dout, Attention({pool}, call)); };
  ExpectGradient(q, grads.dq_TNH, loss);
  ExpectGradient(k, grads.dk_TMH, loss);
  ExpectGradient(v, grads.dv_TMH, loss);
}

}  // namespace
}  // namespace quatrain
