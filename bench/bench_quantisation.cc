// Quality of quantised models against the BF16 one that they were made from: mean absolute
// difference of the next token's log-probability, KL and perplexity, in FP32.
//
//   bench_quantisation --reference examples/models/tiny-qwen3-moe --ids eval_ids.jsonl runs/int4
//   ...
//
// ids: JSON lines {"set": name, "ids": [...]}. One JSON line for each model and set: means over all
// positions, and `blocks`, |dlp| of each sequence, for a bootstrap over them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <map>

#include "base/error.h"
#include "base/json.h"
#include "calibrate/fidelity.h"
#include "models/loader.h"

namespace quatrain {
namespace {

using Sequences = std::vector<std::vector<int32_t>>;

struct Model {
  explicit Model(const std::string& directory)
      : checkpoint(directory),
        weights(LoadWeights(checkpoint, at::kFloat)),
        decoder(checkpoint.config(), weights) {}
  Checkpoint checkpoint;
  ModelWeights weights;
  Decoder decoder;
};

std::map<std::string, Sequences> ReadIds(const std::string& file,
                                         const std::vector<std::string>& wanted) {
  std::map<std::string, Sequences> sets;
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    const Json row = Json::parse(line);
    const std::string set = row.value("set", "all");
    if (!wanted.empty() && std::find(wanted.begin(), wanted.end(), set) == wanted.end()) continue;
    sets[set].push_back(row.at("ids").get<std::vector<int32_t>>());
  }
  if (sets.empty()) {
    throw Error(ErrorCode::kData, {.where = file, .expected = "JSON lines {\"set\", \"ids\"}"});
  }
  return sets;
}

Json ReportOf(const std::vector<Fidelity>& blocks) {
  Fidelity total;
  std::vector<double> dlp;
  for (const Fidelity& block : blocks) {
    total.Add(block);
    dlp.push_back(block.mean_abs_logprob_difference());
  }
  return {{"positions", total.num_positions},
          {"dlp", total.mean_abs_logprob_difference()},
          {"kl", total.mean_kl()},
          {"perplexity", total.perplexity()},
          {"reference_perplexity", total.reference_perplexity()},
          {"blocks", dlp}};
}

void Run(int argc, char** argv) {
  std::string reference_dir, ids_file;
  std::vector<std::string> models, sets;
  int num_threads = 0;
  CLI::App app("Quality of quantised models");
  app.add_option("--reference", reference_dir, "BF16 model directory")->required();
  app.add_option("--ids", ids_file, "JSON lines of token ids")->required();
  app.add_option("--set", sets, "one of its sets, may be repeated; default: all")
      ->allow_extra_args(false);
  app.add_option("--threads", num_threads, "0: all CPUs");
  app.add_option("models", models, "quantised model directories")->required();
  app.parse(argc, argv);
  ThreadPool pool(num_threads);
  const OpContext ctx{pool};
  const Model reference(reference_dir);
  for (const std::string& directory : models) {
    const Model model(directory);
    for (const auto& [set, sequences] : ReadIds(ids_file, sets)) {
      Json report = ReportOf(CompareModels(ctx, reference.decoder, model.decoder, sequences));
      report["model"] = directory;
      report["set"] = set;
      std::printf("%s\n", report.dump().c_str());
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace quatrain

int main(int argc, char** argv) {
  try {
    quatrain::Run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
