#include "io/tensor_set.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

// Names in a directory, sorted; empty if it cannot be read.
std::vector<std::string> NamesIn(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

bool IsMegatronName(std::string_view name) {
  const bool is_iteration = name.starts_with("iter_") && name.size() == 12 &&
                            name.find_first_not_of("0123456789", 5) == std::string_view::npos;
  return is_iteration || name == "latest_checkpointed_iteration.txt" || name == "common.pt" ||
         name == ".metadata" || name.ends_with(".distcp") || name.starts_with("mp_rank_");
}

// Why a directory has no safetensors, as far as names tell.
[[noreturn]] void ThrowNoTensors(const fs::path& directory) {
  ErrorParts parts = {.where = directory.string(),
                      .what = "no tensors",
                      .expected = fmt::format("{} or {}", kSingleName, kIndexName),
                      .found = "neither",
                      .todo = "Check that the download is complete."};
  for (const std::string& name : NamesIn(directory)) {
    const std::string extension = fs::path(name).extension().string();
    if (extension == ".safetensors") {
      parts.found = name + " without an index";
      parts.todo = fmt::format("Fetch {} too: it says which shards make the model.", kIndexName);
      break;
    }
    if (extension == ".bin" || extension == ".pt" || extension == ".pth") {
      parts.found = name + ", a PyTorch pickle, which can run code when it is read";
      parts.todo =
          "Write the model as safetensors first: in Python, "
          "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR, "
          "safe_serialization=True).";
    }
    if (extension == ".gguf") {
      parts.found = name + ", a GGUF file";
      parts.todo = "Take the Hugging Face directory that it was made from.";
    }
  }
  throw Error(ErrorCode::kData, parts);
}

// weight_map of an index: tensor name -> shard's file name.
std::map<std::string, std::string> ReadWeightMap(const fs::path& index_path) {
  const MappedFile file(index_path);
  CheckNotLfsPointer(file.bytes(), index_path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  const Json index = ParseJson(text, index_path.string());
  const auto weight_map = index.is_object() ? index.find("weight_map") : index.end();
  if (weight_map == index.end() || !weight_map->is_object() || weight_map->empty()) {
    throw Error(ErrorCode::kData, {.where = index_path.string(),
                                   .what = "no usable weight_map",
                                   .expected = "an object from tensor names to file names"});
  }
  std::map<std::string, std::string> shard_of;
  for (const auto& [name, shard] : weight_map->items()) {
    const std::string value = shard.is_string() ? shard.get<std::string>() : "";
    // A path would let an index reach outside of its directory.
    if (!value.ends_with(".safetensors") || value.find('/') != std::string::npos) {
      throw Error(ErrorCode::kData,
                  {.where = fmt::format("{}: tensor '{}'", index_path.string(), name),
                   .what = "bad shard name",
                   .expected = "the bare name of a .safetensors file",
                   .found = DumpJson(shard).substr(0, 200)});
    }
    shard_of[name] = value;
  }
  return shard_of;
}

void CheckShardsExist(const std::map<std::string, std::string>& shard_of,
                      const fs::path& directory) {
  std::map<std::string, std::string> first_tensor;  // by shard
  for (const auto& [name, shard] : shard_of) first_tensor.emplace(shard, name);
  std::vector<std::string> missing;
  for (const auto& [shard, name] : first_tensor) {
    if (!fs::exists(directory / shard)) missing.push_back(shard);
  }
  if (missing.empty()) return;
  throw Error(ErrorCode::kData,
              {.where = (directory / missing.front()).string(),
               .what = fmt::format(
                   "the shard is missing, with tensor '{}' ({} of {} shards of {} are missing)",
                   first_tensor[missing.front()], missing.size(), first_tensor.size(), kIndexName),
               .todo = "Fetch the missing files."});
}

}  // namespace

void CheckNotMegatron(const fs::path& directory) {
  for (const std::string& name : NamesIn(directory)) {
    if (!IsMegatronName(name)) continue;
    throw Error(
        ErrorCode::kData,
        {.where = directory.string(),
         .expected = "a Hugging Face model directory with config.json and safetensors",
         .found = fmt::format("a Megatron (torch_dist) checkpoint: it holds {}", name),
         .todo = "Pass the Hugging Face directory it was converted from, or convert it back first "
                 "(Megatron "
                 "Bridge's export, or tools/convert_torch_dist_to_hf.py of Miles and slime)."});
  }
}

TensorSet::TensorSet(const fs::path& path) : path_(path) {
  if (!fs::is_directory(path)) {
    OpenSingle(path);
  } else if (fs::exists(path / kSingleName)) {
    if (fs::exists(path / kIndexName)) {
      Log().warn("{}: has both {} and {}; the former is read", path.string(), kSingleName,
                 kIndexName);
    }
    OpenSingle(path / kSingleName);
  } else if (fs::exists(path / kIndexName)) {
    OpenShards(path / kIndexName);
  } else {
    CheckNotMegatron(path);
    ThrowNoTensors(path);
  }
}

void TensorSet::Add(const TensorView& tensor) {
  tensors_.push_back(tensor);
  index_.emplace(tensor.name, tensors_.size() - 1);
  total_bytes_ += tensor.bytes.size();
}

void TensorSet::OpenSingle(const fs::path& file) {
  files_.emplace_back(file);
  for (const TensorView& tensor : files_.back().tensors()) Add(tensor);
}

void TensorSet::OpenShards(const fs::path& index_path) {
  const auto shard_of = ReadWeightMap(index_path);
  CheckShardsExist(shard_of, path_);
  std::set<std::string> shards;
  for (const auto& [name, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    files_.emplace_back(path_ / shard);
    std::vector<std::string> unlisted;
    for (const TensorView& tensor : files_.back().tensors()) {
      const auto listed = shard_of.find(tensor.name);
      if (listed != shard_of.end() && listed->second == shard) {
        Add(tensor);
      } else {
        unlisted.push_back(tensor.name);
      }
    }
    if (!unlisted.empty()) {
      Log().warn("{}: {} tensors that {} does not place here are left out (the first: '{}')",
                 (path_ / shard).string(), unlisted.size(), kIndexName, unlisted.front());
    }
  }
  for (const auto& [name, shard] : shard_of) {
    if (index_.contains(name)) continue;
    throw Error(
        ErrorCode::kData,
        {.where = fmt::format("{}: tensor '{}'", (path_ / shard).string(), name),
         .what = fmt::format("{} places it in this shard, which does not hold it", kIndexName),
         .todo = "Index and shards are of different exports: fetch all of them again."});
  }
}

const TensorView* TensorSet::Find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

const TensorView& TensorSet::Get(std::string_view name) const {
  const TensorView* const tensor = Find(name);
  if (tensor != nullptr) return *tensor;
  throw Error(ErrorCode::kData,
              {.where = fmt::format("{}: tensor '{}'", path_.string(), name),
               .what = fmt::format("missing among the {} tensors", tensors_.size())});
}

}  // namespace quatrain
