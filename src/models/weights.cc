#include "models/weights.h"

namespace quatrain {

WeightView Weight::View() const {
  QT_CHECK(spec.shape.size() == 2, "{} is not a matrix", spec.name);
  if (is_quantized()) return codes.View();
  WeightView view;
  view.type = dense.scalar_type() == at::kFloat ? WeightType::kFloat32 : WeightType::kBFloat16;
  view.out_features = spec.shape[0];
  view.in_features = spec.shape[1];
  QT_CHECK(dense.is_contiguous() && dense.numel() == view.out_features * view.in_features, "{}",
           spec.name);
  view.data = dense.const_data_ptr();
  return view;
}

at::Tensor Weight::ToFloat32() const {
  if (!is_quantized()) return dense.to(at::kFloat).contiguous();
  at::Tensor out = EmptyTensor(spec.shape, at::kFloat);
  DequantizeRows(codes.View(), 0, spec.shape[0], out.data_ptr<float>());
  return out;
}

int64_t Weight::size_bytes() const {
  if (!is_quantized()) return static_cast<int64_t>(dense.nbytes());
  return static_cast<int64_t>(codes.packed.size() * sizeof(int32_t) +
                              codes.scale.size() * sizeof(BFloat16));
}

ModelWeights::ModelWeights(std::vector<Weight> weights) : weights_(std::move(weights)) {
  for (size_t i = 0; i < weights_.size(); ++i) {
    const bool is_new = index_.emplace(weights_[i].spec.name, static_cast<int>(i)).second;
    QT_CHECK(is_new, "{} twice in the weight table", weights_[i].spec.name);
  }
}

int ModelWeights::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? -1 : found->second;
}

int64_t ModelWeights::num_parameters() const {
  int64_t count = 0;
  for (const Weight& weight : weights_) {
    int64_t size = 1;
    for (int64_t dim : weight.spec.shape) size *= dim;
    count += size;
  }
  return count;
}

Gradients::Gradients(const ModelWeights& weights) : tensors_(weights.size()) {
  for (size_t i = 0; i < weights.size(); ++i) shapes_.push_back(weights[i].spec.shape);
}

const at::Tensor& Gradients::Of(int weight_index) {
  at::Tensor& tensor = tensors_.at(static_cast<size_t>(weight_index));
  if (!tensor.defined()) {
    tensor = ZeroTensor(shapes_[static_cast<size_t>(weight_index)], at::kFloat);
  }
  return tensor;
}

void Gradients::Clear() {
  for (at::Tensor& tensor : tensors_) {
    if (tensor.defined()) tensor.zero_();
  }
}

}  // namespace quatrain
