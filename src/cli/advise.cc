#include "cli/advise.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/error.h"
#include "base/file.h"
#include "cli/advice.h"
#include "cli/option_checks.h"
#include "models/loader.h"
#include "quant/compressed_tensors.h"

namespace quatrain {
namespace {

struct AdviseFlags {
  std::string model, machine, metrics, conversion_report;
  std::vector<std::string> scope;
  int64_t context_tokens = 16384;
  int64_t calibration_tokens = 256 * 2048;
  bool is_json = false;
};

Json ReadConversionReport(const AdviseFlags& flags) {
  const std::filesystem::path path =
      flags.conversion_report.empty()
          ? std::filesystem::path(flags.model) / "conversion_report.json"
          : std::filesystem::path(flags.conversion_report);
  if (flags.conversion_report.empty() && !std::filesystem::exists(path)) return Json();
  return ParseJson(ReadFile(path), path.string());
}

// A run directory, or the metrics.jsonl in it.
RunData ReadMetrics(const std::filesystem::path& path) {
  const bool is_file = std::filesystem::is_regular_file(path);
  return ReadRun(is_file ? std::filesystem::absolute(path).parent_path() : path,
                 {.max_sample_bytes = 0});
}

AdviceInput ReadInput(const AdviseFlags& flags) {
  // The configuration says everything; a model need not be downloaded to be asked about.
  const std::filesystem::path config = std::filesystem::path(flags.model) / "config.json";
  const Json json = ParseJson(ReadFile(config), config.string());
  AdviceInput input;
  const std::filesystem::path folder = std::filesystem::absolute(flags.model).lexically_normal();
  input.model = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  input.config = ParseModelConfig(json, config.string());
  input.table = WeightTableOf(input.config);
  input.scheme = FindQuantScheme(json, config.string());
  input.scope = !flags.scope.empty()
                    ? ParseQuantScope(flags.scope)
                    : QuantScope(input.config.num_moe_layers() > 0 ? QuantScope::kExperts
                                                                   : QuantScope::kAllLinear);
  input.conversion_report = ReadConversionReport(flags);
  input.machine = ParseMachine(flags.machine);
  input.context_tokens = std::min(flags.context_tokens, input.config.max_position_embeddings);
  input.calibration_tokens = flags.calibration_tokens;
  if (!flags.metrics.empty()) input.run = ReadMetrics(flags.metrics);
  return input;
}

void RunAdvise(const AdviseFlags& flags) {
  const AdviceInput input = ReadInput(flags);
  const std::vector<Advice> advice = MakeAdvice(input);
  if (flags.is_json) {
    fmt::print("{}\n", DumpJson(AdviceJson(input, advice)));
  } else {
    fmt::print("{}", AdviceText(input, advice));
  }
  std::fflush(stdout);
}

}  // namespace

void AddAdviseCommand(CLI::App& app) {
  auto flags = std::make_shared<AdviseFlags>();
  CLI::App* command = app.add_subcommand(
      "advise",
      "Does a model need INT4 on a machine, which group size, is calibration short, is "
      "quantisation-aware training worth it?");
  command->footer(
      "Example: quatrain advise runs/int4 --machine 8xH100 --metrics runs/qat\n"
      "The model's config.json is enough; its weights need not be there.");
  command->add_option("model", flags->model, "Hugging Face directory, BF16 or INT4")->required();
  command->add_option("--machine", flags->machine,
                      "8xH100 and the like, or a JSON file with devices and device_memory_gb "
                      "[this host's memory]");
  command->add_option("--metrics", flags->metrics,
                      "run directory of quatrain train, or its "
                      "metrics.jsonl");
  command->add_option("--conversion-report", flags->conversion_report,
                      "[conversion_report.json of the model]");
  command->add_option("--scope", flags->scope,
                      "experts, all-linear, or modules [experts where there are some]");
  command->add_option("--context", flags->context_tokens, "tokens of the longest sequence")
      ->check(Positive())
      ->capture_default_str();
  command
      ->add_option("--calibration-tokens", flags->calibration_tokens,
                   "of calibration text that is planned, where no report says how many there were")
      ->check(Positive())
      ->capture_default_str();
  command->add_flag("--json", flags->is_json, "One JSON object instead of text");
  command->callback([flags] { RunAdvise(*flags); });
}

}  // namespace quatrain
