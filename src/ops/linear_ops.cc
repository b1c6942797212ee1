#include "ops/linear_ops.h"

namespace quatrain {
namespace {

void CheckInput(const at::Tensor& x, const WeightView& weight) {
  QT_CHECK(x.dim() == 2 && x.size(1) == weight.in_features, "input has {} features, weight {}",
           x.size(-1), weight.in_features);
}

template <class T>
LinearTask<T> TaskOf(const LinearCall& call) {
  CheckInput(call.x_TI, call.weight);
  QT_CHECK(call.y_TO.size(0) == call.x_TI.size(0) && call.y_TO.size(1) == call.weight.out_features,
           "output shape");
  LinearTask<T> task;
  task.x = DataOf<T>(call.x_TI);
  task.rows = call.x_TI.size(0);
  task.weight = call.weight;
  task.bias = DataOf<T>(call.bias_O);
  if (call.y_TO.scalar_type() == ScalarTypeOf<T>()) {
    task.y = DataOf<T>(call.y_TO);
  } else {
    task.y_float = DataOf<float>(call.y_TO);
  }
  return task;
}

template <class T>
LinearWeightGradTask<T> WeightGradTaskOf(const LinearGradCall& call) {
  CheckInput(call.x_TI, call.weight);
  QT_CHECK(call.x_TI.size(0) == call.dy_TO.size(0), "rows of x and dy differ");
  LinearWeightGradTask<T> task;
  task.dy = DataOf<float>(call.dy_TO);
  task.x = DataOf<T>(call.x_TI);
  task.rows = call.x_TI.size(0);
  task.out_features = call.weight.out_features;
  task.in_features = call.weight.in_features;
  task.dweight = DataOf<float>(call.dweight_OI);
  task.dbias = DataOf<float>(call.dbias_O);
  return task;
}

void RunInputGrads(const OpContext& ctx, std::span<const LinearGradCall> calls) {
  std::vector<LinearInputGradTask> tasks;
  for (const LinearGradCall& call : calls) {
    QT_CHECK(call.dy_TO.dim() == 2 && call.dy_TO.size(1) == call.weight.out_features, "dy shape");
    if (!call.dx_TI.defined()) continue;
    QT_CHECK(
        call.dx_TI.size(0) == call.dy_TO.size(0) && call.dx_TI.size(1) == call.weight.in_features,
        "dx shape");
    LinearInputGradTask task;
    task.dy = DataOf<float>(call.dy_TO);
    task.rows = call.dy_TO.size(0);
    task.weight = call.weight;
    task.dx = DataOf<float>(call.dx_TI);
    tasks.push_back(task);
  }
  LinearInputGrad(ctx.pool, tasks);
}

}  // namespace

void RunLinear(const OpContext& ctx, std::span<const LinearCall> calls) {
  if (calls.empty()) return;
  DispatchActivation(calls[0].x_TI.scalar_type(), [&]<class T>(T) {
    std::vector<LinearTask<T>> tasks;
    for (const LinearCall& call : calls) tasks.push_back(TaskOf<T>(call));
    LinearForward<T>(ctx.pool, tasks);
  });
}

at::Tensor Linear(const OpContext& ctx, const at::Tensor& x_TI, const WeightView& weight,
                  const at::Tensor& bias_O) {
  at::Tensor y_TO = EmptyTensor({x_TI.size(0), weight.out_features}, x_TI.scalar_type());
  const LinearCall call{x_TI, weight, bias_O, y_TO};
  RunLinear(ctx, {&call, 1});
  return y_TO;
}

at::Tensor LinearLogits(const OpContext& ctx, const at::Tensor& x_TI, const WeightView& weight) {
  at::Tensor y_TO = EmptyTensor({x_TI.size(0), weight.out_features}, at::kFloat);
  const LinearCall call{x_TI, weight, {}, y_TO};
  RunLinear(ctx, {&call, 1});
  return y_TO;
}

void RunLinearGrad(const OpContext& ctx, std::span<const LinearGradCall> calls) {
  RunInputGrads(ctx, calls);
  std::vector<LinearGradCall> wanted;
  for (const LinearGradCall& call : calls) {
    if (call.dweight_OI.defined()) wanted.push_back(call);
  }
  if (wanted.empty()) return;
  DispatchActivation(wanted[0].x_TI.scalar_type(), [&]<class T>(T) {
    std::vector<LinearWeightGradTask<T>> tasks;
    for (const LinearGradCall& call : wanted) tasks.push_back(WeightGradTaskOf<T>(call));
    LinearWeightGrad<T>(ctx.pool, tasks);
  });
}

}  // namespace quatrain
