// The report of a conversion: conversion_report.json for programs and conversion_report.html for
// people, in the output directory.
#pragma once

#include <filesystem>

#include "base/json.h"
#include "cli/conversion.h"

namespace quatrain {

inline constexpr const char* kConversionReportJson = "conversion_report.json";
inline constexpr const char* kConversionReportHtml = "conversion_report.html";

// {"positions", "perplexity", "perplexity_bf16", "mean_kl", "mean_abs_logprob_difference"}.
Json FidelityJson(const Fidelity& fidelity);

// Everything: method, scheme, data, modules with errors, tokens of experts, fallbacks, counts of
// codes, sizes, the table of tensor parallelism, time and memory.
Json ConversionReportJson(const ConversionConfig& config, const ConversionSummary& summary);

// Writes both files into `folder`; without the chart library the page is left out with a warning.
void WriteConversionReport(const std::filesystem::path& folder, const ConversionConfig& config,
                           const ConversionSummary& summary);

}  // namespace quatrain
