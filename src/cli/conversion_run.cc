#include "cli/conversion_run.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "base/metrics.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

// Bytes that the states' files take on the disk (a file may be longer than what was written of it).
uint64_t StoredStateBytes(const fs::path& folder) {
  uint64_t bytes = 0;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    struct stat status = {};
    if (entry.path().extension() != ".bin" || stat(entry.path().c_str(), &status) != 0) continue;
    bytes += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

// Rows of the table that are done together.
struct Stage {
  std::string name = {};  // "embedding", "layer 3", "head"
  int64_t layer = -1;     // -1 outside the layers
  bool is_head = false;   // the last one, with the unknown tensors
  std::vector<size_t> rows = {};
};

std::vector<Stage> StagesOf(const std::vector<WeightSpec>& table, int64_t num_layers) {
  std::vector<Stage> stages(1);
  stages[0].name = "embedding";
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    stages.push_back({.name = fmt::format("layer {}", layer), .layer = layer});
  }
  stages.push_back({.name = "head", .is_head = true});
  bool is_behind_layers = false;
  for (size_t i = 0; i < table.size(); ++i) {
    const int64_t layer = table[i].layer;
    is_behind_layers = is_behind_layers || layer >= 0;
    const size_t stage = layer >= 0         ? static_cast<size_t>(layer) + 1
                         : is_behind_layers ? stages.size() - 1
                                            : 0;
    stages[stage].rows.push_back(i);
  }
  return stages;
}

int64_t NumLayersOf(const std::vector<WeightSpec>& table) {
  int64_t count = 0;
  for (const WeightSpec& spec : table) count = std::max(count, spec.layer + 1);
  return count;
}

uint64_t PeakMemoryBytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

std::string HashText(uint64_t hash) { return fmt::format("{:016x}", hash); }

Json ToJson(const Fidelity& fidelity) {
  return {{"positions", fidelity.num_positions},
          {"abs_logprob_difference", fidelity.abs_logprob_difference},
          {"kl", fidelity.kl},
          {"loss", fidelity.loss},
          {"reference_loss", fidelity.reference_loss}};
}

}  // namespace

struct ConversionRun::Parts {
  const ConversionJob& job;
  WorkFolder& work;
  ConversionJournal& journal;
  std::vector<WeightFormat> formats;
  std::vector<Stage> stages;
  ModelWeights weights;
  ModelWriter writer;
  // With calibration data only.
  std::optional<Decoder> decoder;
  std::optional<HiddenStates> states;
  std::optional<Calibration> calibration;
  std::optional<CalibrationTask> task;
  std::optional<HeldOut> heldout;
  int64_t num_rounded = 0, num_to_round = 0;  // for progress, without calibration

  Parts(const ConversionJob& a_job, WorkFolder& a_work, ConversionJournal& a_journal)
      : job(a_job),
        work(a_work),
        journal(a_journal),
        formats(FormatsOf(job.source.table(), job.plan)),
        stages(StagesOf(job.source.table(), NumLayersOf(job.source.table()))),
        weights(UnloadedWeights(job.source)),
        writer(
            job.source, job.source.table(), formats, work.output(),
            {.max_shard_bytes = job.config.max_shard_bytes, .shard_files = ShardFiles::kResumed}) {
    if (job.data != nullptr) PrepareCalibration();
    TakeUp();
  }

  void PrepareCalibration() {
    const ModelConfig& config = job.source.config();
    decoder.emplace(config, weights);
    std::vector<int64_t> tokens = Calibration::EntryTokens(*job.data, job.config.calibrate.method);
    const size_t num_entries = tokens.size();
    for (const int64_t count : HeldOut::EntryTokens(job.data->heldout)) tokens.push_back(count);
    states.emplace(std::move(tokens), config.hidden_size, work.path());
    task.emplace(CalibrationTask{config, job.plan, job.config.calibrate, *job.data, weights});
    calibration.emplace(job.ctx, *task, *decoder, *states, job.progress);
    heldout.emplace(job.ctx, *decoder, job.data->heldout, *states, num_entries);
  }

  // What earlier runs did.
  void TakeUp() {
    const size_t num_done = journal.stages().size();
    QT_CHECK(num_done <= stages.size());
    for (size_t i = 0; i < num_done; ++i) {
      for (const size_t row : stages[i].rows) writer.MarkWritten(weights[row].spec);
      if (stages[i].is_head) writer.MarkUnknownWritten();
      if (calibration && stages[i].layer >= 0) calibration->SkipLayer(stages[i].layer);
    }
    for (size_t i = num_done; i < stages.size(); ++i) {
      for (const size_t row : stages[i].rows) num_to_round += job.plan.is_quantized[row];
    }
    if (num_done == 0) return;
    work.Keep();
    // Behind the last layer nothing but the held-out text is read.
    if (states && num_done < stages.size()) states->Resume(static_cast<int64_t>(num_done) - 1);
  }

  uint64_t RemainingBytes() const {
    uint64_t bytes = 0;
    if (states) {
      bytes = 2 * states->size_bytes() +
              Calibration::StepBytes(job.source.config(), *job.data, job.config.calibrate.method);
      // What an earlier process left is read, or written again in its place.
      bytes -= std::min(bytes, StoredStateBytes(work.path()));
    }
    for (size_t i = journal.stages().size(); i < stages.size(); ++i) {
      for (const size_t row : stages[i].rows) bytes += StoredBytes(weights[row].spec, formats[row]);
      if (!stages[i].is_head) continue;
      for (const std::string& name : job.source.UnknownTensors()) {
        bytes += job.source.repo().tensors().Get(name).bytes.size();
      }
    }
    return bytes;
  }

