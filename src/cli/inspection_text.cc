#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cli/inspection.h"

namespace quatrain {
namespace {

constexpr double kBytesOf16Bits = 2.0;

// "1.25 MB": decimal units, as file sizes are told.
std::string BytesText(int64_t bytes) {
  const char* const kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000.0 && unit + 1 < std::size(kUnits)) {
    value /= 1000.0;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, kUnits[unit]);
}

std::string RatioText(int64_t parameters, int64_t bytes) {
  if (bytes == 0 || parameters == 0) return "-";
  return fmt::format("{:.2f}x",
                     kBytesOf16Bits * static_cast<double>(parameters) / static_cast<double>(bytes));
}

std::string SchemeText(const Inspection& inspection) {
  if (!inspection.scheme.has_value()) return "not quantised";
  std::string text = inspection.scheme->Name();
  if (inspection.used_codes.has_value()) {
    text +=
        fmt::format(", codes {}..{} in use", inspection.used_codes->lo, inspection.used_codes->hi);
  }
  if (!inspection.metadata.has_value()) return text + ", no quatrain.json";
  return text + fmt::format(", scale rule {}, seed {}",
                            ScaleRuleName(inspection.metadata->scale_rule),
                            inspection.metadata->seed);
}

void AddSizes(const Inspection& inspection, std::string* text) {
  *text += fmt::format("\n{:<28}{:>9}{:>16}{:>12}{:>14}\n", "sizes", "tensors", "parameters",
                       "bytes", "against BF16");
  const auto add = [&](const SizeRow& row) {
    *text += fmt::format("{:<28}{:>9}{:>16}{:>12}{:>14}\n", "  " + row.what, row.num_tensors,
                         row.num_parameters, BytesText(row.bytes),
                         RatioText(row.num_parameters, row.bytes));
  };
  SizeRow total{"all"};
  for (const SizeRow& row : inspection.sizes) {
    total.num_tensors += row.num_tensors;
    total.num_parameters += row.num_parameters;
    total.bytes += row.bytes;
    add(row);
  }
  add(total);
}

void AddModules(const Inspection& inspection, bool is_quantized, std::string* text) {
  *text += is_quantized ? "\nquantised\n" : "\nnot quantised\n";
  size_t count = 0;
  for (const ModuleRow& row : inspection.modules) {
    if (row.is_quantized != is_quantized) continue;
    ++count;
    *text += fmt::format("  {:<56}{:>16}  x {}\n", row.pattern,
                         fmt::format("[{}, {}]", row.out_features, row.in_features), row.count);
  }
  if (count == 0) *text += "  no linear\n";
}

void AddParallel(const Inspection& inspection, std::string* text) {
  if (inspection.parallel.empty()) return;
  *text += fmt::format("\n{:<58}", "tensor parallelism in vLLM and SGLang");
  for (const ParallelCell& cell : inspection.parallel.front().cells) {
    *text += fmt::format("{:>8}", fmt::format("TP{}", cell.tp));
  }
  *text += '\n';
  std::string reasons;
  for (const ParallelRow& row : inspection.parallel) {
    *text += fmt::format("  {:<56}", row.linear.name);
    for (const ParallelCell& cell : row.cells) {
      *text += fmt::format("{:>8}", ParallelVerdictName(cell.verdict));
      if (cell.reason.empty()) continue;
      reasons += fmt::format("  TP{} {}: {}: {}\n", cell.tp, ParallelVerdictName(cell.verdict),
                             row.linear.name, cell.reason);
    }
    *text += '\n';
  }
  *text += reasons;
}

void AddErrors(const Inspection& inspection, std::string* text) {
  if (inspection.errors.empty()) return;
  *text +=
      fmt::format("\n{:<66}{:>12}{:>12}\n", "error against the reference", "relative", "largest");
  double sum = 0.0, worst = 0.0;
  for (const ErrorRow& row : inspection.errors) {
    *text += fmt::format("  {:<64}{:>12.6f}{:>12.6f}\n", row.tensor, row.relative, row.largest);
    sum += row.relative;
    worst = std::max(worst, row.relative);
  }
  *text += fmt::format("  {:<64}{:>12.6f}\n  {:<64}{:>12.6f}\n", "mean",
                       sum / static_cast<double>(inspection.errors.size()), "worst", worst);
}

}  // namespace

std::string InspectionText(const Inspection& inspection) {
  std::string text = fmt::format("{}: {}\n", inspection.directory, SchemeText(inspection));
  AddSizes(inspection, &text);
  AddModules(inspection, true, &text);
  AddModules(inspection, false, &text);
  AddParallel(inspection, &text);
  AddErrors(inspection, &text);
  text += inspection.problems.empty() ? "\nconsistent\n" : "\ninconsistent\n";
  for (const std::string& problem : inspection.problems) text += "  " + problem + "\n";
  return text;
}

Json InspectionJson(const Inspection& inspection) {
  Json json = {{"directory", inspection.directory},
               {"consistent", inspection.problems.empty()},
               {"problems", inspection.problems},
               {"scheme", nullptr},
               {"quatrain_json", nullptr},
               {"total_bytes", inspection.total_bytes()},
               {"total_parameters", inspection.total_parameters()}};
  if (inspection.scheme.has_value()) {
    const QuantScheme& scheme = *inspection.scheme;
    json["scheme"] = {{"num_bits", scheme.num_bits},
                      {"group_size", scheme.group_size},
                      {"symmetric", scheme.symmetric},
                      {"targets", scheme.targets},
                      {"ignore", scheme.ignore}};
  }
  if (inspection.metadata.has_value()) json["quatrain_json"] = MakeMetadata(*inspection.metadata);
  if (inspection.used_codes.has_value()) {
    json["used_codes"] = {inspection.used_codes->lo, inspection.used_codes->hi};
  }
  json["sizes"] = Json::array();
  for (const SizeRow& row : inspection.sizes) {
    json["sizes"].push_back({{"what", row.what},
                             {"tensors", row.num_tensors},
                             {"parameters", row.num_parameters},
                             {"bytes", row.bytes}});
  }
  json["modules"] = Json::array();
  for (const ModuleRow& row : inspection.modules) {
    json["modules"].push_back({{"pattern", row.pattern},
                               {"out_features", row.out_features},
                               {"in_features", row.in_features},
                               {"quantized", row.is_quantized},
                               {"count", row.count}});
  }
  json["tensor_parallel"] = Json::array();
  for (const ParallelRow& row : inspection.parallel) {
    Json cells = Json::array();
    for (const ParallelCell& cell : row.cells) {
      cells.push_back({{"tp", cell.tp},
                       {"verdict", ParallelVerdictName(cell.verdict)},
                       {"reason", cell.reason}});
    }
    json["tensor_parallel"].push_back({{"module", row.linear.name}, {"sizes", cells}});
  }
  json["errors"] = Json::array();
  for (const ErrorRow& row : inspection.errors) {
    json["errors"].push_back(
        {{"tensor", row.tensor}, {"relative", row.relative}, {"largest", row.largest}});
  }
  return json;
}

}  // namespace quatrain
