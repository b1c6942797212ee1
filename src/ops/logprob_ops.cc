#include "ops/logprob_ops.h"

#include <algorithm>

#include "kernels/logprob.h"
#include "ops/linear_ops.h"

namespace quatrain {
namespace {

// Rows of logits held at once: about 16 MiB, at least 64 rows so that the linear stays efficient.
int64_t RowsPerBlock(int64_t vocab_size) {
  return std::max<int64_t>(64, (int64_t{4} << 20) / vocab_size);
}

}  // namespace

TokenLogprobs LmHeadLogprobs(const OpContext& ctx, const at::Tensor& x_RD,
                             const WeightView& lm_head, std::span<const int32_t> targets,
                             float inv_temperature, Entropy entropy) {
  const int64_t rows = x_RD.size(0);
  QT_CHECK(rows == static_cast<int64_t>(targets.size()), "{} rows, {} targets", rows,
           targets.size());
  TokenLogprobs result;
  result.logprobs.resize(targets.size());
  if (entropy == Entropy::kCompute) result.entropy.resize(targets.size());
  const int64_t block = RowsPerBlock(lm_head.out_features);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    const at::Tensor logits_RV = LinearLogits(ctx, x_RD.narrow(0, begin, count), lm_head);
    const auto offset = static_cast<size_t>(begin);
    LogprobForward(ctx.pool, DataOf<float>(logits_RV),
                   targets.subspan(offset, static_cast<size_t>(count)), {&inv_temperature, 1},
                   lm_head.out_features, result.logprobs.data() + offset,
                   entropy == Entropy::kCompute ? result.entropy.data() + offset : nullptr);
  }
  return result;
}

void LmHeadLogprobsGrad(const OpContext& ctx, const LmHeadGradCall& call) {
  const int64_t rows = call.x_RD.size(0);
  QT_CHECK(rows == static_cast<int64_t>(call.targets.size()) &&
               call.targets.size() == call.dlogprobs.size(),
           "rows of the LM head's gradient");
  const int64_t block = RowsPerBlock(call.lm_head.out_features);
  for (int64_t begin = 0; begin < rows; begin += block) {
    const int64_t count = std::min(block, rows - begin);
    const auto offset = static_cast<size_t>(begin);
    const at::Tensor x_RD = call.x_RD.narrow(0, begin, count);
    at::Tensor dlogits_RV = LinearLogits(ctx, x_RD, call.lm_head);
    LogprobBackward(ctx.pool, DataOf<float>(dlogits_RV),
                    call.targets.subspan(offset, static_cast<size_t>(count)), call.inv_temperature,
                    call.lm_head.out_features, call.dlogprobs.data() + offset,
                    call.dentropy.empty() ? nullptr : call.dentropy.data() + offset);
    const LinearGradCall grad{.x_TI = x_RD,
                              .weight = call.lm_head,
                              .dy_TO = dlogits_RV,
                              .dx_TI = call.dx_RD.narrow(0, begin, count),
                              .dweight_OI = call.dlm_head_VD,
                              .dbias_O = {}};
    RunLinearGrad(ctx, {&grad, 1});
  }
}

}  // namespace quatrain
