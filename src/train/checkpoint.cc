#include "train/checkpoint.h"

#include <array>
#include <cstring>

#include "base/file.h"
#include "io/safetensors_writer.h"
#include "io/tensor_set.h"

namespace quatrain {
namespace {

// The three tensors of a parameter, by the prefix of their names.
std::array<std::pair<std::string, at::Tensor>, 3> TensorsOf(Parameters& parameters, size_t i) {
  return {{{"master.", parameters.master(i)},
           {"exp_avg.", parameters.exp_avg(i)},
           {"exp_avg_sq.", parameters.exp_avg_sq(i)}}};
}

DType DTypeOf(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kInt) return DType::kI32;
  if (tensor.scalar_type() == at::kBFloat16) return DType::kBF16;
  QT_CHECK(tensor.scalar_type() == at::kFloat);
  return DType::kF32;
}

}  // namespace

TrainingSnapshot SnapshotTraining(Parameters& parameters, const Json& state, SnapshotMode mode) {
  TrainingSnapshot snapshot;
  for (size_t i = 0; i < parameters.size(); ++i) {
    for (const auto& [prefix, tensor] : TensorsOf(parameters, i)) {
      snapshot.tensors.push_back({prefix + parameters.spec(i).name,
                                  mode == SnapshotMode::kCopy ? tensor.clone() : tensor});
    }
  }
  snapshot.state = state;
  snapshot.state["step"] = parameters.step();
  return snapshot;
}

void SaveTrainingState(const TrainingSnapshot& snapshot, const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::vector<TensorPlan> plan;
  for (const auto& [name, values] : snapshot.tensors)
    plan.push_back({name, DTypeOf(values), values.sizes().vec()});
  SafetensorsWriter writer(folder, plan);
  for (const auto& [name, values] : snapshot.tensors) {
    writer.Write(name, {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()});
  }
  writer.Finish();
  WriteFileAtomic(folder / "state.json", snapshot.state.dump(2) + "\n");
}

Json LoadTrainingState(const OpContext& ctx, const std::filesystem::path& folder,
                       Parameters& parameters) {
  const TensorSet tensors(folder);
  for (size_t i = 0; i < parameters.size(); ++i) {
    for (auto& [prefix, tensor] : TensorsOf(parameters, i)) {
      const TensorView& view = tensors.Get(prefix + parameters.spec(i).name);
      if (view.dtype != DType::kF32 || view.shape != parameters.spec(i).shape) {
        throw Error(ErrorCode::kShape, {.where = view.where(),
                                        .what = "the training state is of another model",
                                        .todo = "Pass the --load of this model's run"});
      }
      std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    }
  }
  const std::filesystem::path file = folder / "state.json";
  Json state = ParseJson(ReadFile(file), file.string());
  if (!state.contains("step") || !state["step"].is_number_integer()) {
    throw Error(ErrorCode::kData,
                {.where = file.string(), .what = "no step", .expected = "an integer \"step\""});
  }
  parameters.Restore(ctx, state["step"].get<int64_t>());
  return state;
}

}  // namespace quatrain
