#include "cli/convert.h"

#include <fmt/format.h>
#include <malloc.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/progress.h"
#include "cli/conversion.h"
#include "cli/conversion_report.h"
#include "cli/loaded_model.h"
#include "cli/option_checks.h"

namespace quatrain {
namespace {

struct ConvertFlags {
  std::string input_dir, output_dir, data_dir;
  std::string quant_type = "W4A16";
  std::string group_size = "32";
  std::string method = "gptq";
  std::vector<std::string> scope;  // empty: by the model
  std::string scale_rule;          // empty: by the method
  int64_t code_max = 0;            // 0: all that the bits hold
  std::string text_column = "text";
  std::string actorder = "static";
  int64_t num_calibration_samples = 256;
  int64_t max_sequence_length = 2048;
  int64_t num_heldout_samples = 16;
  double dampening_frac = 0.01;
  double max_fallback_fraction = 0.1;
  uint64_t max_shard_size = 5'000'000'000;
  uint64_t seed = 0;
  int num_threads = 0;
  bool no_shuffle = false;
  bool trust_remote_code = false;
  bool keep_indivisible = false;
  bool overwrite = false;
  bool restart = false;
};

CalibrateMethod MethodOf(const ConvertFlags& flags) {
  if (flags.method == "rtn") return CalibrateMethod::kRtn;
  return flags.method == "reference" ? CalibrateMethod::kReference : CalibrateMethod::kGptq;
}

int64_t GroupSizeOf(const ConvertFlags& flags) {
  if (flags.group_size == "channel" || flags.group_size == "-1") return 0;
  return std::stoll(flags.group_size);
}

ScaleRule ScaleRuleOf(const ConvertFlags& flags) {
  if (!flags.scale_rule.empty()) return ParseScaleRule(flags.scale_rule, "--scale-rule");
  switch (MethodOf(flags)) {
    case CalibrateMethod::kGptq:
      return ScaleRule::kSearched;
    case CalibrateMethod::kReference:
      return ScaleRule::kAbsmax7_5;
    default:
      return ScaleRule::kAbsmax7;
  }
}

ConversionConfig ConfigOf(const ConvertFlags& flags) {
  const CalibrateMethod method = MethodOf(flags);
  if (method != CalibrateMethod::kRtn && flags.data_dir.empty()) {
    throw Error(ErrorCode::kUsage,
                {.where = "--data-dir",
                 .what = "--method " + flags.method + " needs calibration text",
                 .expected = "a Parquet, JSON Lines or text file, or a folder of them",
                 .todo = "Pass --data-dir, or --method rtn, which needs no data."});
  }
  ConversionConfig config{
      .input_dir = flags.input_dir,
      .output_dir = flags.output_dir,
      .data = {.source = flags.data_dir,
               .text_column = flags.text_column,
               .num_samples = flags.num_calibration_samples,
               .max_sequence_length = flags.max_sequence_length,
               .seed = flags.seed,
               .num_heldout_samples = flags.num_heldout_samples,
               .order =
                   flags.no_shuffle ? CalibrationOrder::kAsStored : CalibrationOrder::kShuffled},
      .scheme = {.num_bits = flags.quant_type == "W8A16" ? 8 : 4,
                 .group_size = GroupSizeOf(flags),
                 .scale_rule = ScaleRuleOf(flags)},
      .calibrate = {.method = method,
                    .dampening_frac = flags.dampening_frac,
                    .actorder = flags.actorder == "none" ? ActOrder::kNone : ActOrder::kStatic},
      .indivisible = flags.keep_indivisible ? Indivisible::kKeep : Indivisible::kRefuse,
      .existing_output = flags.overwrite ? ExistingOutput::kOverwrite : ExistingOutput::kRefuse,
      .earlier_work = flags.restart ? EarlierWork::kRestart : EarlierWork::kContinue,
      .max_shard_bytes = flags.max_shard_size,
      .seed = flags.seed};
  CheckScheme(config.scheme, "--quant-type and --quant-group-size");
  if (flags.code_max != 0) {
    if (config.scheme.scale_rule == ScaleRule::kAbsmax7_5) {
      throw Error(ErrorCode::kUsage, {.where = "--code-max",
                                      .what = "the scale rule absmax/7.5 has the bounds of the "
                                              "reference",
                                      .expected = "--scale-rule absmax/7 or searched, as --method "
                                                  "rtn and gptq have them",
                                      .found = "--method " + flags.method + ", --scale-rule " +
                                               ScaleRuleName(config.scheme.scale_rule)});
    }
    config.scheme.frozen_grid = NarrowGrid(config.scheme.num_bits, flags.code_max, "--code-max");
  }
  if (!flags.scope.empty()) config.scope = ParseQuantScope(flags.scope);
  return config;
}

void PrintList(const char* what, const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  if (names.empty()) return;
  fmt::print("{} {}:\n", names.size(), what);
  for (size_t i = 0; i < std::min(kShown, names.size()); ++i) fmt::print("  {}\n", names[i]);
  if (names.size() > kShown) fmt::print("  ... all of them are in quatrain.json\n");
}

void PrintErrors(const ConversionSummary& summary) {
  if (summary.modules.empty()) return;
  double ours = 0.0, rtn = 0.0;
  const ModuleReport* worst = &summary.modules.front();
  for (const ModuleReport& module : summary.modules) {
    ours += module.relative_error;
    rtn += module.rtn_relative_error;
    if (module.relative_error > worst->relative_error) worst = &module;
  }
  const double count = static_cast<double>(summary.modules.size());
  fmt::print("relative output error: mean {:.4f} (round-to-nearest {:.4f}), largest {:.4f} in {}\n",
             ours / count, rtn / count, worst->relative_error, worst->module);
  if (summary.fidelity.has_value()) {
    const Fidelity& fidelity = *summary.fidelity;
    fmt::print(
        "held-out text, {} tokens: perplexity {:.3f} in BF16, {:.3f} quantised; mean KL {:.3g}\n",
        fidelity.num_positions, fidelity.reference_perplexity(), fidelity.perplexity(),
        fidelity.mean_kl());
  }
  std::vector<std::string> fallbacks;
  for (const ModuleReport* module : summary.Fallbacks()) {
    fallbacks.push_back(module->module + ": " + module->fallback);
  }
  PrintList("weights to which no calibration token was routed: calibrated on tokens of their layer",
            summary.ColdModules());
  PrintList("weights rounded to nearest after all", fallbacks);
}

void PrintSummary(const ConversionSummary& summary) {
  fmt::print("{} of {} linears quantised in {:.1f} s\n", summary.num_quantized, summary.num_weights,
             summary.seconds);
  PrintErrors(summary);
  PrintList("weights left in BF16: the group size does not divide them or one they are fused with",
            summary.kept);
  PrintList("tensors copied byte for byte: they have no place in the model", summary.copied);
  PrintList("tensors cast to BF16 first", summary.cast);
  fmt::print("\n{}\n", InspectionText(summary.inspection));
  fmt::print("wrote {} (its {} and {} have the report)\n", summary.output_dir.string(),
             kConversionReportJson, kConversionReportHtml);
  std::fflush(stdout);
}

// The result is there and usable; the exit status says that it is not what was asked for.
void CheckFallbacks(const ConvertFlags& flags, const ConversionSummary& summary) {
  if (summary.FallbackFraction() <= flags.max_fallback_fraction) return;
  throw Error(ErrorCode::kQuality,
              {.where = "--max-fallback-fraction",
               .what = fmt::format("{} of {} weights were rounded to nearest after all",
                                   summary.Fallbacks().size(), summary.modules.size()),
               .expected = fmt::format("at most {:.3g} of them", flags.max_fallback_fraction),
               .found = fmt::format("{:.3g}", summary.FallbackFraction()),
               .todo = "The output is written. Use more calibration text or a larger "
                       "--dampening-frac; the report says why each one failed."});
}

void RunConvert(const ConvertFlags& flags) {
  const ConversionConfig config = ConfigOf(flags);
  if (flags.trust_remote_code) {
    Log().info(
        "--trust-remote-code has no effect: no Python of the model is ever run. Files *.py are "
        "copied.");
  }
  // Large blocks go back to the system when they are freed: kept for later ones of other sizes they
  // would double the memory that a layer takes.
  constexpr int kLargeBlock = 1 << 22;
  mallopt(M_MMAP_THRESHOLD, kLargeBlock);
  // Smaller ones stay: every batch takes the same again, whose pages would be cleared each time.
  constexpr int kKept = 1 << 26;
  mallopt(M_TRIM_THRESHOLD, kKept);
  ThreadPool pool(flags.num_threads);
  std::optional<Progress> progress;
  const ConversionSummary summary =
      Convert(pool, config, [&](int64_t done, int64_t total, const std::string& note) {
        if (InterruptRequested()) throw Error(ErrorCode::kInterrupted, "stopped on request.");
        if (!progress.has_value()) progress.emplace("convert", total, "steps");
        progress->Update(done, note);
      });
  progress.reset();
  PrintSummary(summary);
  CheckFallbacks(flags, summary);
}

void AddCalibrationOptions(CLI::App& command, ConvertFlags* flags) {
  command.add_option("--data-dir", flags->data_dir,
                     "calibration text: a Parquet, JSON Lines or text file, or a folder of them");
  command
      .add_option("--text-column", flags->text_column,
                  "its column of text, or of conversations (lists of messages), which go through "
                  "the model's chat template")
      ->capture_default_str();
  command
      .add_option("--num-calibration-samples", flags->num_calibration_samples, "rows that are used")
      ->check(Between(1, 1 << 30))
      ->capture_default_str();
  command
      .add_option("--max-sequence-length", flags->max_sequence_length,
                  "tokens of a row that are used")
      ->check(Between(1, 1 << 30))
      ->capture_default_str();
  command
      .add_option("--num-heldout-samples", flags->num_heldout_samples,
                  "further rows on which perplexity and KL before and after are measured; 0: none")
      ->check(Between(0, 1 << 30))
      ->capture_default_str();
  command
      .add_option("--max-fallback-fraction", flags->max_fallback_fraction,
                  "exit status 3 if more of the weights fall back to round-to-nearest")
      ->check(Between(0.0, 1.0))
      ->capture_default_str();
  command
      .add_option("--dampening-frac", flags->dampening_frac,
                  "share of the mean diagonal that is added to the Hessian's diagonal")
      ->check(Between(0.0, 10.0))
      ->capture_default_str();
  command
      .add_option(
          "--actorder", flags->actorder,
          "order in which columns are quantised: static (by the Hessian's diagonal, nothing "
          "about it is stored) or none")
      ->check(CLI::IsMember({"static", "none"}))
      ->capture_default_str();
  command.add_flag("--no-shuffle-calibration-samples", flags->no_shuffle,
                   "take the first rows instead of a seeded choice");
  command.add_option("--seed", flags->seed, "which rows are drawn")->capture_default_str();
}

void AddSchemeOptions(CLI::App& command, ConvertFlags* flags) {
  command.add_option("--quant-type", flags->quant_type, "bits of the weights")
      ->check(CLI::IsMember({"W4A16", "W8A16"}))
      ->capture_default_str();
  command
      .add_option("--quant-group-size", flags->group_size,
                  "inputs that share a scale: 32, 64, 128 or channel")
      ->check(CLI::IsMember({"32", "64", "128", "channel", "-1"}))
      ->capture_default_str();
  command
      .add_option("--method", flags->method,
                  "gptq; reference (the numbers of llm-compressor 0.14); rtn (round-to-nearest, "
                  "needs no data)")
      ->check(CLI::IsMember({"gptq", "reference", "rtn"}))
      ->capture_default_str();
  command
      .add_option("--scope", flags->scope,
                  "experts, all-linear, or names of modules and re:expressions, separated by "
                  "commas; default: experts if the model has some, else all-linear")
      ->delimiter(',');
  command
      .add_option("--scale-rule", flags->scale_rule,
                  "default: searched for gptq, absmax/7.5 for reference, absmax/7 for rtn")
      ->check(CLI::IsMember({"absmax/7", "absmax/7.5", "searched"}));
  command
      .add_option(
          "--code-max", flags->code_max,
          "largest code: 3 is a 3-bit grid in the INT4 format, not for absmax/7.5; default: "
          "all that the bits hold")
      ->check(Between(1, 127));
  command.add_flag("--keep-indivisible", flags->keep_indivisible,
                   "leave weights in BF16 that the group size does not divide");
}

}  // namespace

void AddConvertCommand(CLI::App& app) {
  auto flags = std::make_shared<ConvertFlags>();
  CLI::App* command = app.add_subcommand(
      "convert", "BF16 model directory to INT4 or INT8 (compressed-tensors, pack-quantized)");
  command->footer(
      "Example: quatrain convert --input-dir examples/models/tiny-qwen3-moe --output-dir runs/int4 "
      "--data-dir examples/data/calibration");
  command->add_option("--input-dir", flags->input_dir, "Hugging Face directory in BF16")
      ->required();
  command->add_option("--output-dir", flags->output_dir, "directory to write")->required();
  AddSchemeOptions(*command, flags.get());
  AddCalibrationOptions(*command, flags.get());
  command->add_flag("--overwrite", flags->overwrite, "replace the result of an earlier conversion");
  command->add_flag("--restart", flags->restart,
                    "throw away what an earlier run that did not end has done");
  command
      ->add_option("--max-shard-size", flags->max_shard_size,
                   "largest file of tensors, e.g. 500MB or 5GB")
      ->transform(CLI::AsSizeValue(true))
      ->default_str("5GB");
  command->add_flag("--trust-remote-code", flags->trust_remote_code,
                    "accepted for compatibility; no Python is ever run");
  AddThreadsOption(*command, &flags->num_threads);
  command->callback([flags] { RunConvert(*flags); });
}

}  // namespace quatrain
