#include "ops/elementwise_ops.h"

namespace quatrain {

at::Tensor Embedding(const OpContext& ctx, const at::Tensor& table_VD,
                     std::span<const int32_t> token_ids) {
  const int64_t hidden = table_VD.size(1);
  at::Tensor x_TD =
      EmptyTensor({static_cast<int64_t>(token_ids.size()), hidden}, table_VD.scalar_type());
  DispatchActivation(table_VD.scalar_type(), [&]<class T>(T) {
    EmbeddingForward<T>(ctx.pool, DataOf<T>(table_VD), token_ids, hidden, DataOf<T>(x_TD));
  });
  return x_TD;
}

void EmbeddingGrad(const OpContext& ctx, const at::Tensor& dx_TD,
                   std::span<const int32_t> token_ids, const at::Tensor& dtable_VD) {
  QT_CHECK(dx_TD.size(0) == static_cast<int64_t>(token_ids.size()), "rows of dx");
  QT_CHECK(dx_TD.size(1) == dtable_VD.size(1), "hidden size of dx");
  EmbeddingBackward(ctx.pool, DataOf<float>(dx_TD), token_ids, dx_TD.size(1),
                    DataOf<float>(dtable_VD));
}

at::Tensor RmsNorm(const OpContext& ctx, const at::Tensor& x, const at::Tensor& weight,
                   double eps) {
  const int64_t dim = weight.size(0);
  QT_CHECK(x.size(-1) == dim, "norm over {} features, weight has {}", x.size(-1), dim);
  at::Tensor y = EmptyTensor(x.sizes(), x.scalar_type());
  DispatchActivation(x.scalar_type(), [&]<class T>(T) {
    RmsNormForward<T>(ctx.pool, DataOf<T>(x), DataOf<T>(weight), x.numel() / dim, dim,
                      static_cast<float>(eps), DataOf<T>(y));
  });
  return y;
}

void RmsNormGrad(const OpContext& ctx, const RmsNormGradCall& call) {
  const int64_t dim = call.weight.size(0);
  QT_CHECK(call.dy.numel() == call.x.numel() && call.dx.numel() == call.x.numel(), "norm shapes");
  DispatchActivation(call.x.scalar_type(), [&]<class T>(T) {
    RmsNormGradArgs<T> args;
    args.x = DataOf<T>(call.x);
    args.weight = DataOf<T>(call.weight);
    args.dy = DataOf<float>(call.dy);
    args.rows = call.x.numel() / dim;
    args.dim = dim;
    args.eps = static_cast<float>(call.eps);
    args.dx = DataOf<float>(call.dx);
    args.accumulate_dx = call.accumulate_dx;
    args.dweight = DataOf<float>(call.dweight);
    RmsNormBackward<T>(ctx.pool, args);
  });
}

void RopeInPlace(const OpContext& ctx, const RopeTable& table, std::span<const int32_t> positions,
                 const at::Tensor& x_TNH) {
  QT_CHECK(x_TNH.dim() == 3 && x_TNH.size(2) == table.head_dim, "rope shape");
  QT_CHECK(x_TNH.size(0) == static_cast<int64_t>(positions.size()), "rope positions");
  DispatchActivation(x_TNH.scalar_type(), [&]<class T>(T) {
    RopeForward<T>(ctx.pool, table, positions, x_TNH.size(1), DataOf<T>(x_TNH));
  });
}

void RopeGradInPlace(const OpContext& ctx, const RopeTable& table,
                     std::span<const int32_t> positions, const at::Tensor& dx_TNH) {
  QT_CHECK(dx_TNH.dim() == 3 && dx_TNH.size(2) == table.head_dim, "rope shape");
  RopeBackward(ctx.pool, table, positions, dx_TNH.size(1), DataOf<float>(dx_TNH));
}

at::Tensor SiluMul(const OpContext& ctx, const at::Tensor& gate_TF, const at::Tensor& up_TF) {
  QT_CHECK(gate_TF.sizes() == up_TF.sizes(), "gate and up shapes differ");
  at::Tensor out_TF = EmptyTensor(gate_TF.sizes(), gate_TF.scalar_type());
  DispatchActivation(gate_TF.scalar_type(), [&]<class T>(T) {
    SiluMulForward<T>(ctx.pool, DataOf<T>(gate_TF), DataOf<T>(up_TF), gate_TF.numel(),
                      DataOf<T>(out_TF));
  });
  return out_TF;
}

SiluMulGrads SiluMulGrad(const OpContext& ctx, const at::Tensor& gate_TF, const at::Tensor& up_TF,
                         const at::Tensor& dout_TF) {
  SiluMulGrads grads{EmptyTensor(gate_TF.sizes(), at::kFloat),
                     EmptyTensor(gate_TF.sizes(), at::kFloat)};
  DispatchActivation(gate_TF.scalar_type(), [&]<class T>(T) {
    SiluMulBackward<T>(ctx.pool, DataOf<T>(gate_TF), DataOf<T>(up_TF), DataOf<float>(dout_TF),
                       gate_TF.numel(), DataOf<float>(grads.dgate_TF), DataOf<float>(grads.dup_TF));
  });
  return grads;
}

at::Tensor AddResidual(const OpContext& ctx, const at::Tensor& x_TD, const at::Tensor& y_TD) {
  QT_CHECK(x_TD.sizes() == y_TD.sizes(), "residual shapes differ");
  at::Tensor sum_TD = x_TD.clone();
  DispatchActivation(x_TD.scalar_type(), [&]<class T>(T) {
    AddInPlace<T>(ctx.pool, DataOf<T>(sum_TD), DataOf<T>(y_TD), x_TD.numel());
  });
  return sum_TD;
}

}  // namespace quatrain