  void Load(const Stage& stage) {
    for (const size_t row : stage.rows) {
      weights[row] = job.source.Load(weights[row].spec, at::kBFloat16);
      job.source.Release(weights[row].spec);
    }
  }

  void Release(size_t row) {
    weights[row].dense = at::Tensor();
    weights[row].codes = {};
  }

  // Writes a weight and notes its fingerprint and codes.
  void Store(size_t row, Json& record, std::vector<int64_t>& counts) {
    const Weight& weight = weights[row];
    record["hashes"][weight.spec.name] = HashText(writer.Write(weight));
    if (!weight.is_quantized()) return;
    const int lowest = -(1 << (weight.codes.num_bits - 1));
    for (const int8_t code : UnpackWeight(weight.codes)) {
      ++counts[static_cast<size_t>(code - lowest)];
    }
  }

  void RoundStage(const Stage& stage, Json& record, std::vector<int64_t>& counts) {
    for (const size_t row : stage.rows) {
      Load({.name = stage.name, .rows = {row}});
      if (job.plan.is_quantized[row]) {
        RoundWeight(job.ctx, job.plan.scheme, weights[row]);
      }
      Store(row, record, counts);
      Release(row);
      if (job.plan.is_quantized[row]) {
        job.progress(++num_rounded, num_to_round, stage.name);
      }
    }
  }

  void CalibrateStage(const Stage& stage, Json& record, std::vector<int64_t>& counts) {
    Load(stage);
    if (stage.layer >= 0) {
      heldout->RunReference(stage.layer);
      record["modules"] = Json::array();
      for (const ModuleReport& report : calibration->RunLayer(stage.layer)) {
        record["modules"].push_back(report.ToJson());
      }
      heldout->RunQuantized(stage.layer);
    } else if (!stage.is_head) {
      calibration->Embed();
      heldout->Embed();
    } else if (!job.data->heldout.empty()) {
      LoadTiedHead();
      record["fidelity"] = ToJson(heldout->Compare());
    }
    for (const size_t row : stage.rows) Store(row, record, counts);
    for (size_t row = 0; row < weights.size(); ++row) Release(row);
    if (!stage.is_head) states->Advance();
  }

  void LoadTiedHead() {
    Weight& head = weights[static_cast<size_t>(decoder->lm_head_index())];
    if (!head.dense.defined()) head = job.source.Load(head.spec, at::kBFloat16);
  }

  void RunStage(const Stage& stage) {
    const Timer timer;
    Json record = {{"stage", stage.name}, {"hashes", Json::object()}};
    std::vector<int64_t> counts(size_t{1} << job.plan.scheme.num_bits);
    if (job.data != nullptr) {
      CalibrateStage(stage, record, counts);
    } else {
      RoundStage(stage, record, counts);
    }
    if (stage.is_head) writer.WriteUnknown();
    writer.Sync();
    record["code_counts"] = counts;
    record["seconds"] = timer.seconds();
    record["peak_memory_bytes"] = PeakMemoryBytes();
    journal.Add(std::move(record));
    work.Keep();
    if (states) states->DropOlder();
  }

  // Every weight of the written directory against its recorded fingerprint.
  void CheckWritten() {
    const Checkpoint written(work.output(), UnknownFamily::kByNames);
    for (size_t i = 0; i < stages.size(); ++i) {
      const Json& hashes = journal.stages()[i].at("hashes");
      for (const size_t row : stages[i].rows) {
        const WeightSpec& spec = weights[row].spec;
        const std::string found = HashText(WeightHash(written.Load(spec, at::kBFloat16)));
        written.Release(spec);
        if (hashes.at(spec.name) == found) continue;
        throw Error(ErrorCode::kData,
                    {.where = work.output().string() + ": " + spec.name,
                     .what = "it does not read back as it was written",
                     .todo = "Disk or memory may be faulty. Pass --restart to begin anew."});
      }
    }
    for (const std::string& name : job.source.UnknownTensors()) {
      const TensorView& from = job.source.repo().tensors().Get(name);
      const TensorView& to = written.repo().tensors().Get(name);
      QT_CHECK(job.source.IsBlockFp8(from) || std::equal(from.bytes.begin(), from.bytes.end(),
                                                         to.bytes.begin(), to.bytes.end()),
               "{} reads back differently", name);
    }
  }
};

ConversionRun::ConversionRun(const ConversionJob& job, WorkFolder& work, ConversionJournal& journal)
    : parts_(new Parts(job, work, journal)) {}

ConversionRun::~ConversionRun() = default;

size_t ConversionRun::num_stages() const { return parts_->stages.size(); }

uint64_t ConversionRun::RemainingBytes() const { return parts_->RemainingBytes(); }

void ConversionRun::Run() {
  for (size_t i = parts_->journal.stages().size(); i < parts_->stages.size(); ++i) {
    parts_->RunStage(parts_->stages[i]);
  }
}

void ConversionRun::Finish(const ExportOptions& options) {
  parts_->writer.Finish(options);
  parts_->CheckWritten();
}

}  // namespace quatrain
