#include "rl/state_bytes.h"

#include <set>

namespace quatrain {
namespace {

// Bytes of a table's buffers that `seen` does not hold yet.
int64_t NewBytes(const ModelWeights& table, std::set<const void*>& seen) {
  int64_t bytes = 0;
  for (size_t i = 0; i < table.size(); ++i) {
    const void* data = table[i].is_quantized()
                           ? static_cast<const void*>(table[i].codes.packed.data())
                           : table[i].dense.const_data_ptr();
    if (seen.insert(data).second) bytes += table[i].size_bytes();
  }
  return bytes;
}

}  // namespace

int64_t StateBytes::total() const {
  int64_t sum = 0;
  for (const auto& [name, bytes] : parts) sum += bytes;
  return sum;
}

double StateBytes::PerParameter(int64_t bytes) const {
  return static_cast<double>(bytes) / static_cast<double>(num_parameters);
}

std::string StateBytes::Text() const {
  std::string text;
  for (const auto& [name, bytes] : parts)
    text += fmt::format("{}{} {:.2f}", text.empty() ? "" : ", ", name, PerParameter(bytes));
  return fmt::format(
      "trainer state, bytes a parameter of {}: {}; in all {:.2f} (18 in the field's trainer, "
      "beside "
      "its rollout weights)",
      num_parameters, text, PerParameter(total()));
}

void StateBytes::AppendTo(Json& row) const {
  for (const auto& [name, bytes] : parts)
    row["memory/" + name + "_bytes_per_parameter"] = PerParameter(bytes);
  row["memory/state_bytes_per_parameter"] = PerParameter(total());
}

StateBytes MeasureState(TrainingModels& models, Parameters& parameters, int64_t gradient_bytes,
                        int64_t code_history_bytes) {
  StateBytes state;
  state.num_parameters = models.trained().num_parameters();
  int64_t masters = 0, moments = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    masters += static_cast<int64_t>(parameters.master(i).nbytes());
    moments +=
        static_cast<int64_t>(parameters.exp_avg(i).nbytes() + parameters.exp_avg_sq(i).nbytes());
  }
  std::set<const void*> seen;
  const int64_t weights = NewBytes(models.trained(), seen);
  const ModelWeights* rollout = models.separate_rollout();
  const ModelWeights* reference = models.reference();
  const std::pair<const char*, int64_t> parts[] = {
      {"masters", masters},
      {"moments", moments},
      {"gradients", gradient_bytes},
      {"weights", weights},
      {"rollout_weights", rollout != nullptr ? NewBytes(*rollout, seen) : 0},
      {"reference", reference != nullptr ? NewBytes(*reference, seen) : 0},
      {"code_history", code_history_bytes}};
  for (const auto& [name, bytes] : parts) {
    if (bytes > 0) state.parts.emplace_back(name, bytes);
  }
  return state;
}

}  // namespace quatrain
