#include "rl/run_folder.h"

#include <system_error>

#include "base/error.h"
#include "base/file.h"

namespace quatrain {
namespace {

namespace fs = std::filesystem;

bool HoldsModel(const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".safetensors") return true;
  }
  return fs::exists(folder / "model.safetensors.index.json");
}

bool HoldsRun(const fs::path& folder) {
  std::error_code absent;
  const auto size = fs::file_size(folder / "metrics.jsonl", absent);
  return (!absent && size > 0) || fs::exists(folder / "latest_checkpointed_iteration.txt");
}

bool IsSameFolder(const fs::path& a, const fs::path& b) {
  std::error_code absent;
  return fs::equivalent(a, b, absent);
}

[[noreturn]] void Refuse(const fs::path& save, const char* found, const std::string& todo) {
  throw Error(ErrorCode::kUsage, {.where = "--save " + save.string(),
                                  .what = "the folder is in use",
                                  .expected = "a new or empty folder",
                                  .found = found,
                                  .todo = todo});
}

}  // namespace

void PrepareRunFolder(const fs::path& save, const fs::path& load) {
  std::error_code error;
  if (fs::is_directory(save, error)) {
    if (HoldsModel(save)) Refuse(save, "a model", "Choose another folder");
    if (HoldsRun(save) && !IsSameFolder(save, load)) {
      Refuse(
          save, "another run",
          fmt::format("Choose another folder, or go on with that run by --load {}", save.string()));
    }
  } else {
    fs::create_directories(save, error);
    if (error) {
      throw Error(ErrorCode::kIo, {.where = "--save " + save.string(),
                                   .what = "cannot create the folder (" + error.message() + ")",
                                   .todo = "Choose another place"});
    }
  }
  CheckCanWrite(save / "config.json");
}

}  // namespace quatrain
