#include "cli/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <numeric>

#include "base/resources.h"
#include "cli/memory_need.h"
#include "quant/tensor_parallel.h"
#include "report/run_warnings.h"

namespace quatrain {
namespace {

constexpr std::array<int64_t, 3> kGroupSizes = {128, 64, 32};  // what engines have kernels for
constexpr double kSmallModel = 1e9;        // parameters; below, memory is no reason for INT4
constexpr double kFewSequences = 32;       // at a time; below, the batch of an engine is too small
constexpr double kFewFlips = 1e-6;         // of the codes a step
constexpr double kMuchDifference = 0.002;  // of log-probabilities, docs/when_to_use_qat.md

std::string Size(double bytes) { return SizeText(static_cast<uint64_t>(bytes)); }

int64_t GroupSizeOf(const AdviceInput& input) {
  return input.scheme && !input.scheme->is_per_channel() ? input.scheme->group_size : 128;
}

std::string FitText(const RolloutFit& fit, double context_tokens) {
  if (fit.tp == 0) return "does not fit";
  return fmt::format("fits from {} device{} on, with room for {:.0f} sequences of {:.0f} tokens",
                     fit.tp, fit.tp == 1 ? "" : "s", fit.kv_tokens / context_tokens,
                     context_tokens);
}

Json FitJson(const RolloutFit& fit, double bytes) {
  return {{"weight_bytes", bytes},
          {"tensor_parallel", fit.tp},
          {"kv_tokens", fit.kv_tokens},
          {"engines", fit.engines}};
}

Advice RolloutMemory(const AdviceInput& input) {
  const MemoryNeed need = MemoryNeedOf(input, GroupSizeOf(input));
  const RolloutFit bf16 = FitRollout(input, need.bf16_bytes);
  const RolloutFit int4 = FitRollout(input, need.int4_bytes);
  const auto context = static_cast<double>(input.context_tokens);
  Advice advice{.id = "fits_without_int4", .question = "Does the model fit without INT4?"};
  advice.answer = fmt::format(
      "On {} ({} x {}), {:.0f} % of it used: BF16 weights of {}: {}. INT4 g{} weights of {}: {}. ",
      input.machine.name, input.machine.num_devices, Size(input.machine.device_bytes),
      100 * kUsableShare, Size(need.bf16_bytes), FitText(bf16, context), GroupSizeOf(input),
      Size(need.int4_bytes), FitText(int4, context));
  const int64_t node = input.machine.devices_per_node;
  if (bf16.tp == 0 && int4.tp == 0) {
    advice.status = AdviceStatus::kBad;
    advice.answer += "Neither fits: a larger machine is needed.";
  } else if (bf16.tp == 0) {
    advice.status = AdviceStatus::kBad;
    advice.answer += "It does not: INT4 is what makes rollout possible here.";
  } else if (bf16.tp > node && int4.tp <= node) {
    advice.status = AdviceStatus::kLook;
    advice.answer +=
        "It does, over more than one node; INT4 keeps an engine within a node, which is where most "
        "of "
        "INT4's gain in rollout time comes from.";
  } else if (int4.tp < bf16.tp) {
    advice.status = AdviceStatus::kLook;
    advice.answer += fmt::format(
        "It does; INT4 needs {} instead of {} devices an engine, so {:.0f} engines instead of "
        "{:.0f}.",
        int4.tp, bf16.tp, int4.engines, bf16.engines);
  } else {
    advice.answer += fmt::format(
        "It does, on as many devices; INT4 leaves {:.2g} times the room for keys and values.",
        int4.kv_tokens / std::max(1.0, bf16.kv_tokens));
  }
  advice.figures = {{"parameters", need.parameters},
                    {"quantised_parameters", need.quantised_parameters},
                    {"kv_bytes_per_token", need.kv_bytes_per_token},
                    {"bf16", FitJson(bf16, need.bf16_bytes)},
                    {"int4", FitJson(int4, need.int4_bytes)}};
  return advice;
}

Advice TrainingMemory(const AdviceInput& input) {
  const MemoryNeed need = MemoryNeedOf(input, GroupSizeOf(input));
  const bool fits = need.qat_train_bytes <= kUsableShare * input.machine.total_bytes();
  Advice advice{.id = "trainer_state",
                .question = "Does the trainer's state fit?",
                .status = fits ? AdviceStatus::kGood : AdviceStatus::kBad};
  advice.answer = fmt::format(
      "Masters, gradients, moments and weights take {} with quantisation-aware training ({:.1f} "
      "bytes "
      "a parameter) and {} without (18); the machine has {}. {}",
      Size(need.qat_train_bytes), need.qat_train_bytes / need.parameters,
      Size(need.bf16_train_bytes), Size(input.machine.total_bytes()),
      fits ? "It fits, before activations."
           : "It does not fit: INT4 helps rollout, not the state of training. Offload the "
             "optimizer or "
             "take more devices.");
  advice.figures = {{"bf16_bytes", need.bf16_train_bytes},
                    {"qat_bytes", need.qat_train_bytes},
                    {"machine_bytes", input.machine.total_bytes()}};
  return advice;
}

// The worst verdict over all quantised linears by size: "ok", "slow" or "breaks", TP 1, 2, 4, 8.
std::map<int, ParallelVerdict> VerdictsOf(const AdviceInput& input, int64_t group_size) {
  QuantScheme scheme;
  scheme.group_size = group_size;
  const QuantPlan plan = MakeQuantPlan(input.table, scheme, input.scope, Indivisible::kKeep);
  std::vector<ParallelLinear> linears;
  for (size_t i = 0; i < input.table.size(); ++i) {
    if (!plan.is_quantized[i]) continue;
    const WeightSpec& spec = input.table[i];
    linears.push_back(ClassifyLinear(spec.module(), spec.shape[0], spec.shape[1]));
  }
  std::map<int, ParallelVerdict> verdicts;
  for (const ParallelRow& row : TensorParallelTable(linears, group_size)) {
    for (const ParallelCell& cell : row.cells) {
      ParallelVerdict& worst = verdicts[cell.tp];
      worst = std::max(worst, cell.verdict);
    }
  }
  return verdicts;
}

Advice GroupSize(const AdviceInput& input) {
  Advice advice{.id = "group_size", .question = "Which group size fits which tensor parallelism?"};
  std::map<int, int64_t> largest;  // by tp
  for (const int64_t g : kGroupSizes) {
    const MemoryNeed need = MemoryNeedOf(input, g);
    std::string line;
    Json cells = Json::object();
    for (const auto& [tp, verdict] : VerdictsOf(input, g)) {
      line += fmt::format("{}TP{} {}", line.empty() ? "" : ", ", tp, ParallelVerdictName(verdict));
      cells[fmt::format("tp{}", tp)] = ParallelVerdictName(verdict);
      if (verdict != ParallelVerdict::kBreaks) largest.emplace(tp, g);
    }
    advice.answer +=
        fmt::format("g{} ({:.2f} bytes a weight, {}): {}. ", g, 0.5 + 2.0 / static_cast<double>(g),
                    Size(need.int4_bytes), line.empty() ? "divides no weight of the scope" : line);
    advice.figures[fmt::format("g{}", g)] = std::move(cells);
  }
  std::string choices;
  for (const auto& [tp, g] : largest)
    choices += fmt::format("{}g{} at TP{}", choices.empty() ? "" : ", ", g, tp);
  advice.answer += choices.empty() ? "No size serves." : "Largest that serves: " + choices + ".";
  if (largest.empty()) advice.status = AdviceStatus::kBad;
  if (input.scheme && !input.scheme->is_per_channel()) {
    const int64_t own = input.scheme->group_size;
    std::string broken;
    for (const auto& [tp, verdict] : VerdictsOf(input, own)) {
      if (verdict == ParallelVerdict::kBreaks) broken += fmt::format(" TP{}", tp);
    }
    if (!broken.empty()) {
      advice.status = AdviceStatus::kLook;
      advice.answer +=
          fmt::format(" This directory has g{}, which cannot be served at{}.", own, broken);
    }
  }
  return advice;
}

// Weights by module name -> input features.
std::map<std::string, int64_t> InputFeatures(const AdviceInput& input) {
  std::map<std::string, int64_t> features;
  for (const WeightSpec& spec : input.table) {
    if (spec.shape.size() == 2) features[spec.module()] = spec.shape[1];
  }
  return features;
}

Advice MeasuredCalibration(const AdviceInput& input, Advice advice) {
  const std::map<std::string, int64_t> features = InputFeatures(input);
  int64_t num_short = 0, num_known = 0;
  double least = 1e300;
  std::string least_module;
  for (const Json& module : input.conversion_report.at("modules")) {
    const std::string name = module.value("module", "");
    const auto found = features.find(name);
    if (found == features.end()) continue;
    const double ratio = module.value("tokens", 0.0) / static_cast<double>(found->second);
    ++num_known;
    if (ratio < 1) ++num_short;
    if (ratio < least) {
      least = ratio;
      least_module = name;
    }
  }
  if (num_known == 0) {
    advice.status = AdviceStatus::kUnknown;
    advice.answer = "conversion_report.json names no weight of this model.";
    return advice;
  }
  const size_t num_fallbacks = input.conversion_report.value("fallbacks", Json::array()).size();
  advice.status = num_short > 0 || num_fallbacks > 0 ? AdviceStatus::kLook : AdviceStatus::kGood;
  advice.answer = fmt::format(
      "A weight wants at least as many tokens as it has inputs, or its Hessian has no full rank. "
      "{} of {} weights had fewer; the least had {:.2g} tokens an input ({}); {} fell back to "
      "round-to-nearest. ",
      num_short, num_known, least, least_module, num_fallbacks);
  if (num_short > 0 && least > 0) {
    advice.answer += fmt::format("{:.0f} times the calibration text would do for all.", 1 / least);
  } else if (num_short > 0) {
    advice.answer += "Some experts saw none: take more and more varied text.";
  } else {
    advice.answer += "It is enough.";
  }
  advice.figures = {{"weights", num_known},
                    {"short", num_short},
                    {"least_tokens_per_input", least},
                    {"fallbacks", num_fallbacks}};
  return advice;
}

Advice Calibration(const AdviceInput& input) {
  Advice advice{.id = "calibration", .question = "Is the calibration short of tokens?"};
  const Json& report = input.conversion_report;
  if (report.is_object() && report.contains("modules"))
    return MeasuredCalibration(input, std::move(advice));
  if (report.is_object()) {
    advice.status = AdviceStatus::kLook;
    advice.answer = "The directory was made by round-to-nearest, without calibration text.";
    return advice;
  }
  const ModelConfig& config = input.config;
  const auto tokens = static_cast<double>(input.calibration_tokens);
  double needed = 0;  // of text, for the weight that wants the most
  for (const WeightSpec& spec : input.table) {
    if (!spec.is_quantisable()) continue;
    const double share = spec.role == WeightRole::kExpert
                             ? static_cast<double>(config.num_experts_per_tok) /
                                   static_cast<double>(config.num_experts)
                             : 1.0;
    needed = std::max(needed, static_cast<double>(spec.shape[1]) / share);
  }
  // Routers are uneven: the coldest expert sees some tenth of the mean.
  constexpr double kUneven = 10;
  const bool is_enough = tokens >= needed * (config.num_experts > 0 ? kUneven : 1);
  advice.status = is_enough ? AdviceStatus::kGood : AdviceStatus::kLook;
  advice.answer = fmt::format(
      "{:.0f} tokens are planned. A weight wants at least as many as it has inputs: {:.0f} tokens "
      "of text "
      "if experts were chosen evenly{}. {}",
      tokens, needed,
      config.num_experts > 0 ? ", ten times that for experts that are rarely chosen" : "",
      is_enough ? "It is enough." : "Take more, or expect round-to-nearest for some.");
  advice.figures = {{"planned_tokens", tokens}, {"needed_tokens", needed}};
  return advice;
}

std::optional<double> MeanOf(const RunData& run, const std::string& name) {
  const auto series = run.metrics.find(name);
  if (series == run.metrics.end()) return std::nullopt;
  double sum = 0, count = 0;
  for (const std::optional<double>& value : series->second) {
    sum += value.value_or(0);
    count += value ? 1 : 0;
  }
  return count > 0 ? std::optional(sum / count) : std::nullopt;
}

// What a run says of QAT; empty if nothing.
std::string RunVerdict(const RunData& run, Advice* advice) {
  const std::optional<double> flips = MeanOf(run, "train/code_flip_rate");
  const std::optional<double> difference = MeanOf(run, "train/train_rollout_logprob_abs_diff");
  if (flips) advice->figures["code_flip_rate"] = *flips;
  if (difference) advice->figures["logprob_difference"] = *difference;
  if (flips && *flips < kFewFlips) {
    advice->status = AdviceStatus::kLook;
    return fmt::format(
        "The run's codes hardly move ({:.1g} of them a step): the learning rate is within "
        "the dead zone of the grid, so rollout stays at the start. Raise --lr or train "
        "in BF16 and convert at the end.",
        *flips);
  }
  if (difference && *difference == 0)
    return "In the run trainer and rollout are one policy (difference 0).";
  if (difference && *difference >= kMuchDifference && !flips) {
    advice->status = AdviceStatus::kLook;
    return fmt::format(
        "The run trains other weights than it samples from (difference {:.2g}): "
        "quantisation-aware training makes that 0.",
        *difference);
  }
  return "";
}

Advice WhetherQat(const AdviceInput& input) {
  Advice advice{.id = "use_qat", .question = "Is quantisation-aware training the right choice?"};
  const MemoryNeed need = MemoryNeedOf(input, GroupSizeOf(input));
  const RolloutFit bf16 = FitRollout(input, need.bf16_bytes);
  const RolloutFit int4 = FitRollout(input, need.int4_bytes);
  const double share = need.quantised_parameters / need.parameters;
  advice.figures = {{"quantised_share", share}};
  if (share == 0) {
    advice.status = AdviceStatus::kBad;
    advice.answer = "No: the group size divides no weight of the scope. ";
  } else if (bf16.tp == 0) {
    advice.answer =
        "Yes: rollout has to be INT4 here, and then only training on the same codes keeps trainer "
        "and "
        "rollout one policy. ";
  } else if (int4.tp < bf16.tp) {
    advice.answer =
        "Yes, if rollout time decides: INT4 takes fewer devices an engine. With long responses "
        "weights are read for every token, which INT4 makes cheaper. ";
  } else if (bf16.kv_tokens < kFewSequences * static_cast<double>(input.context_tokens) &&
             int4.kv_tokens >= 2 * bf16.kv_tokens) {
    advice.answer = fmt::format(
        "Yes, if sequences are that long: BF16 rollout fits on as many devices, but with room for "
        "{:.0f} of them in an engine, where INT4 has room for {:.0f}; few sequences at a time "
        "decode "
        "slowly. ",
        bf16.kv_tokens / static_cast<double>(input.context_tokens),
        int4.kv_tokens / static_cast<double>(input.context_tokens));
  } else {
    advice.status = AdviceStatus::kLook;
    advice.answer = fmt::format(
        "Only for its own sake: BF16 rollout fits on as many devices{}. Use it if INT4 is what you "
        "will "
        "serve, or at fewer bits than 4, where converting at the end costs most; else train in "
        "BF16 and "
        "convert the result. ",
        need.parameters < kSmallModel ? ", and a model of this size is not bound by reading weights"
                                      : "");
  }
  if (share > 0 && share < 0.5) {
    advice.answer += fmt::format("Only {:.0f} % of the parameters are in scope {}. ", 100 * share,
                                 input.scope.Name());
  }
  if (input.run) advice.answer += RunVerdict(*input.run, &advice);
  while (advice.answer.ends_with(' ')) advice.answer.pop_back();
  return advice;
}

Advice RunHealth(const RunData& run) {
  Advice advice{.id = "run", .question = "What do the run's metrics say?"};
  const std::vector<RunWarning> warnings = RunWarnings(run, -1.0);
  advice.figures["warnings"] = Json::array();
  for (const RunWarning& warning : warnings) {
    if (warning.level == WarningLevel::kBad) advice.status = AdviceStatus::kBad;
    if (advice.status == AdviceStatus::kGood) advice.status = AdviceStatus::kLook;
    advice.answer += (advice.answer.empty() ? "" : " ") + warning.title + ". " + warning.detail;
    advice.figures["warnings"].push_back(warning.title);
  }
  if (warnings.empty())
    advice.answer = fmt::format("Nothing to warn of in {} rollouts.", run.rollouts.size());
  return advice;
}

}  // namespace

const char* AdviceStatusName(AdviceStatus status) {
  switch (status) {
    case AdviceStatus::kGood:
      return "good";
    case AdviceStatus::kLook:
      return "look";
    case AdviceStatus::kBad:
      return "bad";
    case AdviceStatus::kUnknown:
      break;
  }
  return "unknown";
}

std::vector<Advice> MakeAdvice(const AdviceInput& input) {
  std::vector<Advice> advice = {RolloutMemory(input), TrainingMemory(input), GroupSize(input),
                                Calibration(input), WhetherQat(input)};
  if (input.run) advice.push_back(RunHealth(*input.run));
  return advice;
}

Json AdviceJson(const AdviceInput& input, const std::vector<Advice>& advice) {
  Json json = {{"model", input.model},
               {"machine", input.machine.name},
               {"scope", input.scope.Name()},
               {"context_tokens", input.context_tokens},
               {"advice", Json::array()}};
  for (const Advice& each : advice) {
    json["advice"].push_back({{"id", each.id},
                              {"question", each.question},
                              {"status", AdviceStatusName(each.status)},
                              {"answer", each.answer},
                              {"figures", each.figures}});
  }
  return json;
}

std::string AdviceText(const AdviceInput& input, const std::vector<Advice>& advice) {
  std::string text =
      fmt::format("{} on {}, scope {}\n", input.model, input.machine.name, input.scope.Name());
  for (const Advice& each : advice) {
    text += fmt::format("\n{} [{}]\n", each.question, AdviceStatusName(each.status));
    std::string line;
    size_t at = 0;
    while (at < each.answer.size()) {
      const size_t end = std::min(each.answer.find(' ', at), each.answer.size());
      const std::string word = each.answer.substr(at, end - at);
      if (line.size() + word.size() > 96) {
        text += "  " + line + "\n";
        line.clear();
      }
      line += (line.empty() ? "" : " ") + word;
      at = end + 1;
    }
    text += "  " + line + "\n";
  }
  return text;
}

}  // namespace quatrain
