#include "ops/attention_ops.h"

#include <cmath>

namespace quatrain {
namespace {

template <class T>
AttentionArgs<T> ArgsOf(const AttentionCall& call) {
  QT_CHECK(call.q_TNH.dim() == 3 && call.k_RMH.dim() == 3 &&
               call.k_RMH.sizes() == call.v_RMH.sizes() && call.q_TNH.size(2) == call.k_RMH.size(2),
           "attention shapes");
  AttentionArgs<T> args;
  args.q = DataOf<T>(call.q_TNH);
  args.k = DataOf<T>(call.k_RMH);
  args.v = DataOf<T>(call.v_RMH);
  args.num_heads = call.q_TNH.size(1);
  args.num_kv_heads = call.k_RMH.size(1);
  args.head_dim = call.q_TNH.size(2);
  args.block_size = call.block_size;
  args.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(args.head_dim)));
  args.sequences = call.sequences;
  return args;
}

}  // namespace

at::Tensor Attention(const OpContext& ctx, const AttentionCall& call) {
  at::Tensor out_TNH = EmptyTensor(call.q_TNH.sizes(), call.q_TNH.scalar_type());
  DispatchActivation(call.q_TNH.scalar_type(), [&]<class T>(T) {
    AttentionArgs<T> args = ArgsOf<T>(call);
    args.out = DataOf<T>(out_TNH);
    AttentionForward<T>(ctx.pool, args);
  });
  return out_TNH;
}

AttentionGradTensors AttentionGrad(const OpContext& ctx, const AttentionCall& call,
                                   const at::Tensor& dout_TNH) {
  AttentionGradTensors grads{EmptyTensor(call.q_TNH.sizes(), at::kFloat),
                             EmptyTensor(call.k_RMH.sizes(), at::kFloat),
                             EmptyTensor(call.v_RMH.sizes(), at::kFloat)};
  DispatchActivation(call.q_TNH.scalar_type(), [&]<class T>(T) {
    const AttentionArgs<T> args = ArgsOf<T>(call);
    const AttentionGrads raw{DataOf<float>(dout_TNH), DataOf<float>(grads.dq_TNH),
                             DataOf<float>(grads.dk_TMH), DataOf<float>(grads.dv_TMH)};
    AttentionBackward<T>(ctx.pool, args, raw);
  });
  return grads;
}

}  // namespace quatrain
