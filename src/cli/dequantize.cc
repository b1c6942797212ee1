#include "cli/dequantize.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/interrupt.h"
#include "base/progress.h"
#include "cli/loaded_model.h"
#include "models/exporter.h"
#include "quant/quantized_weight.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

struct DequantizeFlags {
  std::string input_dir, output_dir;
  int num_threads = 0;
};

void CheckPaths(const DequantizeFlags& flags, const Checkpoint& source) {
  if (!source.scheme().has_value()) {
    throw Error(ErrorCode::kUsage, {.where = "--input-dir " + flags.input_dir,
                                    .what = "the model is not quantised",
                                    .expected = "a pack-quantized INT4 or INT8 directory"});
  }
  if (fs::exists(flags.output_dir) && !fs::is_empty(flags.output_dir)) {
    throw Error(ErrorCode::kUsage, {.where = "--output-dir " + flags.output_dir,
                                    .what = "it is not empty",
                                    .todo = "Choose another directory."});
  }
}

// w' of a quantised weight as the BF16 values that every forward pass reads.
void ReplaceByValues(ThreadPool& pool, Weight& weight) {
  if (!weight.is_quantized()) return;
  const std::vector<BFloat16> weight_OI = Dequantize(pool, weight.codes);
  weight.dense = EmptyTensor(weight.spec.shape, at::kBFloat16);
  std::memcpy(weight.dense.data_ptr(), weight_OI.data(), weight_OI.size() * sizeof(BFloat16));
  weight.codes = {};
}

// One weight is in memory at a time.
void RunDequantize(const DequantizeFlags& flags) {
  const Checkpoint source(flags.input_dir, UnknownFamily::kByNames);
  CheckPaths(flags, source);
  ThreadPool pool(flags.num_threads);
  const std::vector<WeightSpec>& table = source.table();
  AtomicFolder folder(flags.output_dir);
  ModelWriter writer(source, table, std::vector<WeightFormat>(table.size()), folder.path());
  std::optional<Progress> progress(std::in_place, "dequantize", static_cast<int64_t>(table.size()),
                                   "weights");
  int64_t num_done = 0;
  for (const WeightSpec& spec : table) {
    if (InterruptRequested()) {
      throw Error(ErrorCode::kInterrupted, "stopped on request; nothing was written");
    }
    Weight weight = source.Load(spec, at::kBFloat16);
    ReplaceByValues(pool, weight);
    writer.Write(weight);
    source.Release(spec);
    progress->Update(++num_done, spec.module());
  }
  writer.WriteUnknown();
  writer.Finish({});
  folder.Commit();
  progress.reset();
  fmt::print("wrote {} ({} in BF16)\n", flags.output_dir, source.scheme()->Name());
}

}  // namespace

void AddDequantizeCommand(CLI::App& app) {
  auto flags = std::make_shared<DequantizeFlags>();
  CLI::App* command = app.add_subcommand(
      "dequantize", "INT4 or INT8 model directory to BF16: the values that it computes with");
  command->footer("Example: quatrain dequantize --input-dir runs/int4 --output-dir runs/bf16");
  command->add_option("--input-dir", flags->input_dir, "quantised directory, ours or another's")
      ->required();
  command->add_option("--output-dir", flags->output_dir, "directory to write")->required();
  AddThreadsOption(*command, &flags->num_threads);
  command->callback([flags] { RunDequantize(*flags); });
}

}  // namespace quatrain
