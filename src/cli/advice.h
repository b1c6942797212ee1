// What a model, a machine and the metrics of a run say about INT4 and quantisation-aware training.
//
// Every answer is arithmetic over the weight table and numbers that were measured; what is assumed
// is said in its text. docs/when_to_use_qat.md has the same in prose.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "calibrate/quant_plan.h"
#include "cli/machine.h"
#include "models/families.h"
#include "models/model_config.h"
#include "report/run_data.h"

namespace quatrain {

struct AdviceInput {
  std::string model;  // its name in the text
  ModelConfig config;
  std::vector<WeightSpec> table;
  QuantScope scope;                   // what would be quantised
  std::optional<QuantScheme> scheme;  // of an INT4 directory
  Json conversion_report;             // of conversion_report.json; null without one
  Machine machine;
  int64_t context_tokens = 0;      // prompt and response of the longest sequence
  int64_t calibration_tokens = 0;  // planned, where no report says how many there were
  std::optional<RunData> run;      // metrics, if there are any
};

enum class AdviceStatus { kGood, kLook, kBad, kUnknown };
const char* AdviceStatusName(AdviceStatus status);  // "good", "look", "bad", "unknown"

struct Advice {
  std::string id;        // "fits_without_int4"
  std::string question;  // "Does the model fit without INT4?"
  AdviceStatus status = AdviceStatus::kGood;
  std::string answer;
  Json figures = Json::object();
};

// In the order of the questions: memory of rollout, of training, group size, calibration, whether
// to use QAT, and what a run's metrics say.
std::vector<Advice> MakeAdvice(const AdviceInput& input);

Json AdviceJson(const AdviceInput& input, const std::vector<Advice>& advice);
std::string AdviceText(const AdviceInput& input, const std::vector<Advice>& advice);

}  // namespace quatrain
