// What `quatrain inspect` finds out about a model directory; printing it is inspect.cc's.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/threads.h"
#include "quant/metadata.h"
#include "quant/scheme.h"
#include "quant/tensor_parallel.h"

namespace quatrain {

// Tensors of one kind and what they take on disk.
struct SizeRow {
  std::string what;  // "quantised linears", "linears in 16 bits", ...
  int64_t num_tensors = 0;
  int64_t num_parameters = 0;  // weights, not scales or shapes
  int64_t bytes = 0;
};

// Modules that share a name up to layer and expert numbers, and a shape.
struct ModuleRow {
  std::string pattern;  // model.layers.*.mlp.experts.*.up_proj
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool is_quantized = false;
  int64_t count = 0;
};

// How far a weight is from the one it was made from.
struct ErrorRow {
  std::string tensor;
  double relative = 0.0;  // ||w' - w|| / ||w||, Frobenius
  double largest = 0.0;   // max |w' - w|
};

struct Inspection {
  std::string directory;
  std::optional<QuantScheme> scheme;      // nullopt: a model in 16 bits
  std::optional<QuantMetadata> metadata;  // of quatrain.json
  std::vector<SizeRow> sizes;
  std::vector<ModuleRow> modules;
  std::vector<ParallelRow> parallel;  // of the quantised modules
  std::vector<ErrorRow> errors;       // with a reference only
  // Codes in the file, over all modules; empty without any.
  std::optional<CodeGrid> used_codes;
  // Everything inconsistent, a sentence each.
  std::vector<std::string> problems;

  int64_t total_bytes() const;
  int64_t total_parameters() const;
};

// Reads every quantised tensor of the directory. With `against`, a directory of the same model in
// 16 bits, also measures each weight against it. Errors of HfRepo, FindQuantScheme and Checkpoint
// for what cannot be read at all; what can be read and is wrong goes to `problems`.
Inspection InspectModel(ThreadPool& pool, const std::filesystem::path& directory,
                        const std::optional<std::filesystem::path>& against);

// The whole inspection for programs, with "consistent" and the list of problems.
Json InspectionJson(const Inspection& inspection);

// The same for people, several lines.
std::string InspectionText(const Inspection& inspection);

}  // namespace quatrain
